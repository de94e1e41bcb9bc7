"""Tables joined by the columns that they have in common, of millions of rows those that are asked.

A joined file is read once, in blocks: what stays are the columns wanted of the rows that the first
table names.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import polars as pl

from raysys.datasets.relevance_names import (
    ITEM_IDS,
    MARKETS,
    PLAIN_IDS,
    QUERY_IDS,
    ROW_NUMBERS,
    is_id,
    side,
    small,
)
from raysys.datasets.tables import Table, texts
from raysys.errors import UserError

log = logging.getLogger("raysys")

Pairs = tuple[tuple[str, str], ...]

PART: Final = "_part"
"""Column of joined rows: the number of the first table that a row is from."""

_MOST: Final = 32_768  # characters of a text: readers take fewer, and a feed may hold megabytes
_FAMILIES: Final[tuple[tuple[Literal["query", "item"], tuple[str, ...]], ...]] = (
    ("query", QUERY_IDS),
    ("item", ITEM_IDS),
)


@dataclass(frozen=True)
class Column:
    """Where a column comes from.

    Attributes:
        table: 0: the first; others are numbered as they were given.
        name: in its file.
    """

    table: int
    name: str


@dataclass(frozen=True)
class Joined:
    """A further table.

    Attributes:
        table: it.
        on: name of a column of the rows before it, and that of its own.
        of: whether its key is a query or an item; None: neither alone.
    """

    table: Table
    on: Pairs
    of: Literal["query", "item"] | None


@dataclass(frozen=True)
class Join:
    """A first table, and others whose columns come to its rows.

    Attributes:
        first: it.
        others: in the order in which they are joined.
        columns: names of all columns; where two tables have one, the later is `FILE.column`.
    """

    first: Table
    others: tuple[Joined, ...]
    columns: Mapping[str, Column]

    @classmethod
    def of(cls, first: Table, others: Iterable[Table], on: Sequence[str] = ()) -> Join:
        """Find out by which columns each joins those before it.

        Args:
            first: whose rows are kept.
            others: further tables.
            on: names of columns, or `LEFT=RIGHT` where a further table calls it otherwise; each
                holds for the tables that have it.

        Raises:
            UserError: tables with nothing in common, or with more than one way to be joined; a
                name of `on` that no further table has.
        """
        columns = {name: Column(0, name) for name in first.columns}
        found: list[Joined] = []
        tables, asked = tuple(others), [_pair(text) for text in on]
        have = [name for table in tables for name in table.columns]
        for _, right in asked:
            if right not in have:
                raise UserError(
                    f"no file that is joined has a column {right!r}",
                    where="--on",
                    mend=f"there are {_shown(have)}" if have else "give files with --join",
                )
        for number, table in enumerate(tables, start=1):
            given = tuple(pair for pair in asked if pair[1] in table.columns)
            for left, _ in given:
                if left not in columns:
                    raise missing(left, columns, first, where="--on")
            pairs = given or _in_common(columns, first, table)
            found.append(Joined(table, pairs, _side(pairs)))
            keys = {right for _, right in pairs}
            for name in table.columns:
                if name not in keys:
                    shown = name if name not in columns else f"{_stem(table)}.{name}"
                    columns.setdefault(shown, Column(number, name))
        return cls(first, tuple(found), columns)

    def named(self, name: str) -> str:
        """The column that a user means by a name, which may be `FILE.column`.

        Raises:
            UserError: there is none, or two further tables have one of that name.
        """
        stems = [_stem(each.table) for each in self.others]
        stem, _, inner = name.partition(".")
        for shown, column in self.columns.items():
            if column.table and (stem, inner) == (stems[column.table - 1], column.name):
                return shown
        if name not in self.columns:
            raise missing(name, self.columns, self.first, where=str(self.first.path))
        rivals = [
            f"{stems[column.table - 1]}.{name}"
            for column in self.columns.values()
            if column.table and column.name == name
        ]
        if self.columns[name].table and len(rivals) > 1:
            raise UserError(
                f"{len(rivals)} files have a column {name!r}",
                where=str(self.first.path),
                mend=f"say which: {' or '.join(rivals)}",
            )
        return name

    def first_columns(self, names: Iterable[str]) -> list[str]:
        """Columns of the first table without which some of `names` cannot be read."""
        return [name for name in self._needed(names) if self.columns[name].table == 0]

    def _needed(self, names: Iterable[str]) -> list[str]:
        """The names, and the keys by which their tables are joined."""
        needed = dict.fromkeys(names)
        for number in range(len(self.others), 0, -1):  # a later table's key may be an earlier's
            if any(self.columns[name].table == number for name in needed):
                needed |= dict.fromkeys(left for left, _ in self.others[number - 1].on)
        return list(needed)

    def read(
        self, names: Sequence[str], parts: Sequence[Table] = ()
    ) -> tuple[pl.DataFrame, list[dict[str, Any]]]:
        """Rows as texts, and what became of them table by table.

        Args:
            names: of `columns`.
            parts: further first tables, with the same columns.

        Returns:
            The columns and `PART`; of each further table `file`, `on`, `rows_without_partner`.

        Raises:
            UserError: a file cannot be read, or no row has a partner.
        """
        needed, own = self._needed(names), self.first_columns(names)
        rows = pl.concat(
            texts(table.read(own), own).with_columns(pl.lit(number, pl.Int32).alias(PART))
            for number, table in enumerate((self.first, *parts))
        )
        told: list[dict[str, Any]] = []
        for number, each in enumerate(self.others, start=1):
            wanted = {n: self.columns[n].name for n in needed if self.columns[n].table == number}
            if not wanted:
                log.warning("%s: no column of it is taken", each.table.path.name)
                continue
            before = rows.height
            rows, repeated = _joined(rows, each, wanted)
            lost = before - rows.height
            on = [left if left == right else f"{left}={right}" for left, right in each.on]
            file = each.table.path.name
            level = logging.WARNING if 2 * lost > before else logging.INFO
            text = "%s: joined on %s; %s of %s rows have no partner and are left out"
            log.log(level, text, file, ", ".join(on), f"{lost:,}", f"{before:,}")
            told.append(
                {"file": file, "on": on, "rows_without_partner": lost, "rows_of_a_key": repeated}
            )
        return rows, told


def missing(
    name: str, columns: Iterable[str], first: Table, *, where: str, what: str = ""
) -> UserError:
    """The error for a column that is not there: names those that are, and the nearest."""
    have = list(columns)
    plain = {small(each): each for each in have}
    near = plain.get(small(name)) or next(iter(difflib.get_close_matches(name, have, n=1)), None)
    hint = f"did you mean {near!r}? " if near else ""
    bare = "; the first line looks like data: put names above it" if first.layout.doubtful else ""
    shown = ", ".join(have[:40]) + (", …" if len(have) > 40 else "")
    return UserError(
        what or f"no column {name!r}", where=where, mend=f"{hint}there are {shown}{bare}"
    )


def _stem(table: Table) -> str:
    return table.path.name.partition(".")[0]


def _pair(text: str) -> tuple[str, str]:
    left, equals, right = (part.strip() for part in text.partition("="))
    return left, right if equals else left


def _in_common(columns: Mapping[str, Column], first: Table, table: Table) -> Pairs:
    """By which columns a table is joined.

    Raises:
        UserError: none, or more than one way.
    """
    rights = [name for name in table.columns if small(name) not in ROW_NUMBERS]
    same = [(left, right) for right in rights for left in _alike(right, columns)]
    known = [pair for pair in same if small(pair[1]) in (*QUERY_IDS, *ITEM_IDS)]
    for of, ids in _FAMILIES:
        if any(small(right) in ids for _, right in known):
            continue
        lefts = [name for name in columns if small(name) in ids]
        rights = [name for name in table.columns if small(name) in ids]
        if not rights and not known and side(table.path.name) == of:
            rights = [name for name in table.columns if small(name) in PLAIN_IDS]
        if len(lefts) == len(rights) == 1:
            known.append((lefts[0], rights[0]))
    found = known or [pair for pair in same if is_id(pair[1]) and small(pair[1]) not in PLAIN_IDS]
    if found:
        return (*found, *(pair for pair in same if small(pair[1]) in MARKETS))
    rest = [pair for pair in same if small(pair[1]) not in PLAIN_IDS]
    if len(rest) == 1:
        return tuple(rest)
    if same:
        names = ", ".join(repr(right) for _, right in same)
        what = f"it is not clear by which column it is joined: in common are {names}"
    else:
        what = f"it has no column in common with {first.path.name}"
    raise UserError(
        what,
        where=str(table.path),
        mend="name the column with --on NAME, or --on NAME=ITS_NAME: "
        f"it has {_shown(table.columns)}; before it there are {_shown(columns)}",
    )


def _alike(name: str, columns: Iterable[str]) -> list[str]:
    """The column of that name, else one that differs in case and signs alone."""
    have = list(columns)
    if name in have:
        return [name]
    found = [each for each in have if small(each) == small(name)]
    return found if len(found) == 1 else []


def _side(pairs: Pairs) -> Literal["query", "item"] | None:
    rest = [(left, right) for left, right in pairs if small(right) not in MARKETS]
    for of, ids in _FAMILIES:
        if rest and all(small(left) in ids or small(right) in ids for left, right in rest):
            return of
    return None


def _joined(
    rows: pl.DataFrame, each: Joined, wanted: Mapping[str, str]
) -> tuple[pl.DataFrame, int]:
    """Rows that have a partner, with its columns; and keys that had several."""
    keys = [f"_key{number}" for number in range(len(each.on))]
    rows = rows.with_columns(
        _key(left).alias(key) for key, (left, _) in zip(keys, each.on, strict=True)
    )
    asked = rows.select(keys).unique().drop_nulls()
    rights = [right for _, right in each.on]
    kept, example = [], ""
    for block in each.table.blocks(list(dict.fromkeys([*rights, *wanted.values()]))):
        named = block.select(
            *(_key(right).alias(key) for key, right in zip(keys, rights, strict=True)),
            *(pl.col(name).str.slice(0, _MOST).alias(shown) for shown, name in wanted.items()),
        )
        if not example and named.height:
            example = ", ".join(map(str, named.select(keys).row(0)))
        kept.append(named.join(asked, on=keys, how="semi"))
    found = pl.concat(kept) if kept else pl.DataFrame()
    if not found.height:
        asks = ", ".join(map(str, asked.row(0))) if asked.height else "none"
        pairs = ", ".join(left if left == right else f"{left}={right}" for left, right in each.on)
        raise UserError(
            f"no row has a partner by {pairs}: {asks!r} is asked for, here is {example!r}",
            where=str(each.table.path),
            mend="name the columns that hold the same ids with --on NAME, or --on NAME=ITS_NAME",
        )
    distinct = found.select(keys).unique().height
    repeated = found.height - distinct
    if repeated:  # as attributes are: all that is said of the key, once
        several = pl.col(list(wanted)).drop_nulls().unique(maintain_order=True)
        found = found.group_by(keys, maintain_order=True).agg(several.str.join(". "))
    return rows.join(found, on=keys, how="inner", maintain_order="left").drop(keys), repeated


def _key(name: str) -> pl.Expr:
    """Ids as text; whole floats, as columns with holes become, lose their `.0`."""
    return pl.col(name).str.strip_chars().str.replace(r"^(-?\d+)\.0$", "$1")


def _shown(names: Iterable[str]) -> str:
    have = list(names)
    return ", ".join(have[:20]) + (", …" if len(have) > 20 else "")
