"""The three passes over a log, each a function of one piece of it; Ray only hands out the pieces.

1. `read_piece`: read files, draft, apply the row rules, deal the rows into buckets by user.
2. `settle_bucket`: with whole users at hand take duplicates out, make sessions, sort by time.
3. `write_dates`: gather every date from all buckets into its Parquet file.

No pass holds more than one piece in memory, none shuffles through Ray's object store: buckets are
Arrow files in the working folder, which on a cluster is on shared storage like the workspace.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from raysys import schema
from raysys.datasets.files import Block, Part, read
from raysys.datasets.mapping import (
    MENDED,
    UNPARSED,
    EventFiles,
    draft_events,
    draft_items,
    polars_type,
)
from raysys.datasets.source import SideTable, Source
from raysys.ingest.figures import measure
from raysys.ingest.rules import (
    DUPLICATE,
    QUARANTINE_SCHEMA,
    ROW,
    SOURCE,
    Limits,
    apply,
    event_rules,
    note,
    quarantine,
)
from raysys.ingest.sessions import ORDER, OWN_ID, SessionSettings, assign_sessions, find_duplicates
from raysys.ingest.tally import Tally

BUCKETS: Final = "buckets"
SETTLED: Final = "settled"
ITEMS_SEEN: Final = "items_seen"
ITEMS_TOLD: Final = "items_told"
USERS_SEEN: Final = "users_seen"
QUARANTINE: Final = "quarantine"

_COMPRESSED: Final = pa.ipc.IpcWriteOptions(compression="lz4")
_DAY: Final = 86_400_000


@dataclass(frozen=True)
class Piece:
    """What one task reads: some files of one mapping, or one side table."""

    number: int
    mapping: int = -1  # index into `Source.events`
    parts: tuple[Part, ...] = ()
    table: int = -1  # index into `Source.tables`


@dataclass
class Settled:
    """A bucket after the second pass: where each date lies in its file."""

    path: str
    dates: list[str] = field(default_factory=list)  # date of each record batch, in order


def read_piece(
    piece: Piece, source: Source, limits: Limits, buckets: int, work: Path, out: Path
) -> dict[str, Any]:
    """First pass: returns the tally and, for a side table, its counts.

    Raises:
        UserError: the mapping cannot be right for the file.
    """
    if piece.table >= 0:
        return {"table": write_table(source.tables[piece.table], out)}
    files = source.events[piece.mapping]
    dealer = _Dealer(work, piece.number, buckets)
    tally = Tally()
    rejected: list[pl.DataFrame] = []
    rules = event_rules(limits)
    for part in piece.parts:
        for block in read(part, files, source.derived):
            rejected.append(_reject_unread(block, part, tally))
            if block.rows.height == 0:
                continue
            raw = source.prepare_events(block.rows) if source.prepare_events else block.rows
            draft = _identified(draft_events(raw, files, where=part.label), block, part)
            clean, bad, counted = apply(rules, draft, block.rows, "events")
            tally.add(counted)
            rejected.append(bad)
            if files.items:
                dealer.tell_items(_items_told(raw, files, draft, clean))
            dealer.deal(clean)
    dealer.close()
    write_quarantine(rejected, out, f"events-{piece.number:05d}")
    return {"tally": tally.to_dict()}


def settle_bucket(
    bucket: int, sessions: SessionSettings, work: Path, out: Path
) -> dict[str, Any] | None:
    """Second pass: returns what left the bucket, its figures, and where each date lies in its file.

    None when the bucket is empty.
    """
    paths = sorted((work / BUCKETS / f"{bucket:04d}").glob("*.arrow"))
    if not paths:
        return None
    events = pl.concat([_read_arrow(path) for path in paths])
    again = find_duplicates(events)
    tally = Tally()
    if again.any():
        twice = events.filter(again)
        told = twice.select(schema.LOGGED_EVENTS.names)
        reasons = pl.Series([DUPLICATE]).new_from_index(0, twice.height)
        rejected = quarantine(twice, told, reasons, "events")
        note(tally, rejected)
        write_quarantine([rejected], out, f"duplicates-{bucket:04d}")
        events = events.filter(~again)
    events = assign_sessions(events, sessions).sort(ORDER)
    figures = measure(events)
    _write_arrow(_items_seen(events), work / ITEMS_SEEN / f"{bucket:04d}.arrow")
    _write_arrow(_users_seen(events), work / USERS_SEEN / f"{bucket:04d}.arrow")
    settled = _write_by_date(events, work / SETTLED / f"{bucket:04d}.arrow")
    for path in paths:
        path.unlink()
    return {
        "tally": tally.to_dict(),
        "figures": figures.to_dict(),
        "path": settled.path,
        "dates": settled.dates,
    }


def write_dates(dates: Sequence[str], settled: Sequence[Settled], out: Path) -> int:
    """Third pass: one Parquet file for each date, sorted by time; returns the rows written."""
    rows = 0
    opened = [pa.ipc.open_file(pa.memory_map(one.path)) for one in settled]
    for date in dates:
        batches = [
            file.get_batch(at)
            for file, one in zip(opened, settled, strict=True)
            for at, when in enumerate(one.dates)
            if when == date
        ]
        frame = _frame(pa.Table.from_batches(batches)).with_columns(
            inferred=pl.lit(False), sampling_probability=pl.lit(None, dtype=pl.Float64)
        )
        if len(batches) > 1:
            frame = frame.sort(ORDER)
        folder = out / "events" / f"date={date}"
        folder.mkdir(parents=True)
        pq.write_table(
            to_arrow(frame, schema.EVENTS), folder / "part-0.parquet", compression="zstd"
        )
        rows += frame.height
    return rows


def write_table(table: SideTable, out: Path) -> dict[str, Any]:
    """Convert one side table; returns its name, rows in and out, and why the others stayed out."""
    rows_in = rows_out = 0
    path = out / f"{table.name}.parquet"
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for count, converted in table.batches():
            rows_in += count
            rows_out += converted.num_rows
            writer.write_table(converted)
    return {
        "name": table.name,
        "rows_in": rows_in,
        "rows_out": rows_out,
        "reason": table.left_out,
    }


def write_quarantine(rejected: Sequence[pl.DataFrame], out: Path, name: str) -> None:
    """Write what did not get through, if anything, as one Parquet file."""
    frames = [frame for frame in rejected if frame.height]
    if not frames:
        return
    folder = out / QUARANTINE
    folder.mkdir(exist_ok=True)
    pq.write_table(pl.concat(frames).to_arrow(), folder / f"{name}.parquet", compression="zstd")


def to_arrow(frame: pl.DataFrame, target: pa.Schema) -> pa.Table:
    """A frame's columns in the target's order and types; Int64 milliseconds become timestamps."""
    table = frame.select(target.names).to_arrow()
    columns = [
        table[field.name].cast(pa.int64()).cast(field.type)
        if pa.types.is_timestamp(field.type)
        else table[field.name].cast(field.type)
        for field in target
    ]
    return pa.Table.from_arrays(columns, schema=target)


def unread(block: Block, part: Part, table: str) -> pl.DataFrame:
    """What a reader could not read, for the quarantine."""
    rows = [(table, fault.reason, part.label, fault.row, fault.raw) for fault in block.faults]
    return pl.DataFrame(rows, schema=QUARANTINE_SCHEMA, orient="row")


def _reject_unread(block: Block, part: Part, tally: Tally) -> pl.DataFrame:
    rejected = unread(block, part, "events")
    tally.rows_in += rejected.height
    note(tally, rejected)
    return rejected


def _identified(draft: pl.DataFrame, block: Block, part: Part) -> pl.DataFrame:
    """Draft events with their place of origin, and an id where the log gives none.

    A made id names file and record (`KEY-RECORD`), so another run makes the same.
    """
    made = pl.format("{}-{}", pl.lit(part.key), pl.col(ROW))
    return draft.with_columns(
        pl.lit(part.label).alias(SOURCE), block.numbers.alias(ROW)
    ).with_columns(
        pl.col("event_id").is_not_null().alias(OWN_ID),
        pl.col("event_id").fill_null(made),
    )


def _items_told(
    raw: pl.DataFrame, files: EventFiles, draft: pl.DataFrame, clean: pl.DataFrame
) -> pl.DataFrame:
    """What clean events say of their items: draft items, the first word on each."""
    items = draft_items(raw, files.items).drop(UNPARSED, MENDED)
    items = items.with_columns(
        draft["item_id"], draft["currency"], draft["timestamp"].alias("_told"), draft[SOURCE],
        draft[ROW],
    )  # fmt: skip
    kept = items.join(clean.select(SOURCE, ROW), on=[SOURCE, ROW], how="semi")
    return kept.drop_nulls("item_id").sort("_told", ROW).unique("item_id", keep="first")


class _Dealer:
    """Deals rows into one Arrow file a bucket, so that a user's rows all lie in one bucket."""

    def __init__(self, work: Path, piece: int, buckets: int) -> None:
        self._work = work
        self._piece = piece
        self._buckets = buckets
        self._writers: dict[int, Any] = {}
        self._told = 0

    def deal(self, rows: pl.DataFrame) -> None:
        """Append rows to their users' buckets."""
        rows = rows.drop(UNPARSED, MENDED)
        if self._buckets == 1:
            self._write(0, rows)
            return
        users = rows["user_id"].unique()
        home = [zlib.crc32(user.encode()) % self._buckets for user in users]
        number = rows["user_id"].replace_strict(users, pl.Series(home, dtype=pl.Int32))
        for bucket in sorted(set(home)):
            self._write(bucket, rows.filter(number == bucket))

    def tell_items(self, items: pl.DataFrame) -> None:
        """Keep what events say of their items."""
        path = self._work / ITEMS_TOLD / f"{self._piece:05d}-{self._told:05d}.arrow"
        _write_arrow(items, path)
        self._told += 1

    def close(self) -> None:
        """Finish all files."""
        for writer in self._writers.values():
            writer.close()

    def _write(self, bucket: int, rows: pl.DataFrame) -> None:
        if rows.height == 0:
            return
        table = rows.to_arrow()
        if bucket not in self._writers:
            folder = self._work / BUCKETS / f"{bucket:04d}"
            folder.mkdir(parents=True, exist_ok=True)
            self._writers[bucket] = pa.ipc.new_file(
                str(folder / f"{self._piece:05d}.arrow"), table.schema, options=_COMPRESSED
            )
        self._writers[bucket].write_table(table)


def _write_by_date(events: pl.DataFrame, path: Path) -> Settled:
    """Sorted events as an Arrow file with one record batch a date."""
    day = events["timestamp"] // _DAY
    lengths = day.rle().struct.unnest()
    dates = (lengths["value"] * _DAY).cast(pl.Datetime("ms")).dt.strftime("%Y-%m-%d").to_list()
    table = events.drop(OWN_ID).to_arrow().combine_chunks()
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.ipc.new_file(str(path), table.schema, options=_COMPRESSED) as writer:
        at = 0
        for length in lengths["len"]:
            writer.write_batch(table.slice(at, length).to_batches()[0])
            at += length
    return Settled(str(path), dates)


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
    return events.select(pl.col("user_id").unique())


def _read_arrow(path: Path) -> pl.DataFrame:
    with pa.memory_map(str(path)) as file:
        return _frame(pa.ipc.open_file(file).read_all())


def _write_arrow(frame: pl.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = frame.to_arrow()
    with pa.ipc.new_file(str(path), table.schema, options=_COMPRESSED) as writer:
        writer.write_table(table)


def _frame(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def read_seen(folder: Path, columns: dict[str, Any]) -> pl.DataFrame:
    """All Arrow files of a working folder as one frame; empty with these columns if none."""
    paths = sorted(folder.glob("*.arrow"))
    if not paths:
        return pl.DataFrame(schema=columns)
    return pl.concat([_read_arrow(path) for path in paths])


SEEN_ITEM: Final = {
    "item_id": pl.String,
    "events": pl.UInt32,
    "first_seen": pl.Int64,
    "price": pl.Float64,
    "currency": pl.String,
    "first_priced": pl.Int64,
}
TOLD_ITEM: Final = {
    **{f.name: polars_type(f.type) for f in schema.ITEMS},
    "_told": pl.Int64,
    SOURCE: pl.String,
    ROW: pl.Int64,
}
