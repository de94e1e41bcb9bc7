"""Counts of what a replica does: kept here, and handed to Ray's metrics where it runs on Ray."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from typing import Any, Final

log = logging.getLogger("raysys")

Key = tuple[str, tuple[tuple[str, str], ...]]

NAMES: Final = {
    "raysys_answers": "Lists answered, by surface and whether they were degraded.",
    "raysys_left_out": "Members left out of an answer, by name and reason.",
    "raysys_cache": "Lists by how the cache knew them: hit, stale, miss, shared, remote, off.",
    "raysys_cache_faults": "Failed calls of the shared cache.",
    "raysys_shed": "Requests refused for want of time or room.",
    "raysys_exposures": "Exposures by what became of them: written, dropped, failed.",
}
_PERIOD_S = 2.0


class Metrics:
    """Counters; safe to use from several threads.

    Args:
        on_ray: hand the counts on to `ray.util.metrics` every two seconds.
    """

    def __init__(self, *, on_ray: bool = False) -> None:
        self._counts: Counter[Key] = Counter()
        self._told: Counter[Key] = Counter()
        self._counters: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        if on_ray:
            threading.Thread(target=self._report, name="metrics", daemon=True).start()

    def count(self, name: str, amount: int = 1, **tags: str) -> None:
        """Add to a counter of `NAMES`."""
        key = (name, tuple(sorted(tags.items())))
        with self._lock:
            self._counts[key] += amount

    def read(self) -> dict[str, dict[str, int]]:
        """Counts by name, then by the values of their tags, joined by commas."""
        found: dict[str, dict[str, int]] = {}
        with self._lock:
            for (name, tags), amount in sorted(self._counts.items()):
                found.setdefault(name, {})[",".join(value for _, value in tags)] = amount
        return found

    def close(self) -> None:
        """Report no more."""
        self._ended.set()

    def _report(self) -> None:
        while not self._ended.wait(_PERIOD_S):
            try:
                self._hand_on()
            except Exception:  # an answer is worth more than its count
                log.exception("counts were not handed on to Ray")

    def _hand_on(self) -> None:
        from ray.util.metrics import Counter as RayCounter

        with self._lock:
            news = self._counts - self._told
            self._told = self._counts.copy()
        for (name, tags), amount in news.items():
            if name not in self._counters:
                keys = tuple(tag for tag, _ in tags)
                self._counters[name] = RayCounter(name, NAMES[name], tag_keys=keys)
            self._counters[name].inc(amount, tags=dict(tags))
