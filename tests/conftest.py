"""For all tests: fast ones first, so that a broken basis shows at once."""

from __future__ import annotations

import os
import signal
import sys

import pytest
from hypothesis import HealthCheck, settings

# A busy machine draws slowly: that is no fault of a test. Each says itself how many examples.
settings.register_profile("raysys", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("raysys")

# Explicit, as Ray's default differs between `ray start` (open) and `ray.init` (token).
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

# A shell starts background jobs with Ctrl-C ignored, and children inherit that: tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)  # sort is stable


def pytest_collection_finish() -> None:
    """One thread for tiny models: several would wait for each other longer than they work."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
