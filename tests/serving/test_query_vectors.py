"""Queries that the log never had, and features that compare items with them."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysys.catalogue import Catalogue
from raysys.features.resources import Resources, Vectors
from raysys.features.vectors import similarity_to
from raysys.registry import Registry
from raysys.registry.query_encoders import QueryEncoders
from raysys.serving.api import RankRequest, RecommendRequest, SearchRequest
from raysys.serving.args import ServeArgs
from raysys.serving.asking import Context
from raysys.serving.pools import QUERY_VECTORS
from raysys.serving.replay import replay
from raysys.serving.service import Service
from raysys.text.encoder import Encoder
from raysys.text.model_files import copy_model
from tests.serving import shop
from tests.serving.test_transformer import ARGS, Handle
from tests.text.tiny import write_tiny_bert

pytestmark = pytest.mark.long
UNSEEN = SearchRequest(query="Rye  BREAD", user_id="u1", k=20, explain=True)
KNOWN = SearchRequest(query="Bread", user_id="u1", k=20, explain=True)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, _hashed_words: None) -> Registry:
    """A bundle with two spaces of one model, one of which is compared with queries by a feature."""
    model = write_tiny_bert(tmp_path_factory.mktemp("tiny"))
    taken = tmp_path_factory.mktemp("taken")
    copy_model(model, taken, where="here")
    plan = copy.deepcopy(shop.PLAN)
    told = {"model": "wherever it was", "max_tokens": 16}
    plan["vectors"] = {"titles": {**told, "text": ["title"]}, "brands": {**told, "text": ["brand"]}}
    plan["features"] += [  # type: ignore[operator]
        {"name": "fits", "kind": "similarity", "vectors": "titles", "to": "query"},
        {"name": "brand_fits", "kind": "similarity", "vectors": "brands", "to": "query"},
    ]

    def resources(catalogue: Catalogue, queries: Sequence[str]) -> Resources:
        encoder = Encoder.open(str(model), 16, None)
        found = {}
        for name, column in (("titles", "title"), ("brands", "brand")):
            items = encoder.encode(catalogue.table[column].to_pylist()).astype(np.float16)
            asked = encoder.encode(queries).astype(np.float16)
            found[name] = Vectors(items, asked, taken)
        return Resources(found)

    root = tmp_path_factory.mktemp("vectors")
    return shop.publish_shop(root, plan=plan, resources=resources)[0]


def args(registry: Registry, **more: Any) -> ServeArgs:
    content = {"registry": str(registry.root), "clock": "log_end", **more}
    return ServeArgs.model_validate(content)


@pytest.fixture
def service(registry: Registry) -> Iterator[Service]:
    made = Service(args(registry))
    yield made
    made.close()


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Queries that were encoded for features."""
    seen: list[str] = []
    encode = QueryEncoders.encode

    def told(self: QueryEncoders, texts: Sequence[str]) -> Any:
        seen.extend(texts)
        return encode(self, texts)

    monkeypatch.setattr(QueryEncoders, "encode", told)
    return seen


def context(deadline_ms: float | None = None) -> Context:
    return Context(time.perf_counter(), deadline_ms, request_id="same", at=shop.START)


def said(answer: dict[str, Any], name: str) -> list[float | None]:
    return [item["why"].features[name] for item in answer["items"]]


def expected(service: Service, answer: dict[str, Any], space: str, text: str) -> list[float]:
    held = service.bundle.features.resources.vectors[space]
    vector = Encoder.open(str(held.encoder), 16, None).encode([text])
    numbers = [service.catalogue.number(item["item_id"]) for item in answer["items"]]
    items = np.array(numbers, np.int32)
    return similarity_to(held.items, items, vector).tolist()


def test_a_query_that_the_log_never_had_is_compared_with_the_items(service, encoded) -> None:
    assert service.bundle.features.query_number(UNSEEN.query) < 0
    answer = service.content(UNSEEN, context())
    assert not answer["degraded"] and answer["explanation"].milliseconds["query_vectors"] > 0
    for name, space in (("fits", "titles"), ("brand_fits", "brands")):
        values = said(answer, name)
        np.testing.assert_allclose(values, expected(service, answer, space, "rye bread"), atol=2e-3)
    assert np.ptp(said(answer, "fits")) > 0.01
    assert encoded == ["rye bread"]
    again = service.content(SearchRequest(query="rye bread", k=20, explain=True), context())
    assert encoded == ["rye bread"] and None not in said(again, "fits")  # remembered
    asked = RankRequest(item_ids=["i00003", "i00013"], query="rye cake", explain=True)
    ranked = service.content(asked, context())
    assert encoded == ["rye bread", "rye cake"] and None not in said(ranked, "fits")


def test_of_one_that_the_log_had_the_state_holds_the_vector(service, encoded) -> None:
    answer = service.content(KNOWN, context())
    assert encoded == []
    held = said(answer, "fits")
    np.testing.assert_allclose(held, expected(service, answer, "titles", "bread"), atol=2e-3)
    features, text = service.bundle.features, "bread"
    encoders = service.bundle.query_encoders
    assert encoders is not None and encoders.names == ("titles", "brands")
    made = dict(zip(encoders.names, np.split(encoders.encode([text])[0], 2), strict=True))
    items = np.arange(20, dtype=np.int32)
    number = features.query_number(text)
    one = features.batch(1, items, features.as_of + 1, query=number)
    other = features.batch(1, items, features.as_of + 1, query_vectors=made)
    for name in ("fits", "brand_fits"):
        np.testing.assert_allclose(one.column(name), other.column(name), atol=1e-3)


def test_without_a_query_there_is_nothing_to_encode(service, encoded) -> None:
    answer = service.content(RecommendRequest(user_id="u1", k=5, explain=True), context())
    assert encoded == [] and not answer["degraded"] and set(said(answer, "fits")) == {None}


def test_where_there_is_no_time_the_feature_is_unknown_and_the_answer_says_so(
    service, encoded
) -> None:
    service.warm_up()
    encoded.clear()
    service.ranker.costs.took(QUERY_VECTORS, 1, 1000.0)
    for _ in range(64):
        service.ranker.costs.took(QUERY_VECTORS, 1, 1000.0)
    answer = service.content(UNSEEN, context(60_000))
    assert answer["reasons"] == {"query_vectors": "deadline"} and answer["degraded"]
    assert encoded == [] and set(said(answer, "fits")) == {None}
    assert not service.content(KNOWN, context(60_000))["degraded"]  # it needs none


def test_a_model_that_fails_costs_its_features_alone(service, monkeypatch) -> None:
    def broken(self: QueryEncoders, texts: Sequence[str]) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(QueryEncoders, "encode", broken)
    answer = service.content(UNSEEN, context())
    assert answer["reasons"] == {"query_vectors": "failed"}
    assert len(answer["items"]) == 20 and set(said(answer, "fits")) == {None}
    assert "popular" in answer["items"][0]["why"].base_scores


def test_elsewhere_the_same_comes_of_it_in_the_same_hop(registry, service) -> None:
    pinned = registry.resolve("champion")
    told = args(registry, transformer=ARGS.model_dump(), pinned=pinned)
    handle = Handle(told)
    there = Service(told, transformer=handle)  # type: ignore[arg-type]
    try:
        there.warm_up()
        handle.calls.clear()
        one, other = (each.content(UNSEEN, context()) for each in (service, there))
        assert not other["degraded"], other["reasons"]
        assert handle.calls == ["encode"]
        assert [e["item_id"] for e in one["items"]] == [e["item_id"] for e in other["items"]]
        np.testing.assert_allclose(said(one, "fits"), said(other, "fits"), atol=1e-3)
        handle.fault = RuntimeError("dead")
        asked = SearchRequest(query="lime soda", k=5, explain=True)
        without = there.content(asked, context())
        assert {"meaning", "query_vectors"} <= set(without["left_out"])
        assert set(said(without, "fits")) == {None}
    finally:
        there.close()
        handle.replica.host.close()


def test_a_recorded_answer_comes_again_from_the_state(registry, tmp_path) -> None:
    shown = {"folder": str(tmp_path), "inputs_share": 0.0}
    service = Service(args(registry, shown_lists=shown))
    try:
        request_id = service.content(
            SearchRequest(query="rye bread", user_id="u1", k=10), Context(time.perf_counter())
        )["request_id"]
    finally:
        service.close()
    again = replay(Path(tmp_path), request_id)
    assert again.scored_from == "state" and not again.differences, again.differences
