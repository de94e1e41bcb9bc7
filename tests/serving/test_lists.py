"""Filters, stock, similar items, deadlines and explanations, over HTTP."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from pydantic_core import to_json

from raysys.errors import UserError
from raysys.registry import Registry
from raysys.retrieval.fuse import Hits
from raysys.retrieval.lexical import LexicalIndex
from raysys.schema import EVENT_TYPES
from raysys.serving import pools
from raysys.serving.api import ListAnswer, RankRequest, RecommendRequest, SearchRequest
from raysys.serving.app import http_app
from raysys.serving.args import ServeArgs
from raysys.serving.asking import Context
from raysys.serving.intake import ListRequest
from raysys.serving.members import Clock, Costs
from raysys.serving.service import Service
from raysys.serving.stock import Stock, StockArgs
from tests.serving import shop
from tests.serving.test_routes import ask, ids, refuse


def served(registry: Registry, **more: Any) -> TestClient:
    args = {"registry": str(registry.root), "clock": "log_end", "k_max": 50, **more}
    return TestClient(http_app(Service(ServeArgs.model_validate(args))))


def test_a_filtered_list_is_full_whenever_enough_items_pass(
    client: TestClient, service: Service
) -> None:
    codes, labels = service.catalogue.codes("category")
    for code, label in enumerate(labels[:4]):
        there = int((codes == code).sum())
        filters = {"category": [label]}
        answer = ask(client, "recommend", user_id="u1", k=there, filters=filters)
        assert len(ids(answer)) == there
        # every text has a vector, so all of them are near
        answer = ask(client, "search", query="milk", k=there, filters=filters)
        assert len(ids(answer)) == there
        answer = ask(client, "similar", item_id="i00000", k=there, filters=filters)
        assert len(ids(answer)) >= there - 1


def test_similar_items_are_like_it_and_not_it(client: TestClient, service: Service) -> None:
    for item in ("i00000", "i00011", "i00100"):
        answer = ask(client, "similar", item_id=item, k=6, explain=True)
        assert len(ids(answer)) == 6 and item not in ids(answer)
        own = service.catalogue.row(service.catalogue.number(item) or 0)["category"]
        kinds = [
            service.catalogue.row(service.catalogue.number(i) or 0)["category"] for i in ids(answer)
        ]
        assert kinds.count(own) >= 3
        assert set(answer["explanation"]["by_source"]) == {"words", "meaning", "covisitation"}
    lists = {
        tuple(ids(ask(client, "similar", item_id="i00000", user_id=f"u{n}"))) for n in range(9)
    }
    assert len(lists) > 1
    problem = refuse(client, "similar", 404, item_id="nobody")
    assert problem["errors"][0]["path"] == "body.item_id"
    assert refuse(client, "similar", item_id="i00000", k=51)["errors"][0]["path"] == "body.k"
    assert refuse(client, "similar", k=5)["errors"][0]["path"] == "body.item_id"


def test_similar_items_are_as_many_as_are_asked_for(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing that is like an item passes, what sells and passes follows."""
    monkeypatch.setattr(LexicalIndex, "find", lambda *asked: Hits.none())
    service = Service(
        ServeArgs(registry=str(registry.root), clock="log_end", similar={"candidates": 4})
    )
    service.bundle.search.vectors = None
    client = TestClient(http_app(service))
    codes, labels = service.catalogue.codes("category")
    own = codes[service.catalogue.number("i00000") or 0]
    bought_with_it = service.bundle.features.covisitation.neighbours[0]
    for code, label in enumerate(labels):
        if code == own:
            continue
        asked = {"item_id": "i00000", "k": 15, "filters": {"category": [label]}}
        answer = ask(client, "similar", user_id="u1", **asked, explain=True)
        shown = [service.catalogue.number(item) for item in ids(answer)]
        assert len(set(shown)) == 15 and (codes[shown] == code).all()
        near = [each for each in bought_with_it if each >= 0 and codes[each] == code]
        told = {item["item_id"]: item["why"]["sources"] for item in answer["items"]}
        found = [number for number, each in zip(shown, told.values(), strict=True)
                 if "covisitation" in each]  # fmt: skip
        assert set(found) == set(near) and shown[: len(found)] == found, "they come first"
    answer = ask(client, "similar", item_id="i00000", k=50)
    assert len(ids(answer)) == 50 and "i00000" not in ids(answer)
    service.close()


def test_what_is_out_of_stock_is_not_shown(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "stock.csv"
    path.write_text("item_id,stock\ni00001,0\ni00002,5\nunknown,0\n")
    body: dict[str, Any] = {"user_id": "u1", "k": 50}
    hidden = served(registry, stock={"path": str(path)})
    plain = served(registry, stock={"path": str(path), "hide": False})
    every = [f"i{number:05d}" for number in range(200)]
    for call, more in (("recommend", {}), ("search", {"query": "milk bread"})):
        assert "i00001" not in ids(ask(hidden, call, **body, **more))
        shown = ids(ask(plain, call, **body, **more, filters={"in_stock": True}))
        assert "i00001" not in shown and len(shown) == 50
    assert len(ids(ask(hidden, "rank", user_id="u1", item_ids=every))) == 200


def test_the_stock_follows_its_file(service: Service, tmp_path: Path) -> None:
    path = tmp_path / "stock.csv"
    path.write_text("item_id,stock\ni00001,0\n")
    stock = Stock(StockArgs(path=str(path), refresh_s=1e-9), service.catalogue)
    there, version = stock.there()
    assert not there[1] and there[2]
    before = version
    path.write_text("item_id,stock\ni00002,0\ni00003,-1\n")
    there, version = stock.there()
    assert there[1] and not there[2] and not there[3] and version != before
    # another process that sees the same has the same version, whatever it saw before
    assert Stock(StockArgs(path=str(path)), service.catalogue).there()[1] == version
    path.write_text("something else\n1\n")
    assert stock.there()[1] == version  # as it was known
    path.unlink()
    assert stock.there()[0] is there
    with pytest.raises(UserError, match="no stock file"):
        Stock(StockArgs(path=str(path)), service.catalogue)
    path.write_text("item_id\n1\n")
    with pytest.raises(UserError, match="item_id and stock"):
        Stock(StockArgs(path=str(path)), service.catalogue)


def test_only_the_just_bought_is_left_out(registry: Registry, service: Service) -> None:
    features = service.bundle.features
    user = features.user_number("u1")
    table = features.tables["user_item"]
    records = table.members(user)
    days = (features.as_of - table.times[records, 2]) / 86_400_000
    since = float(np.median(days))
    just = {str(service.catalogue.ids[i]) for i in table.second(records[days <= since])}
    before = {str(service.catalogue.ids[i]) for i in table.second(records[days > since])}
    client = served(registry, recommend={"policy": {"exclude_bought_days": since}})
    shown = set(ids(ask(client, "recommend", user_id="u1", k=50)))
    assert not shown & just and shown & before and len(shown) == 50


TOUCHED = {"events": ["view", "purchase"]}


def plan_of_touches(**more: dict[str, Any]) -> dict[str, Any]:
    """The shop's plan, whose tables by user count views as well; and more tables."""
    tables = {
        name: {**spec, **TOUCHED} if spec["keys"][0] == "user" else spec
        for name, spec in shop.PLAN["tables"].items()
    }
    return {**shop.PLAN, "tables": {**tables, **more}}


def test_what_was_merely_looked_at_is_not_bought(tmp_path: Path) -> None:
    plan = plan_of_touches(
        user_item_bought={"keys": ["user", "item"]}, user_bought={"keys": ["user"]}
    )
    registry = shop.publish_shop(tmp_path, plan=plan)[0]
    args = {
        "registry": str(registry.root),
        "clock": "log_end",
        "recommend": {"policy": {"exclude_bought_days": 14}},
    }
    service = Service(ServeArgs.model_validate(args))
    features = service.bundle.features
    known = set(features.history(1, 1000).tolist())
    seen, taken = [item for item in range(200) if item not in known][:2]
    before = service.profile("u1").value
    now = features.as_of
    view = np.full(1, EVENT_TYPES.index("view"), np.int8)
    features.apply(replace(shop.purchase(1, seen, now + 1), kind=view))
    features.apply(shop.purchase(1, taken, now + 2))
    allowed = service.permissions.allowed("recommend", (), 1, features.as_of)
    assert allowed is not None and allowed.items[seen] and not allowed.items[taken]
    # the profile tells orders from looks, and does not call the one the other
    profile = service.profile("u1")
    assert before.n_orders is not None and profile.value.n_orders == before.n_orders + 1
    assert profile.value.n_touches == before.n_touches + 2
    favourite = profile.interests["category"][0]
    assert favourite.orders is None and favourite.touches
    service.close()


def test_a_bundle_that_cannot_tell_what_was_bought_is_refused_at_start(tmp_path: Path) -> None:
    registry = shop.publish_shop(tmp_path, plan=plan_of_touches())[0]
    for policy in ({"exclude_bought": True}, {"exclude_bought_days": 14}):
        with pytest.raises(UserError, match="counts purchases alone") as refused:
            served(registry, search={"policy": policy})
        assert refused.value.where == "args.search.policy"
        assert "user_item_bought: {keys: [user, item], events: [purchase]}" in refused.value.mend
    profile = served(registry).get("/v1/users/u1/profile").json()
    assert profile["value"]["n_orders"] is None and profile["value"]["n_touches"] > 0
    assert profile["value"]["order_interval_days"] is profile["value"]["overdue"] is None


def test_pinned_items_are_candidates_whatever_retrieval_says(
    registry: Registry, client: TestClient
) -> None:
    rare = ids(ask(client, "recommend", user_id="u1", k=50))
    pinned = next(f"i{n:05d}" for n in range(200) if f"i{n:05d}" not in rare)
    pin = {"item_id": pinned, "position": 2}
    policy = {"policy": {"pinned": [pin], "at_most": {"category": 3}}}
    args = {"recommend": policy, "search": policy, "similar": policy}
    strict = served(registry, **args)
    for call, more in (
        ("recommend", {"user_id": "u1"}),
        ("search", {"query": "gouda"}),
        ("similar", {"item_id": rare[0]}),
    ):
        answer = ask(strict, call, k=5, explain=True, **more)
        assert ids(answer)[1] == pinned
        assert answer["items"][1]["why"]["policy"][-1] == "pinned to position 2"
    for call, more in (  # no list is about an item and shows it
        ("similar", {"item_id": pinned}),
        ("recommend", {"place": "item", "item_ids": [pinned], "user_id": "u1"}),
    ):
        assert pinned not in ids(ask(strict, call, k=5, **more))
    answer = ask(strict, "recommend", user_id="u1", filters={"max_price": 0})
    assert answer["items"] == []  # filters are the user's: they hold for pins too


def test_a_deadline_of_the_request_s_own(client: TestClient, service: Service) -> None:
    def post(deadline: str) -> Any:
        body = {"user_id": "u1", "k": 5, "query": "milk"}
        return client.post("/v1/search", json=body, headers={"X-Deadline-Ms": deadline})

    hasty = post("0.001").json()
    assert hasty["degraded"] and set(hasty["reasons"].values()) == {"deadline"}
    assert len(hasty["items"]) == 5 and "meaning" in hasty["left_out"]
    assert not post("60000").json()["degraded"]
    for wrong in ("0", "-5", "soon", "nan", "inf", "60001", ""):
        response = post(wrong)
        assert response.status_code == 422, wrong
        assert response.json()["errors"][0]["path"] == "header.X-Deadline-Ms"


def test_who_would_not_be_done_in_time_is_not_begun(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = []
    model = service.bundle.learners["hashed_words"]
    score = model.score
    monkeypatch.setattr(model, "score", lambda batch: begun.append(1) or score(batch))
    costs = Costs()
    for _ in range(9):
        costs.took("hashed_words", 100, 30.0)
    monkeypatch.setattr(service.ranker, "costs", costs)
    client = TestClient(http_app(service))
    answer = client.post(
        "/v1/recommend", json={"user_id": "u1", "k": 5}, headers={"X-Deadline-Ms": "20000"}
    ).json()
    assert answer["left_out"] == ["hashed_words"] and not begun
    assert ask(client, "recommend", user_id="u1", k=5)["left_out"] == [] and begun


def test_encoding_leaves_time_for_the_rest(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it is done in time, and no learner is."""
    costs = Costs()
    for name, seconds in (("meaning", 30.0), ("features", 15.0)):
        costs.took(name, 100, seconds)
    monkeypatch.setattr(service.ranker.pools, "_costs", costs)
    client = TestClient(http_app(service))

    def reasons(query: str, deadline: str) -> Any:
        body, headers = {"user_id": "u1", "k": 5, "query": query}, {"X-Deadline-Ms": deadline}
        return client.post("/v1/search", json=body, headers=headers).json()["reasons"]

    assert reasons("bread of rye", "40000") == {"meaning": "deadline"}
    assert reasons("bread of spelt", "60000") == {}


def test_costs_are_a_quantile_that_forgets() -> None:
    costs = Costs()
    assert costs.expected("x", 100) == 0
    for number in range(100):
        costs.took("x", 100, 1.0 if number % 20 == 0 else 0.01)
    assert costs.expected("x", 100) == 0.01  # one in twenty is no rule
    assert costs.expected("x", 4) == 0.01 and costs.expected("x", 4000) == 0.01
    for _ in range(16):
        costs.took("x", 100, 1.0)
    assert costs.expected("x", 100) == 1.0
    clock = Clock(time.perf_counter() + 0.5, costs, 100)
    tries = 0
    while not clock.allows("x"):
        tries += 1
    assert 5 < tries < 100
    assert not Clock(time.perf_counter() + 2, costs, 100, ("x",)).allows("y") or tries
    assert Clock(np.inf, costs, 100).allows("x")


def test_a_failing_search_by_meaning_is_left_out(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(texts: object) -> None:
        raise RuntimeError("no memory")

    client = TestClient(http_app(service))
    before = ask(client, "search", query="bread", user_id="u1", k=5)
    monkeypatch.setattr(service.bundle.search.encoder, "encode", broken)
    for call, more in (("search", {"k": 5}), ("rank", {"item_ids": ["i00001", "i00002"]})):
        answer = ask(client, call, query="oat milk", user_id="u1", **more)
        assert answer["reasons"] == {"meaning": "failed"} and answer["items"]
    again = ask(client, "search", query="bread", user_id="u1", k=5)  # its vector is known
    assert again["reasons"] == {} and again["items"] == before["items"]


def test_slips_are_forgiven_and_told(client: TestClient, service: Service) -> None:
    answer = ask(client, "search", query="chesse", k=5, explain=True)
    kinds = [
        service.catalogue.row(service.catalogue.number(i) or 0)["category"] for i in ids(answer)
    ]
    assert kinds.count("cheese") >= 3
    assert answer["explanation"]["understood"] == {"chesse": ["cheese"]}


def test_an_explanation_says_what_moved_each_item(client: TestClient, service: Service) -> None:
    answer = ask(client, "recommend", user_id="u1", k=10, explain=True)
    told = answer["explanation"]
    assert told["cache"] == "off" and sum(told["by_source"].values()) >= told["n_candidates"]
    assert {"candidates", "features", "ensemble", "policy", "explain"} <= set(told["milliseconds"])
    weights = told["weights"]
    assert any(item["why"]["moved_by"] for item in answer["items"])
    for item in answer["items"]:
        why = item["why"]
        assert why["propensity"] == 1 and why["policy"] == []
        assert set(why["contributions"]) == {"popular", "repeat_purchase", "co_occurrence"}
        assert list(why["moved_by"].values()) == sorted(
            why["moved_by"].values(), key=lambda v: -abs(v)
        )
        for name, parts in why["contributions"].items():
            if weights.get(name):
                assert set(parts) <= set(why["moved_by"]) or not parts


def test_json_is_made_of_the_model_that_openapi_shows(service: Service) -> None:
    """It is written without the model, field by field, so it has to be what the model would say."""
    asked: list[ListRequest] = [
        RecommendRequest(user_id="u1", k=4, explain=True),
        SearchRequest(query="chesse", k=4, explain=True),
        SearchRequest(query="milk", k=1),
        RankRequest(item_ids=["i00001", "x"], user_id="u1"),
    ]
    for each in asked:
        text = to_json(service.content(each, Context(time.perf_counter())))
        model = ListAnswer.model_validate_json(text, extra="forbid")
        assert json.loads(model.model_dump_json()) == json.loads(text)


def test_a_list_too_short_is_filled_from_users_alike_first(registry: Registry) -> None:
    client = served(registry, k_max=150)
    body = {"k": 130, "explain": True}
    lists = [ask(client, "recommend", user_id=f"u{n}", **body) for n in range(8)]
    filled = [found for found in lists if "segment" in found["explanation"]["by_source"]]
    assert filled
    for found in filled:
        told = found["explanation"]["by_source"]
        sources = [item["why"]["sources"] for item in found["items"]]
        assert sources.count(["segment"]) == told["segment"] > 0 and len(sources) == 130
    stranger = ask(client, "recommend", session_id="s", **body)
    assert "segment" not in stranger["explanation"]["by_source"]


def test_what_the_first_of_all_queries_took_costs_no_later_one_its_meaning(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one loads the model: ten seconds that a deadline of one must not be told of."""
    service = Service(
        ServeArgs.model_validate({"registry": str(registry.root), "deadline_ms": 1000})
    )
    late = [0.0]
    taken: list[str] = []
    encode = service.bundle.search.encoder.encode

    def cold(texts: list[str]) -> Any:
        if not taken:
            late[0] = 10.0
        taken.extend(texts)
        return encode(texts)

    def clock() -> float:
        now, late[0] = time.perf_counter() + late[0], 0.0
        return now

    monkeypatch.setattr(service.bundle.search.encoder, "encode", cold)
    monkeypatch.setattr(pools, "time", SimpleNamespace(perf_counter=clock))
    service.warm_up()
    assert len(set(taken)) == len(taken) >= 3, "each query of the warm-up is a new one"
    answer = service.answer(SearchRequest(query="never asked", k=3), Context(time.perf_counter()))
    assert answer.reasons == {} and not answer.degraded
    service.close()
