"""A shop's own columns into the vocabulary: the few lines of YAML that describe a log.

A mapping says which file column is which column of `schema`, what the shop calls its event types,
how it writes time, and what holds for every row. `draft` applies it: values that cannot be read
become null and are named in `UNPARSED`, for the rules of `raysys.ingest` to judge; nothing is lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import polars as pl
import pyarrow as pa
from pydantic import Field, field_serializer, field_validator, model_validator

from raysys import schema
from raysys.config import Settings
from raysys.datasets.encodings import Encoding
from raysys.datasets.times import TimeFormat
from raysys.errors import UserError

UNPARSED: Final = "_unparsed"
"""Column of a draft: the first vocabulary column whose value could not be read, else null."""

MENDED: Final = "_mended"
"""Column of a draft: the rule by which an adapter has mended the row, else null."""

ATTRIBUTES: Final = "attributes"
ENTRIES: Final = pl.List(pl.Struct({"key": pl.String, "value": pl.String}))
"""Type of a draft's attributes; `schema.USERS` has a map of them."""

REFUND: Final = "refund"
"""What a log's word for a returned purchase may be mapped to. It is no event of the vocabulary:
the rules take it out, and with it the purchase that it takes back if they are told to."""

FROM_PATH: Final = "$"
"""Begins the name of a column that the file's path holds: `$date`, or a hive key."""

NEEDED: Final = frozenset({"user_id", "event_type", "timestamp", "item_id"})
"""What a file of events cannot lack, if its mapping says that a column holds it."""


class Files(Settings):
    """Where a log lies and how its rows are written."""

    paths: tuple[str, ...] = Field(min_length=1)
    """Files, folders or globs, local or any fsspec URI; `${NAME}` is the environment's."""

    format: Literal["csv", "jsonl", "parquet"] | None = None
    """None: told by the file's ending; `.gz`, `.bz2`, `.xz` or `.zst` may follow."""

    header: tuple[str, ...] | None = None
    """Names of the columns of a CSV without a header line."""

    delimiter: str = Field(default=",", min_length=1, max_length=1)
    encoding: Encoding = "utf-8"
    """`auto`: told by each file's first bytes."""

    optional: tuple[str, ...] = ()
    """Columns of the vocabulary that every file may lack. Others may lack in some files, except
    ids, types and moments, but not in all."""

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
    """Column of `schema.LOGGED_EVENTS` → column of the file (JSON lines: a dotted path), or of its
    path: `$date` for `date=2024-01-01/` and `2024/01/01/`, `$NAME` for `NAME=value/`."""

    event_types: dict[str, str] = {}
    """The log's word → one of `schema.EVENT_TYPES`, or `refund`; words of the vocabulary need no
    entry."""

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
        _known(self.optional, [*self.columns, *self.items])
        wrong = sorted({*self.event_types.values()} - {*schema.EVENT_TYPES, REFUND})
        if wrong:
            allowed = ", ".join(schema.EVENT_TYPES)
            raise ValueError(
                f"event_types maps to {wrong[0]!r}, which is none of {allowed}, refund"
            )
        constant = self.constants.get("event_type")
        if constant and constant not in schema.EVENT_TYPES:
            raise ValueError(f"event_type {constant!r} is none of {', '.join(schema.EVENT_TYPES)}")
        return self


class ItemFiles(Files):
    """Files of the shop's own catalogue."""

    columns: dict[str, str]
    constants: dict[str, str] = {}

    time: TimeFormat = TimeFormat()
    """How `available_from` is written."""

    @model_validator(mode="after")
    def _complete(self) -> ItemFiles:
        _known((*self.columns, *self.constants), schema.ITEMS.names)
        _known(self.optional, list(self.columns))
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


TableFormat = Literal[
    "csv", "jsonl", "parquet", "json", "conll", "fasttext", "triples", "lines", "brat"
]


class AnyTable(Files):
    """Files of texts: how rows are written is told by each file's content, unless it is said."""

    format: TableFormat | None = None  # type: ignore[assignment]  # more than logs have
    """None: told by ending and content. `json`: one document, or lines that are no plain objects;
    `conll`: a token a line with its tags; `fasttext`: `__label__x text`; `triples`: title,
    attribute and value with U+0001 between; `lines`: a text a line; `brat`: `.ann` beside `.txt`.
    """

    delimiter: str = Field(default="", max_length=1)
    """Of a CSV; empty: comma, tab, semicolon or bar: that which parts the columns asked for."""

    quoted: bool | None = None
    """Fields of a CSV may be quoted; false: a quotation mark is a character like any other, such as
    the inches of 17". None: true, and of files with tabs told by their first lines."""

    encoding: Encoding = "auto"


class TableFiles(AnyTable):
    """Files of any table, read by names of the reader's own."""

    columns: dict[str, str]
    """The reader's name → column of the file, or of its path."""

    keys: tuple[str, ...] = ()
    """Of the reader's names: those without which no row says anything."""

    everything: bool = False
    """Read all columns of the file, not only those that are named."""

    bare: bool = False
    """A text file without columns is taken for `lines`."""


class RecordFiles(Settings):
    """What an adapter reads of nested records; its `Source.expand_…` flattens them.

    `columns` of such files name what the adapter makes, not what the file has.
    """

    record: dict[str, Any]
    """Top-level field → polars type: all that is read, see `datasets.records`."""

    needed: tuple[str, ...]
    """Fields without which a file cannot be of this format."""

    screen: tuple[str, tuple[str, ...]] | None = None
    """A field of type text, and the words there that mean something: of records with another word
    JSON lines give only that field."""

    quoted: bool = True
    """CSV: fields may be quoted. False: a quotation mark is a character like any other."""

    importer: dict[str, Any] = {}
    """The adapter's settings, on which depends what becomes of a record."""

    @field_serializer("record")
    def _named(self, record: dict[str, Any]) -> dict[str, str]:
        return {name: str(kind) for name, kind in record.items()}


class RecordEvents(RecordFiles, EventFiles):
    """Files of records that hold any number of events each."""


class RecordItems(RecordFiles, ItemFiles):
    """Files of records some of which describe items."""


class RecordUsers(RecordFiles, UserFiles):
    """Files of records some of which describe users; expanded rows hold their `ATTRIBUTES`."""


AnyFiles = EventFiles | ItemFiles | UserFiles | TableFiles


def wanted(files: AnyFiles, derived: frozenset[str] = frozenset()) -> list[str] | None:
    """The columns that a mapping reads, in order, less `derived`; None: all of them."""
    if isinstance(files, RecordFiles):
        return [name for name in files.record if name not in derived]
    if isinstance(files, TableFiles) and files.everything:
        return None
    names = list(files.columns.values())
    if isinstance(files, EventFiles):
        names += files.items.values()
    if isinstance(files, UserFiles):
        if not files.attributes:
            return None
        names += files.attributes
    return [name for name in dict.fromkeys(names) if name not in derived]


@dataclass(frozen=True)
class Fit:
    """How a mapping fits one file: where each column that it reads comes from."""

    read: tuple[str, ...] | None  # from the file; None: all its columns
    fill: dict[str, str | None]  # columns that the file lacks: what its path says, else null
    lacking: tuple[str, ...]  # neither file nor path have them, and a row can do without
    missing: tuple[str, ...]  # neither has them, and no row can do without


def fit(
    files: AnyFiles,
    found: Sequence[str],
    derived: frozenset[str] = frozenset(),
    told: Mapping[str, str | None] | None = None,
) -> Fit:
    """Match the columns that a mapping reads with those that a file and its path have.

    Args:
        files: the mapping.
        found: the file's own columns.
        derived: columns that an adapter makes.
        told: what the path says, by key.
    """
    told = told or {}
    here = set(found)
    names = wanted(files, derived)
    keys = set(needed(files))
    read: list[str] = []
    fill: dict[str, str | None] = {}
    lacking: list[str] = []
    missing: list[str] = []
    for name in list(files.columns.values()) if names is None else names:
        key = name.removeprefix(FROM_PATH)
        if name in here:
            read.append(name)
        elif name not in derived:
            if isinstance(files, RecordFiles) and name not in keys:
                continue  # null in every record, and no fault
            fill[name] = told.get(key)
            if key not in told:
                (missing if name in keys else lacking).append(name)
    return Fit(None if names is None else tuple(read), fill, tuple(lacking), tuple(missing))


def needed(files: AnyFiles) -> list[str]:
    """The file's columns without which no row of it says anything."""
    if isinstance(files, RecordFiles):
        return list(files.needed)
    if isinstance(files, TableFiles):
        return [files.columns[key] for key in files.keys]
    keys = NEEDED if isinstance(files, EventFiles) else {"item_id", "user_id"}
    return [
        source
        for target, source in files.columns.items()
        if target in keys and target not in files.optional
    ]


def absent(
    files: AnyFiles,
    found: Sequence[str],
    derived: frozenset[str] = frozenset(),
    told: Mapping[str, str | None] | None = None,
) -> list[str]:
    """Columns that a mapping reads and that are not there, less `optional` ones."""
    fitted = fit(files, found, derived, told)
    may = {source for target, source in _sources(files) if target in files.optional}
    return [name for name in (*fitted.missing, *fitted.lacking) if name not in may]


def check_columns(
    files: AnyFiles,
    found: Sequence[str],
    derived: frozenset[str] = frozenset(),
    told: Mapping[str, str | None] | None = None,
    *,
    where: str,
) -> None:
    """Refuse a mapping that reads columns which are not there; `optional` ones may lack.

    Raises:
        UserError: naming the columns that lack, those that are there, and the nearest.
    """
    import difflib

    missing = absent(files, found, derived, told)
    if not missing:
        return
    near = difflib.get_close_matches(missing[0], found, n=1)
    if isinstance(files, RecordFiles):
        mend = "give files of the format that the source's kind names"
    elif near:
        mend = f"did you mean {near[0]!r}? Name the file's columns in the mapping"
    else:
        mend = (
            "name the file's columns in the mapping, and check delimiter and header; "
            "what no file has may be listed under optional"
        )
    shown = ", ".join(found[:30]) + (", …" if len(found) > 30 else "")
    from_path = f"; its path says: {', '.join(told)}" if told else ""
    raise UserError(
        f"no column {', '.join(map(repr, missing))}; the file has: {shown}{from_path}",
        where=where,
        mend=mend,
    )


def _sources(files: AnyFiles) -> list[tuple[str, str]]:
    """Pairs of a column of the vocabulary and the column that a mapping reads it from."""
    pairs = list(files.columns.items())
    if isinstance(files, EventFiles):
        pairs += files.items.items()
    return pairs


def polars_type(arrow: pa.DataType) -> pl.DataType:
    """The type of a draft's column; moments are Int64 milliseconds until they are written."""
    if pa.types.is_timestamp(arrow):
        return pl.Int64()
    if pa.types.is_floating(arrow):
        return pl.Float64()
    return pl.Int32() if pa.types.is_integer(arrow) else pl.String()


def _known(given: object, allowed: list[str]) -> None:
    """Refuse names that are not of the vocabulary."""
    import difflib

    for name in given:  # type: ignore[attr-defined]
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{name!r} is no column here{hint} (allowed: {', '.join(allowed)})")
