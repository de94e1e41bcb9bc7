"""What one replica knows of its own traffic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.serving.traffic import Traffic


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.floats(0.1, 5000), min_size=1, max_size=300))
def test_percentiles_are_within_a_bin(latencies: list[float]) -> None:
    traffic = Traffic(Clock())
    for spent in latencies:
        traffic.note("/v1/rank", spent, 200, degraded=False)
    (facts,) = traffic.facts()
    for share, found in ((50, facts.p50_ms), (99, facts.p99_ms)):
        exact = np.percentile(latencies, share, method="inverted_cdf")
        assert found == pytest.approx(exact, rel=0.055)


def test_rates_and_shares_are_of_the_last_minute() -> None:
    clock = Clock()
    traffic = Traffic(clock)
    for second in range(120):
        clock.now = 100.0 + second
        for at in range(4):
            traffic.note(
                "/v1/search", 10, 503 if at == 0 else 200, degraded=at == 1 and second > 89
            )
        traffic.note("/v1/rank", 1, 200, degraded=False)
    search, rank = traffic.facts()
    assert (search.call, rank.call) == ("/v1/search", "/v1/rank")
    assert search.per_second == pytest.approx(4)
    assert search.failed == pytest.approx(0.25) and search.degraded == pytest.approx(0.125)
    clock.now += 61
    assert traffic.facts() == []


def test_a_young_replica_does_not_understate_its_rate() -> None:
    clock = Clock()
    traffic = Traffic(clock)
    clock.now += 5
    for _ in range(50):
        traffic.note("/v1/rank", 1, 200, degraded=False)
    assert traffic.facts()[0].per_second == pytest.approx(10)
