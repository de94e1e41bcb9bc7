"""Second pass: the events of some days from all files, without repetition, in sessions, by time.

A unit is a block of consecutive days, or one cut of its users where days are large. What it
becomes depends on the pieces that hold rows of these days and of the week before (a session may
have begun there), and on the settings: under the digest of these it is kept in the store, so a
new file costs only the days it speaks of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import polars as pl
import pyarrow as pa

from raysys import schema
from raysys.datasets.mapping import polars_type
from raysys.ingest.aside import QUARANTINE, write_quarantine
from raysys.ingest.columns import (
    DAY_MS,
    by_day,
    to_frame,
    write_arrow,
    write_days,
)
from raysys.ingest.day_rules import judge_days
from raysys.ingest.described import read_catalogue
from raysys.ingest.figures import LogFigures, measure
from raysys.ingest.impressions import ImpressionSettings, infer_impressions
from raysys.ingest.reading import EVENTS, NTH, PIECES, cut_of
from raysys.ingest.rule_settings import RuleSettings
from raysys.ingest.rules import INFERRED, OWN_ID, ROW, SOURCE
from raysys.ingest.sessions import CONTINUED, SESSION, USER, SessionSettings, began, find_sessions
from raysys.ingest.store import Store
from raysys.ingest.tally import Tally

UNITS: Final = "days"
ITEMS_SEEN: Final = "items_seen.arrow"
USERS_SEEN: Final = "users_seen.arrow"
LOOK_BACK_DAYS: Final = 7  # a session that goes on for longer is cut

_BLOCKS: Final = (28, 7, 1)
_UNIT_ROWS: Final = 1_500_000


@dataclass(frozen=True)
class Batches:
    """Record batches of one piece.

    Attributes:
        piece: its key.
        name: names the file in made event ids; label: in reports.
        batches: number in the file, day, cut, cuts, rows.
        ahead: the earliest moment that it put aside as in the future (see `reading`).
        unread: whether storage failed before it was whole.
    """

    piece: str
    name: str
    label: str
    batches: tuple[tuple[int, int, int, int, int], ...]
    ahead: int | None = None
    unread: bool = False

    @property
    def name_of_rows(self) -> Any:
        """Tells its rows from others under the same key, as JSON can say it.

        Read again when a moment has passed, or storage gives more, it has more of them.
        """
        if self.unread:
            return [self.piece, self.ahead, self.batches]
        return [self.piece, self.ahead] if self.ahead is not None else self.piece

    def between(self, first: int, last: int) -> Batches:
        """Only those of the given days, both included."""
        chosen = tuple(batch for batch in self.batches if first <= batch[1] <= last)
        return replace(self, batches=chosen)


@dataclass(frozen=True)
class Unit:
    """Days (since 1970-01-01, both included) and one cut of their users, from some pieces."""

    key: str
    first: int
    last: int
    cut: int
    cuts: int
    pieces: tuple[Batches, ...]  # those with rows of these days or of the week before


def plan_units(pieces: Sequence[Batches], causes: Any, digest: Any) -> list[Unit]:
    """Blocks of days that are each worth a task, aligned to the calendar so that they stay.

    Args:
        pieces: all pieces, in file order.
        causes: what else the outcome depends on; JSON can say it.
        digest: names a cause.
    """
    rows: dict[int, int] = {}
    for piece in pieces:
        for _, day, _, _, count in piece.batches:
            rows[day] = rows.get(day, 0) + count
    if not rows:
        return []
    a_day = sum(rows.values()) / len(rows)
    length = next((n for n in _BLOCKS if a_day * n <= _UNIT_ROWS), 1)
    units = []
    for block in sorted({day // length for day in rows}):
        first, last = block * length, (block + 1) * length - 1
        total = sum(rows.get(day, 0) for day in range(first, last + 1))
        cuts = 1
        while total / cuts > 1.5 * _UNIT_ROWS:
            cuts *= 2
        near = [piece.between(first - LOOK_BACK_DAYS, last) for piece in pieces]
        near = [piece for piece in near if piece.batches]
        inside = [piece.name_of_rows for piece in near]
        for cut in range(cuts):
            key = digest([causes, first, last, cut, cuts, inside])
            units.append(Unit(key, first, last, cut, cuts, tuple(near)))
    return units


@dataclass(frozen=True)
class Settling:
    """How units are settled.

    Attributes:
        sessions: the gap, and whose names stand.
        rules: what is asked of whole days.
        impressions: whether and how they are inferred.
        catalogue: folder of the shop's own items (see `described.read_catalogue`).
        items: how many there are.
    """

    sessions: SessionSettings
    rules: RuleSettings
    impressions: ImpressionSettings
    catalogue: Path
    items: int


def settle(unit: Unit, settling: Settling, store: Store) -> None:
    """Settle a unit into the store.

    Its result holds the tally of what left it and what was added, its figures, and its dates.
    """
    result: dict[str, Any] = {}
    with store.doing(UNITS, unit.key, result) as folder:
        tally = Tally()
        # sessions are found before whole days are judged, so that they do not depend on how
        # days fall into units: what is put aside on one day is not known on the next
        events = _gather(unit, store).sort("timestamp", maintain_order=True)
        before = _before(unit, store)
        events = find_sessions(events, before, settling.sessions, unit.first * DAY_MS)
        events, rejected, found = judge_days(events, settling.rules, settling.items or None)
        tally.add(found)
        result["figures"] = _figures(events).to_dict()
        write_arrow(_items_seen(events), folder / ITEMS_SEEN)
        write_arrow(_users_seen(events), folder / USERS_SEEN)
        shown = _Impressions(unit, settling, store)
        result["dates"] = write_days(shown.beside(events), schema.EVENTS, folder)
        tally.added.update(shown.added)
        result["tally"] = tally.to_dict()
        write_quarantine([rejected], folder / QUARANTINE)


class _Impressions:
    """Adds to events the impressions that their log does not tell of, where asked to."""

    def __init__(self, unit: Unit, settling: Settling, store: Store) -> None:
        self.settings = settling.impressions
        self._own_sessions = settling.sessions.keep_own_ids
        self.added: Counter[str] = Counter()
        self._unit, self._store = unit, store
        self._categories: pl.DataFrame | None = None
        if self.settings.when != "never" and settling.items:
            items = read_catalogue(settling.catalogue)
            self._categories = items.select("item_id", "category")

    def beside(self, events: pl.DataFrame) -> pl.DataFrame:
        """Events by time in `schema.EVENTS`, inferred impressions before their click."""
        told = events.with_columns(
            inferred=pl.lit(False), sampling_probability=pl.lit(None, dtype=pl.Float64)
        )
        if self.settings.when == "never" or not events.height:
            return told
        return pl.concat([self._beside(day) for day in by_day(told)])

    def _beside(self, day: pl.DataFrame) -> pl.DataFrame:
        before, ongoing = _day_before(self._unit, day, self._own_sessions, self._store)
        logged = day.select(schema.LOGGED_EVENTS.names)
        shown = infer_impressions(logged, before, self.settings, self._categories, ongoing)
        self.added[INFERRED] += shown.height
        both = [shown, day.select(shown.columns)]
        return pl.concat(both).sort("timestamp", maintain_order=True)


def _day_before(
    unit: Unit, events: pl.DataFrame, own_sessions: bool, store: Store
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What all users did on the day before that of `events`, whichever cut they belong to.

    Also, of that, what belongs to sessions of `events`: few rows, with columns of their own.
    """
    day = int(events["timestamp"][0]) // DAY_MS
    sessions = events.select("user_id", "session_id").unique()
    begun = began(pl.col("user_id"), pl.col("session_id"))
    made = sessions.select("user_id", _made="session_id", _began=begun)
    made = made.filter(pl.col("_began") < day * DAY_MS)
    shared = ["item_id", "timestamp", "query"]
    told = ["user_id", "session_id", "event_type", "item_id", "timestamp"]
    before, ongoing = [_nothing().select(shared)], [_nothing().select(told)]
    for piece in unit.pieces:
        rows = _read(piece.between(day - 1, day - 1), (0, 1), store)
        if rows is None:
            continue
        absent = [name for name in {*shared, *told} if name not in rows.columns]
        rows = rows.with_columns(pl.lit(None, dtype=pl.String).alias(n) for n in absent)
        before.append(rows.select(shared))
        own = pl.col("session_id").is_not_null() if own_sessions else pl.lit(False)
        named = rows.filter(own).join(sessions, on=["user_id", "session_id"], how="semi")
        # a made session has all that its user did since it began, less what the log names itself
        bare = rows.filter(~own).join(made, on="user_id")
        bare = bare.filter(pl.col("timestamp") >= pl.col("_began"))
        ongoing += [named.select(told), bare.with_columns(session_id="_made").select(told)]
    return pl.concat(before), pl.concat(ongoing)


def _gather(unit: Unit, store: Store) -> pl.DataFrame:
    """All rows of the unit in file order, with every column of the vocabulary."""
    frames = []
    for piece in unit.pieces:
        rows = _read(piece.between(unit.first, unit.last), (unit.cut, unit.cuts), store)
        if rows is not None:
            frames.append(_completed(rows, piece))
    return pl.concat(frames) if frames else _nothing()


def _nothing() -> pl.DataFrame:
    columns = {field.name: polars_type(field.type) for field in schema.LOGGED_EVENTS}
    return pl.DataFrame(schema={**columns, SOURCE: pl.String, ROW: pl.Int64, OWN_ID: pl.Boolean})


def _completed(rows: pl.DataFrame, piece: Batches) -> pl.DataFrame:
    """Rows of a piece with all columns, their origin, and an id where the log gives none.

    A made id names file and record (`NAME-RECORD`; `NAME-RECORD#1` for the second event of a
    record), so another run makes the same.
    """
    made = pl.format("{}-{}", pl.lit(piece.name), pl.col(ROW))
    if NTH in rows.columns:
        made = pl.when(pl.col(NTH) > 0).then(pl.format("{}#{}", made, NTH)).otherwise(made)
    if "event_id" in rows.columns:
        own = pl.col("event_id").is_not_null()
        rows = rows.with_columns(own.alias(OWN_ID), pl.col("event_id").fill_null(made))
    else:
        rows = rows.with_columns(pl.lit(False).alias(OWN_ID), made.alias("event_id"))
    missing = [field for field in schema.LOGGED_EVENTS if field.name not in rows.columns]
    return rows.with_columns(
        *(pl.lit(None, dtype=polars_type(field.type)).alias(field.name) for field in missing),
        pl.lit(piece.label).alias(SOURCE),
    ).select(*schema.LOGGED_EVENTS.names, SOURCE, ROW, OWN_ID)


def _before(unit: Unit, store: Store) -> Iterator[pl.DataFrame]:
    """Who did something when (and in which own session) on the days before, last day first."""
    columns = ("user_id", "timestamp", "session_id")
    for day in range(unit.first - 1, unit.first - 1 - LOOK_BACK_DAYS, -1):
        frames = []
        for piece in unit.pieces:
            rows = _read(piece.between(day, day), (unit.cut, unit.cuts), store)
            if rows is not None:
                if "session_id" not in rows.columns:
                    rows = rows.with_columns(pl.lit(None, dtype=pl.String).alias("session_id"))
                frames.append(rows.select(columns))
        rows = pl.concat(frames) if frames else _nothing().select(columns)
        yield rows.sort("timestamp", maintain_order=True)


def _read(piece: Batches, cut: tuple[int, int], store: Store) -> pl.DataFrame | None:
    """Rows of the given batches that belong to a cut (number, of how many), in file order."""
    wanted = [batch for batch in piece.batches if _nested((batch[2], batch[3]), cut)]
    if not wanted:
        return None
    with pa.memory_map(str(store.folder(PIECES, piece.piece) / EVENTS)) as mapped:
        file = pa.ipc.open_file(mapped)
        frames = []
        for number, _, _, cuts, _ in wanted:
            frame = to_frame(pa.Table.from_batches([file.get_batch(number)]))
            if cuts < cut[1]:
                frame = frame.filter(cut_of(frame["user_id"], cut[1]) == cut[0])
            frames.append(frame)
    if any(cuts > 1 for *_, cuts, _ in wanted):
        return pl.concat(frames).sort(ROW, maintain_order=True)
    return pl.concat(frames)


def _nested(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two cuts have users in common: cuts are powers of two, and nest."""
    fewer = min(one[1], other[1])
    return one[0] % fewer == other[0] % fewer


def _figures(events: pl.DataFrame) -> LogFigures:
    """A unit's figures; users are counted over all units elsewhere, a session where it begins."""
    figures = measure(events)
    figures.users = 0
    figures.user_events.clear()
    continued = events.filter(CONTINUED)
    if continued.height:
        figures.sessions -= continued.select(USER, SESSION).n_unique()
    return figures


def _items_seen(events: pl.DataFrame) -> pl.DataFrame:
    """For each item of the events: how often seen, when first, and the first price above zero."""
    priced = pl.col("price") > 0
    return (
        events.drop_nulls("item_id")
        .group_by("item_id")
        .agg(
            pl.len().alias("events"),
            pl.col("timestamp").min().alias("first_seen"),
            pl.col("price").filter(priced).first(),
            pl.col("currency").filter(priced).first(),
            pl.col("timestamp").filter(priced).first().alias("first_priced"),
        )
    )


def _users_seen(events: pl.DataFrame) -> pl.DataFrame:
    counted = events.group_by(USER).agg(pl.col("user_id").first(), pl.len().alias("events"))
    return counted.select("user_id", "events")


SEEN_ITEM: Final = {
    "item_id": pl.String,
    "events": pl.UInt32,
    "first_seen": pl.Int64,
    "price": pl.Float64,
    "currency": pl.String,
    "first_priced": pl.Int64,
}
SEEN_USER: Final = {"user_id": pl.String, "events": pl.UInt32}
TOLD_ITEM: Final = {
    **{f.name: polars_type(f.type) for f in schema.ITEMS},
    "_told": pl.Int64,
    SOURCE: pl.String,
    ROW: pl.Int64,
}
