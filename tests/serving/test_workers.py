"""A short queue, the urgent first, and an honest no beyond it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import Any

import pytest
from fastapi.testclient import TestClient

from raysys.serving.app import http_app
from raysys.serving.problems import Problem
from raysys.serving.service import Service
from raysys.serving.workers import BACKGROUND, NORMAL, URGENT, Workers


class Held:
    """Workers of one thread that is held until told."""

    def __init__(self, max_waiting: int) -> None:
        self.workers = Workers(1, max_waiting)
        self.go, begun = threading.Event(), threading.Event()
        self.done: list[str] = []

        def hold() -> None:
            begun.set()
            self.go.wait(20)

        self.first = self.workers.submit(hold)
        assert begun.wait(20)

    def add(self, name: str, priority: int, **more: Any) -> Future[None]:
        return self.workers.submit(lambda: self.done.append(name), priority, **more)


def test_the_urgent_go_first_and_equals_in_their_order() -> None:
    held = Held(10)
    given = [("b1", BACKGROUND), ("n1", NORMAL), ("u1", URGENT), ("n2", NORMAL), ("u2", URGENT)]
    futures = [held.add(name, priority) for name, priority in given]
    held.go.set()
    for future in futures:
        future.result(20)
    assert held.done == ["u1", "u2", "n1", "n2", "b1"]
    held.workers.close()


def test_beyond_the_queue_the_least_urgent_is_refused() -> None:
    held = Held(2)
    waiting = held.add("b1", BACKGROUND)
    also = held.add("n1", NORMAL)
    with pytest.raises(Problem) as refused:
        held.add("b2", BACKGROUND)
    assert refused.value.status == 503 and (refused.value.retry_after_s or 0) >= 1
    urgent = held.add("u1", URGENT)  # takes the place of the background call
    with pytest.raises(Problem) as evicted:
        waiting.result(20)
    assert evicted.value.status == 503 and held.workers.shed == 2
    held.go.set()
    urgent.result(20)
    also.result(20)
    assert held.done == ["u1", "n1"]
    held.workers.close()


def test_who_has_gone_is_not_worked_for() -> None:
    held = Held(5)
    gone = held.add("gone", NORMAL)
    assert gone.cancel()
    late = held.add("late", NORMAL, until=time.perf_counter() - 5)
    stays = held.add("stays", BACKGROUND)
    held.go.set()
    stays.result(20)
    assert held.done == ["stays"] and isinstance(late.exception(20), Problem)
    held.workers.close()


def test_a_fault_is_the_asker_s_and_the_thread_goes_on() -> None:
    workers = Workers(1, 5)

    def broken() -> None:
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        workers.submit(broken).result(20)
    assert workers.submit(lambda: 3).result(20) == 3
    workers.close()
    with pytest.raises(Problem):
        workers.submit(int)


def test_overload_is_a_503_with_retry_after(service: Service) -> None:
    held = Held(1)
    waiting = held.add("n1", NORMAL)
    before, service.workers = service.workers, held.workers
    client = TestClient(http_app(service), raise_server_exceptions=False)
    try:
        body = {"user_id": "u1", "k": 3}
        response = client.post("/v1/recommend", json=body, headers={"X-Priority": "background"})
        assert response.status_code == 503 and int(response.headers["retry-after"]) >= 1
        assert response.json()["type"] == "urn:raysys:problem:overloaded"
        assert service.metrics.read()["raysys_shed"]["overloaded"] >= 1
        said = {"content-type": "application/json"}
        unread = client.post("/v1/rank", content=b"{", headers=said)
        assert unread.status_code == 503
        assert client.post("/v1/search", json={"query": ""}).status_code == 422  # this one is
        counts = service.metrics.read()["raysys_requests"]
        assert counts["/v1/recommend,503"] == counts["/v1/rank,503"] == 1
        assert client.get("/healthz").status_code == 200  # needs no thread
        threading.Timer(0.05, held.go.set).start()
        answer = client.post("/v1/search", json={"query": "milk", "k": 3})
        assert answer.status_code == 200  # somebody is typing: the list that waited has to go
        assert isinstance(waiting.exception(20), Problem)
    finally:
        held.go.set()
        service.workers = before
