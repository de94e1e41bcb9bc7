"""Smaller and faster ways to run a transformer that is done with training, and what they cost."""
