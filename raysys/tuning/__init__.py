"""Searching a learner's settings: typed spaces, Optuna and ASHA over Ray Tune, a report."""
