"""What a replica does in numbers: kept here, and handed to Ray's metrics where it runs on Ray."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

log = logging.getLogger("raysys")

Key = tuple[str, tuple[tuple[str, str], ...]]

NAMES: Final = {
    "raysys_answers": "Lists answered, by surface and whether they were degraded.",
    "raysys_left_out": "Members left out of an answer, by name and reason.",
    "raysys_cache": "Lists by how the cache knew them: hit, stale, miss, shared, remote, off.",
    "raysys_cache_faults": "Failed calls of the shared cache.",
    "raysys_shed": "Requests refused for want of time or room.",
    "raysys_shown_lists": "Shown lists by what became of their records: written, dropped, failed.",
    "raysys_exposures": "Exposures by what became of them: written, dropped, failed.",
    "raysys_arm_answers": "Lists by surface, experiment, arm and status: ok, degraded, failed.",
    "raysys_arm_events": "Events joined to lists, by surface, experiment, arm and type.",
    "raysys_requests": "Requests answered, by route and status.",
    "raysys_drift_answers": "Answers drawn to watch drift: counted, dropped, failed.",
    "raysys_events": "Events by what became of them: accepted, duplicate, rejected, quarantined.",
}
"""Counters. Prometheus sees each as `ray_NAME_total`."""

SECONDS: Final = {
    "raysys_request_seconds": "From a request's arrival to its answer, by route.",
    "raysys_stage_seconds": "Of one stage of a list, such as candidates, features or a learner.",
    "raysys_arm_seconds": "From the start of a list to its end, by experiment and arm.",
    "raysys_batch_wait_seconds": "That a call of the transformer waited for its batch, by kind.",
}
SIZES: Final = {
    "raysys_batch_size": "Inputs that went through a transformer at once, by kind.",
}
_TAGS: Final = {
    "raysys_request_seconds": ("route",),
    "raysys_stage_seconds": ("stage",),
    "raysys_arm_seconds": ("arm", "experiment"),
    "raysys_batch_wait_seconds": ("kind",),
    "raysys_batch_size": ("kind",),
}
"""Histograms. Prometheus sees each as `ray_NAME_bucket`, `_sum` and `_count`."""

GAUGES: Final = {
    "raysys_event_lag_seconds": "From an event's arrival until this replica's state counted it.",
    "raysys_state_age_seconds": "Since the newest event that this replica's state holds.",
    "raysys_drift": "1 if what is served has drifted from the training data, by the thresholds.",
    "raysys_drift_psi": "Stability index of a feature or score; of those that moved furthest.",
    "raysys_drift_psi_max": "The largest of all features, and of all scores.",
    "raysys_drift_features_over": "Share of the features whose index is over the threshold.",
    "raysys_drift_missing_rise_max": "Largest rise of a feature's share of missing values.",
    "raysys_drift_missing": "Share of a feature's values that are missing, in the window.",
    "raysys_drift_window_answers": "Answers of all replicas in the window that drift is told of.",
    "raysys_outcome_rate": "Rate of an outcome, such as clicks of what was shown, by surface.",
    "raysys_outcome_change": "Relative change of it against the training, or the window before.",
    "raysys_feedback_age_seconds": "Since outcomes were last computed.",
    "raysys_bundle": "1 while the bundle answers by the name that it was chosen by, else 0.",
}
"""Read when they are handed on. Prometheus sees each as `ray_NAME`."""

BOUNDS: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05),
    *(0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0),
)
"""Upper ends of the histograms' bins, in seconds: fine around what people notice."""

SIZE_BOUNDS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
"""Upper ends of the bins of batches."""

_PERIOD_S = 2.0
_MOST = 100_000  # observations between two reports; beyond that they are dropped, and counted


class Metrics:
    """Counters, histograms of seconds, and gauges; safe to use from several threads.

    Args:
        on_ray: hand them on to `ray.util.metrics` every two seconds; nothing on an answer's way
            waits for that. Without Ray only counters are kept.
    """

    def __init__(self, *, on_ray: bool = False) -> None:
        self._counts: Counter[Key] = Counter()
        self._told: Counter[Key] = Counter()
        self._on_ray = on_ray
        self._of_ray: dict[str, Any] = {}
        self._seconds: list[tuple[Key, float]] = []
        self._gauges: list[tuple[Key, Callable[[], float | None]]] = []
        self._afterwards: dict[Key, float] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        if on_ray:
            threading.Thread(target=self._report, name="metrics", daemon=True).start()

    def count(self, name: str, amount: int = 1, **tags: str) -> None:
        """Add to a counter of `NAMES`."""
        key = (name, _sorted(tags))
        with self._lock:
            self._counts[key] += amount

    def observe(self, name: str, seconds: float, **tags: str) -> None:
        """Add to a histogram of `SECONDS`, or a number to one of `SIZES`."""
        if self._on_ray and len(self._seconds) < _MOST:
            self._seconds.append(((name, _sorted(tags)), seconds))

    def gauge(
        self,
        name: str,
        read: Callable[[], float | None],
        afterwards: float | None = None,
        /,
        **tags: str,
    ) -> None:
        """Have a gauge of `GAUGES` read whenever it is handed on.

        Args:
            name: of the gauge.
            read: its value; None: it says nothing now.
            afterwards: its value once these metrics are closed, as the process may go on; None:
                it keeps the last one.
            tags: by name.
        """
        key = (name, _sorted(tags))
        self._gauges.append((key, read))
        if afterwards is not None:
            self._afterwards[key] = afterwards

    def read(self) -> dict[str, dict[str, int]]:
        """Counts by name, then by the values of their tags, joined by commas."""
        return _by_name(self.counts())

    def gauges(self) -> dict[Key, float]:
        """Values by name and sorted tags, of those that say something now."""
        if self._ended.is_set():
            return dict(self._afterwards)
        values = {key: read() for key, read in self._gauges}
        return {key: value for key, value in values.items() if value is not None}

    def counts(self) -> Counter[Key]:
        """Counts by name and sorted tags."""
        with self._lock:
            return self._counts.copy()

    @property
    def ended(self) -> bool:
        """Whether these are closed."""
        return self._ended.is_set()

    def close(self) -> None:
        """Report no more, but what gauges are from now on."""
        self._ended.set()
        self._gauges = []  # whoever keeps the counts must not keep what gauges read

    def _report(self) -> None:
        self._prepare()
        while not self._ended.wait(_PERIOD_S):
            try:
                self._hand_on()
            except Exception:  # an answer is worth more than its count
                log.exception("counts were not handed on to Ray")
        with contextlib.suppress(Exception):  # Ray may have ended before
            self._hand_on()

    def _prepare(self) -> None:
        """Make the histograms: what Ray is told in a metric's first moments may be lost."""
        from ray.util.metrics import Histogram

        for name, tags in _TAGS.items():
            self._histogram(Histogram, (name, tuple((tag, "") for tag in tags)))

    def _hand_on(self) -> None:
        from ray.util import metrics as ray_metrics

        with self._lock:
            news = self._counts - self._told
            self._told = self._counts.copy()
        for key, amount in news.items():
            self._metric(ray_metrics.Counter, NAMES, key).inc(amount, tags=dict(key[1]))
        seconds, self._seconds = self._seconds, []
        for key, spent in seconds:
            histogram = self._histogram(ray_metrics.Histogram, key)
            histogram.observe(spent, tags=dict(key[1]))
        for key, value in self.gauges().items():
            self._metric(ray_metrics.Gauge, GAUGES, key).set(value, tags=dict(key[1]))

    def _histogram(self, kind: Any, key: Key) -> Any:
        of_sizes = key[0] in SIZES
        names, bounds = (SIZES, SIZE_BOUNDS) if of_sizes else (SECONDS, BOUNDS)
        return self._metric(kind, names, key, boundaries=list(bounds))

    def _metric(self, kind: Any, names: Mapping[str, str], key: Key, **more: Any) -> Any:
        """Ray's metric of a name, made when it is first told something."""
        name, tags = key
        if name not in self._of_ray:
            keys = tuple(tag for tag, _ in tags)
            self._of_ray[name] = kind(name, names[name], tag_keys=keys, **more)
        return self._of_ray[name]


class Sums:
    """Counts of several metrics together, also of those that have ended; thread-safe."""

    def __init__(self) -> None:
        self._known: list[Metrics] = []
        self._past: Counter[Key] = Counter()
        self._lock = threading.Lock()

    def add(self, metrics: Metrics) -> None:
        """Count these as well, from now on and after their end."""
        with self._lock:
            for each in [each for each in self._known if each.ended]:
                self._known.remove(each)
                self._past += each.counts()
            self._known.append(metrics)

    def leave_out(self, metrics: Metrics) -> None:
        """These do not count."""
        with self._lock:
            self._known = [each for each in self._known if each is not metrics]

    def read(self) -> dict[str, dict[str, int]]:
        """As `Metrics.read`."""
        with self._lock:
            counts = self._past.copy()
            for each in self._known:
                counts += each.counts()
        return _by_name(counts)


def _by_name(counts: Counter[Key]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for (name, tags), amount in sorted(counts.items()):
        found.setdefault(name, {})[",".join(value for _, value in tags)] = amount
    return found


def _sorted(tags: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(tags.items()) if len(tags) > 1 else tags.items())
