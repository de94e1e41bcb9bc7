"""What the shop says of a user counts in their next answer, in every replica, after a restart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raysys.eventlog.rolled import roll
from raysys.serving.args import ServeArgs
from raysys.serving.cache import CacheArgs
from raysys.serving.service import Service
from tests.serving.eventing import Start, click, client_of, followed, send
from tests.serving.shop import PLAN, publish_shop

WITH_AGE = {
    **PLAN,
    "features": [
        *PLAN["features"],
        {"name": "age", "kind": "user_attribute", "attribute": "age", "read_as": "number"},
    ],
}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("told") / "registry"
    publish_shop(root, plan=WITH_AGE)
    return root


@pytest.fixture
def start_here(registry: Path, tmp_path: Path) -> Iterator[Start]:
    begun: list[Service] = []

    def started(cache: CacheArgs | None = None, **events: Any) -> Service:
        told = {"path": str(tmp_path / "eventlog"), "segment_mb": 1, "roll_events": 0, **events}
        begun.append(Service(ServeArgs(registry=str(registry), cache=cache, events=told)))
        begun[-1].warm_up()
        return begun[-1]

    yield started
    for each in begun:
        each.close()


def told(event_id: str, age: str | None, user_id: str = "u1") -> dict[str, Any]:
    attributes = {} if age is None else {"age": age, "town": "Ulm"}
    event = {"event_type": "user", "event_id": event_id, "user_id": user_id}
    return {**event, "attributes": attributes}


def age_of(service: Service, user_id: str = "u1") -> float | None:
    """The feature as the next answer reads it."""
    body = {"user_id": user_id, "k": 3, "explain": True}
    answer = client_of(service).post("/v1/recommend", json=body).json()
    (age,) = {item["why"]["features"]["age"] for item in answer["items"]}
    return age


def test_it_counts_at_once_and_everywhere(start_here: Start) -> None:
    one, two = start_here(), start_here()
    assert age_of(one) is None
    assert send(client_of(one), told("a", "41"))["accepted"] == 1
    assert age_of(one) == 41
    followed(two, one)
    assert age_of(two) == 41
    send(client_of(one), told("b", None))
    assert age_of(one) is None


def test_a_replica_that_starts_later_knows_it(start_here: Start) -> None:
    """From the log, from its rolled files, and beside a copy of the state."""
    one = start_here(snapshot_events=1, roll_events=1)
    send(client_of(one), told("a", "41"), told("n", "7", "newcomer"))
    later = start_here()
    assert (age_of(later), age_of(later, "newcomer")) == (41, 7)
    roll(one.events.log, one.events.rolled)
    one.events.tend()
    send(client_of(one), click("c"), told("b", "42"))
    one.events.follower.copy()
    later = start_here(snapshot_events=1)
    assert later.events.follower.restored == 4
    assert (age_of(later), age_of(later, "newcomer")) == (42, 7)
    assert later.versions.state


def test_who_is_only_told_of_is_still_new(start_here: Start) -> None:
    one = start_here()
    send(client_of(one), told("a", "7", "newcomer"))
    ask = {"user_id": "newcomer", "k": 3}
    answer = client_of(one).post("/v1/recommend", json=ask).json()
    assert answer["cold_start"] and len(answer["items"]) == 3
    send(client_of(one), click("c", user_id="newcomer"))
    assert not client_of(one).post("/v1/recommend", json=ask).json()["cold_start"]


def test_a_cached_answer_is_made_anew(start_here: Start) -> None:
    one = start_here(CacheArgs())
    ask = {"user_id": "u1", "k": 3}

    def cache() -> str:
        asked = {**ask, "explain": True}
        explained = client_of(one).post("/v1/recommend", json=asked).json()["explanation"]
        return str(explained["cache"])

    assert cache() == "miss"
    client_of(one).post("/v1/recommend", json=ask)
    assert cache() == "hit"
    send(client_of(one), told("a", "41"))
    assert cache() == "miss"
    send(client_of(one), told("b", None))
    assert cache() == "hit"  # what is known is as it was
