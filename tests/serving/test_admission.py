"""A list for which there is no room: what is looked at before it is refused, and what is not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from limits import RateLimitItemPerHour
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from raysys.serving import limits
from raysys.serving.app import http_app
from raysys.serving.args import ServeArgs
from raysys.serving.keys import KeyFile
from raysys.serving.metrics import Metrics
from raysys.serving.service import Service
from raysys.serving.workers import NORMAL, Workers
from tests.serving.test_auth import Clothed
from tests.serving.test_workers import Held

ASKED = {"user_id": "u1", "k": 3}
ORIGIN = "https://shop.example"


@dataclass
class Full:
    """An application with keys whose one thread is held and whose waiting room is full."""

    app: FastAPI
    service: Service
    held: Held
    secrets: dict[str, str]

    @property
    def client(self) -> TestClient:
        return TestClient(self.app, raise_server_exceptions=False)

    def with_key(self, role: str) -> dict[str, str]:
        return {"X-API-Key": self.secrets[role]}


@pytest.fixture
def full(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Full]:
    # a second of the limiter lasts an hour: no test takes so long
    monkeypatch.setattr(limits, "RateLimitItemPerSecond", lambda n: RateLimitItemPerHour(n))
    file = KeyFile(tmp_path / "keys.json")
    secrets = {"read": file.create("r", ("read",))[1], "events": file.create("e", ("events",))[1]}
    content = {
        **service.args.model_dump(),
        "auth": {"keys": str(file.path)},
        "limits": {"per_second": 2},
        "cors_origins": [ORIGIN],
    }
    own = Clothed(service, ServeArgs.model_validate(content))
    held = Held(1)
    held.add("waits", NORMAL)
    own.workers, own.metrics = held.workers, Metrics()
    yield Full(http_app(own), own, held, secrets)
    held.go.set()
    held.workers.close()


def test_who_may_not_call_is_not_told_whether_there_is_room(full: Full) -> None:
    def status(path: str, headers: dict[str, str]) -> int:
        return full.client.post(path, json=ASKED, headers=headers).status_code

    assert status("/v1/recommend", {}) == 401
    assert status("/v1/recommend", {"X-API-Key": "rsk_00000000_" + "0" * 43}) == 401
    assert status("/v1/recommend", full.with_key("events")) == 403
    assert full.service.metrics.read().get("raysys_shed") is None
    assert status("/v1/recommend", full.with_key("read")) == 503
    assert full.service.metrics.read()["raysys_shed"] == {"overloaded": 1}


def test_what_is_refused_is_not_counted_among_a_key_s_requests(full: Full) -> None:
    def ask() -> int:
        headers = full.with_key("read")
        return full.client.post("/v1/recommend", json=ASKED, headers=headers).status_code

    assert [ask() for _ in range(5)] == [503] * 5  # of two that it may ask
    full.service.workers = Workers(1, 8)
    assert [ask() for _ in range(3)] == [200, 200, 429]
    full.service.workers.close()


def test_a_refused_body_is_neither_read_nor_looked_at(full: Full) -> None:
    async def receive() -> Any:
        raise AssertionError("the body was read")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/v1/rank", "query_string": b"",
        "headers": [
            (b"x-api-key", full.secrets["read"].encode()),
            (b"content-type", b"text/plain"),
            (b"content-length", b"99999999"),
        ],
    }  # fmt: skip
    asyncio.run(full.app(scope, receive, send))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[0]["status"] == 503 and b"urn:raysys:problem:overloaded" in sent[1]["body"]


def test_a_refusal_is_written_once_and_says_nothing_of_other_callers(full: Full) -> None:
    def ask(path: str, **headers: str) -> Any:
        return full.client.post(path, json=ASKED, headers=full.with_key("read") | headers)

    plain = ask("/v1/recommend")
    shop = ask("/v1/recommend", Origin=ORIGIN)
    again, other = ask("/v1/recommend"), ask("/v1/rank")
    assert shop.headers["access-control-allow-origin"] == ORIGIN
    assert plain.headers.multi_items() == again.headers.multi_items()
    assert "access-control-allow-origin" not in again.headers
    assert plain.content == again.content == shop.content
    assert (plain.json()["instance"], other.json()["instance"]) == ("/v1/recommend", "/v1/rank")
    for response in (plain, shop, again, other):
        assert response.status_code == 503 and int(response.headers["retry-after"]) >= 1
        assert response.headers["content-type"] == "application/problem+json"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert int(response.headers["content-length"]) == len(response.content)


def test_a_caller_s_own_word_makes_a_list_less_urgent_and_never_more(full: Full) -> None:
    def ask(path: str, priority: str) -> int:
        headers = full.with_key("read") | {"X-Priority": priority}
        return full.client.post(path, json={}, headers=headers).status_code

    assert ask("/v1/search", "background") == 503
    assert ask("/v1/recommend", "urgent") == 503
    assert ask("/v1/search", "normal") == 422  # more urgent than who waits: looked at


def test_no_span_of_the_framework_names_a_user(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr("opentelemetry.trace.get_tracer_provider", lambda: provider)
    client = TestClient(http_app(service))
    assert client.get("/v1/users/u1/profile").status_code == 200
    assert exporter.get_finished_spans() == ()
