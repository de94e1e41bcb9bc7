"""POST /v1/events over a real bundle and log; two services share a log as replicas do."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysys.errors import UserError
from raysys.eventlog.entries import Entry
from raysys.eventlog.rolled import roll
from raysys.eventlog.tidying import forget
from raysys.features.live import LiveFeatures
from raysys.features.log import EventColumns
from raysys.registry import Registry
from raysys.serving.app import MAX_BODY, http_app, settle
from raysys.serving.args import ServeArgs
from raysys.serving.service import Service
from tests.serving import shop

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
Start = Callable[..., Service]


def now() -> int:
    return time.time_ns() // 1_000_000


def click(event_id: str | None = None, **told: Any) -> dict[str, Any]:
    event = {"event_type": "click", "user_id": "u1", "item_id": "i00001", **told}
    return event if event_id is None else {"event_id": event_id, **event}


@pytest.fixture
def start(registry: Registry, tmp_path: Path) -> Iterator[Start]:
    """Starts replicas that share a log."""
    services: list[Service] = []

    def start_it(clock: str = "wall", **events: Any) -> Service:
        told = {"path": str(tmp_path / "eventlog"), "segment_mb": 1, "roll_events": 0, **events}
        services.append(Service(ServeArgs(registry=str(registry.root), clock=clock, events=told)))
        services[-1].warm_up()
        return services[-1]

    yield start_it
    for service in services:
        service.close()


def client_of(service: Service) -> TestClient:
    return TestClient(http_app(service), raise_server_exceptions=False)


def send(client: TestClient, *events: Any) -> dict[str, Any]:
    response = client.post("/v1/events", json={"events": events})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    counted = ("accepted", "duplicate", "quarantined", "rejected")
    assert sum(answer[name] for name in counted) == len(events) == len(answer["events"])
    assert [outcome["index"] for outcome in answer["events"]] == list(range(len(events)))
    return answer


def statuses(answer: dict[str, Any]) -> list[str]:
    return [outcome["status"] for outcome in answer["events"]]


def refused(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["status"] == status and problem["instance"] == "/v1/events"
    return problem


def kept(service: Service) -> list[Entry]:
    assert service.events is not None
    return service.events.log.read(0)


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


def test_an_event_is_in_the_users_next_answer(start: Start) -> None:
    one, two = start(), start()
    ask = {"user_id": "u3", "k": 10}
    before = client_of(one).post("/v1/recommend", json=ask).json()["items"]
    shown = {item["item_id"] for item in before}
    wanted = next(i for i in one.catalogue.ids.tolist() if i not in shown)
    for _ in range(3):
        send(client_of(one), click(event_type="purchase", user_id="u3", item_id=wanted))
    profile = client_of(one).get("/v1/users/u3/profile").json()
    assert profile["recent_items"][0]["item_id"] == wanted
    after = client_of(one).post("/v1/recommend", json=ask).json()["items"]
    assert wanted in {item["item_id"] for item in after[:5]}
    deadline = time.monotonic() + 30  # the other replica follows by itself
    while two.events.follower.followed.position < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    theirs = client_of(two).post("/v1/recommend", json=ask).json()["items"]
    assert [item["item_id"] for item in theirs] == [item["item_id"] for item in after]


@pytest.mark.parametrize("who", [{"user_id": "a stranger"}, {"session_id": "only a session"}])
def test_a_stranger_is_known_from_the_first_event_on(start: Start, who: dict[str, str]) -> None:
    service = start()
    client = client_of(service)
    cold = client.post("/v1/recommend", json={**who, "k": 5}).json()
    assert cold["cold_start"]
    event = {"event_type": "purchase", "item_id": "i00077", **who}
    send(client, event)
    warm = client.post("/v1/recommend", json={**who, "k": 5}).json()
    assert not warm["cold_start"] and warm["items"][0]["item_id"] == "i00077"


def test_a_session_is_found_whether_it_is_named_or_not(start: Start) -> None:
    client = client_of(start())
    send(client, click(event_type="purchase", item_id="i00005", session_id="open"))
    for ask in ({"user_id": "u1", "session_id": "open"}, {"user_id": "u1"}):
        body = {**ask, "item_ids": ["i00005", "i00006"], "explain": True}
        items = client.post("/v1/rank", json=body).json()["items"]
        times = {i["item_id"]: i["why"]["features"]["session_item_times"] for i in items}
        assert times == {"i00005": 1, "i00006": 0}


def test_a_replica_that_starts_counts_what_it_missed(start: Start) -> None:
    """From the log, from its rolled files where the log forgot, and both; each event once."""
    one = start()
    client = client_of(one)
    for at in range(6):  # some MB: several segments
        send(
            client, *(click(f"{at}-{n}", user_id=f"u{n % 9}", query="x" * 900) for n in range(700))
        )
    roll(one.events.log, one.events.rolled)
    assert forget(one.events.log, one.events.rolled, now() + 1) > 0
    send(client, click("last", item_id="i00009", event_type="purchase"))
    two = start()
    assert two.events.follower.followed.events == 4201
    assert two.bundle.features.as_of == one.bundle.features.as_of
    items = np.arange(len(one.catalogue), dtype=np.int32)
    for user in range(10):
        ours, theirs = (
            s.bundle.features.batch(user, items, one.bundle.features.as_of) for s in (one, two)
        )
        np.testing.assert_array_equal(ours.features, theirs.features)
    answer = client_of(two).post("/v1/events", json={"events": [click("0-0"), click("last")]})
    assert statuses(answer.json()) == ["duplicate", "duplicate"]


def same_state(one: Service, two: Service) -> None:
    ours, theirs = one.bundle.features, two.bundle.features
    assert (ours.as_of, ours.n_users) == (theirs.as_of, theirs.n_users)
    items = np.arange(len(ours.catalogue), dtype=np.int32)
    for user in range(ours.n_users):
        session = ours.current_session(user, ours.as_of, HOUR)
        assert session == theirs.current_session(user, ours.as_of, HOUR)
        np.testing.assert_array_equal(
            ours.batch(user, items, ours.as_of, session=session).features,
            theirs.batch(user, items, ours.as_of, session=session).features,
        )


def test_a_replica_goes_on_from_a_copy_of_the_state(start: Start, caplog) -> None:
    one = start(snapshot_events=50, roll_events=1)
    client = client_of(one)
    send(client, *(click(f"a{n}", user_id=f"u{n % 40}", event_type="purchase") for n in range(60)))
    one.events.tend()
    assert (one.events.follower.followed.copied, one.events.rolled.last()) == (60, 60)
    send(client, *(click(f"b{n}", user_id=f"v{n}", event_type="purchase") for n in range(7)))
    one.events.tend()  # not enough for another
    two = start(snapshot_events=50)
    assert two.events.follower.followed.events == 7
    same_state(one, two)
    send(client, *(click(f"c{n}", session_id="s") for n in range(50)))
    two.events.follower.catch_up()
    two.events.tend()
    copies = list((two.events.follower._snapshots.root).iterdir())
    assert [path.name for path in copies] == [f"{117:016d}"]
    (copies[0] / "users.parquet").write_bytes(b"no Parquet")
    three = start(snapshot_events=50)
    assert "cannot be used" in caplog.text
    assert three.events.follower.followed.events == 117  # from the bundle, then
    same_state(one, three)
    four = start(snapshot_events=0)
    same_state(one, four)


def test_a_copy_of_another_log_is_not_used(start: Start, tmp_path: Path, caplog) -> None:
    import shutil

    one = start(snapshot_events=1)
    send(client_of(one), *(click(f"a{n}") for n in range(9)))
    one.events.tend()
    states = tmp_path / "new" / "states"
    shutil.copytree(tmp_path / "eventlog" / "states", states)
    two = start(path=str(tmp_path / "new"))
    assert "of another log" in caplog.text and two.events.follower.followed.position == 0
    assert two.bundle.features.as_of < one.bundle.features.as_of


def test_replaying_a_log_through_serving_gives_the_offline_features(
    start: Start, bundle: Path
) -> None:
    """Half a year of baskets, sent in batches over HTTP, against the replay over columns."""
    service = start(clock="log_end")
    features = service.bundle.features
    offline = LiveFeatures.load(bundle / "features")
    told = shop.simulate(features.catalogue, 30)
    shift = 180 * DAY
    columns = EventColumns(**{
        **told.__dict__, "time": told.time + shift,
        "session": told.session + offline.sessions.count,
    })  # fmt: skip
    offline.apply(columns)
    client = client_of(service)
    for low in range(0, len(told), 90):
        send(client, *(
            {"event_type": "purchase", "event_id": str(n), "user_id": f"u{told.user[n]}",
             "item_id": features.catalogue.ids[told.item[n]], "quantity": 1, "price": 2.0,
             "timestamp": int(columns.time[n]), "session_id": f"next {told.order[n]}",
             "query": features.queries[told.query[n]].upper()}
            for n in range(low, min(low + 90, len(told)))
        ))  # fmt: skip
    assert features.as_of == offline.as_of
    items = np.arange(len(features.catalogue), dtype=np.int32)
    for user in range(30):
        asked = {"session": int(columns.session[np.flatnonzero(told.user == user)[-1]]), "query": 3}
        ours, theirs = (
            live.batch(user, items, offline.as_of + 1, **asked) for live in (features, offline)
        )
        np.testing.assert_array_equal(ours.features, theirs.features)
        np.testing.assert_array_equal(ours.history[0], theirs.history[0])
        found = [live.candidates(user, offline.as_of + 1).items for live in (features, offline)]
        np.testing.assert_array_equal(*found)


def test_a_clock_that_stands_at_the_logs_end_is_not_put_years_ahead(start: Start) -> None:
    service = start(clock="log_end")
    client, before = client_of(service), service.bundle.features.as_of
    response = client.post("/v1/events", json={"events": [click(timestamp=now())]})
    assert "ahead of the clock" in refused(response, 422)["detail"]
    send(client, click(event_type="purchase", item_id="i00042"))  # its moment is the clock's
    assert service.bundle.features.as_of == before + 1
    client_of(start()).post("/v1/events", json={"events": [click(), click()]})  # by the wall's
    later = start(clock="log_end")  # and back
    assert later.bundle.features.as_of == before + 1
    assert later.events.follower.followed.skipped == 2


def test_too_much_at_once_is_pushed_back(start: Start) -> None:
    service = start(queue_events=100, retry_after_s=7)
    client = client_of(service)
    with service.events.waiting(60):
        response = client.post("/v1/events", json={"events": [click(f"e{n}") for n in range(41)]})
        problem = refused(response, 503)
        assert response.headers["retry-after"] == "7" and "60 events" in problem["detail"]
        send(client, *(click(f"e{n}") for n in range(40)))
    answer = send(client, *(click(f"e{n}") for n in range(41)))
    assert (answer["accepted"], answer["duplicate"]) == (1, 40)


def test_a_full_disk_is_pushed_back_until_there_is_room(start: Start, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        service = start(path=str(disk / "log"))
        (disk / "others").write_bytes(bytes(1_500_000))
        client, accepted, response = client_of(service), 0, None
        for at in range(60):
            batch = [click(f"{at}-{n}", query="x" * 900) for n in range(100)]
            response = client.post("/v1/events", json={"events": batch})
            if response.status_code != 200:
                break
            accepted += 100
        assert response is not None and accepted > 500
        problem = refused(response, 503)
        assert response.headers["retry-after"] == "1" and "again" in problem["detail"]
        assert client.post("/v1/recommend", json={"user_id": "u1"}).status_code == 200
        (disk / "others").unlink()
        assert send(client, *batch)["accepted"] == 100
        assert len(service.events.log.read(0, 100_000)) == accepted + 100
        service.close()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_redis_that_is_gone_is_pushed_back_until_it_is_back(start: Start, own_redis) -> None:
    service = start(backend="redis", url=own_redis.url)
    client = client_of(service)
    send(client, click("a"))
    own_redis.kill()
    response = client.post("/v1/events", json={"events": [click("a"), click("b")]})
    refused(response, 503)
    assert client.post("/v1/recommend", json={"user_id": "u1"}).status_code == 200
    own_redis.start()
    assert statuses(send(client, click("a"), click("b"))) == ["duplicate", "accepted"]
    assert service.events.follower.followed.events == 2


def test_a_redis_that_would_lose_events_is_refused(start: Start, own_redis) -> None:
    own_redis.redis.config_set("appendfsync", "everysec")
    with pytest.raises(UserError, match="lose acknowledged events: appendfsync everysec"):
        start(backend="redis", url=own_redis.url)
    own_redis.kill()
    with pytest.raises(UserError, match="start Redis"):
        start(backend="redis", url=own_redis.url)


def test_many_clients_at_once_lose_nothing(start: Start) -> None:
    services = [start(), start()]
    clients = [client_of(service) for service in services]

    def run(number: int) -> None:
        for at in range(8):
            send(clients[number % 2], *(click(f"{number}-{at}-{n}") for n in range(20)))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({entry.body["event_id"] for entry in kept(services[0])}) == 640
    for service in services:
        service.events.follower.catch_up()
        assert service.events.follower.followed.events == 640


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


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Any]:
    import socket

    from tests.eventlog.redis_server import RedisServer

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis", port)
    server.start()
    yield server
    server.kill()
