"""What one replica knows of its own traffic."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st

from raysys.serving.admission import MAX_BODY
from raysys.serving.app import http_app
from raysys.serving.args import ServeArgs
from raysys.serving.metrics import Metrics
from raysys.serving.service import Service
from raysys.serving.traffic import Traffic, Watched
from raysys.serving.workers import Workers
from tests.serving.test_auth import Clothed


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


def test_who_leaves_before_the_answer_is_no_fault_of_ours() -> None:
    traffic, metrics = Traffic(Clock()), Metrics()

    async def never(*_: Any) -> None:
        await asyncio.Event().wait()

    async def leave() -> None:
        scope = {"type": "http", "method": "POST", "path": "/v1/rank", "headers": []}
        watched = Watched(never, traffic, lambda: metrics)
        call = asyncio.ensure_future(watched(scope, never, never))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(leave())
    assert metrics.read()["raysys_requests"] == {"/v1/rank,499": 1}
    assert traffic.facts()[0].failed == 0


def test_refusals_are_counted_too_once_and_by_their_route(service: Service) -> None:
    own = Clothed(service, ServeArgs.model_validate(service.args.model_dump()))
    own.metrics, own.workers = Metrics(), Workers(1, 8)
    app = http_app(own)
    here = TestClient(app, raise_server_exceptions=False)
    far = TestClient(app, client=("203.0.113.9", 5), raise_server_exceptions=False)

    def chunks() -> Iterator[bytes]:  # no content-length
        for _ in range(40):
            yield b"x" * (MAX_BODY // 20)

    said = {"content-type": "application/json"}
    assert far.get("/v1/users/u1/profile").status_code == 403
    assert here.post("/v1/search", content=b"x", headers={"content-type": "text/plain"}).is_error
    assert here.post("/v1/search", content=chunks(), headers=said).status_code == 413
    assert here.get("/v1/nothing").status_code == here.get("/v2/rank").status_code == 404
    answer = here.post("/v1/rank", json={"user_id": "u1", "item_ids": ["i00001"]})
    assert answer.is_success, answer.text
    assert own.metrics.read()["raysys_requests"] == {
        "/v1/users/{user_id:path}/profile,403": 1,
        "/v1/search,415": 1,
        "/v1/search,413": 1,
        "/v1/rank,200": 1,
    }
    own.workers.close()
