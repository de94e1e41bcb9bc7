"""A shop's own columns into the vocabulary: the few lines of YAML that describe a log.

A mapping says which file column is which column of `schema`, what the shop calls its event types,
how it writes time, and what holds for every row. `draft` applies it: values that cannot be read
become null and are named in `UNPARSED`, for the rules of `raysys.ingest` to judge; nothing is lost.
"""

from __future__ import annotations

from typing import Final, Literal

import polars as pl
import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from raysys import schema
from raysys.config import Settings
from raysys.datasets.times import TimeFormat, check_unit, to_millis
from raysys.errors import UserError

UNPARSED: Final = "_unparsed"
"""Column of a draft: the first vocabulary column whose value could not be read, else null."""

MENDED: Final = "_mended"
"""Column of a draft: the rule by which an adapter has mended the row, else null."""

ATTRIBUTES: Final = "attributes"


class Files(Settings):
    """Where a log lies and how its rows are written."""

    paths: tuple[str, ...] = Field(min_length=1)
    """Files, folders or globs, local or any fsspec URI; `${NAME}` is the environment's."""

    format: Literal["csv", "jsonl", "parquet"] | None = None
    """None: told by the file's ending; `.gz` may follow."""

    header: tuple[str, ...] | None = None
    """Names of the columns of a CSV without a header line."""

    delimiter: str = Field(default=",", min_length=1, max_length=1)
    encoding: Literal["utf-8", "latin-1", "cp1252"] = "utf-8"

    @field_validator("paths", mode="before")
    @classmethod
    def _one_or_many(cls, paths: object) -> object:
        return (paths,) if isinstance(paths, str) else paths

    @field_validator("header")
    @classmethod
    def _distinct(cls, header: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if header is not None and len(set(header)) != len(header):
            raise ValueError("column names must differ")
        return header


class EventFiles(Files):
    """Files of events."""

    columns: dict[str, str]
    """Column of `schema.LOGGED_EVENTS` → column of the file (JSON lines: a dotted path)."""

    event_types: dict[str, str] = {}
    """The log's word → one of `schema.EVENT_TYPES`; words of the vocabulary need no entry."""

    time: TimeFormat = TimeFormat()
    constants: dict[str, str] = {}
    """Column of `schema.LOGGED_EVENTS` → what it holds in every row."""

    items: dict[str, str] = {}
    """Column of `schema.ITEMS` → column of this file, for logs that carry their catalogue."""

    @model_validator(mode="after")
    def _complete(self) -> EventFiles:
        _known((*self.columns, *self.constants), schema.LOGGED_EVENTS.names)
        _known(self.items, [name for name in schema.ITEMS.names if name != "item_id"])
        both = sorted(set(self.columns) & set(self.constants))
        if both:
            raise ValueError(f"{both[0]} is given in both columns and constants")
        given = {*self.columns, *self.constants}
        missing = [n for n in ("user_id", "event_type", "timestamp") if n not in given]
        if missing:
            raise ValueError(f"columns must say where {', '.join(missing)} comes from")
        if "item_id" not in given and "query" not in given:
            raise ValueError("columns must say where item_id comes from (or query, for searches)")
        wrong = sorted({*self.event_types.values()} - {*schema.EVENT_TYPES})
        if wrong:
            allowed = ", ".join(schema.EVENT_TYPES)
            raise ValueError(f"event_types maps to {wrong[0]!r}, which is none of {allowed}")
        constant = self.constants.get("event_type")
        if constant and constant not in schema.EVENT_TYPES:
            raise ValueError(f"event_type {constant!r} is none of {', '.join(schema.EVENT_TYPES)}")
        return self


class ItemFiles(Files):
    """Files of the shop's own catalogue."""

    columns: dict[str, str]
    constants: dict[str, str] = {}

    @model_validator(mode="after")
    def _complete(self) -> ItemFiles:
        _known((*self.columns, *self.constants), schema.ITEMS.names)
        if "item_id" not in self.columns:
            raise ValueError("columns must say where item_id comes from")
        return self


class UserFiles(Files):
    """Files of what the shop knows of its users."""

    columns: dict[str, str]
    """`user_id` → column of the file."""

    attributes: tuple[str, ...] = ()
    """Columns of the file to keep as the user's attributes; none: all of them."""

    @model_validator(mode="after")
    def _complete(self) -> UserFiles:
        _known(self.columns, ["user_id"])
        if "user_id" not in self.columns:
            raise ValueError("columns must say where user_id comes from")
        return self


AnyFiles = EventFiles | ItemFiles | UserFiles


def wanted(files: AnyFiles, derived: frozenset[str] = frozenset()) -> list[str] | None:
    """The file's own columns that a mapping reads, in order, less `derived`; None: all of them."""
    names = list(files.columns.values())
    if isinstance(files, EventFiles):
        names += files.items.values()
    if isinstance(files, UserFiles):
        if not files.attributes:
            return None
        names += files.attributes
    return [name for name in dict.fromkeys(names) if name not in derived]


def check_columns(
    files: AnyFiles, found: list[str], derived: frozenset[str] = frozenset(), *, where: str
) -> None:
    """Refuse a file that lacks a column the mapping reads.

    Raises:
        UserError: naming the columns that lack, those that are there, and the nearest.
    """
    import difflib

    needed = wanted(files, derived) or files.columns.values()
    missing = [name for name in needed if name not in found]
    if not missing:
        return
    near = difflib.get_close_matches(missing[0], found, n=1)
    shown = ", ".join(found[:30]) + (", …" if len(found) > 30 else "")
    raise UserError(
        f"no column {', '.join(map(repr, missing))}; the file has: {shown}",
        where=where,
        mend=f"did you mean {near[0]!r}? Name the file's columns in the mapping"
        if near
        else "name the file's columns in the mapping, and check delimiter and header",
    )


def draft_events(rows: pl.DataFrame, files: EventFiles, *, where: str) -> pl.DataFrame:
    """Rows of a file as draft events: columns of `schema.LOGGED_EVENTS`, `UNPARSED`, `MENDED`.

    Timestamps are Int64 UTC milliseconds here; columns that nothing fills are null.

    Raises:
        UserError: the unit of time is obviously wrong.
    """
    columns = _read(rows, files.columns, files.constants, schema.LOGGED_EVENTS, skip=("timestamp",))
    if "timestamp" in files.columns:
        raw = _blank_to_null(rows[files.columns["timestamp"]])
        check_unit(raw, files.time, where=f"{where}, column {files.columns['timestamp']!r}")
        columns["timestamp"] = (raw, to_millis(raw, files.time))
    else:
        raw = pl.Series([files.constants["timestamp"]] * rows.height, dtype=pl.String)
        columns["timestamp"] = (raw, to_millis(raw, files.time))
    if files.event_types:
        raw, words = columns["event_type"]
        columns["event_type"] = (raw, words.replace(files.event_types))
    return _assemble(rows, columns, schema.LOGGED_EVENTS)


def draft_items(
    rows: pl.DataFrame, columns: dict[str, str], constants: dict[str, str] | None = None
) -> pl.DataFrame:
    """Rows of a file as draft items: every column of `schema.ITEMS`, plus `UNPARSED`."""
    return _assemble(rows, _read(rows, columns, constants or {}, schema.ITEMS), schema.ITEMS)


def draft_users(rows: pl.DataFrame, files: UserFiles) -> pl.DataFrame:
    """Rows of a file as draft users: `user_id`, and `attributes` as a list of {key, value}."""
    source = files.columns["user_id"]
    names = files.attributes or tuple(c for c in rows.columns if c != source and c[0] != "_")
    entries = [
        pl.struct(pl.lit(name).alias("key"), _text(rows[name]).alias("value")) for name in names
    ]
    empty = pl.List(pl.Struct({"key": pl.String, "value": pl.String}))
    listed = (
        pl.concat_list(entries).list.filter(pl.element().struct.field("value").is_not_null())
        if entries
        else pl.lit([], dtype=empty)
    )
    return rows.select(
        _text(rows[source]).alias("user_id"),
        listed.alias(ATTRIBUTES),
        pl.lit(None, dtype=pl.String).alias(UNPARSED),
    )


def _read(
    rows: pl.DataFrame,
    columns: dict[str, str],
    constants: dict[str, str],
    target: pa.Schema,
    skip: tuple[str, ...] = (),
) -> dict[str, tuple[pl.Series, pl.Series]]:
    """For each vocabulary column what the file says, and what it means."""
    read = {}
    for name, source in columns.items():
        if name not in skip:
            raw = _blank_to_null(rows[source])
            read[name] = (raw, _cast(raw, target.field(name).type))
    for name, value in constants.items():
        if name not in skip:
            raw = pl.Series([value], dtype=pl.String).new_from_index(0, rows.height)
            read[name] = (raw, _cast(raw, target.field(name).type))
    return read


def _assemble(
    rows: pl.DataFrame, columns: dict[str, tuple[pl.Series, pl.Series]], target: pa.Schema
) -> pl.DataFrame:
    """The draft: vocabulary columns in order, and which of them could not be read."""
    failed = pl.Series([None], dtype=pl.String).new_from_index(0, rows.height)
    for name, (raw, meant) in columns.items():
        lost = raw.is_not_null() & meant.is_null() & failed.is_null()
        if lost.any():
            failed = failed.zip_with(~lost, pl.Series([name]).new_from_index(0, rows.height))
    filled = [
        columns[field.name][1].alias(field.name)
        if field.name in columns
        else pl.Series(field.name, [None], dtype=polars_type(field.type)).new_from_index(
            0, rows.height
        )
        for field in target
    ]
    frame = pl.DataFrame(filled).with_columns(failed.alias(UNPARSED))
    if MENDED in rows.columns:
        return frame.with_columns(rows[MENDED])
    return frame.with_columns(pl.lit(None, dtype=pl.String).alias(MENDED))


def polars_type(arrow: pa.DataType) -> pl.DataType:
    """The type of a draft's column; moments are Int64 milliseconds until they are written."""
    if pa.types.is_timestamp(arrow):
        return pl.Int64()
    if pa.types.is_floating(arrow):
        return pl.Float64()
    return pl.Int32() if pa.types.is_integer(arrow) else pl.String()


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
    if values.dtype.is_nested():
        values = (
            values.to_frame().select(pl.first().struct.json_encode()).to_series()
            if (isinstance(values.dtype, pl.Struct))
            else values.map_elements(str, return_dtype=pl.String)
        )
    return _blank_to_null(values.cast(pl.String, strict=False))


def _blank_to_null(values: pl.Series) -> pl.Series:
    """Empty text means nothing was said."""
    if values.dtype != pl.String:
        return values
    return values.set(values == "", None)


def _known(given: object, allowed: list[str]) -> None:
    """Refuse names that are not of the vocabulary."""
    import difflib

    for name in given:  # type: ignore[attr-defined]
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{name!r} is no column here{hint} (allowed: {', '.join(allowed)})")
