"""A price that the shop sends counts in the next answer, in every replica and after a restart."""

from __future__ import annotations

from typing import Any

import pytest

from raysys.eventlog.rolled import roll
from raysys.eventlog.tidying import forget
from raysys.serving.cache import CacheArgs
from raysys.serving.service import Service
from raysys.web.shelf import card_of
from tests.serving.eventing import Start, click, client_of, followed, now, send

DEAR, ITEM = 900.0, "i00007"


def told(event_id: str, price: float | None = None, **more: Any) -> dict[str, Any]:
    update = {"event_type": "item", "event_id": event_id, "item_id": ITEM, **more}
    return update if price is None else {**update, "price": price}


def above(service: Service, price: float) -> list[str]:
    """Items that are dearer, as search and recommend find them."""
    body = {"user_id": "u1", "k": 10, "filters": {"min_price": price}}
    answer = client_of(service).post("/v1/recommend", json=body).json()
    return [item["item_id"] for item in answer["items"]]


def test_a_price_counts_in_filters_and_on_pages_at_once_and_everywhere(start: Start) -> None:
    one, two = start(), start()
    assert above(one, DEAR / 2) == []
    before = one.permissions.version
    assert send(client_of(one), told("a", DEAR, title="Gold"))["accepted"] == 1
    assert above(one, DEAR / 2) == [ITEM]
    followed(two, one)
    assert above(two, DEAR / 2) == [ITEM]
    assert before != one.permissions.version == two.permissions.version
    card = card_of(one.catalogue, ITEM)
    assert card is not None and (card.title, card.price) == ("Gold", "$900.00")
    send(client_of(one), told("b", 1.0))
    assert above(one, DEAR / 2) == []


def test_a_replica_that_starts_later_knows_it(start: Start) -> None:
    """From the log, from its rolled files, and beside a copy of the state."""
    one = start(snapshot_events=1, roll_events=1)
    send(client_of(one), told("a", DEAR))
    assert above(start(), DEAR / 2) == [ITEM]  # from the log
    one.events.tend()  # rolls, and leaves a copy of the state
    send(client_of(one), click("c"), told("b", DEAR + 1))
    one.events.follower.copy()
    later = start(snapshot_events=1)
    assert later.events.follower.restored == 3
    assert later.catalogue.row(7)["price"] == DEAR + 1
    assert later.permissions.version == one.permissions.version


@pytest.mark.long
def test_what_the_log_forgot_is_in_its_files(start: Start) -> None:
    one = start()
    send(client_of(one), told("a", DEAR))
    for at in range(6):  # some MB: several segments
        send(client_of(one), *(click(f"{at}-{n}", query="x" * 900) for n in range(700)))
    roll(one.events.log, one.events.rolled)
    assert forget(one.events.log, one.events.rolled, now() + 1) > 0
    assert one.events.log.first() > 1
    later = start()
    assert above(later, DEAR / 2) == [ITEM]
    assert later.versions.state  # shown lists say that it is not the bundle's own


def test_items_that_nobody_has_and_other_currencies_wait_for_the_next_bundle(start: Start) -> None:
    one = start()
    updates = [told("a", DEAR, item_id="of next season"), told("b", DEAR, currency="EUR")]
    assert send(client_of(one), *updates)["accepted"] == 2
    assert above(one, DEAR / 2) == []
    assert one.permissions.version == ""


def test_a_cached_answer_is_made_anew_for_another_price(start: Start) -> None:
    one = start()
    cached = Service(one.args.model_copy(update={"cache": CacheArgs()}))
    try:
        cached.warm_up()
        assert above(cached, DEAR / 2) == above(cached, DEAR / 2) == []
        send(client_of(cached), told("a", DEAR))
        assert above(cached, DEAR / 2) == [ITEM]
    finally:
        cached.close()
