"""Suites of learners run here once more, on one Ray of their own."""

from tests.learners.suite import ray

__all__ = ["ray"]
