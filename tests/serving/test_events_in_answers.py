"""Events change the next answer, in every replica and after a restart, as they do offline."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from raysys.eventlog.rolled import roll
from raysys.eventlog.tidying import forget
from raysys.features.live import LiveFeatures
from raysys.features.log import EventColumns
from raysys.serving.service import Service
from tests.serving import shop
from tests.serving.eventing import (
    DAY,
    HOUR,
    Start,
    click,
    client_of,
    now,
    refused,
    send,
    statuses,
)
from tests.serving.test_arms import Shop


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


def test_an_event_is_in_the_next_answer_of_another_bundle_too(bundle: Path, tmp_path: Path) -> None:
    events = {"path": str(tmp_path / "eventlog"), "roll_events": 0}
    tried = Shop(tmp_path / "registry", bundle, events=events)
    try:
        tried.tries(share=0.99)
        challenger = tried.arms.challenger
        assert challenger is not None and challenger.events is not None
        assert challenger.events.follower is not None
        challenger.events.follower.stop()  # it does not come to look by itself
        sent = [click(event_type="purchase", user_id="a stranger", item_id="i00077")]
        send(tried.client, *sent)
        answer = tried.ask("a stranger")
        assert answer["arm"] == "challenger" and not answer["cold_start"]
        assert answer["items"][0]["item_id"] == "i00077"
    finally:
        tried.arms.close()


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


@pytest.mark.long
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
