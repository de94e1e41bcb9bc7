"""Counts are kept, and handed on to Ray as what was added since."""

from __future__ import annotations

from typing import Any

import pytest

from raysys.serving.metrics import NAMES, Metrics


def test_ray_is_told_what_was_added(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.util import metrics as of_ray

    told: list[tuple[str, float, dict[str, str]]] = []

    class Counter(of_ray.Counter):
        def inc(self, value: float = 1.0, tags: Any = None) -> None:
            told.append((self.info["name"], value, tags))
            super().inc(value, tags)

    monkeypatch.setattr(of_ray, "Counter", Counter)
    metrics = Metrics()
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
