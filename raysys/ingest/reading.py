"""First pass: a file, or some row groups of one, read once and kept clean, cut by date.

What comes of a file depends on the file and the settings alone, so it is kept in the store under
the digest of both: a second run reads only what is new or has changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, Final

import polars as pl
import pyarrow as pa

from raysys import schema
from raysys.datasets.drafting import draft_events, draft_items
from raysys.datasets.files import ROWS, Block, Part, read
from raysys.datasets.mapping import MENDED, UNPARSED, EventFiles
from raysys.datasets.source import RECORD, Expand, Source
from raysys.datasets.times import latest
from raysys.errors import UserError
from raysys.ingest.aside import QUARANTINE, storage_failed, unread, write_quarantine
from raysys.ingest.columns import COMPRESSED, DAY_MS, by_day, write_arrow
from raysys.ingest.judging import apply_each, note
from raysys.ingest.rule_settings import RuleSettings
from raysys.ingest.rules import AHEAD, ROW, SOURCE, Rule
from raysys.ingest.store import Store
from raysys.ingest.tally import Tally

PIECES: Final = "pieces"
EVENTS: Final = "events.arrow"
TOLD: Final = "told_items.arrow"

NTH: Final = "_nth"
"""Column of what an importer makes: which of its record's rows, from 0."""

DESCRIBES: Final = pl.any_horizontal(
    pl.col(name).is_not_null() for name in schema.ITEMS.names if name not in ("item_id", "currency")
)
"""Of a draft item: whether it says anything. A currency alone does not: it may be the event's."""

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


def read_pieces(
    pieces: Iterable[Piece], source: Source, rules: Sequence[Rule], cuts: int, store: Store
) -> None:
    """Read pieces into the store; those of one block each are judged together.

    The result of a piece holds the tally, and for each record batch of `events.arrow` its day
    (since 1970-01-01), its cut and into how many cuts the day was cut (see `cut_of`), and its rows;
    `ahead`, the earliest moment (UTC ms) of a row put aside as in the future, null without any;
    and `unread`, whether storage failed before the piece was whole.

    Args:
        pieces: what to read.
        source: the mappings and the adapter.
        rules: what rows are held to (see `rules.event_rules`).
        cuts: most cuts of one day, a power of two.
        store: where to keep it.

    Raises:
        UserError: the mapping cannot be right for a file.
    """
    waiting: list[tuple[Piece, list[_Draft]]] = []

    def keep() -> None:
        judged = _judged([draft for _, blocks in waiting for draft in blocks], rules)
        for piece, blocks in waiting:
            _keep(piece, source, islice(judged, len(blocks)), cuts, store)
        waiting.clear()

    for piece in pieces:
        if store.has(PIECES, piece.key):  # a worker that died may have done it
            continue
        drafts = _drafts(piece, source)
        try:
            begun = list(islice(drafts, 2))
        except UserError:
            keep()  # what was read before need not be read again
            raise
        if len(begun) < 2:
            waiting.append((piece, begun))
            if sum(one.rows.height for _, blocks in waiting for one in blocks) >= ROWS:
                keep()
            continue
        judged = (found for one in chain(begun, drafts) for found in _judged([one], rules))
        _keep(piece, source, judged, cuts, store)
    keep()


def has_come(ahead: int | None, rules: RuleSettings) -> bool:
    """Whether a moment that was put aside as in the future would no longer be."""
    return ahead is not None and ahead <= latest(rules.in_the_future.hours)


def drop_outdated(pieces: Iterable[Piece], rules: RuleSettings, store: Store) -> None:
    """Remove pieces from the store that another read may find to hold more.

    Those hold a row back whose moment has passed since, or storage failed when they were read.
    """
    for piece in pieces:
        if store.has(PIECES, piece.key):
            result = store.result(PIECES, piece.key)
            if result["unread"] or has_come(result["ahead"], rules):
                store.drop(PIECES, piece.key)


@dataclass
class _Draft:
    """A block in the vocabulary, before any rule.

    Attributes:
        rows: draft events; none if the block has no row.
        raw, told: the same rows as the file has them, and as the adapter prepared them.
        rejected: what could not be read.
        tally: of that, and of records that mean no row.
        unread: whether storage failed here.
    """

    rows: pl.DataFrame
    raw: pl.DataFrame
    told: pl.DataFrame
    rejected: pl.DataFrame
    tally: Tally
    unread: bool


_Judged = tuple[pl.DataFrame, pl.DataFrame, Tally]  # see `judging.apply`


def _drafts(piece: Piece, source: Source) -> Iterator[_Draft]:
    """A piece's blocks."""
    files, part = source.events[piece.mapping], piece.part
    source = source.of(files)
    nothing = pl.DataFrame()
    for block in read(part, files, source.derived):
        tally = Tally()
        rejected = _reject_unread(block, part, tally)
        tally.lacking.update(block.lacking)
        failed = storage_failed(block)
        if block.rows.height:
            block = _expanded(block, source.expand_events, tally)
        if not block.rows.height:
            yield _Draft(nothing, nothing, nothing, rejected, tally, failed)
            continue
        told = source.prepare_events(block.rows) if source.prepare_events else block.rows
        rows = _placed(draft_events(told, files, where=part.label), block, part)
        yield _Draft(rows, block.rows.drop(NTH, strict=False), told, rejected, tally, failed)


def _judged(
    drafts: Sequence[_Draft], rules: Sequence[Rule]
) -> Iterator[tuple[_Draft, _Judged | None]]:
    """What the rules make of drafts; those in a row with the same columns are asked together."""
    for columns, group in groupby(drafts, lambda draft: (draft.raw.schema, draft.rows.schema)):
        alike = list(group)
        if not columns[1]:  # nothing to ask
            yield from ((draft, None) for draft in alike)
            continue
        found = apply_each(rules, [(draft.rows, draft.raw) for draft in alike], "events")
        yield from zip(alike, found, strict=True)


def _keep(
    piece: Piece,
    source: Source,
    judged: Iterable[tuple[_Draft, _Judged | None]],
    cuts: int,
    store: Store,
) -> None:
    """Put what was judged into the store, block after block."""
    files, part = source.events[piece.mapping], piece.part
    tally = Tally()
    rejected: list[pl.DataFrame] = []
    told: list[pl.DataFrame] = []
    ahead: list[int] = []
    result: dict[str, Any] = {"label": part.label, "unread": False}
    with store.doing(PIECES, piece.key, result) as folder:
        kept = [*files.columns, *files.constants, ROW, *([NTH] if source.expand_events else [])]
        dealer = _Dealer(folder / EVENTS, kept, cuts)
        for draft, found in judged:
            tally.add(draft.tally)
            rejected.append(draft.rejected)
            result["unread"] |= draft.unread
            if found is None:
                continue
            clean, bad, counted = found
            tally.add(counted)
            rejected.append(bad)
            ahead += _moments_ahead(draft.rows, bad)
            if files.items:
                told.append(_items_told(draft.told, files, draft.rows, clean))
            dealer.deal(clean)
        result["batches"] = dealer.close()
        result["tally"] = tally.to_dict()
        result["ahead"] = min(ahead, default=None)
        if told:
            write_arrow(pl.concat(told), folder / TOLD)
        write_quarantine(rejected, folder / QUARANTINE)


def _moments_ahead(draft: pl.DataFrame, rejected: pl.DataFrame) -> list[int]:
    """The earliest moment that was put aside as in the future; none, or one."""
    numbers = rejected.filter(reason=AHEAD)["row"]
    if not numbers.len():
        return []
    moments = draft.filter(pl.col(ROW).is_in(numbers.implode()))["timestamp"].drop_nulls()
    return moments.sort().head(1).to_list()


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
    """What clean events say of their items: draft items, the first word on each.

    An event that describes its item comes before earlier ones that only name it.
    """
    items = draft_items(raw, files.items, time=files.time).drop(UNPARSED, MENDED)
    items = items.with_columns(
        draft["item_id"], pl.coalesce("currency", draft["currency"]),
        draft["timestamp"].alias("_told"), draft[SOURCE], draft[ROW],
    )  # fmt: skip
    place = [ROW, NTH] if NTH in clean.columns else [ROW]
    items = items.with_columns(draft[name] for name in place)
    kept = items.join(clean.select(place), on=place, how="semi").drop(NTH, strict=False)
    first = kept.drop_nulls("item_id").sort(~DESCRIBES, "_told", ROW, maintain_order=True)
    return first.unique("item_id", keep="first", maintain_order=True)


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
