"""Tables with a header and without, and lines of items: which of them some text is."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import polars as pl

from raysys.datasets.chunks import BOM
from raysys.datasets.csv_records import records
from raysys.datasets.sequence_columns import Kinds, Layout, cannot_tell, of_rows, refuse_absent
from raysys.datasets.sequence_names import (
    Columns,
    Task,
    by_name,
    by_value,
    is_half_time,
    is_header,
    is_time,
)
from raysys.datasets.sequences import readable
from raysys.datasets.unpack import unpacked

log = logging.getLogger("raysys")

Forced = Literal["auto", "events", "lists"]

_ROWS: Final = 500  # lines that are looked at
_PIECE: Final = 1 << 24
_DELIMITERS: Final = ("::", "\t", ";", "|", ",", " ")
_NUMBER: Final = r"[+-]?\d+(\.\d*)?"
_COORDINATE: Final = r"^-?\d{1,3}\.\d{4,}$"
_RATED: Final = r"^\S+[\t ]+\S+[\t ]+(?:10|\d)(?:\.(?:0+|50*))?[\t ]+(?:\d{9,19}(?:\.\d+)?|0|-1)$"


def of_table(lines: list[str], path: Path, task: Task, asked: Columns, forced: Forced) -> Layout:
    """A table with or without header, or lines of items.

    Args:
        lines: the first ones, whole and not blank.
        path: of the file.
        task: what is asked.
        asked: columns that the user names.
        forced: what the user says it is.

    Raises:
        UserError: it cannot be told which column is which.
    """
    lists = Layout(
        "lines" if task == "sessions" else "users",
        columns=Columns(items="items"),
        read_as="lines of items" if task == "sessions" else "lines of a user and items",
    )
    if forced == "lists":
        return lists
    delimiter = _delimiter(lines)
    if delimiter is None:
        if forced == "events" or asked.named:
            raise cannot_tell("the session or user", lines[0].split()[:30], path)
        return lists
    rows = _split(lines[: _ROWS + 1], delimiter)
    width = len(rows[0])
    even = [row for row in rows if len(row) == width]
    # what has always been a user and items stays it unless there is no doubt
    plain = task == "sequences" and forced == "auto" and len(lines[0].split()) > 1
    if is_header(rows[0], even[1:]) and (
        not plain or _knows(rows[0], asked) or (len(even) > 2 and _all_numbers(rows[1:]))
    ):
        kinds = _table_kinds(rows[0], even[1:])
        quoted = _quoted(lines, delimiter)
        return of_rows(
            kinds, "table", path, task, asked, delimiter=delimiter, first=2, quoted=quoted
        )
    if asked.named:
        return _headerless(rows, delimiter, path, task, asked)
    _warn_of_half_times(even[1:], path)
    guess = by_value(even, task)
    timely = any(is_time(column) for column in zip(*even, strict=True))
    dated = guess is not None and guess[0].time in _no_items(even[1:])
    if forced == "auto" and not dated and _no_items(even[1:]):
        guess = None  # of events, but which column is what is not told
    elif plain and dated:
        pass
    elif plain and delimiter in ("\t", " "):
        if not (guess and guess[1] and guess[0].time == "4" and _all_rated(path)):
            _warn_of_time(even[1:], path)  # the first may be a header of unknown names
            return lists
    elif plain and not timely:
        return lists
    elif task == "sessions" and forced == "auto" and not (guess and guess[0].time):
        if width <= 4 or not timely:
            return lists
        guess = None
    if guess is None:
        raise cannot_tell("the session or user", [str(at + 1) for at in range(width)], path)
    return _headerless(rows, delimiter, path, task, guess[0])


def _warn_of_time(rows: list[list[str]], path: Path) -> None:
    """Lines of a user and items that look like events: say how they are read."""
    columns = list(zip(*rows, strict=True))[2:]
    if len(rows) > 2 and any(is_time(column) for column in columns):
        log.warning(
            "%s: every line has %d columns, and one looks like a time; it is read as a user and "
            "items, --format events reads it as an event a line",
            path, len(columns) + 2,
        )  # fmt: skip


def _all_numbers(rows: list[list[str]]) -> bool:
    return all(re.fullmatch(_NUMBER, field.strip()) for row in rows for field in row)


def _no_items(rows: list[list[str]]) -> list[str]:
    """Columns, from 1, that are surely no items: moments in words, or decimals of coordinates."""
    found = []
    for at, column in enumerate(zip(*rows, strict=True), start=1):
        texts = pl.Series([field.strip() for field in column], dtype=pl.String)
        if len(texts) < 2:
            continue
        dates = not texts.str.contains(f"^{_NUMBER}$").any() and is_time(column)
        if dates or texts.str.contains(_COORDINATE).all():
            found.append(str(at))
    return found


def _warn_of_half_times(rows: list[list[str]], path: Path) -> None:
    """Columns that most lines have a time in: say that they are taken for none."""
    for at, column in enumerate(zip(*rows, strict=True), start=1):
        if len(rows) > 2 and is_half_time(column):
            log.warning(
                "%s: column %d holds times, but also values that are none (more than one in a "
                "hundred of the first lines), so it is not taken for the time; --time-col %d says "
                "it is",
                path, at, at,
            )  # fmt: skip


def _knows(first: Sequence[str], asked: Columns) -> bool:
    """Whether a line of words is surely a header: at a line of items it is but words, too."""
    return len(by_name(first, lists=first).named) > 1 or bool({*first} & {*asked.given})


def _table_kinds(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Kinds:
    """RecBole tells lists by `token_seq`; others by the name alone."""
    names = [name.strip() for name in names]
    columns = zip(names, zip(*rows, strict=True), strict=False)
    times = tuple(name for name, column in columns if is_time(column))
    lists = [
        name
        for name in names
        if name.endswith("_seq") or (by_name([], [name]).items and not by_name([name]).named)
    ]
    single = tuple(name for name in names if name not in lists)
    return Kinds(single, tuple(lists), times=times)


def _headerless(
    rows: list[list[str]], delimiter: str, path: Path, task: Task, asked: Columns
) -> Layout:
    names = tuple(str(at + 1) for at in range(len(rows[0])))
    kinds = Kinds(names)
    guess = by_value([row for row in rows if len(row) == len(names)], task)
    refuse_absent(asked, kinds, path)
    if guess is not None:
        # a guess that says otherwise of a column that was named is none
        free = {n: c for n, c in guess[0].named.items() if c not in asked.given}
        if asked.session or asked.user:
            free = {n: c for n, c in free.items() if n not in ("session", "user")}
        asked = asked | Columns(**free)
    return of_rows(kinds, "table", path, task, asked, delimiter=delimiter, header=names,
                   quoted=delimiter in (",", ";", "|"))  # fmt: skip


def _delimiter(lines: list[str]) -> str | None:
    """What stands between columns: the first of the usual ones that cuts lines alike."""
    few = lines[:_ROWS]
    for delimiter in _DELIMITERS:
        if delimiter not in few[0].strip():
            continue
        widths = [len(row) for row in _split(few, delimiter)]
        alike = sum(width == widths[0] for width in widths)
        if widths[0] > 1 and alike >= 0.9 * len(widths):
            return delimiter
    return None


def _split(lines: Sequence[str], delimiter: str) -> list[list[str]]:
    """Lines as fields: a space stands for any number of spaces and tabs."""
    if delimiter == "::":
        return [line.split("::") for line in lines]
    if delimiter == " ":
        return [line.split() for line in lines]
    rows = records("\n".join(lines), delimiter, quoted=_quoted(lines, delimiter))
    return [row for row in rows if row]


def _quoted(lines: Sequence[str], delimiter: str) -> bool:
    """Tabs seldom stand in fields: marks there are characters, unless the first line has some."""
    return delimiter in (",", ";", "|") or (delimiter == "\t" and lines[0].startswith('"'))


def _all_rated(path: Path) -> bool:
    """Whether every line is user, item, rating, time; the last may be cut.

    It could be a user and three items as well: so all lines are looked at.
    """
    with readable(path) as file:
        source = unpacked(file)
        rest = b""
        while part := source.read(_PIECE):
            rest += part
            end = rest.rfind(b"\n") + 1
            if not _lines_rated(rest[:end]):
                return False
            rest = rest[end:]
    return True


def _lines_rated(text: bytes) -> bool:
    lines = pl.Series(text.removeprefix(BOM).decode("utf-8", "replace").split("\n"))
    lines = lines.str.strip_chars()
    return bool((lines.str.contains(_RATED) | (lines == "")).all())
