"""What ingest needs to know of a data set: its files, their mappings, and its own few mends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from raysys.datasets.mapping import AnyFiles, EventFiles, ItemFiles, UserFiles

RECORD: Final = "_record"
"""Column of expanded rows: UInt32, 0-based row of the frame they come from, never decreasing."""

Prepare = Callable[[pl.DataFrame], pl.DataFrame]
"""Changes rows of a file, before its mapping reads them; must keep their number and order."""


@dataclass(frozen=True)
class Expanded:
    """What became of some records: every one has rows, or is counted as ignored."""

    rows: pl.DataFrame
    """Flat rows as the mapping reads them, and `RECORD`."""

    ignored: dict[str, int]
    """Why records were left out on purpose → how many: `{"not_an_event: session_start": 12}`."""


Expand = Callable[[pl.DataFrame], Expanded]
"""Records as read (see `mapping.RecordFiles`) into rows: none, one or many for each.

A record that means no event is ignored and counted. One that should have been understood but
cannot be has one row with nulls, for the cleaning rules to judge.
"""


@dataclass(frozen=True)
class SideTable:
    """A table beside the log (promotions, campaigns, …), converted batch by batch."""

    name: str
    path: str
    schema: pa.Schema
    convert: Prepare  # here rows may go: repeated ones, or for the reason `left_out` names
    left_out: str = "duplicate"

    def batches(self, rows: int = 1 << 20) -> Iterator[tuple[int, pa.Table]]:
        """Rows read, and what became of them in `schema`; bounded memory."""
        with fsspec.open(self.path, "rb") as opened:
            for batch in pq.ParquetFile(opened).iter_batches(batch_size=rows):
                frame = pl.from_arrow(pa.Table.from_batches([batch]))
                assert isinstance(frame, pl.DataFrame)
                yield batch.num_rows, self.convert(frame).to_arrow().cast(self.schema)


@dataclass(frozen=True)
class Source:
    """A data set: mappings of its files, and what only its adapter knows."""

    title: str
    events: tuple[EventFiles, ...]
    items: tuple[ItemFiles, ...] = ()
    users: tuple[UserFiles, ...] = ()
    tables: tuple[SideTable, ...] = ()
    derived: frozenset[str] = frozenset()  # columns that `prepare_…` add: files lack them
    prepare_events: Prepare | None = None
    prepare_items: Prepare | None = None
    expand_events: Expand | None = None  # for `RecordEvents`: applied before the mapping
    expand_items: Expand | None = None  # for `RecordItems`
    expand_users: Expand | None = None  # for `RecordUsers`
    plain: tuple[AnyFiles, ...] = ()  # mappings of files that need nothing that the adapter does

    def of(self, files: AnyFiles) -> Source:
        """The data set as it treats the files of one mapping."""
        if files not in self.plain:
            return self
        return replace(
            self,
            derived=frozenset(),
            prepare_events=None,
            prepare_items=None,
            expand_events=_each_itself if self.expand_events else None,
            expand_items=None,
            expand_users=None,
        )


def _each_itself(rows: pl.DataFrame) -> Expanded:
    """Every record is one row."""
    return Expanded(rows.with_row_index(RECORD), {})
