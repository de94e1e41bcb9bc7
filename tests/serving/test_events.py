"""POST /v1/events over a real bundle: what is taken, kept, put aside and refused."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysys.eventlog.rolled import roll
from raysys.registry import Registry
from raysys.serving.admission import MAX_BODY
from raysys.serving.app import settle
from raysys.serving.args import ServeArgs
from raysys.serving.service import Service
from tests.serving.eventing import (
    DAY,
    HOUR,
    MINUTE,
    Start,
    click,
    client_of,
    followed,
    kept,
    now,
    refused,
    send,
    statuses,
)


def test_everything_that_can_happen_is_kept_as_it_was_said(start: Start) -> None:
    service = start()
    client, moment = client_of(service), now() - HOUR
    told = [
        {"event_type": kind, "event_id": kind, "timestamp": moment + n, "user_id": "u1",
         "item_id": "i00001", "session_id": "s", "request_id": "r", "position": 2,
         "quantity": 2, "price": 1.5, "currency": "EUR", "order_id": "o", "store_id": "st",
         "week": 7, "query": "rye  bread"}
        for n, kind in enumerate(("impression", "view", "click", "favorite", "cart", "purchase"))
    ]  # fmt: skip
    told += [
        {"event_type": "search", "event_id": "s", "timestamp": moment + 6, "user_id": "u1",
         "query": "rye bread"},
        {"event_type": "rating", "event_id": "r", "timestamp": moment + 7, "user_id": "u1",
         "item_id": "i00002", "rating": 4.5},
        {"event_type": "item", "event_id": "i", "timestamp": moment + 8, "item_id": "new",
         "title": "Rye bread", "price": 3.2, "currency": "EUR", "available_from": moment},
        {"event_type": "user", "event_id": "u", "timestamp": moment + 9, "user_id": "u1",
         "attributes": {"city": "Ulm"}},
    ]  # fmt: skip
    assert statuses(send(client, *told)) == ["accepted"] * 10
    entries = kept(service)
    assert [entry.kind for entry in entries] == ["event"] * 8 + ["item", "user"]
    for entry, event in zip(entries, told, strict=True):
        event = {k: v for k, v in event.items() if k != "event_type" or entry.kind == "event"}
        assert entry.body == event


def test_a_batch_may_be_half_bad(start: Start) -> None:
    service = start()
    answer = send(
        client_of(service),
        click("good"),
        {"event_type": "click", "user": "u1", "item_id": "i00001"},
        click("also good", item_id="nobody has it"),
        click(position=0, price="cheap", currency="eur"),
        {"event_type": "clik"},
        {"user_id": "u1"},
        ["no", "event"],
        {"event_type": "click", "item_id": "i00001"},
        {"event_type": "purchase", "user_id": "u1"},
        {"event_type": "search", "user_id": "u1", "query": " "},
        {"event_type": "rating", "user_id": "u1", "item_id": "i00001"},
        {"event_type": "user", "user_id": "u1", "attributes": {"user_id": "u2"}},
        click(user_id="session:x"),
        click("x" * 201),
        click(query="rye\x00bread"),
    )
    assert [i for i, status in enumerate(statuses(answer)) if status == "accepted"] == [0, 2]
    paths = {
        outcome["index"]: {error["path"] for error in outcome["errors"]}
        for outcome in answer["events"]
        if outcome["status"] == "rejected"
    }
    at = "body.events"
    assert paths == {
        1: {f"{at}.1.user"},
        3: {f"{at}.3.position", f"{at}.3.price", f"{at}.3.currency"},
        4: {f"{at}.4.event_type"},
        5: {f"{at}.5.event_type"},
        6: {f"{at}.6"},
        7: {f"{at}.7"},
        8: {f"{at}.8.item_id"},
        9: {f"{at}.9.query"},
        10: {f"{at}.10.rating"},
        11: {f"{at}.11"},
        12: {f"{at}.12"},
        13: {f"{at}.13.event_id"},
        14: {f"{at}.14.query"},
    }
    assert all(error["message"] for o in answer["events"] for error in o.get("errors", []))
    assert [entry.body["event_id"] for entry in kept(service)] == ["good", "also good"]


def test_a_batch_of_nothing_good_is_refused(start: Start) -> None:
    service = start()
    response = client_of(service).post("/v1/events", json={"events": [{}, {"event_type": "x"}]})
    problem = refused(response, 422)
    assert [error["path"] for error in problem["errors"]] == [
        "body.events.0.event_type", "body.events.1.event_type",
    ]  # fmt: skip
    assert kept(service) == []


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"events": []}, "body.events"),
        ({"events": [click()] * 1001}, "body.events"),
        ({"events": "click"}, "body.events"),
        ({"event": [click()]}, "body.events"),
        ([click()], "body"),
    ],
)
def test_what_is_no_batch_is_refused_as_a_whole(start: Start, body: Any, path: str) -> None:
    service = start()
    problem = refused(client_of(service).post("/v1/events", json=body), 422)
    assert path in [error["path"] for error in problem["errors"]]
    assert kept(service) == []


def test_a_body_that_is_too_large_is_refused(start: Start) -> None:
    service = start()
    body = {"events": [{"event_type": "item", "item_id": "i", "description": "x" * MAX_BODY}]}
    refused(client_of(service).post("/v1/events", json=body), 413)
    assert kept(service) == []


def test_a_thousand_events_are_one_batch(start: Start) -> None:
    service = start()
    answer = send(client_of(service), *(click(f"e{n}") for n in range(1000)))
    assert answer["accepted"] == 1000 and len(kept(service)) == 1000


def test_what_is_repeated_counts_once(start: Start) -> None:
    """Twice in a batch, again on another replica, in another order, a whole old batch."""
    one, two = start(), start()
    batch = [click("a"), click("b"), click("a")]
    assert statuses(send(client_of(one), *batch)) == ["accepted", "accepted", "duplicate"]
    assert statuses(send(client_of(two), click("c"), *batch[::-1])) == [
        "accepted", "duplicate", "duplicate", "duplicate",
    ]  # fmt: skip
    again = start()
    assert statuses(send(client_of(again), *batch)) == ["duplicate"] * 3
    assert [entry.body["event_id"] for entry in kept(again)] == ["a", "b", "c"]
    assert {s.events.follower.followed.events for s in (one, again)} == {3}


def test_an_id_is_made_where_none_is_given(start: Start) -> None:
    service = start()
    first, second = send(client_of(service), click(), click("mine"))["events"]
    assert first["made_id"] and "made_id" not in second and second["event_id"] == "mine"
    assert [entry.body["event_id"] for entry in kept(service)] == [first["event_id"], "mine"]
    again = send(client_of(service), click(first["event_id"]))
    assert statuses(again) == ["duplicate"]


def test_moments_are_understood_and_kept_in_order(start: Start) -> None:
    service, moment = start(), now() // 1000 * 1000 - 5 * MINUTE
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment / 1000))
    east = time.strftime("%Y-%m-%dT%H:%M:%S+01:00", time.gmtime(moment / 1000 + 3600))
    answer = send(
        client_of(service),
        click("late", timestamp=moment + 9),
        click("text", timestamp=f"{text}Z"),
        click("zone", timestamp=east),
        click("zoneless", timestamp=text),
        click("seconds", timestamp=moment // 1000),
        click("word", timestamp="yesterday"),
        click("no", timestamp=True),
    )
    assert statuses(answer) == ["accepted"] * 3 + ["rejected"] * 4
    wrong = [outcome["errors"][0]["message"] for outcome in answer["events"][3:]]
    for said, word in zip(
        wrong, ("names no zone", "looks like seconds", "UTC", "UTC"), strict=True
    ):
        assert word in said
    assert [(e.body["event_id"], e.body["timestamp"]) for e in kept(service)] == [
        ("text", moment), ("zone", moment), ("late", moment + 9),
    ]  # fmt: skip


@pytest.mark.parametrize("choice", ["reject", "quarantine"])
def test_the_future_and_the_far_past_are_put_aside(start: Start, choice: str) -> None:
    service = start(out_of_range=choice, max_age_days=30, max_ahead_minutes=10)
    moments = [now() - 31 * DAY, now() - 29 * DAY, now() + 9 * MINUTE, now() + 11 * MINUTE]
    answer = send(client_of(service), *(click(f"e{n}", timestamp=t) for n, t in enumerate(moments)))
    bad = "rejected" if choice == "reject" else "quarantined"
    assert statuses(answer) == [bad, "accepted", "accepted", bad]
    old, ahead = answer["events"][0], answer["events"][3]
    said = [x.get("reason") or x["errors"][0]["message"] for x in (old, ahead)]
    assert "31.0 days old" in said[0] and "ahead of the clock" in said[1]
    if choice == "reject":
        assert old["errors"][0]["path"] == "body.events.0.timestamp"
    assert len(kept(service)) == (2 if choice == "reject" else 4)
    assert service.events.follower.followed.events == 2  # what was put aside is not counted
    if choice == "quarantine":
        assert statuses(send(client_of(service), click("e0", timestamp=moments[0]))) == [
            "duplicate"
        ]


def test_a_clock_that_jumps_backwards_puts_nobody_into_the_future(
    start: Start, monkeypatch
) -> None:
    service = start()
    client, real = client_of(service), time.time_ns
    send(client, click("before", timestamp=now()))
    monkeypatch.setattr(time, "time_ns", lambda: real() - 3 * HOUR * 1_000_000)
    answer = send(client, click("after", timestamp=real() // 1_000_000), click("told"))
    assert statuses(answer) == ["accepted", "accepted"]
    assert [e.offset for e in kept(service)] == [1, 2, 3]
    received = [e.received for e in kept(service)]
    assert received[0] > received[1]  # said as the clock said it; the order is the offsets'


def test_a_replica_that_starts_after_the_clock_was_set_back_knows_what_it_said_before(
    start: Start, monkeypatch
) -> None:
    real = time.time_ns
    first, beside = start(), start()
    send(client_of(first), click("before", timestamp=now()))
    monkeypatch.setattr(time, "time_ns", lambda: real() - 3 * HOUR * 1_000_000)
    later = start()
    for service in (first, beside, later):
        followed(service, first)
        answer = send(client_of(service), click(timestamp=real() // 1_000_000))
        assert statuses(answer) == ["accepted"]


def test_where_no_events_are_taken_it_says_how(client: TestClient) -> None:
    problem = refused(client.post("/v1/events", json={"events": [click()]}), 404)
    assert "give `events`" in problem["detail"]


def test_the_log_lies_beside_the_registry(registry: Registry, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RAYSYS_HOME", str(tmp_path))
    told = ServeArgs(registry=str(registry.root), events={})
    assert settle(told).events.path == str(registry.root.parent / "eventlog")
    told = ServeArgs(registry=str(registry.root), events={"path": "runs/log"})
    assert settle(told).events.path == str(tmp_path / "runs/log")


def test_what_is_sent_is_in_the_api_page(client: TestClient) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    told = json.dumps(schemas["EventsRequest"])
    for model in ("BehaviourEvent", "RatingEvent", "SearchEvent", "ItemUpdate", "UserUpdate"):
        assert f"#/components/schemas/{model}" in told and schemas[model]["properties"]


texts = st.text(max_size=30) | st.sampled_from(["u1", "i00001", "EUR", "2026-01-01T00:00:00Z"])


values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


kinds = st.sampled_from(
    [
        "impression",
        "view",
        "click",
        "favorite",
        "cart",
        "purchase",
        "search",
        "rating",
        "item",
        "user",
    ]
)


sent = st.fixed_dictionaries(
    {"event_type": kinds | values},
    optional={
        "event_id": texts | values, "user_id": texts | values, "item_id": texts | values,
        "session_id": texts, "timestamp": st.integers(10**11, 10**13) | values,
        "position": st.integers(-1, 5) | values, "quantity": st.floats() | values,
        "price": st.floats(-1, 10) | values, "rating": st.floats(0, 5) | values,
        "query": texts | values, "attributes": st.dictionaries(texts, texts, max_size=3) | values,
        "currency": texts, "week": st.integers() | values, "surprise": values,
    },
)  # fmt: skip


@pytest.mark.long
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(sent | values, max_size=5) | values)
def test_whatever_is_sent_is_no_fault_of_the_server(fuzzed: Service, batch: Any) -> None:
    content = json.dumps({"events": batch}).encode()
    headers = {"content-type": "application/json"}
    before = fuzzed.events.log.end()
    response = client_of(fuzzed).post("/v1/events", content=content, headers=headers)
    assert response.status_code in (200, 422), response.text
    told = response.json()
    if response.status_code == 200:
        kept_now = fuzzed.events.log.read(before)
        assert len(kept_now) == told["accepted"]
        assert told["rejected"] == statuses(told).count("rejected")
        assert all(json.loads(json.dumps(e.body, allow_nan=False)) == e.body for e in kept_now)
    else:
        assert told["errors"] and fuzzed.events.log.end() == before


@pytest.fixture(scope="module")
def fuzzed(registry: Registry, tmp_path_factory) -> Iterator[Service]:
    path = str(tmp_path_factory.mktemp("fuzzed"))
    events = {"path": path, "max_age_days": 3650, "roll_events": 0}
    service = Service(ServeArgs(registry=str(registry.root), events=events))
    service.warm_up()
    yield service
    assert service.events is not None
    roll(service.events.log, service.events.rolled)  # whatever was accepted can be rolled
    service.close()


@pytest.mark.long
@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-14:00"])
def test_a_moment_outside_of_all_calendars_spoils_its_own_event_only(
    start: Start, moment: str
) -> None:
    answer = send(client_of(start()), click("good"), click("bad", timestamp=moment))
    assert statuses(answer) == ["accepted", "rejected"]
    (error,) = answer["events"][1]["errors"]
    assert error["path"].endswith("events.1.timestamp") and "1990 and 2100" in error["message"]


def test_batches_of_rubbish_are_counted(start: Start) -> None:
    service = start()
    refused(client_of(service).post("/v1/events", json={"events": [{}, {"event_type": "x"}]}), 422)
    assert service.metrics.read()["raysys_events"] == {"rejected": 2}
