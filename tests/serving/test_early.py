"""Lists that are refused before Ray Serve looks at them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from ray.serve._private.http_util import validate_http_proxy_callback_return
from starlette.types import Receive, Scope, Send

from raysys.serving.app import http_app
from raysys.serving.args import ServeArgs
from raysys.serving.early import EarlyRefusal, middlewares, open_room
from raysys.serving.metrics import Metrics
from raysys.serving.service import Service
from raysys.serving.workers import BACKGROUND, NORMAL, Workers
from tests.serving.test_auth import Clothed
from tests.serving.test_workers import Held

ASKED = {"user_id": "u1", "k": 3}
SHOP = {"Origin": "https://shop.example"}


class Replica:
    """An application behind the middleware, its one thread held, with room for one that waits.

    Attributes:
        called: paths of what reached the application.
    """

    def __init__(self, service: Service, **args: Any) -> None:
        self.service = Clothed(
            service, ServeArgs.model_validate({**service.args.model_dump(), **args})
        )
        self.held = Held(1)
        self.service.workers, self.service.metrics = self.held.workers, Metrics()
        self.app: FastAPI = http_app(self.service)
        self.called: list[str] = []
        (made,) = validate_http_proxy_callback_return(middlewares())
        self.front = made.cls(self._inner, *made.args, **made.kwargs)
        open_room(self.app.state.room)

    async def _inner(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.called.append(scope["path"])
        await self.app(scope, receive, send)

    def fill(self, priority: int = NORMAL) -> None:
        """Let one wait, and as many be under way as may."""
        self.held.add("waits", priority)
        self.front.inside = 3

    def ask(self, path: str, **headers: str) -> Any:
        client = TestClient(self.front, raise_server_exceptions=False)
        return client.post(path, json=ASKED, headers=headers)


@pytest.fixture
def replica(service: Service) -> Iterator[Replica]:
    found = Replica(service)
    yield found
    open_room(None)
    found.held.go.set()
    found.held.workers.close()


def test_a_list_without_room_never_reaches_what_is_behind(replica: Replica) -> None:
    replica.fill()
    early = replica.ask("/v1/rank")
    assert early.status_code == 503 and replica.called == []
    late = TestClient(replica.app).post("/v1/rank", json=ASKED)
    assert early.content == late.content
    assert early.headers == late.headers
    counted = replica.service.metrics.read()
    assert counted["raysys_shed"] == {"overloaded": 2}
    assert counted["raysys_requests"] == {"/v1/rank,503": 2}


def test_what_has_room_or_is_no_list_passes(replica: Replica) -> None:
    assert replica.ask("/v1/nothing").status_code == 404
    replica.fill()
    client = TestClient(replica.front)
    assert client.get("/healthz").status_code == 200
    assert replica.ask("/v1/events", **SHOP).status_code != 503
    replica.held.go.set()
    replica.service.workers, replica.front.inside = Workers(1, 1), 2
    assert replica.ask("/v1/recommend").status_code == 200
    assert replica.called == ["/v1/nothing", "/healthz", "/v1/events", "/v1/recommend"]
    replica.service.workers.close()


def test_who_is_more_urgent_than_one_who_waits_passes(replica: Replica) -> None:
    replica.fill(BACKGROUND)
    assert replica.ask("/v1/rank", **{"X-Priority": "background"}).status_code == 503
    assert replica.called == []
    replica.held.go.set()
    assert replica.ask("/v1/rank").status_code != 503
    assert replica.called == ["/v1/rank"]


def test_a_prefix_of_the_deployment_is_no_part_of_a_list_s_name(replica: Replica) -> None:
    replica.fill()
    assert replica.ask("/shop/v1/rank").status_code == 503
    assert replica.called == []


def test_pages_of_other_origins_are_refused_where_their_headers_are_made(service: Service) -> None:
    replica = Replica(service, cors_origins=list(SHOP.values()))
    replica.fill()
    refused = replica.ask("/v1/rank", **SHOP)
    assert refused.status_code == 503 and replica.called == ["/v1/rank"]
    assert refused.headers["access-control-allow-origin"] == SHOP["Origin"]
    assert replica.ask("/v1/rank").status_code == 503 and len(replica.called) == 1
    open_room(None)
    replica.held.go.set()
    replica.held.workers.close()


def test_lists_on_their_way_count_as_those_that_wait(replica: Replica) -> None:
    """One is in work, one may wait and another one be on its way: there is no room for a fourth."""
    statuses: list[int] = []

    async def run() -> None:
        go = asyncio.Event()

        async def slow(scope: Scope, receive: Receive, send: Send) -> None:
            await go.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})

        front = EarlyRefusal(slow)

        async def ask() -> None:
            async def send(message: Any) -> None:
                if message["type"] == "http.response.start":
                    statuses.append(message["status"])

            scope = {"type": "http", "method": "POST", "path": "/v1/rank", "headers": []}
            await front(scope, lambda: asyncio.sleep(0, {}), send)

        inside = [asyncio.create_task(ask()) for _ in range(3)]
        await asyncio.sleep(0)
        await ask()
        assert statuses == [503]
        go.set()
        await asyncio.gather(*inside)
        await ask()

    asyncio.run(run())
    assert statuses == [503, 200, 200, 200, 200]


def test_without_a_room_everything_passes(replica: Replica) -> None:
    replica.fill()
    open_room(None)  # as in Serve's proxies
    assert replica.ask("/v1/rank").status_code == 503  # by the application itself
    assert replica.called == ["/v1/rank"]


def test_proxies_import_next_to_nothing_for_it() -> None:
    code = "import raysys.serving.early, sys; print('numpy' in sys.modules, 'ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "False"]
