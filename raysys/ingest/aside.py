"""What did not get through: one Parquet file for each piece of work that put rows aside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow.parquet as pq

from raysys.datasets.files import Block, Part
from raysys.ingest.rules import QUARANTINE_SCHEMA

QUARANTINE: Final = "quarantine.parquet"


def unread(block: Block, part: Part, table: str) -> pl.DataFrame:
    """What a reader could not read, in `QUARANTINE_SCHEMA`."""
    rows = [(table, fault.reason, part.label, fault.row, fault.raw) for fault in block.faults]
    return pl.DataFrame(rows, schema=QUARANTINE_SCHEMA, orient="row")


def storage_failed(block: Block) -> bool:
    """Whether what a reader could not read may be there another time."""
    return any(fault.passing for fault in block.faults)


def write_quarantine(rejected: Sequence[pl.DataFrame], path: Path) -> None:
    """Write what did not get through, if anything, as one Parquet file."""
    frames = [frame for frame in rejected if frame.height]
    if frames:
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pl.concat(frames).to_arrow(), path, compression="zstd")
