"""Prices and texts of items change between two bundles, whatever order and batches they come in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys import schema
from raysys.features.item_updates import ItemUpdates
from raysys.features.live import LiveFeatures
from raysys.features.plan import FeaturePlan
from tests.synthetic import make_catalogue

PLAN = FeaturePlan.model_validate(
    {
        "tables": {"user_item": {"keys": ["user", "item"]}, "item": {"keys": ["item"]},
                   "user": {"keys": ["user"]}},
        "features": [{"name": "price", "kind": "static", "column": "price"}],
    }
)  # fmt: skip

words = st.none() | st.sampled_from(["", "red", "rosé", "\0"])
update = st.fixed_dictionaries(
    {
        "item_id": st.sampled_from(["i00000", "i00001", "i00002", "elsewhere"]),
        "title": words,
        "size": words,
        "price": st.none() | st.sampled_from([0.0, 1.5, 2.0]),
        "currency": st.sampled_from([None, "USD", "EUR"]),
    }
)


def live() -> LiveFeatures:
    return LiveFeatures(PLAN, make_catalogue(4), ["u0"])


def said(state: LiveFeatures) -> dict[str, Any]:
    """All that can be seen of the items."""
    return {
        "rows": [state.catalogue.row(number) for number in range(4)],
        "price": state.batch(0, np.arange(4, dtype=np.int32), 1).features[:, 0].tobytes(),
        "filter": state.of_items.price.tobytes(),
        "version": state.of_items.version,
    }


@pytest.mark.long
@given(st.lists(update, max_size=12), st.integers(1, 5))
@settings(max_examples=60)
def test_neither_batches_nor_repetition_matter(updates: list[dict[str, Any]], batch: int) -> None:
    one, two = live(), live()
    for told in updates:
        ItemUpdates(one).take([told])
    every = ItemUpdates(two)
    for _ in range(2):
        for start in range(0, len(updates), batch):
            every.take(updates[start : start + batch])
    last = {told["item_id"]: told for told in updates}
    listed = live()
    for number in range(4):
        row, told = one.catalogue.row(number), last.get(f"i{number:05d}")
        if told is None:
            assert row == listed.catalogue.row(number)
        else:
            assert (row["title"], row["size"]) == (told["title"], told["size"])
            assert row["category"] == listed.catalogue.row(number)["category"]
            foreign = told["currency"] == "EUR" or told["price"] is None
            assert row["price"] == listed.catalogue.row(number)["price"] or not foreign
            assert foreign or row["price"] == told["price"]
    assert said(one)["rows"] == said(two)["rows"]
    assert said(one) == said(two)


def test_a_price_is_in_features_and_filters_at_once() -> None:
    state = live()
    take = ItemUpdates(state).take
    assert state.of_items.version == ""
    assert take([{"item_id": "i00001", "title": "a", "price": 9.5, "currency": "USD"}]) == 1
    assert said(state)["filter"] == said(state)["price"]
    assert state.of_items.price[1] == np.float32(9.5) and state.catalogue.row(1)["price"] == 9.5
    dear = state.of_items.version
    assert dear and take([{"item_id": "i00001", "title": "a", "price": 9.5}]) == 0
    assert state.of_items.version == dear
    take([{"item_id": "i00001", "price": 8.0}])
    assert state.of_items.version not in ("", dear)
    take([{"item_id": "i00001"}])  # the last word gives none
    assert state.of_items.version == ""


def test_a_price_in_another_currency_or_none_is_the_catalogues() -> None:
    state = live()
    before = said(state)
    for told in ({"price": 4.0, "currency": "EUR"}, {}):
        ItemUpdates(state).take([{"item_id": "i00002", "title": "new", **told}])
        assert state.catalogue.row(2)["title"] == "new"
        assert state.catalogue.row(2)["price"] == live().catalogue.row(2)["price"]
        assert {**said(state), "rows": 0} == {**before, "rows": 0}


def test_the_version_is_the_catalogues_own_when_its_prices_are_back() -> None:
    state, before = live(), float(live().catalogue.row(0)["price"])
    for price in (3.25, before):
        ItemUpdates(state).take([{"item_id": "i00000", "price": price}])
    assert state.of_items.version == ""


def test_a_table_says_what_single_updates_say() -> None:
    rows = [
        {"item_id": "i00003", "title": "t", "size": None, "price": 2.5, "currency": "USD"},
        {"item_id": "nobody knows", "title": "t", "price": 1.0},
        {"item_id": "i00000", "description": "d", "price": None},
    ]
    one, two = live(), live()
    assert ItemUpdates(one).take_rows(pa.Table.from_pylist(rows, schema=schema.ITEMS)) == 2
    ItemUpdates(two).take(rows)
    assert said(one) == said(two)


def test_what_is_saved_is_what_was_trained_on(tmp_path) -> None:
    state = live()
    ItemUpdates(state).take([{"item_id": "i00000", "title": "other", "price": 99.0}])
    state.save(tmp_path)
    assert said(LiveFeatures.load(tmp_path)) == said(live())
