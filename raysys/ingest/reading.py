"""First pass: a file, or some row groups of one, read once and kept clean, cut by date.

What comes of a file depends on the file and the settings alone, so it is kept in the store under
the digest of both: a second run reads only what is new or has changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl
import pyarrow as pa

from raysys.datasets.files import Block, Part, read
from raysys.datasets.mapping import MENDED, UNPARSED, EventFiles, draft_events, draft_items
from raysys.datasets.source import RECORD, Expand, Source
from raysys.ingest.aside import QUARANTINE, unread, write_quarantine
from raysys.ingest.columns import COMPRESSED, DAY_MS, by_day, write_arrow
from raysys.ingest.rules import (
    ROW,
    SOURCE,
    Rule,
    apply,
    note,
)
from raysys.ingest.store import Store
from raysys.ingest.tally import Tally

PIECES: Final = "pieces"
EVENTS: Final = "events.arrow"
TOLD: Final = "told_items.arrow"

NTH: Final = "_nth"
"""Column of what an importer makes: which of its record's rows, from 0."""

_FLUSH_ROWS: Final = 500_000
_BATCH_ROWS: Final = 32_768  # a date's rows are cut by user only into batches of at least this


@dataclass(frozen=True)
class Piece:
    """What one read leaves in the store.

    Attributes:
        key: digest of the file's fingerprint, its mapping and the rules.
        mapping: index into `Source.events`.
        part: the file, or its row groups.
    """

    key: str
    mapping: int
    part: Part


def read_piece(
    piece: Piece, source: Source, rules: Sequence[Rule], cuts: int, store: Store
) -> None:
    """Read a piece into the store.

    Its result holds the tally, and for each record batch of `events.arrow` its day (since
    1970-01-01), its cut and into how many cuts the day was cut (see `cut_of`), and its rows.

    Args:
        piece: what to read.
        source: the mappings and the adapter.
        rules: what rows are held to (see `rules.event_rules`).
        cuts: most cuts of one day, a power of two.
        store: where to keep it.

    Raises:
        UserError: the mapping cannot be right for the file.
    """
    files, part = source.events[piece.mapping], piece.part
    tally = Tally()
    rejected: list[pl.DataFrame] = []
    told: list[pl.DataFrame] = []
    result: dict[str, Any] = {"label": part.label}
    with store.doing(PIECES, piece.key, result) as folder:
        kept = [*files.columns, *files.constants, ROW, *([NTH] if source.expand_events else [])]
        dealer = _Dealer(folder / EVENTS, kept, cuts)
        for block in read(part, files, source.derived):
            rejected.append(_reject_unread(block, part, tally))
            tally.lacking.update(block.lacking)
            if block.rows.height == 0:
                continue
            block = _expanded(block, source.expand_events, tally)
            if block.rows.height == 0:
                continue
            raw = source.prepare_events(block.rows) if source.prepare_events else block.rows
            draft = _placed(draft_events(raw, files, where=part.label), block, part)
            clean, bad, counted = apply(rules, draft, block.rows.drop(NTH, strict=False), "events")
            tally.add(counted)
            rejected.append(bad)
            if files.items:
                told.append(_items_told(raw, files, draft, clean))
            dealer.deal(clean)
        result["batches"] = dealer.close()
        result["tally"] = tally.to_dict()
        if told:
            write_arrow(pl.concat(told), folder / TOLD)
        write_quarantine(rejected, folder / QUARANTINE)


def cut_of(users: pl.Series, cuts: int) -> pl.Series:
    """Which of `cuts` (a power of two) each user belongs to: UInt64[n].

    Cuts nest: cut `c` of 4 is half of cut `c % 2` of 2.
    """
    return users.hash(seed=0) & (cuts - 1)


def _reject_unread(block: Block, part: Part, tally: Tally) -> pl.DataFrame:
    rejected = unread(block, part, "events")
    tally.rows_in += rejected.height
    note(tally, rejected)
    return rejected


def _expanded(block: Block, expand: Expand | None, tally: Tally) -> Block:
    """Rows in the place of records, with `NTH`; those that mean none are counted."""
    if expand is None:
        return block
    made = expand(block.rows)
    tally.ignored.update(made.ignored)
    nth = pl.int_range(pl.len(), dtype=pl.Int32).over(RECORD).alias(NTH)
    rows = made.rows.with_columns(nth)
    return Block(rows.drop(RECORD), block.numbers.gather(rows[RECORD]))


def _placed(draft: pl.DataFrame, block: Block, part: Part) -> pl.DataFrame:
    """Draft events with their place of origin."""
    nth = [block.rows[NTH]] if NTH in block.rows.columns else []
    return draft.with_columns(pl.lit(part.label).alias(SOURCE), block.numbers.alias(ROW), *nth)


def _items_told(
    raw: pl.DataFrame, files: EventFiles, draft: pl.DataFrame, clean: pl.DataFrame
) -> pl.DataFrame:
    """What clean events say of their items: draft items, the first word on each."""
    items = draft_items(raw, files.items, time=files.time).drop(UNPARSED, MENDED)
    items = items.with_columns(
        draft["item_id"], draft["currency"], draft["timestamp"].alias("_told"), draft[SOURCE],
        draft[ROW],
    )  # fmt: skip
    place = [ROW, NTH] if NTH in clean.columns else [ROW]
    items = items.with_columns(draft[name] for name in place)
    kept = items.join(clean.select(place), on=place, how="semi").drop(NTH, strict=False)
    return kept.drop_nulls("item_id").sort("_told", ROW).unique("item_id", keep="first")


class _Dealer:
    """Writes clean rows as one record batch a date; of large dates, one a date and cut."""

    def __init__(self, path: Path, columns: list[str], cuts: int) -> None:
        self._path = path
        self._columns = columns
        self._cuts = cuts
        self._waiting: list[pl.DataFrame] = []
        self._writer: Any = None
        self._batches: list[list[int]] = []

    def deal(self, rows: pl.DataFrame) -> None:
        """Take rows in the file's order."""
        self._waiting.append(rows.select(self._columns))
        if sum(frame.height for frame in self._waiting) >= _FLUSH_ROWS:
            self._flush()

    def close(self) -> list[list[int]]:
        """Finish the file; day, cut, cuts and rows of each of its record batches."""
        self._flush()
        if self._writer is not None:
            self._writer.close()
        return self._batches

    def _flush(self) -> None:
        rows = pl.concat(self._waiting) if self._waiting else pl.DataFrame()
        self._waiting = []
        if rows.height == 0:
            return
        for day in by_day(rows):
            self._write(day, int(day["timestamp"][0]) // DAY_MS)

    def _write(self, rows: pl.DataFrame, day: int) -> None:
        cuts = min(self._cuts, 1 << max(0, (rows.height // _BATCH_ROWS).bit_length() - 1))
        if cuts == 1:
            self._append(rows, day, 0, 1)
            return
        cut = cut_of(rows["user_id"], cuts)
        for number in range(cuts):
            self._append(rows.filter(cut == number), day, number, cuts)

    def _append(self, rows: pl.DataFrame, day: int, cut: int, cuts: int) -> None:
        if rows.height == 0:
            return
        table = rows.to_arrow().combine_chunks()
        if self._writer is None:
            self._writer = pa.ipc.new_file(str(self._path), table.schema, options=COMPRESSED)
        self._writer.write_batch(table.to_batches()[0])
        self._batches.append([day, cut, cuts, rows.height])
