"""A state that knows more items: what the shop has got since the features were made.

Items are numbered in the order of their ids, so those that were there keep their order and not
their numbers. Whatever holds a number of an item is told the new one; nothing else changes, and of
the items that were there the state says what it said. Labels keep their frozen codes: one that no
item had is unseen. A new item has no neighbours, nothing was counted of it, and it has vectors
where they are made from texts and somebody makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raysys.catalogue import Catalogue
from raysys.features.keys import KeySpace
from raysys.features.live import LiveFeatures
from raysys.features.promotions import Promotions
from raysys.features.resources import Matrix, Resources
from raysys.retrieval.covisitation import CoVisitation

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Encode = Callable[[str, Catalogue], Matrix]
"""Vectors of the items of a catalogue, float[n, d], in the space of that name."""


def unknown_items(catalogue: Catalogue, items: pa.Table) -> pa.Table:
    """Rows of `schema.ITEMS` whose items a catalogue lacks."""
    return items.filter(pa.array(catalogue.numbers(items["item_id"]) < 0))


def grown(live: LiveFeatures, items: pa.Table, encode: Encode | None = None) -> LiveFeatures:
    """A state with more items; the one that is given must not be used any more.

    Args:
        live: a state.
        items: `schema.ITEMS`; those that it has stay as they are.
        encode: makes vectors of the new ones, where they are made from texts; None: they have none.
    """
    fresh = unknown_items(live.catalogue, items)
    old = live.catalogue.table
    catalogue = Catalogue(pa.concat_tables([old, fresh.select(old.column_names).cast(old.schema)]))
    place = catalogue.numbers(old["item_id"])
    vectors = {
        name: replace(space, items=_moved(space.items, place, len(catalogue)))
        for name, space in live.resources.vectors.items()
    }
    if encode is not None and len(fresh):
        added = Catalogue(fresh)
        new = catalogue.numbers(added.table["item_id"])
        for name in vectors.keys() & live.plan.encoded.keys():
            vectors[name].items[new] = encode(name, added)
    made = LiveFeatures(
        *(live.plan, catalogue, live.users, live.stores, live.settings),
        queries=live.queries,
        resources=Resources(vectors, live.resources.examination),
        vocabularies=live.of_items.vocabularies,
        attributes=live.attributes,
    )
    made.go_on_from(live, _states(live, made, place))
    made.covisitation = _neighbours(live.covisitation, place, len(catalogue))
    made.promotions = _promotions(live.promotions, place, len(catalogue))
    return made


def _states(live: LiveFeatures, made: LiveFeatures, place: Int32) -> dict[str, dict[str, Any]]:
    """All state by key under the new numbers, by kind and name."""
    found: dict[str, dict[str, Any]] = {}
    for kind, states in live.state.arrays().items():
        found[kind] = {}
        for name, arrays in states.items():
            empty, spec = made.state.all()[name], made.plan.states[name]
            arrays["keys"] = _keys(
                arrays["keys"], spec.keys, live.state.space, made.state.space, place
            )
            if "fan" in arrays:  # by which a user's records are listed
                arrays["fan"] = empty.arrays()["fan"]
            if name in made.plan.last and made.plan.last[name].of == "item":
                arrays["values"] = _places(arrays["values"], place)
            found[kind][name] = type(empty).from_arrays(arrays)  # type: ignore[attr-defined]
    return found


def _keys(keys: Int64, columns: Sequence[str], old: KeySpace, new: KeySpace, place: Int32) -> Int64:
    """The same keys with the new numbers of items: int64[n]."""
    parts: list[Int64] = []
    for column in reversed(columns[1:]):
        keys, part = np.divmod(keys, old.fans[column])
        parts.append(part)
    parts.append(keys)
    found = np.zeros(len(keys), dtype=np.int64)
    for column, part in zip(columns, reversed(parts), strict=False):  # no columns: one record
        moved = place[part].astype(np.int64) if column == "item" else part
        found = found * new.fans[column] + moved
    return found


def _places(numbers: npt.NDArray[Any], place: Int32) -> Int32:
    """New numbers of items; below 0 stays."""
    return np.where(numbers >= 0, place[numbers], numbers).astype(np.int32)


def _moved(rows: Matrix, place: Int32, n: int) -> Any:
    """Rows by item under the new numbers, zeros where an item is new."""
    found = np.zeros((n, *rows.shape[1:]), dtype=rows.dtype)
    found[place] = rows
    return found


def _neighbours(near: CoVisitation, place: Int32, n: int) -> CoVisitation:
    neighbours = np.full((n, near.neighbours.shape[1]), -1, dtype=np.int32)
    neighbours[place] = _places(near.neighbours, place)
    return CoVisitation(neighbours, _moved(near.scores, place, n))


def _promotions(promotions: Promotions, place: Int32, n: int) -> Promotions:
    """Their keys stay sorted, as the items keep their order."""
    if not len(promotions.keys):
        return promotions
    week_and_store, item = np.divmod(promotions.keys, promotions.n_items)
    keys = np.asarray(week_and_store * n + place[item], dtype=np.int64)
    return Promotions(keys, promotions.flags, promotions.n_stores, n)
