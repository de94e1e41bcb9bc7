"""For all tests: fast ones first, so that a broken basis shows at once."""

from __future__ import annotations

import atexit
import logging
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


_outcome: list[int] = []


@atexit.register  # the first to be registered is the last to be called
def _leave() -> None:
    """End without the native libraries' own exit handlers, where Ray was here.

    From a process's second session on, Ray leaves a thread that sends metrics: when it wakes
    after `exit` took down what it uses, the process dies of it, whatever the tests said. (Ray's
    `OpenTelemetryMetricRecorder::Shutdown` shuts down a provider that stays shut.)
    """
    if _outcome and "ray" in sys.modules:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_outcome[-1])


def pytest_unconfigure(config: pytest.Config) -> None:
    """Keep what pytest is about to exit with; its helpers (xdist's workers) end as they like."""
    session = config.pluginmanager.get_plugin("session")
    if session is not None and not hasattr(config, "workerinput"):
        _outcome.append(int(session.exitstatus))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)  # sort is stable


def pytest_collection_finish() -> None:
    """One thread for tiny models: several would wait for each other longer than they work."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
