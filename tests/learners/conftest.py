"""One Ray for all slow tests of learners: to start and stop it takes longer than most of them."""

from tests.learners.suite import ray

__all__ = ["ray"]
