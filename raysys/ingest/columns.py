"""Frames to files and back: Arrow files for what is on its way, Parquet for what stays."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

COMPRESSED: Final = pa.ipc.IpcWriteOptions(compression="lz4")
DAY_MS: Final = 86_400_000


def date_of(day: int) -> str:
    """`YYYY-MM-DD` of a day counted from 1970-01-01, UTC."""
    return str(pl.Series([day * DAY_MS]).cast(pl.Datetime("ms")).dt.strftime("%Y-%m-%d")[0])


def to_frame(table: pa.Table) -> pl.DataFrame:
    """An Arrow table as a frame."""
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


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


def write_arrow(frame: pl.DataFrame, path: Path) -> None:
    """Write a frame as one Arrow file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = frame.to_arrow()
    with pa.ipc.new_file(str(path), table.schema, options=COMPRESSED) as writer:
        writer.write_table(table)


def read_arrow(path: Path) -> pl.DataFrame:
    """Read what `write_arrow` wrote."""
    with pa.memory_map(str(path)) as file:
        return to_frame(pa.ipc.open_file(file).read_all())


def read_all(paths: Iterable[Path], columns: dict[str, Any]) -> pl.DataFrame:
    """Arrow files of the same columns as one frame; empty with these columns if there are none."""
    frames = [read_arrow(path) for path in sorted(paths)]
    return pl.concat(frames) if frames else pl.DataFrame(schema=columns)


def write_parquet(frame: pl.DataFrame, target: pa.Schema, path: Path) -> None:
    """Write a frame in a schema; columns whose values repeat are written as dictionaries."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = to_arrow(frame, target)
    repeated = [
        field.name
        for field in target
        if pa.types.is_string(field.type)
        and field.name not in ("event_id", "request_id")
        and table[field.name].null_count < table.num_rows
    ]
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=1,
        use_dictionary=repeated,
        write_statistics=["timestamp"],  # of other columns they help nobody and cost a quarter
    )
