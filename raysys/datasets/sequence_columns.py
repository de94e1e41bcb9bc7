"""Files of rows: which columns they have, which of these are wanted, and how that is said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from raysys.datasets.sequence_names import Columns, Task, by_name, plain
from raysys.errors import UserError

Kind = Literal["table", "json", "python", "parquet"]
Shape = Literal["events", "records", "nested", "native", "document", "lines", "users"]

_NONE: Final = Columns()


@dataclass(frozen=True)
class Layout:
    """How a file is to be read.

    Attributes:
        shape: `events`, one a row; `records`, a list of items a row; `nested`, a list of events a
            row; `native`, JSON lines of sessions or cases; `document`, one piece of JSON; `lines`
            of items; `users`, lines of a user and items.
        kind: of the file that has rows.
        columns: what they hold.
        header: of a table that has none: 1, 2, …; None: its first line.
        delimiter: of a table; a space stands for any spaces and tabs.
        quoted: of a table: fields may be quoted.
        first: number of the line on which the first row stands.
        read_as: in words, for the report.
    """

    shape: Shape
    kind: Kind = "table"
    columns: Columns = _NONE
    header: tuple[str, ...] | None = None
    delimiter: str = ","
    quoted: bool = True
    first: int = 1
    read_as: str = ""


@dataclass(frozen=True)
class Kinds:
    """Columns of a file with rows, by what a value is."""

    single: tuple[str, ...]
    lists: tuple[str, ...] = ()
    inner: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # lists of objects: keys
    rare: tuple[str, ...] = ()  # that many records lack
    times: tuple[str, ...] = ()  # single ones whose values are moments

    @property
    def names(self) -> tuple[str, ...]:
        """All but rare ones."""
        return (*self.single, *self.lists, *self.inner)


def of_rows(
    kinds: Kinds,
    kind: Kind,
    path: Path,
    task: Task,
    asked: Columns,
    **table: Any,
) -> Layout:
    """Rows whose columns have names.

    Raises:
        UserError: a column that was named is not there, or it cannot be told which is which.
    """
    refuse_absent(asked, kinds, path)
    asked = _sorted(asked, kinds)
    found = _found(asked, kinds, task)
    if found.events:
        shape: Shape = "nested"
    else:
        shape = "records" if found.items else "events"
    if shape == "records":  # rows stay in the order of the file: a list has many times
        found = replace(found, time=None, within=None)
    key = found.key(task)
    if shape != "records" and (key is None or found.item is None):
        lacking = "the item" if key else "the session or user"
        raise cannot_tell(lacking, (*kinds.names, *_all_inner(kinds)), path)
    return Layout(shape, kind, found, read_as=_words(shape, found, task, **table), **table)


def _found(asked: Columns, kinds: Kinds, task: Task) -> Columns:
    """What was asked for, and of all else what names tell."""
    found = by_name(kinds.single, kinds.lists, tuple(kinds.inner))
    spare = [name for name in kinds.times if name not in (*found.given, *asked.given)]
    if not found.time and len(spare) == 1:  # whatever it is called
        found = replace(found, time=spare[0])
    if task == "sessions" and asked.user and not asked.session:
        found = replace(found, session=None)
    if task == "sequences" and asked.session and not asked.user:
        found = replace(found, user=None)
    holding = [name for name, keys in kinds.inner.items() if asked.item in keys]
    if holding and asked.item not in kinds.single and found.events not in holding:
        found = replace(found, events=holding[0])
    nested = found.events
    if nested and not asked.items and (asked.item in kinds.inner[nested] or not found.item):
        within = by_name(kinds.inner[nested])
        keys = replace(within, session=found.session, user=found.user, events=nested)
        return asked | keys
    found = asked | replace(found, events=None)
    # a log may tell a history beside each event; a list of RecBole's is what the item followed
    beside = found.item and found.key(task) and plain(found.items or "") != "itemidlist"
    if found.items and not asked.items and (asked.item or beside):
        found = replace(found, items=None)
    if found.items and not found.item and "label" in kinds.single:
        found = replace(found, item="label")
    return found


def _all_inner(kinds: Kinds) -> Iterator[str]:
    for name, keys in kinds.inner.items():
        yield from (f"{key} (in {name})" for key in keys)


def _sorted(asked: Columns, kinds: Kinds) -> Columns:
    """`--item-col` may name a list of items."""
    if asked.item in kinds.lists:
        return replace(asked, items=asked.item, item=None)
    return asked


def cannot_tell(what: str, names: Sequence[str], path: Path) -> UserError:
    """The error for columns that say nothing."""
    shown = ", ".join(names[:30]) + (", …" if len(names) > 30 else "")
    return UserError(
        f"cannot tell which column is {what}; the columns are: {shown}",
        where=str(path),
        mend="name them with --session-col or --user-col, --item-col and --time-col (columns of a "
        "file without a header are called 1, 2, …), or say --format lists if a line is a list",
    )


def refuse_absent(asked: Columns, kinds: Kinds, path: Path) -> None:
    """See that columns that were named are there.

    Raises:
        UserError: one is not; names those that are.
    """
    known = {*kinds.names, *kinds.rare, *(key for keys in kinds.inner.values() for key in keys)}
    for name in asked.given:
        if name not in known:
            shown = ", ".join((*kinds.names, *_all_inner(kinds))[:30])
            raise UserError(
                f"no column {name!r}; the columns are: {shown}",
                where=str(path),
                mend="name one of them (without a header: 1, 2, …)",
            )


def _words(shape: Shape, columns: Columns, task: Task, **table: Any) -> str:
    """How a file of rows is read, for the report."""
    key = columns.key(task)
    if shape == "records":
        last = f", followed by {columns.item}" if columns.item else ""
        return f"a list of items a row, {columns.items}{last}" + (f", of {key}" if key else "")
    by_time = f"by {columns.time}" if columns.time else "in the order of the file"
    if columns.time and columns.within:
        by_time += f" and {columns.within}"
    what = f"events in {columns.events}" if shape == "nested" else "an event a row"
    said = f"{what}: {key}, {columns.item}, {by_time}"
    if task == "sessions" and columns.session is None:
        said += ", cut into sessions by 30 minutes of pause"
    return said + ("; columns by their place" if table.get("header") else "")
