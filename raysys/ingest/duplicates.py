"""Events that came before: the very same, and those that double clicks and retries made."""

from __future__ import annotations

import numpy as np
import polars as pl
from numba import njit

from raysys import schema
from raysys.ingest.columns import DAY_MS
from raysys.ingest.rule_settings import NearDuplicate
from raysys.ingest.rules import OWN_ID, ROW, SOURCE

_DATE = pl.col("timestamp") // DAY_MS


def find_duplicates(events: pl.DataFrame) -> pl.Series:
    """Which events came before: Boolean[n], false for the first of each kind in file order.

    Events that the log named are equal when date, user and id are; others when every column is.
    Of such, equal ones of one record (two variants of an item in an order) differ: they are of
    a kind with the first, the second, … of a record that repeats it.

    Args:
        events: all events of some users or dates, with `SOURCE`, `ROW` and `OWN_ID`.
    """
    # Numbers are compared first: what shares none with another event is no duplicate.
    key = pl.when(OWN_ID).then(pl.col("event_id").hash(1)).otherwise(
        _mixed("timestamp", "user_id", "item_id", "event_type")
    )  # fmt: skip
    suspects = _repeated(events.select(key.alias("key")).to_series())
    if suspects.len() == 0:
        return pl.Series([False], dtype=pl.Boolean).new_from_index(0, events.height)
    every = [name for name in schema.LOGGED_EVENTS.names if name != "event_id"]
    numbered = events[suspects].with_columns(_at=suspects, _day=_DATE)
    numbered = numbered.sort(SOURCE, ROW, maintain_order=True)
    own = numbered.filter(OWN_ID).unique(["user_id", "event_id", "_day"], keep="first")["_at"]
    made = numbered.filter(~pl.col(OWN_ID))
    made = made.with_columns(_again=pl.int_range(pl.len()).over(SOURCE, ROW, *every))
    first = made.unique([*every, "_again"], keep="first")["_at"]
    return _marked(suspects, events.height).scatter(pl.concat([own, first]), False)


def find_near_duplicates(events: pl.DataFrame, settings: NearDuplicate) -> pl.Series:
    """Which events repeat the one before within their type's seconds: Boolean[n].

    Each is compared with the one before it of the same user, item, type and date, in order of time
    and of the file, so of a quick burst the first stands.

    Args:
        events: all events of some users or dates, with `SOURCE` and `ROW`.
        settings: seconds by type.
    """
    window = {kind: round(seconds * 1000) for kind, seconds in settings.seconds.items()}
    kinds = pl.col("event_type").is_in(list(window)) & pl.col("item_id").is_not_null()
    kinds = kinds.fill_null(False)
    asked = events.select(kinds).to_series().arg_true()
    same = ("user_id", "item_id", "event_type")
    # two moments no further apart than `most` share one of two stretches of twice its length
    most = max(1, *window.values())
    early = pl.col("timestamp") // (2 * most)
    late = (pl.col("timestamp") + most) // (2 * most)
    mixed = _mixed(*same)
    keys = events.filter(kinds).select(
        key=mixed, early=mixed ^ early.hash(7), late=mixed ^ late.hash(8)
    )
    again = pl.concat([_repeated(keys["early"]), _repeated(keys["late"])]).unique().sort()
    if again.len() == 0:
        return pl.Series([False], dtype=pl.Boolean).new_from_index(0, events.height)
    suspects, key = asked[again], keys["key"]
    files = events[SOURCE].unique().sort()
    order = pl.col(SOURCE).replace_strict(files, pl.int_range(files.len(), eager=True))
    ordered = (
        events[suspects]
        .select(*same, "timestamp", ROW, order.alias(SOURCE), _at=suspects, _key=key[again])
        .sort("_key", "timestamp", SOURCE, ROW)
    )
    before = [one == one.shift() for one in (*(pl.col(name) for name in same), _DATE)]
    gap = pl.col("timestamp") - pl.col("timestamp").shift()
    limit = pl.col("event_type").replace_strict(window, return_dtype=pl.Int64)
    repeated = ordered.filter(pl.all_horizontal(before) & (gap <= limit))["_at"]
    return _marked(repeated, events.height)


def _mixed(*columns: str) -> pl.Expr:
    """One number for several columns; equal values give equal numbers, others nearly never."""
    first, *others = (pl.col(name).hash(seed) for seed, name in enumerate(columns, start=1))
    for other in others:
        first = first ^ other
    return first


def _repeated(key: pl.Series) -> pl.Series:
    """Places of values that come more than once, rising."""
    perhaps = pl.Series(_perhaps_repeated(key.to_numpy()), dtype=pl.get_index_type())
    return perhaps.filter(key.gather(perhaps).is_duplicated())


def _marked(places: pl.Series, n: int) -> pl.Series:
    """Boolean[n], true at these places."""
    return pl.Series([False], dtype=pl.Boolean).new_from_index(0, n).scatter(places, True)


@njit(cache=True)
def _perhaps_repeated(keys):  # type: ignore[no-untyped-def]
    """Places of all values that come more than once, and of few others: int64[m], rising.

    Args:
        keys: uint64[n], hashes: their lower bits are taken for a draw. Each marks one bit of
        sixteen a row, which stay in the cache where a table of the keys would not.
    """
    size = 64
    while size < 16 * len(keys):
        size *= 2
    seen = np.zeros(size >> 3, dtype=np.uint8)
    again = np.zeros(size >> 3, dtype=np.uint8)
    last = np.uint64(size - 1)
    for key in keys:
        bit = key & last
        at, mark = bit >> np.uint64(3), np.uint8(1) << np.uint8(bit & np.uint64(7))
        if seen[at] & mark:
            again[at] |= mark
        seen[at] |= mark
    found = np.empty(len(keys), dtype=np.int64)
    n = 0
    for row in range(len(keys)):
        bit = keys[row] & last
        if again[bit >> np.uint64(3)] & (np.uint8(1) << np.uint8(bit & np.uint64(7))):
            found[n] = row
            n += 1
    return found[:n].copy()
