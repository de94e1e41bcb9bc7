"""Metrics of rankings and probabilities, intervals, slices, the report."""
