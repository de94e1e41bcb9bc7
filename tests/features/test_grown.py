"""More items: what a state says of those that were there stays, and the new ones count."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from raysys import schema
from raysys.features.grown import grown, unknown_items
from raysys.features.live import LiveFeatures
from raysys.features.log import EventColumns
from raysys.features.promotions import Promotions
from raysys.retrieval.covisitation import CoVisitation
from tests.features import every
from tests.features.every import DAY, N_ITEMS, N_USERS

NEW = ("a", "i005x", "i005y", "z")  # before, among and behind the others
LATER = 41 * DAY


def items() -> pa.Table:
    """The catalogue of the other tests, in another order, and what came since."""
    old = every.catalogue().table.to_pylist()
    retold = [{**row, "title": "something else", "category": "c0"} for row in reversed(old)]
    fresh = [
        {"item_id": NEW[0], "title": "a lamp", "category": "c1", "brand": "b2", "price": 9.0},
        {"item_id": NEW[1], "title": "a lamp, too", "category": "never seen", "price": 8.0},
        {"item_id": NEW[2]},
        {"item_id": NEW[3], "category": "c3", "department": "d1"},
    ]
    return pa.Table.from_pylist([*fresh, *retold], schema=schema.ITEMS)


def filled(events: EventColumns) -> LiveFeatures:
    live = every.live()
    live.apply(events)
    known = events.item >= 0
    live.covisitation = CoVisitation.fit(
        events.order[known] // 4, events.item[known], N_ITEMS, k=3, min_count=1
    )
    at = np.arange(N_ITEMS, dtype=np.int64)
    flags = (at % 3 + 1).astype(np.uint8)
    live.promotions = Promotions.of_columns(at % 2 + 3, at % 2, at, flags, 2, N_ITEMS)
    return live


def moved(events: EventColumns, place: np.ndarray) -> EventColumns:
    item = np.where(events.item >= 0, place[events.item], -1).astype(np.int32)
    return dataclasses.replace(events, item=item)


def same(old: LiveFeatures, new: LiveFeatures, place: np.ndarray, time: int) -> None:
    """Both say the same of the items that both have."""
    assert old.settings == new.settings
    there = np.arange(N_ITEMS, dtype=np.int32)
    for user in range(-1, N_USERS):
        for week in (3, 4):
            before, after = (
                live.batch(user, items, time, "s1", week, session=2, query=1)
                for live, items in ((old, there), (new, place))
            )
            np.testing.assert_array_equal(before.features, after.features)
            np.testing.assert_array_equal(place[before.history[0]], after.history[0])
        assert old.profile(user, time) == new.profile(user, time)
        assert old.orders(user) == new.orders(user)
        proposed = set(place[old.candidates(user, time).items].tolist())
        assert proposed <= set(new.candidates(user, time).items.tolist())
    np.testing.assert_array_equal(old.popularity_at(time), new.popularity_at(time)[place])


@pytest.mark.long
@given(every.streams(), every.streams(20))
@settings(max_examples=30, deadline=None)
def test_of_the_items_that_were_there_nothing_changes(
    past: EventColumns, more: EventColumns
) -> None:
    old, new = filled(past), grown(filled(past), items())
    place = new.catalogue.numbers(old.catalogue.table["item_id"])
    assert len(new.catalogue) == N_ITEMS + len(NEW) and new.as_of == old.as_of
    same(old, new, place, max(LATER, old.as_of + 1))
    old.apply(more)
    new.apply(moved(more, place))
    same(old, new, place, max(LATER, old.as_of + 1))


def a_stream() -> EventColumns:
    rng = np.random.default_rng(4)
    rows = [
        (
            *(int(rng.integers(N_USERS)), int(rng.integers(N_ITEMS)), every.KINDS[at % 3]),
            *(at * DAY // 4, 1.0, 2.0, at % 2, at % 5, at % 3, at % 4),
        )
        for at in range(120)
    ]
    return every.as_columns(rows)


def test_rows_that_were_there_stay_and_unseen_labels_have_no_code(tmp_path: Path) -> None:
    live = filled(a_stream())
    assert unknown_items(live.catalogue, items())["item_id"].to_pylist() == list(NEW)
    new = grown(live, items())
    number = new.catalogue.number
    assert new.catalogue.row(number("i003"))["title"] == "thing 3"
    assert new.codes["category"][number("a")] == live.codes["category"][1]
    assert new.codes["category"][number("i005x")] == -1
    assert new.labels == live.labels
    batch = new.batch(1, np.array([number("a")], np.int32), LATER, "s1", 3)
    said = dict(zip(new.names, batch.features[0].tolist(), strict=True))
    assert said["price"] == 9 and said["item_28d"] == 0
    assert np.isnan(said["fits"]) and np.isnan(said["axis"]) and np.isnan(said["mine_recency"])
    new.save(tmp_path)
    again = LiveFeatures.load(tmp_path)
    everything = np.arange(len(new.catalogue), dtype=np.int32)
    for user in range(N_USERS):
        one, two = (x.batch(user, everything, LATER, "s1", 3).features for x in (new, again))
        np.testing.assert_array_equal(one, two)


def test_events_of_a_new_item_count() -> None:
    new = grown(filled(a_stream()), items())
    lamp = new.catalogue.number("a")
    at = 35 * DAY
    one = every.as_columns([(1, lamp, every.KINDS[2], at, 2.0, 9.0, 0, 2, -1, 0)])
    new.apply(one)
    assert new.history(1, 3)[0] == lamp and lamp in new.candidates(1, at + 1).items
    batch = new.batch(1, np.array([lamp], np.int32), at + DAY, "s1", 3)
    said = dict(zip(new.names, batch.features[0].tolist(), strict=True))
    assert said["mine_recency"] == 1 and said["item_7d"] == pytest.approx(0.5 ** (1 / 7))


def test_nothing_new_changes_nothing() -> None:
    live = filled(a_stream())
    new = grown(filled(a_stream()), every.catalogue().table)
    assert len(new.catalogue) == N_ITEMS
    same(live, new, np.arange(N_ITEMS, dtype=np.int32), LATER)
