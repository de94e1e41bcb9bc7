"""The clients against the routes themselves: what is sent is taken, and what comes is typed."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from raysys.client import ApiError, AsyncClient, Client, answers
from raysys.serving.access import AccessTable
from raysys.serving.app import http_app
from raysys.serving.service import Service
from tests.serving.test_arms import Shop


class Routes(httpx.BaseTransport):
    """An application behind a client that waits."""

    def __init__(self, app: FastAPI) -> None:
        self.inner = httpx.ASGITransport(app)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        async def run() -> httpx.Response:
            sent = httpx.Request(
                request.method, request.url, headers=request.headers, content=request.read()
            )
            response = await self.inner.handle_async_request(sent)
            content = await response.aread()
            return httpx.Response(response.status_code, headers=response.headers, content=content)

        return asyncio.run(run())


@pytest.fixture(scope="module")
def app(service: Service) -> FastAPI:
    return http_app(service)


@pytest.fixture(scope="module")
def api(app: FastAPI) -> Iterator[Client]:
    with Client("http://localhost", transport=Routes(app)) as client:
        yield client


def test_lists(api: Client) -> None:
    found = api.recommend("u1", k=5, explain=True)
    assert len(found.items) == len(found.item_ids) == 5 and found.items[0].why
    assert found.request_id and found.arm == "champion" and found.explanation
    assert api.recommend(session_id="s", place="cart", item_ids=("i00001",)).cold_start
    assert api.search("milk", user_id="u1", k=3, filters={"category": ["milk"]}).items
    ranked = api.rank(["i00001", "x"], user_id="u1")
    assert ranked.unknown_item_ids == ["x"] and ranked.items[-1].score is None
    assert api.profile("u1").value["n_orders"] > 0
    assert api.ready().bundle == found.bundle


def test_refusals(api: Client) -> None:
    with pytest.raises(ApiError, match="404 unknown-user") as caught:
        api.profile("a b?c")
    assert caught.value.errors[0]["path"] == "path.user_id"
    with pytest.raises(ApiError, match=r"body\.k") as caught:
        api.recommend("u1", k=0)
    assert caught.value.status == 422 and caught.value.kind == "invalid-request"
    with pytest.raises(ApiError, match="no-such-task"):
        api.classify(["a"])


def test_asyncio(app: FastAPI) -> None:
    async def run() -> list[answers.ListAnswer]:
        transport = httpx.ASGITransport(app)
        async with AsyncClient("http://localhost", transport=transport) as api:
            return list(await asyncio.gather(*(api.recommend(f"u{n}", k=3) for n in range(8))))

    assert len({answer.request_id for answer in asyncio.run(run())}) == 8


def test_an_admin_promotes_and_rolls_back(bundle: Path, tmp_path: Path) -> None:
    shop = Shop(tmp_path / "registry", bundle, follow=True)
    app = http_app(shop.arms, shop.arms)  # type: ignore[arg-type]
    with Client("http://localhost", transport=Routes(app)) as api:
        assert api.bundles().pointers["champion"] == shop.first
        assert api.promote("challenger").before == shop.first
        assert api.recommend("u1").bundle == shop.second
        assert api.rollback().bundle == shop.first
        assert api.try_canary({"bundle": "challenger", "share": 0.99}).canary
        assert api.recommend("u1").arm == "challenger"
        assert api.canary().arms["challenger"]["answers"] == 1
        assert api.try_canary(None).canary is None
    shop.arms.close()


def test_answers_are_those_of_the_schema(client: TestClient) -> None:
    """Every field that a client's model knows is one that the API promises."""
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for model, name in (
        (answers.ListAnswer, "ListAnswer"),
        (answers.ListedItem, "ListedItem"),
        (answers.Profile, "Profile"),
        (answers.Labels, "ClassifyAnswer"),
        (answers.Label, "LabelledText"),
        (answers.Sentiment, "JudgedText"),
        (answers.Span, "FoundSpan"),
        (answers.Grade, "GradedText"),
        (answers.Readiness, "Readiness"),
    ):
        promised = schemas[name]["properties"]
        assert set(model.model_fields) <= set(promised), name
        needed = {field for field, info in model.model_fields.items() if info.is_required()}
        assert needed <= set(schemas[name].get("required", [])) | {"status"}, name


def test_spans_of_some_labels_or_of_all() -> None:
    sent: list[Any] = []

    def note(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        told = {"request_id": "r", "bundle": "b", "took_ms": 1.0, "results": [{"spans": []}]}
        return httpx.Response(200, json=told)

    with Client(transport=httpx.MockTransport(note)) as api:
        api.entities(["a"])
        api.entities(["a"], labels=("brand", "model"))
    assert sent == [{"texts": ["a"]}, {"texts": ["a"], "labels": ["brand", "model"]}]


CALLS: dict[str, tuple[Any, ...]] = {
    "recommend": ("u1",),
    "search": ("milk",),
    "similar": ("i1",),
    "rank": (["i1"],),
    "profile": ("a/b",),
    "events": ([{"event_type": "click"}],),
    "classify": (["a"],),
    "sentiment": (["a"],),
    "entities": (["a"],),
    "relevance": ("q", ["a"]),
    "ready": (),
    "bundles": (),
    "promote": ("b",),
    "rollback": (),
    "canary": (),
    "try_canary": (None,),
    "leave_canary": (),
}


def test_every_call_is_of_a_route_that_declares_its_role() -> None:
    public = {name for name, _ in inspect.getmembers(Client, inspect.isfunction) if name[0] != "_"}
    assert CALLS.keys() == public - {"close"}
    sent: list[httpx.Request] = []

    def note(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        told = {"content-type": "application/problem+json"}  # no proxy's, which is asked again
        return httpx.Response(404, json={"detail": ""}, headers=told)

    table = AccessTable()
    with Client(transport=httpx.MockTransport(note)) as api:
        for name, args in CALLS.items():
            with pytest.raises(ApiError):
                getattr(api, name)(*args)
            role = table.methods(httpx.URL(sent[-1].url).raw_path.decode()).get(sent[-1].method)
            assert role is not None, name
