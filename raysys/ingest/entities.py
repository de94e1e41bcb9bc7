"""Items and users: from the shop's own files, from what events say of them, and by id alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from raysys import schema
from raysys.datasets.mapping import ATTRIBUTES, ENTRIES, UNPARSED
from raysys.datasets.source import Source
from raysys.ingest.aside import write_quarantine
from raysys.ingest.columns import read_all, to_arrow
from raysys.ingest.described import Described, read_users
from raysys.ingest.figures import by_power
from raysys.ingest.judging import apply
from raysys.ingest.reading import DESCRIBES, TOLD
from raysys.ingest.rule_settings import RuleSettings
from raysys.ingest.rules import ROW, SOURCE, Limits, item_rules
from raysys.ingest.settling import ITEMS_SEEN, SEEN_ITEM, SEEN_USER, TOLD_ITEM, USERS_SEEN
from raysys.ingest.tally import EXAMPLES, Tally

_TOP: Final = 15


@dataclass
class EntityFigures:
    """What the report says of items and users."""

    items: int = 0
    items_seen: int = 0  # with at least one event
    unknown_items: int = 0
    users: int = 0
    described_users: int = 0
    filled: dict[str, float] = field(default_factory=dict)  # column of items → share with a value
    departments: list[tuple[str, int, int]] = field(default_factory=list)  # name, events, items
    categories: list[tuple[str, int, int]] = field(default_factory=list)
    most_seen: list[tuple[str, str, int]] = field(default_factory=list)  # id, name, events
    half_of_events: int = 0  # how many of the most seen items make half of all events
    unread: list[str] = field(default_factory=list)  # paths of users' files (see `Described`)


def write_entities(
    source: Source,
    limits: Limits,
    rules: RuleSettings,
    items: pl.DataFrame,
    pieces: Sequence[Path],
    units: Sequence[Path],
    out: Path,
) -> tuple[dict[str, Tally], EntityFigures, dict[int, int]]:
    """Write `items.parquet` and `users.parquet`; returns their tallies and figures.

    An item is known from the shop's own file, else from the first event that describes it, else
    by its id alone (counted as added `unknown_item`). Where no file gives a price, it is the
    first price above zero that anybody paid or saw: the one that looks least ahead.

    Args:
        source: the shop's own files.
        limits: bounds that the rules hold rows to.
        rules: what becomes of each fault.
        items: the shop's own catalogue (see `read_catalogue`).
        pieces: folders of the first pass, in file order.
        units: folders of the second pass.
        out: where to write.

    Returns:
        tallies by table (of items only what was added); figures; and how many users have 1,
        2–3, 4–7, … events, by the power of two at or below.
    """
    seen = _merge_seen(read_all(_those(units, ITEMS_SEEN), SEEN_ITEM))
    own = items
    told, told_tally = _told_items(limits, rules, pieces, out)
    known = pl.concat([own, told.join(own, on="item_id", how="anti")])
    items, unknown = _complete(known, seen)
    added = Tally()
    if unknown.height and (source.items or told.height):
        added.added["unknown_item"] += unknown.height
        for item_id in unknown["item_id"].sort().head(EXAMPLES):
            added.example("unknown_item", "events", 0, item_id)
    tallies = {"items": added}
    if told_tally.rows_in:
        tallies["told_items"] = told_tally
    active = read_all(_those(units, USERS_SEEN), SEEN_USER)
    active = active.group_by("user_id").agg(pl.col("events").sum())
    users, reading = _users(source, limits, rules, active.select("user_id"), out)
    pq.write_table(to_arrow(items, schema.ITEMS), out / "items.parquet", compression="zstd")
    pq.write_table(_with_maps(users), out / "users.parquet", compression="zstd")
    figures = _describe(items, seen)
    figures.unknown_items = unknown.height
    figures.users = users.height
    figures.unread = reading.unread
    figures.described_users = int((users[ATTRIBUTES].list.len() > 0).sum())
    histogram = dict(sorted(by_power(active["events"]).items()))
    return {**tallies, "users": reading.tally}, figures, histogram


def _those(folders: Sequence[Path], name: str) -> list[Path]:
    return [folder / name for folder in folders if (folder / name).exists()]


def _with_maps(users: pl.DataFrame) -> pa.Table:
    """Users in `schema.USERS`: lists of entries, which frames have, become Arrow maps."""
    table = users.to_arrow().combine_chunks()
    entries = table[ATTRIBUTES].combine_chunks()
    inner = entries.values
    maps = pa.MapArray.from_arrays(
        entries.offsets.cast(pa.int32()),
        inner.field("key").cast(pa.string()),
        inner.field("value").cast(pa.string()),
    )
    return pa.Table.from_arrays([table["user_id"].cast(pa.string()), maps], schema=schema.USERS)


def _told_items(
    limits: Limits, rules: RuleSettings, pieces: Sequence[Path], out: Path
) -> tuple[pl.DataFrame, Tally]:
    """What the log itself says of its items: on each the earliest word that describes it, if any.

    What is wrong with such a description is quarantined as a row of its own table, `told_items`:
    the event that told it is clean and counted already.
    """
    told = read_all(_those(pieces, TOLD), TOLD_ITEM)
    told = told.sort(~DESCRIBES, "_told", SOURCE, ROW, maintain_order=True)
    told = told.unique("item_id", keep="first", maintain_order=True)
    draft = told.with_columns(pl.lit(None, dtype=pl.String).alias(UNPARSED))
    clean, rejected, tally = apply(item_rules(limits, rules), draft, told, "told_items")
    write_quarantine([rejected], out / "quarantine" / "told_items.parquet")
    return clean.select(schema.ITEMS.names), tally


def _complete(known: pl.DataFrame, seen: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """All items, with those that only events name, priced; and which those are."""
    unknown = seen.select("item_id").join(known, on="item_id", how="anti")
    items = pl.concat([known, unknown], how="diagonal")
    prices = seen.select("item_id", seen_price="price", seen_currency="currency")
    unpriced = pl.col("price").is_null()
    items = items.join(prices, on="item_id", how="left").with_columns(
        price=pl.coalesce("price", "seen_price"),
        currency=pl.when(unpriced)
        .then(pl.coalesce("seen_currency", "currency"))
        .otherwise("currency"),
    )
    return items.select(schema.ITEMS.names).sort("item_id"), unknown


def _merge_seen(seen: pl.DataFrame) -> pl.DataFrame:
    """One row an item from one a bucket and item; price and currency are of one event."""
    return (
        seen.sort("first_priced", "price", "currency", nulls_last=True)
        .group_by("item_id")
        .agg(pl.col("events").sum(), pl.col("price", "currency").first())
    )


def _users(
    source: Source, limits: Limits, rules: RuleSettings, seen: pl.DataFrame, out: Path
) -> tuple[pl.DataFrame, Described]:
    """Everybody who did something or is described, with attributes where there are any."""
    described, reading = read_users(source, limits, rules)
    write_quarantine(reading.rejected, out / "quarantine" / "users.parquet")
    users = pl.concat([described, seen.join(described, on="user_id", how="anti")], how="diagonal")
    nothing = pl.lit([], dtype=ENTRIES)
    return users.with_columns(pl.col(ATTRIBUTES).fill_null(nothing)).sort("user_id"), reading


def _describe(items: pl.DataFrame, seen: pl.DataFrame) -> EntityFigures:
    figures = EntityFigures(items=items.height, items_seen=seen.height)
    if not items.height:
        return figures
    shares = items.select(pl.exclude("item_id").is_not_null().mean()).row(0, named=True)
    figures.filled = {name: round(float(share), 4) for name, share in shares.items()}
    counted = seen.select("item_id", "events").join(items, on="item_id", how="left")
    figures.departments = _top(counted, "department")
    figures.categories = _top(counted, "category")
    most = counted.sort("events", "item_id", descending=[True, False])
    figures.most_seen = (
        most.select("item_id", pl.col("title").fill_null(""), "events").head(10).rows()
    )
    running = most["events"].cast(pl.Int64).cum_sum()
    figures.half_of_events = (
        int((running < most["events"].sum() / 2).sum()) + 1 if most.height else 0
    )
    return figures


def _top(counted: pl.DataFrame, column: str) -> list[tuple[str, int, int]]:
    """The groups with most events: name, events, items; nothing when there are no groups."""
    groups = (
        counted.drop_nulls(column)
        .group_by(column)
        .agg(pl.col("events").cast(pl.Int64).sum(), pl.len().alias("items"))
    )
    return groups.sort("events", column, descending=[True, False]).head(_TOP).rows()
