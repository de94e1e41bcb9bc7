"""Rows as a file gives them to rows of the vocabulary, as their mapping says."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl
import pyarrow as pa

from raysys import schema
from raysys.datasets.mapping import (
    ATTRIBUTES,
    ENTRIES,
    MENDED,
    UNPARSED,
    EventFiles,
    RecordFiles,
    RecordUsers,
    UserFiles,
    polars_type,
)
from raysys.datasets.records import json_text
from raysys.datasets.times import TimeFormat, check_unit, to_millis


def draft_events(rows: pl.DataFrame, files: EventFiles, *, where: str) -> pl.DataFrame:
    """Rows of a file as draft events: columns of `schema.LOGGED_EVENTS`, `UNPARSED`, `MENDED`.

    Timestamps are Int64 UTC milliseconds here; columns that nothing fills are null.

    Raises:
        UserError: the unit of time is obviously wrong.
    """
    times = {"timestamp": files.time}
    fixed = isinstance(files, RecordFiles)  # an importer, whose YAML has no `time`
    columns = _read(rows, files.columns, schema.LOGGED_EVENTS, times, where, fixed=fixed)
    if files.event_types and "event_type" in columns:
        raw, words = columns["event_type"]
        columns["event_type"] = (raw, words.replace(files.event_types))
    return _assemble(rows, columns, files.constants, schema.LOGGED_EVENTS, times)


def draft_items(
    rows: pl.DataFrame,
    columns: dict[str, str],
    constants: dict[str, str] | None = None,
    time: TimeFormat | None = None,
    *,
    where: str = "",
) -> pl.DataFrame:
    """Rows of a file as draft items: every column of `schema.ITEMS`, `UNPARSED`, `MENDED`.

    Moments are Int64 UTC milliseconds here, written as `time` says.

    Raises:
        UserError: the unit of time is obviously wrong.
    """
    times = {"available_from": time or TimeFormat()}
    read = _read(rows, columns, schema.ITEMS, times, where)
    return _assemble(rows, read, constants or {}, schema.ITEMS, times)


def draft_users(rows: pl.DataFrame, files: UserFiles) -> pl.DataFrame:
    """Rows of a file as draft users: `user_id`, and `attributes` as a list of {key, value}."""
    source = files.columns["user_id"]
    unparsed = pl.lit(None, dtype=pl.String).alias(UNPARSED)
    if isinstance(files, RecordUsers):
        return rows.select(_text(rows[source]).alias("user_id"), ATTRIBUTES, unparsed)
    names = files.attributes or tuple(
        # a column without a name is the row numbers that pandas writes
        name
        for name in rows.columns
        if name and name != source and not name.startswith("_")
    )
    entries = [
        pl.struct(pl.lit(name).alias("key"), _text(rows[name]).alias("value")) for name in names
    ]
    listed = (
        pl.concat_list(entries).list.filter(pl.element().struct.field("value").is_not_null())
        if entries
        else pl.lit([], dtype=ENTRIES)
    )
    return rows.select(
        _text(rows[source]).alias("user_id"),
        listed.alias(ATTRIBUTES),
        unparsed,
    )


def _read(
    rows: pl.DataFrame,
    columns: dict[str, str],
    target: pa.Schema,
    times: Mapping[str, TimeFormat],
    where: str,
    *,
    fixed: bool = False,
) -> dict[str, tuple[pl.Series, pl.Series]]:
    """For each mapped column of the vocabulary what the file says, and what it means."""
    read = {}
    for name, source in columns.items():
        raw = _blank_to_null(_flat(rows[source]))
        if name in times:
            meant = to_millis(raw, times[name])
            place = f"{where}, column {source!r}"
            check_unit(raw, times[name], where=place, millis=meant, fixed=fixed)
        else:
            meant = _cast(raw, target.field(name).type)
        read[name] = (raw, meant)
    return read


def _assemble(
    rows: pl.DataFrame,
    columns: dict[str, tuple[pl.Series, pl.Series]],
    constants: dict[str, str],
    target: pa.Schema,
    times: Mapping[str, TimeFormat],
) -> pl.DataFrame:
    """The draft: vocabulary columns in order, and which of them could not be read.

    What is the same in every row stays a scalar within the frame, so it costs nothing.
    """
    failed: pl.Series | None = None
    for name, (raw, meant) in columns.items():
        if meant.null_count() == raw.null_count():
            continue
        if failed is None:
            failed = pl.Series([None], dtype=pl.String).new_from_index(0, rows.height)
        lost = raw.is_not_null() & meant.is_null() & failed.is_null()
        failed = failed.zip_with(~lost, pl.Series([name], dtype=pl.String))
    same = {name: pl.lit(None, dtype=polars_type(target.field(name).type)) for name in target.names}
    unread: pl.Expr = pl.lit(None, dtype=pl.String)
    for name, value in constants.items():
        kind = target.field(name).type
        told = _blank_to_null(pl.Series([value], dtype=pl.String))
        meant = to_millis(told, times[name]) if name in times else _cast(told, kind)
        same[name] = pl.lit(meant[0], dtype=polars_type(kind))
        if meant[0] is None and told[0] is not None:
            unread = pl.lit(name)
    frame = pl.DataFrame([meant.alias(name) for name, (_, meant) in columns.items()])
    if not columns:  # nothing but constants: something must say how many rows there are
        frame = pl.Series("", [None]).new_from_index(0, rows.height).to_frame()
    return frame.with_columns(
        *(value.alias(name) for name, value in same.items() if name not in columns),
        (unread if failed is None else pl.lit(failed).fill_null(unread)).alias(UNPARSED),
        (pl.lit(rows[MENDED]) if MENDED in rows.columns else pl.lit(None, dtype=pl.String)).alias(
            MENDED
        ),
    ).select(*target.names, UNPARSED, MENDED)


def _cast(values: pl.Series, arrow: pa.DataType) -> pl.Series:
    """Values in the vocabulary's type; null where they are not of it."""
    if pa.types.is_string(arrow):
        return _text(values)
    if values.dtype == pl.String:
        values = values.str.strip_chars()
    if pa.types.is_integer(arrow) and values.dtype == pl.String:
        values = values.str.replace(r"\.0+$", "")  # pandas writes integers with gaps so
    return values.cast(polars_type(arrow), strict=False)


def _text(values: pl.Series) -> pl.Series:
    """Ids and words as text; whole floats (integers that once had gaps) lose their `.0`."""
    if values.dtype.is_float() and values.len():
        whole = values.drop_nulls().drop_nans()
        if whole.len() and bool((whole == whole.round()).all()) and whole.abs().max() < 2**53:  # type: ignore[operator]
            values = values.cast(pl.Int64, strict=False)
    return _blank_to_null(_flat(values).cast(pl.String, strict=False))


def _flat(values: pl.Series) -> pl.Series:
    """Objects and lists, which Parquet has, as the text that JSON lines give for them."""
    return json_text(values) if values.dtype.is_nested() else values


def _blank_to_null(values: pl.Series) -> pl.Series:
    """Empty text means nothing was said."""
    if values.dtype != pl.String or values.str.len_bytes().min() != 0:
        return values
    return values.set(values == "", None)
