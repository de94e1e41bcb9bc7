"""Every route over a real bundle, in process."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient

from raysys.serving.admission import MAX_BODY
from raysys.serving.app import http_app
from raysys.serving.args import ServeArgs
from raysys.serving.service import Service

ANSWER = {
    "request_id",
    "items",
    "bundle",
    "arm",
    "degraded",
    "left_out",
    "reasons",
    "cold_start",
    "unknown_item_ids",
    "took_ms",
}


def ask(client: TestClient, call: str, **body: Any) -> dict[str, Any]:
    response = client.post(f"/v1/{call}", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    assert set(answer) - {"explanation"} == ANSWER
    assert [item["position"] for item in answer["items"]] == list(
        range(1, len(answer["items"]) + 1)
    )
    assert len({item["item_id"] for item in answer["items"]}) == len(answer["items"])
    return answer


def refuse(client: TestClient, call: str, status: int = 422, **body: Any) -> dict[str, Any]:
    response = client.post(f"/v1/{call}", json=body)
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["status"] == status and problem["instance"] == f"/v1/{call}"
    assert problem["type"].startswith("urn:raysys:problem:") and problem["detail"]
    return problem


def ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


@pytest.mark.long
def test_recommend_gives_k_items_best_first(client: TestClient, service: Service) -> None:
    answer = ask(client, "recommend", user_id="u1", k=12)
    scores = [item["score"] for item in answer["items"]]
    assert len(scores) == 12 and scores == sorted(scores, reverse=True)
    assert answer["bundle"] == service.bundle.id and answer["arm"] == "champion"
    assert not answer["cold_start"] and not answer["degraded"] and answer["took_ms"] > 0
    assert "why" not in answer["items"][0] and "explanation" not in answer


def test_recommend_is_personal_and_repeats_itself(client: TestClient) -> None:
    lists = [ids(ask(client, "recommend", user_id=f"u{n}", k=10)) for n in range(6)]
    assert len({tuple(found) for found in lists}) >= 4
    assert ids(ask(client, "recommend", user_id="u0", k=10)) == lists[0]
    assert ids(ask(client, "recommend", user_id="u0", k=5)) == lists[0][:5]


def test_every_answer_has_its_own_request_id(client: TestClient) -> None:
    found = {ask(client, "recommend", user_id="u1")["request_id"] for _ in range(20)}
    assert len(found) == 20


def test_an_unknown_user_gets_what_sells_and_a_flag(client: TestClient) -> None:
    answer = ask(client, "recommend", user_id="nobody knows", k=10)
    assert answer["cold_start"] and len(answer["items"]) == 10
    assert ids(answer) == ids(ask(client, "recommend", session_id="s1", k=10))


def test_a_session_gets_what_goes_with_what_it_looked_at(
    client: TestClient, service: Service
) -> None:
    seen = ids(ask(client, "recommend", user_id="u1", k=1))
    cold = ids(ask(client, "recommend", session_id="s", k=10))
    warm = ids(ask(client, "recommend", session_id="s", item_ids=seen, k=10))
    assert warm != cold and seen[0] not in warm


@pytest.mark.parametrize("place", ["item", "cart"])
def test_beside_items_comes_what_goes_with_them(
    client: TestClient, service: Service, place: str
) -> None:
    features = service.bundle.features
    seed = int(features.history(1, 1)[0])
    near = set(features.covisitation.near([seed], 60)[0].tolist())
    item_id = str(service.catalogue.ids[seed])
    answer = ask(client, "recommend", user_id="u1", place=place, item_ids=[item_id], k=50)
    numbers = [service.catalogue.number(found) for found in ids(answer)]
    assert set(numbers[: len(near)]) == near and seed not in numbers and len(numbers) == 50


def test_a_list_is_filled_up_to_k(client: TestClient) -> None:
    assert len(ask(client, "recommend", session_id="s", k=50)["items"]) == 50


def test_filters_hold(client: TestClient, service: Service) -> None:
    for call, more in (("recommend", {}), ("search", {"query": "fresh"})):
        answer = ask(
            client,
            call,
            user_id="u2",
            k=8,
            filters={"category": ["milk", "soap", "no such"], "max_price": 3},
            **more,
        )
        rows = [service.catalogue.row(service.catalogue.number(i) or 0) for i in ids(answer)]
        assert rows and all(row["category"] in ("milk", "soap") for row in rows)
        assert all(float(str(row["price"])) <= 3 for row in rows)
    empty = ask(client, "recommend", user_id="u2", filters={"brand": ["no such"]})
    assert empty["items"] == []


def test_search_finds_by_words_and_ranks_for_the_user(client: TestClient, service: Service) -> None:
    answer = ask(client, "search", query="Sourdough BREAD", user_id="u3", k=5)
    titles = [service.catalogue.row(service.catalogue.number(i) or 0)["title"] for i in ids(answer)]
    assert titles[0] == "sourdough bread" and all("bread" in str(title) for title in titles)
    plain = ask(client, "search", query="milk", k=20)
    assert plain["cold_start"]
    lists = {tuple(ids(ask(client, "search", query="milk", user_id=f"u{n}"))) for n in range(10)}
    assert len(lists) > 3


def test_search_without_a_hit_is_an_empty_or_a_near_list(client: TestClient) -> None:
    assert len(ask(client, "search", query="qqqq wwww", k=3)["items"]) <= 3


@pytest.mark.long
def test_search_takes_any_language_and_length(client: TestClient) -> None:
    for query in ("牛奶", "🦄", "a" * 1000, "milk " * 199, "' OR 1=1 --", "\\x00"):
        answer = ask(client, "search", query=query, user_id="u1")
        assert len(ids(answer)) == len(set(ids(answer))) and not answer["degraded"]


def test_rank_gives_back_all_items(client: TestClient) -> None:
    given = [f"i{n:05d}" for n in range(40)]
    answer = ask(client, "rank", user_id="u1", item_ids=given)
    assert sorted(ids(answer)) == given
    assert ids(answer) == ids(ask(client, "rank", user_id="u1", item_ids=given[::-1]))


def test_rank_for_a_query(client: TestClient, service: Service) -> None:
    given = [f"i{n:05d}" for n in range(20)]
    answer = ask(client, "rank", query="gouda cheese", item_ids=given)
    row = service.catalogue.row(service.catalogue.number(ids(answer)[0]) or 0)
    assert row["category"] == "cheese"


def test_rank_puts_unknown_items_last_and_says_so(client: TestClient) -> None:
    answer = ask(client, "rank", user_id="u1", item_ids=["x1", "i00001", "x0", "i00002"])
    assert ids(answer)[2:] == ["x1", "x0"] == answer["unknown_item_ids"]
    assert [item["score"] is None for item in answer["items"]] == [False, False, True, True]


def told(client: TestClient, name: str, **body: Any) -> dict[str, float | None]:
    """A feature of twenty items, as /v1/rank read it."""
    given = [f"i{n:05d}" for n in range(20)]
    answer = ask(client, "rank", item_ids=given, explain=True, **body)
    return {item["item_id"]: item["why"]["features"][name] for item in answer["items"]}


def test_features_know_the_query(client: TestClient, service: Service) -> None:
    categories = {f"i{n:05d}": service.catalogue.row(n)["category"] for n in range(20)}
    for query in ("milk", "  MILK ", "soap"):
        times = told(client, "query_item_times", user_id="u1", query=query)
        meant = query.strip().lower()
        assert {categories[item] for item, n in times.items() if n} == {meant}
    for query in ({"query": "no such"}, {}):
        assert not any(told(client, "query_item_times", user_id="u1", **query).values())
    answer = ask(client, "search", query="Milk", k=20, explain=True)
    assert any(item["why"]["features"]["query_item_times"] for item in answer["items"])


def test_features_know_the_session(client: TestClient, service: Service) -> None:
    features = service.bundle.features
    sessions = features.sessions.frame().filter(user=1)
    newest = sessions.row(-1, named=True)
    bought = {str(service.catalogue.ids[n]) for n in features.history(1, 3)}
    body = {"user_id": "u1", "item_ids": sorted(bought), "explain": True}
    for session_id, times in ((newest["session_id"], 1), ("no such", 0), (None, 0)):
        answer = ask(client, "rank", session_id=session_id, **body)
        named = [item["why"]["features"]["session_item_times"] for item in answer["items"]]
        assert named == [times] * len(bought)
    answer = ask(client, "recommend", session_id=newest["session_id"], user_id="u1", explain=True)
    named = [item["why"]["features"]["session_item_times"] for item in answer["items"]]
    assert any(named)


def test_explain_says_why(client: TestClient, service: Service) -> None:
    for call, more in (
        ("recommend", {"k": 5}),
        ("search", {"query": "milk", "k": 5}),
        ("rank", {"item_ids": ["i00001", "i00002"]}),
    ):
        answer = ask(client, call, user_id="u1", explain=True, **more)
        told = answer["explanation"]
        assert told["fallback"] == "full" and abs(sum(told["weights"].values()) - 1) < 0.01
        assert {"candidates", "features", "ensemble"} <= set(told["milliseconds"])
        for item in answer["items"]:
            why = item["why"]
            assert why["sources"]
            assert set(why["base_scores"]) == set(service.bundle.learners)
            assert set(why["features"]) == set(service.bundle.features.names)
            assert 0 <= why["probability"] <= 1
        assert (answer["items"][0]["why"]["relevance"] is not None) == (call == "search")


def test_profile_has_evidence(client: TestClient) -> None:
    profile = client.get("/v1/users/u1/profile").json()
    assert profile["value"]["n_orders"] > 0 and profile["value"]["last_seen"] > 0
    favourite = profile["interests"]["category"][0]
    assert favourite["orders"] > 0 and 0 < favourite["affinity"] <= 1
    assert profile["recent_items"][0]["title"]


def test_a_user_whose_id_holds_slashes_has_a_profile(service: Service, client: TestClient) -> None:
    features = service.bundle.features
    for user in ("shop/7", "/7", "a/profile", "https://x.example/u?1"):
        features.open_user(user)
        profile = client.get(f"/v1/users/{quote(user, safe='')}/profile").json()
        assert profile["user_id"] == user


def test_an_unknown_user_has_no_profile(client: TestClient) -> None:
    for user in ("nobody", "ü", "a b", "no/body", "x" * 200):
        response = client.get(f"/v1/users/{user}/profile")
        assert response.status_code == 404
        assert response.json()["errors"][0]["path"] == "path.user_id"
    assert client.get(f"/v1/users/{'x' * 201}/profile").status_code == 422


@pytest.mark.parametrize("k", [0, -1, 51, 10**9, 10**30, 1.5, "10", None, True, [], {}])
def test_k_out_of_range_is_named_with_what_is_allowed(client: TestClient, k: object) -> None:
    for call, more in (("recommend", {"user_id": "u1"}), ("search", {"query": "milk"})):
        problem = refuse(client, call, k=k, **more)
        assert problem["errors"][0]["path"] == "body.k"
        if k == 51:
            assert "from 1 to 50" in problem["detail"]


@pytest.mark.parametrize(
    ("call", "body", "path"),
    [
        ("recommend", {}, "body"),
        ("recommend", {"user_id": ""}, "body.user_id"),
        ("recommend", {"user_id": 5}, "body.user_id"),
        ("recommend", {"user_id": "x" * 201}, "body.user_id"),
        ("recommend", {"user_id": "u1", "place": "moon"}, "body.place"),
        ("recommend", {"user_id": "u1", "place": "item"}, "body"),
        ("recommend", {"user_id": "u1", "item_ids": "i00001"}, "body.item_ids"),
        ("recommend", {"user_id": "u1", "item_ids": ["i00001", 3]}, "body.item_ids.1"),
        ("recommend", {"user_id": "u1", "item_ids": ["i"] * 501}, "body.item_ids"),
        ("recommend", {"user_id": "u1", "userid": "u2"}, "body.userid"),
        ("recommend", {"user_id": "u1", "filters": {"colour": ["red"]}}, "body.filters.colour"),
        ("recommend", {"user_id": "u1", "filters": {"min_price": -1}}, "body.filters.min_price"),
        ("search", {}, "body.query"),
        ("search", {"query": ""}, "body.query"),
        ("search", {"query": "   "}, "body.query"),
        ("search", {"query": None}, "body.query"),
        ("search", {"query": "x" * 1001}, "body.query"),
        ("rank", {"user_id": "u1"}, "body.item_ids"),
        ("rank", {"user_id": "u1", "item_ids": []}, "body.item_ids"),
        ("rank", {"item_ids": ["i00001"]}, "body"),
        ("rank", {"user_id": "u1", "item_ids": ["i00001", "i00001"]}, "body"),
        ("rank", {"user_id": "u1", "item_ids": ["i00001"], "k": 3}, "body.k"),
    ],
)
def test_bad_fields_are_named(
    client: TestClient, call: str, body: dict[str, Any], path: str
) -> None:
    assert refuse(client, call, **body)["errors"][0]["path"] == path


def test_items_that_the_shop_lacks(client: TestClient) -> None:
    problem = refuse(client, "rank", 404, user_id="u1", item_ids=["x", "y"])
    assert [error["path"] for error in problem["errors"]] == ["body.item_ids.0", "body.item_ids.1"]
    assert problem["type"].endswith("unknown-item")
    refuse(client, "recommend", 404, user_id="u1", place="item", item_ids=["x"])
    answer = ask(client, "recommend", user_id="u1", place="cart", item_ids=["x", "i00001"])
    assert answer["unknown_item_ids"] == ["x"] and answer["items"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"user_id": "\xc3\x28"}',
        b'{"user_id": "\\ud800"}',
        b'{"\\ud800": 1}',
        b'{"user_id": "u1", "k": NaN}',
        b'{"user_id": "u1", "k": 1e999}',
        b'{"user_id": "u1", "k": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"filters": ' * 5000 + b"1" + b"}" * 5000,
    ],
)
def test_what_is_not_our_json_is_refused(client: TestClient, content: bytes) -> None:
    for call in ("recommend", "search", "rank"):
        response = client.post(
            f"/v1/{call}", content=content, headers={"content-type": "application/json"}
        )
        assert response.status_code in (400, 422), response.text
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["detail"]


def test_a_body_of_another_type_is_refused(client: TestClient) -> None:
    response = client.post("/v1/recommend", content=b"user_id=u1")
    assert response.status_code == 415


def test_a_huge_body_is_refused_before_it_is_read(client: TestClient) -> None:
    response = client.post("/v1/search", json={"query": "x" * (MAX_BODY + 1)})
    assert response.status_code == 413
    assert response.json()["type"].endswith("too-large")

    def chunks() -> Any:  # no content-length
        for _ in range(40):
            yield b"x" * (MAX_BODY // 20)

    said = {"content-type": "application/json"}
    response = client.post("/v1/search", content=chunks(), headers=said)
    assert response.status_code == 413


def test_unknown_routes_and_methods(client: TestClient) -> None:
    for method, path, status in (
        ("GET", "/v2/search", 404),
        ("GET", "/v1/search", 405),
        ("DELETE", "/healthz", 405),
        ("GET", "/docs-assets/../../etc/passwd", 404),
    ):
        response = client.request(method, path)
        assert response.status_code == status
        assert response.headers["content-type"] == "application/problem+json"


def test_health_and_readiness(client: TestClient, service: Service) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    ready = client.get("/readyz").json()
    assert ready["bundle"] == service.bundle.id and ready["items"] == len(service.catalogue)


def test_not_ready_before_it_is_warm(service: Service) -> None:
    cold = Service(service.args)
    response = TestClient(http_app(cold)).get("/readyz")
    assert response.status_code == 503 and response.headers["retry-after"] == "1"


def test_the_api_page_needs_no_internet(client: TestClient) -> None:
    page = client.get("/docs").text
    assert "http://" not in page and "https://" not in page
    for asset in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"):
        assert asset in page
        assert client.get(f"/docs-assets/{asset}").status_code == 200


def test_openapi_tells_of_every_route_and_of_problems(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    assert set(schema["paths"]) == {
        "/v1/recommend",
        "/v1/search",
        "/v1/similar",
        "/v1/rank",
        "/v1/users/{user_id}/profile",
        "/v1/events",
        *(f"/v1/text/{task}" for task in ("classify", "sentiment", "entities", "relevance")),
        "/healthz",
        "/readyz",
    }
    assert "HTTPValidationError" not in schema["components"]["schemas"]
    problem = schema["paths"]["/v1/search"]["post"]["responses"]["default"]["content"]
    assert "application/problem+json" in problem


def test_a_learner_that_fails_or_is_late_is_left_out(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(batch: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(service.bundle.learners["hashed_words"], "score", broken)
    answer = ask(TestClient(http_app(service)), "recommend", user_id="u1", explain=True)
    assert answer["degraded"] and answer["left_out"] == ["hashed_words"]
    assert answer["reasons"] == {"hashed_words": "failed"}
    assert answer["explanation"]["fallback"] == "no_transformer" and answer["items"]
    monkeypatch.undo()

    hasty = Service(service.args.model_copy(update={"deadline_ms": 1e-6}))
    for call, more in (
        ("recommend", {}),
        ("search", {"query": "milk"}),
        ("rank", {"item_ids": ["i00001", "i00002"]}),
    ):
        answer = ask(TestClient(http_app(hasty)), call, user_id="u1", explain=True, **more)
        left_out = set(answer["left_out"]) - ({"meaning"} if call == "search" else set())
        assert left_out == set(service.bundle.learners)
        assert set(answer["reasons"].values()) == {"deadline"}
        assert answer["items"] and answer["explanation"]["fallback"] == "retrieval"


def test_policies_hold(service: Service) -> None:
    bought = {str(service.catalogue.ids[n]) for n in service.bundle.features.history(1, 1000)}
    never = sorted(bought)[:1]
    args = ServeArgs.model_validate(
        {
            **service.args.model_dump(),
            "recommend": {
                "policy": {
                    "exclude_bought": True,
                    "exclude_items": [*never, "unknown"],
                    "at_most": {"category": 2},
                }
            },
        }
    )
    plain = ids(ask(TestClient(http_app(service)), "recommend", user_id="u1", k=10))
    assert bought & set(plain)  # repeat purchases are shown by default
    strict = TestClient(http_app(Service(args)))
    shown = ids(ask(strict, "recommend", user_id="u1", k=10))
    assert len(shown) == 10 and not bought & set(shown)
    categories = [
        service.catalogue.row(service.catalogue.number(i) or 0)["category"] for i in shown
    ]
    first = categories[:6]
    assert max(first.count(category) for category in first) <= 2
