"""Benchmarks: each `NAME.py` measures something and writes `results/NAME.json`."""
