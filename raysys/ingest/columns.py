"""Frames to files and back: Arrow files for what is on its way, Parquet for what stays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

COMPRESSED: Final = pa.ipc.IpcWriteOptions(compression="lz4")
DAY_MS: Final = 86_400_000


def date_of(day: int) -> str:
    """`YYYY-MM-DD` of a day counted from 1970-01-01, UTC."""
    return str(np.datetime64(day, "D"))


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


def by_day(events: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Frames of one day each (UTC), rows in the order they had."""
    day = events["timestamp"] // DAY_MS
    if not day.is_sorted():
        events = events.with_columns(day.alias("_day")).sort("_day", maintain_order=True)
        day = events["_day"]
        events = events.drop("_day")
    at = 0
    for length in day.rle().struct.field("len"):
        yield events.slice(at, length)
        at += length


def write_days(events: pl.DataFrame, target: pa.Schema, folder: Path) -> list[str]:
    """Write each day's rows as `YYYY-MM-DD.parquet`, in a schema; returns the dates.

    Columns whose values repeat are written as dictionaries.

    Args:
        events: rows by day; timestamps in Int64 UTC ms.
        target: a schema with `timestamp`.
        folder: to write into.
    """
    folder.mkdir(parents=True, exist_ok=True)
    runs = (events["timestamp"] // DAY_MS).rle().struct.unnest()
    table = to_arrow(events.rechunk(), target)
    repeated = [
        field.name
        for field in target
        if pa.types.is_string(field.type) and field.name not in ("event_id", "request_id")
    ]
    dates, at = [], 0
    for day, length in zip(runs["value"], runs["len"], strict=True):
        dates.append(date_of(day))
        rows = table.slice(at, length)
        pq.write_table(
            rows,
            folder / f"{dates[-1]}.parquet",
            compression="zstd",
            compression_level=1,
            use_dictionary=[name for name in repeated if rows[name].null_count < length],
            write_statistics=["timestamp"],  # of other columns they help nobody and cost a quarter
        )
        at += length
    return dates
