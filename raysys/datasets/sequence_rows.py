"""Events out of files of rows, some megabytes at a time: who, which item, when.

Column by column and without a loop over lines, so that tens of millions of events are read in the
memory of their numbers. Lines that cannot be read are counted and, if they are few, left out.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import polars as pl

from raysys.datasets.sequence_blocks import SequenceBlock, blocks, json_block
from raysys.datasets.sequence_columns import Layout
from raysys.datasets.sequence_names import Task
from raysys.datasets.sequence_times import FORMATS, Form, as_iso, find_form
from raysys.datasets.times import Unit, guess_unit, in_utc, to_millis
from raysys.errors import UserError

log = logging.getLogger("raysys")

BAD_SHARE: Final = 0.01
"""Of the rows: with more that cannot be read the file is another than it is taken for."""

MISSING: Final = ("", "NA", "N/A", "NULL", "null", "None", "nan", "NaN", "<NA>", "\\N")
_TOKEN: Final = r"""[^\s,;|\[\]()'"]+"""


@dataclass(frozen=True)
class Events:
    """Events in the order of the file.

    Attributes:
        frame: `key` UInt32, whose events belong together; `item` Categorical; `time` Int64, UTC
            milliseconds or whatever rises; null in files without a time. Of lists a row `number`,
            too.
        timed: whether there is a time.
        clock: whether it is a moment, not only an order.
        counts: rows that were left out, by the reason.
    """

    frame: pl.DataFrame
    timed: bool
    clock: bool
    counts: dict[str, int]


@dataclass
class _Reading:
    """What is known of a file while it is read."""

    path: Path
    layout: Layout
    unit: Unit | None = None
    form: Form | None = None
    clock: bool = True
    rows: int = 0
    bad: int = 0
    first_bad: tuple[int, str] | None = None
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, name: str, n: int) -> None:
        if n:
            self.counts[name] = self.counts.get(name, 0) + n

    def fault(self, number: int, text: str, n: int = 1) -> None:
        self.bad += n
        self.first_bad = self.first_bad or (number, text)

    def judge(self) -> None:
        """Refuse a file with too many rows that cannot be read."""
        if self.first_bad and self.bad > max(1, BAD_SHARE * self.rows):
            number, text = self.first_bad
            raise UserError(
                f"{self.bad:,} of {self.rows:,} rows cannot be read, the first: {text[:80]!r}",
                where=f"{self.path}:{number + self.layout.first - 1}",
                mend=f"it was taken for {self.layout.read_as}: mend the file, or say what it is "
                "with --format, --session-col, --user-col, --item-col, --time-col",
            )
        self.count("lines_left_out", self.bad)


def read_events(path: Path, layout: Layout, task: Task) -> Events:
    """The events of a file.

    Args:
        path: of the file, packed or not.
        layout: of rows, or of lines of items.
        task: what is asked: whether a session or a user keeps events together.

    Raises:
        UserError: it cannot be read, no row is an event, or more than one in a hundred cannot be
            read; names the first of these.
    """
    try:
        return _gathered(_Reading(path, layout), blocks(path, layout), task)
    except UnicodeDecodeError:
        # whatever it is in: in Latin-1 every byte is a character, so ids that differ stay so
        log.warning("%s is not UTF-8, so it is read as Latin-1", path)
        return _gathered(_Reading(path, layout), blocks(path, layout, "latin-1"), task)


def events_of(records: list[Any], path: Path, layout: Layout, task: Task) -> Events:
    """The events of objects that stood in one JSON document.

    Raises:
        UserError: as `read_events`.
    """
    lines = pl.Series([json.dumps(one, ensure_ascii=False) for one in records], dtype=pl.String)
    return _gathered(_Reading(path, layout), iter([json_block(lines, 0, layout)]), task)


def _gathered(reading: _Reading, found: Iterator[SequenceBlock], task: Task) -> Events:
    layout = reading.layout
    categories = pl.Categorical(pl.Categories.random())
    owners = pl.Categorical(pl.Categories.random())
    key = layout.columns.key(task)
    if layout.shape == "lines" or (layout.shape == "records" and task == "sessions"):
        key = None  # each row is a list of its own
    parts = []
    for block in found:
        reading.rows += block.rows.height + len(block.faults)
        for number, text in block.faults:
            reading.fault(number, text)
        rows = _flat(reading, block, key).with_columns(_plain("item"))
        if key is not None:
            rows = rows.with_columns(_plain("key"))
            nobody = rows["key"].is_null() | rows["key"].is_in(MISSING)
            reading.count("rows_without_owner", int(nobody.sum()))
            rows = rows.filter(~nobody)
        empty = rows["item"].is_null() | rows["item"].is_in(MISSING)
        told = empty
        if layout.shape in ("records", "lines"):  # an empty list leaves a row without any
            told = rows["item"].is_not_null() & empty
        reading.count("rows_without_item", int(told.sum()))
        rows = _moments(reading, rows.filter(~empty))
        who = pl.UInt32() if key is None else owners
        kept = [pl.col("key").cast(who), pl.col("item").cast(categories), pl.col("time")]
        if layout.shape == "records":
            kept.append(pl.col("number"))
        parts.append(rows.select(kept))
    reading.judge()
    frame = pl.concat(parts) if parts else pl.DataFrame(schema={"item": categories})
    if not frame.height:
        raise UserError(
            f"holds no event; it was taken for {layout.read_as}",
            where=str(reading.path),
            mend="name its columns with --session-col, --user-col, --item-col, --time-col",
        )
    if key is not None:  # not before: numbers are given anew once no column holds the old ones
        frame = frame.with_columns(pl.col("key").to_physical())
    timed = layout.columns.time is not None
    return Events(frame, timed, timed and reading.clock, reading.counts)


def _plain(name: str) -> pl.Expr:
    """Ids without blanks around them; whole numbers as such, of which pandas writes fractions."""
    text = pl.col(name).cast(pl.String).str.strip_chars()
    whole = text.str.replace(r"^(-?\d+)\.0$", "$1")
    return pl.when(text.str.ends_with(".0")).then(whole).otherwise(text).alias(name)


def _flat(reading: _Reading, block: SequenceBlock, key: str | None) -> pl.DataFrame:
    """An event a row: `number`, `key`, `item`, `time` and what else is read, as in the file."""
    columns, shape = reading.layout.columns, reading.layout.shape
    rows = block.rows.with_columns(block.numbers.alias("\0number"))
    given: dict[str, pl.Expr] = {"number": pl.col("\0number")}
    given["key"] = pl.col("\0number") if key is None else pl.col(key)
    if columns.action:
        other = ~pl.col(columns.action).str.contains("item").fill_null(False)
        reading.count("rows_of_other_actions", int(rows.select(other.sum()).item()))
        rows = rows.filter(~other)
    if shape in ("records", "lines"):
        items = pl.col(str(columns.items))
        if rows.schema[str(columns.items)] == pl.String:
            items = items.str.extract_all(_TOKEN)
        items = items.list.eval(pl.element().cast(pl.String).fill_null(""))
        if shape == "records" and columns.item:
            items = pl.concat_list(items, pl.col(columns.item).cast(pl.String).fill_null(""))
        given["item"] = items
        return rows.select(value.alias(name) for name, value in given.items()).explode("item")
    if shape == "nested":
        events = pl.col(str(columns.events))
        rows = rows.select(*(value.alias(name) for name, value in given.items()), events)
        rows = rows.explode(str(columns.events)).rename({str(columns.events): "\0event"})
        inner = {"item": columns.item, "time": columns.time}
        return rows.select(
            *given,
            *(pl.col("\0event").struct.field(n).alias(role) for role, n in inner.items() if n),
        )
    for role in ("item", "time", "within"):
        name = getattr(columns, role)
        if name:
            given[role] = pl.col(name)
    return rows.select(value.alias(role) for role, value in given.items())


def _moments(reading: _Reading, rows: pl.DataFrame) -> pl.DataFrame:
    """The same rows with `time` in milliseconds, less those that have none."""
    column = reading.layout.columns.time
    if column is None:
        return rows.with_columns(pl.lit(None, dtype=pl.Int64).alias("time"))
    values = rows["time"]
    if values.dtype == pl.String:
        values = values.str.strip_chars()
    if reading.unit is None and reading.clock:
        reading.unit = guess_unit(values)
        if reading.unit is None:
            reading.form = find_form(values)
            reading.unit = None if reading.form is None else "iso"
        reading.clock = reading.unit is not None or not values.drop_nulls().len()
    if reading.form is not None:
        millis = to_millis(as_iso(values, reading.form), in_utc("iso"))
    elif reading.unit is not None:
        millis = to_millis(values, in_utc(reading.unit))
    else:
        plain = values.cast(pl.Float64, strict=False)
        millis = (plain * 1000).round().cast(pl.Int64, strict=False)
        if not reading.clock and millis.null_count() > 0.5 * millis.len():
            raise UserError(
                f"column {column!r} holds no time: {values.drop_nulls()[0]!r}",
                where=str(reading.path),
                mend=f"name the column of the time with --time-col; {FORMATS}",
            )
    if "within" in rows.columns:
        millis += rows["within"].cast(pl.Float64, strict=False).fill_null(0).cast(pl.Int64)
    lost = millis.is_null()
    if lost.any():
        at = lost.arg_true()[0]
        text = f"{column} {values[at]!r} is no time"
        reading.fault(int(rows["number"][at]), text, int(lost.sum()))
    return rows.with_columns(millis.alias("time")).filter(~lost)
