"""Counts are kept, and handed on to Ray as what was added since."""

from __future__ import annotations

from typing import Any

import pytest

from raysys.serving.metrics import GAUGES, NAMES, SECONDS, SIZES, Metrics, Sums


def test_ray_is_told_what_was_added(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.util import metrics as of_ray

    told: list[tuple[str, float, dict[str, str]]] = []

    class Counter(of_ray.Counter):
        def inc(self, value: float = 1.0, tags: Any = None) -> None:
            told.append((self.info["name"], value, tags))
            super().inc(value, tags)

    monkeypatch.setattr(of_ray, "Counter", Counter)
    metrics = Metrics()  # it would hand on by itself, at its own time
    for result in ("hit", "hit", "miss"):
        metrics.count("raysys_cache", result=result)
    metrics._hand_on()
    metrics.count("raysys_cache", 3, result="hit")
    metrics.count("raysys_left_out", member="two_tower", reason="deadline")
    metrics._hand_on()
    metrics._hand_on()
    assert told == [
        ("raysys_cache", 2, {"result": "hit"}),
        ("raysys_cache", 1, {"result": "miss"}),
        ("raysys_cache", 3, {"result": "hit"}),
        ("raysys_left_out", 1, {"member": "two_tower", "reason": "deadline"}),
    ]
    assert metrics.read() == {
        "raysys_cache": {"hit": 5, "miss": 1},
        "raysys_left_out": {"two_tower,deadline": 1},
    }
    assert set(metrics.read()) <= set(NAMES)


def test_sums_keep_what_has_ended() -> None:
    sums, one, two = Sums(), Metrics(), Metrics()
    sums.add(one)
    one.count("raysys_cache", 2, result="hit")
    one.gauge("raysys_bundle", lambda: 1.0, 0.0, arm="champion")
    assert sums.read() == {"raysys_cache": {"hit": 2}}
    one.close()
    assert one.gauges() == {("raysys_bundle", (("arm", "champion"),)): 0.0}
    assert not one._gauges  # what they read is free to go
    sums.add(two)
    two.count("raysys_cache", result="hit")
    two.count("raysys_cache", result="miss")
    third = Metrics()
    sums.add(third)
    third.count("raysys_cache", result="hit")
    sums.leave_out(third)
    for _ in range(2):
        assert sums.read() == {"raysys_cache": {"hit": 3, "miss": 1}}


def test_ray_is_told_seconds_and_gauges(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.util import metrics as of_ray

    told: list[tuple[str, float, dict[str, str]]] = []

    class Histogram(of_ray.Histogram):
        def observe(self, value: float, tags: Any = None) -> None:
            told.append((self.info["name"], value, tags))

    class Gauge(of_ray.Gauge):
        def set(self, value: float | None, tags: Any = None) -> None:
            told.append((self.info["name"], value or 0.0, tags))

    monkeypatch.setattr(of_ray, "Histogram", Histogram)
    monkeypatch.setattr(of_ray, "Gauge", Gauge)
    monkeypatch.setattr(Metrics, "_report", lambda self: None)
    metrics, lag = Metrics(on_ray=True), [None, 2.5]
    metrics.gauge("raysys_event_lag_seconds", lambda: lag.pop(0))
    metrics.observe("raysys_request_seconds", 0.02, route="/v1/rank")
    metrics._hand_on()
    assert told == [("raysys_request_seconds", 0.02, {"route": "/v1/rank"})]
    metrics._hand_on()  # what was told is not told again
    assert told[1:] == [("raysys_event_lag_seconds", 2.5, {})]
    alone = Metrics()
    alone.observe("raysys_request_seconds", 0.02, route="/v1/rank")
    assert not alone._seconds  # nobody would ever take them away


def test_ray_takes_what_they_say() -> None:
    """Its metrics refuse descriptions that are not ASCII, and with them all observations."""
    assert all(
        said.isascii() for names in (NAMES, SECONDS, SIZES, GAUGES) for said in names.values()
    )
    Metrics()._prepare()
