"""Which column of judged pairs is the query, which the text, which the grade: told or guessed."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import polars as pl

from raysys.datasets.relevance_names import (
    BODIES,
    DESCRIPTIONS,
    LABELS,
    LOCALES,
    QUERIES,
    QUERY_IDS,
    TITLES,
    Tiers,
    small,
)
from raysys.datasets.table_joins import Join, missing
from raysys.errors import UserError

log = logging.getLogger("raysys")

_OF_ITEMS: Final = 0.5  # of queries in several locales: the column says something of the items


@dataclass(frozen=True)
class Roles:
    """Columns by what they hold, as `Join.columns` names them.

    Attributes:
        guessed: of `query`, `text` and `label`, those that the user did not name.
    """

    query: str
    text: tuple[str, ...]
    label: str
    guessed: tuple[str, ...]


def roles_of(join: Join, query: str | None, text: Sequence[str], label: str | None) -> Roles:
    """The columns that the user named, and a guess by known names of the others.

    Raises:
        UserError: a column is not there, the grade is not in the first table, or it is not clear
            which column is meant.
    """
    guessed = tuple(
        name for name, given in (("query", query), ("text", text), ("label", label)) if not given
    )
    found_query = join.named(query) if query else _query(join)
    found_label = join.named(label) if label else _label(join)
    if join.columns[found_label].table:
        raise UserError(
            f"the grade {found_label!r} is in a file that is joined",
            where=str(join.others[join.columns[found_label].table - 1].table.path),
            mend="give the file of the grades first, and the others with --join",
        )
    found_text = tuple(map(join.named, text)) or _text(join, (found_query, found_label))
    if guessed:
        log.info(
            "relevance: by their names, the query is %r, the text %s, the grade %r",
            found_query,
            " and ".join(map(repr, found_text)),
            found_label,
        )
    return Roles(found_query, found_text, found_label, guessed)


def locale_columns(join: Join, roles: Roles, having: Sequence[str] = ()) -> list[str]:
    """The column of the query's locale, and if there is one that of its id; none without a locale.

    Args:
        join: the tables.
        roles: what columns are taken for already.
        having: columns of a further first table, which must have these, too; none: there is none.
    """
    taken = (roles.query, *roles.text, roles.label)
    free = [
        name
        for name, column in join.columns.items()
        if name not in taken and (not column.table or _of(join, name) == "query")
        if not having or set(join.first_columns([name])) <= set(having)
    ]

    def first(names: Sequence[str]) -> list[str]:
        found = [name for name in free if small(join.columns[name].name) in names]
        return sorted(found, key=lambda name: names.index(small(join.columns[name].name)))[:1]

    locale = first(LOCALES)
    return [*locale, *first(QUERY_IDS)] if locale else []


def locale_of(frame: pl.DataFrame, query: str, columns: Sequence[str]) -> pl.Series | None:
    """The locale of each row's query, in lower case; None: the column says something else.

    A country may be the item's: then queries, by id if they have one, are in several.

    Args:
        frame: of texts.
        query: column of the query.
        columns: see `locale_columns`.
    """
    said = frame[columns[0]].fill_null("").str.strip_chars().str.to_lowercase()
    by = frame[columns[1]] if len(columns) > 1 else frame[query].str.to_lowercase()
    counts = pl.DataFrame({"by": by, "said": said}).group_by("by").agg(n=pl.col("said").n_unique())
    share = float((counts["n"] > 1).mean() or 0.0)  # type: ignore[arg-type]
    if share > _OF_ITEMS or said.n_unique() < 2:
        return None
    log.info("relevance: by %r queries of the same words are told apart", columns[0])
    return said


def _query(join: Join) -> str:
    found = _first(join, QUERIES, "query", not_of="item")
    if found is None:
        of_queries = [name for name in join.columns if _of(join, name) == "query"]
        found = _first(join, (*BODIES, *TITLES), "query", among=of_queries)
    return found or _refuse(join, "query", "--query-col")


def _label(join: Join) -> str:
    own = [name for name, column in join.columns.items() if not column.table]
    found = _first(join, LABELS, "label", among=own)
    return found or _refuse(join, "grade", "--label-col")


def _text(join: Join, taken: tuple[str, ...]) -> tuple[str, ...]:
    free = [n for n in join.columns if n not in taken and _of(join, n) != "query"]
    title = _first(join, TITLES, "text", among=free)
    body = _first(join, BODIES, "text", among=free)
    spare = _first(join, DESCRIPTIONS, "text", among=free)
    found = tuple(name for name in (title, body) if name) or ((spare,) if spare else ())
    if spare and spare not in found:
        log.info("relevance: %r is left out: name all texts with --text-col to add it", spare)
    if not found:
        _refuse(join, "text", "--text-col")
    return found


def _first(
    join: Join,
    tiers: Tiers,
    role: str,
    *,
    among: Sequence[str] | None = None,
    not_of: Literal["query", "item"] | None = None,
) -> str | None:
    """The column whose name is in the first tier that has any; None: there is none.

    Raises:
        UserError: two of them are equally likely.
    """
    for tier in tiers:
        names = [
            name
            for name in (join.columns if among is None else among)
            if small(join.columns[name].name) in tier
            and (not_of is None or _of(join, name) != not_of)
        ]
        own = [name for name in names if not join.columns[name].table]
        names = own or names  # what the first file says goes before what comes to it
        if len(names) > 1:
            raise UserError(
                f"it is not clear which column is the {role}: {', '.join(map(repr, names))}",
                where=str(join.first.path),
                mend=f"name it with --{role}-col",
            )
        if names:
            return names[0]
    return None


def _of(join: Join, name: str) -> str | None:
    """Whether a column is of a table of queries or of items; None: of neither alone."""
    number = join.columns[name].table
    return join.others[number - 1].of if number else None


def _refuse(join: Join, role: str, option: str) -> str:
    raise missing(
        role,
        join.columns,
        join.first,
        where=str(join.first.path),
        what=f"no column has a name that is known for the {role}: name it with {option}, "
        "or --join the file that has it",
    )
