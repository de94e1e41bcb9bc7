"""Judged pairs of query and text out of any table, divided by query: for `raysys benchmark`."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from raysys import schema
from raysys.errors import UserError
from raysys.stages.benchmark_tables import read_table
from raysys.text.pairs import clean

SHARES = {"train": 0.72, "validation": 0.08, "test": 0.2}
LEAST_QUERIES = 10
YES_OR_NO = {"yes": "1", "true": "1", "no": "0", "false": "0"}


@dataclass(frozen=True)
class Judged:
    """Pairs with grades.

    Attributes:
        table: `schema.LABELLED_PAIRS`; a pair stands once, no query is in two splits.
        dropped: rows without a query, a text or a grade.
        merged: rows that judge a pair which another row judges, too.
    """

    table: pa.Table
    dropped: int
    merged: int = 0

    def split(self, name: str) -> pa.Table:
        """Rows of train, validation or test."""
        return self.table.filter(pc.equal(self.table["split"], name))


def read_pairs(
    path: Path,
    query_col: str,
    text_cols: Sequence[str],
    label_col: str,
    *,
    seed: int = 0,
    queries: int | None = None,
) -> Judged:
    """Read and divide a file of judged pairs.

    Case does not tell queries apart: one is spelt as it first stands. Several judgements of a pair
    become their mean, whose weight is their number.

    Args:
        path: CSV, TSV, JSON lines or Parquet; the first three may be gzipped.
        query_col: column of the query.
        text_cols: columns of the item's text, joined by ". ".
        label_col: column of the grade, a number: higher is more relevant.
        seed: of the division.
        queries: at most so many, drawn at random; None: all.

    Raises:
        UserError: no such file or column, a column of nested values, labels that are no numbers
            or all the same, or too few queries to learn from some and be judged on others.
    """
    frame = read_table(path)
    for name in (query_col, *text_cols, label_col):
        if name not in frame.columns:
            raise UserError(
                f"no column {name!r}",
                where=str(path),
                mend=f"there are {', '.join(frame.columns)}",
            )
    text = pl.concat_str(
        [_told(frame, name).str.strip_chars() for name in text_cols],
        separator=". ",
        ignore_nulls=True,
    )
    grade = _told(frame, label_col).cast(pl.String).str.strip_chars()
    said = grade.str.to_lowercase()
    if frame.select(said.is_in(["", *YES_OR_NO]).all()).item():
        grade = said.replace(YES_OR_NO)
    rows = frame.select(
        query=_told(frame, query_col),
        text=text,
        told=pl.when(grade != "").then(grade),
    ).with_columns(grade=pl.col("told").cast(pl.Float32, strict=False))
    bad = rows.filter(
        pl.col("told").is_not_null() & ~pl.col("grade").is_finite().fill_null(value=False)
    )
    if bad.height:
        raise UserError(
            f"{bad.height:,} labels are no numbers, {bad['told'][0]!r} for one",
            where=f"{path}: {label_col}",
            mend="give grades as numbers, higher for more relevant",
        )
    rows = rows.with_columns(
        pl.col("query").fill_null("").map_elements(_plain, return_dtype=pl.String),
        pl.col("text").fill_null("").map_elements(_plain, return_dtype=pl.String),
    )
    kept = rows.filter(
        (pl.col("query") != "") & (pl.col("text") != "") & pl.col("grade").is_finite()
    )
    if not kept.height or kept["grade"].n_unique() < 2:
        raise UserError(
            "no row has a query, a text and a label"
            if not kept.height
            else f"every label is {kept['grade'][0]:g}",
            where=f"{path}: {label_col}",
            mend="relevance is learned from pairs of at least two grades",
        )
    dropped = rows.height - kept.height
    judgements = kept.height
    kept = _merged(kept)
    merged = judgements - kept.height
    split = _divided(kept["query"], seed, queries, path)
    kept = kept.with_columns(split=pl.Series(split)).filter(pl.col("split") != "")
    table = kept.select(
        "query",
        item_id=pl.col("text"),
        text=pl.col("text"),
        grade=pl.col("grade"),
        weight=pl.col("weight"),
        split=pl.col("split"),
    ).to_arrow()
    return Judged(table.cast(schema.LABELLED_PAIRS), dropped, merged)


def _merged(rows: pl.DataFrame) -> pl.DataFrame:
    """Each pair once, in the order of the file."""
    folded = pl.col("query").str.to_lowercase()
    return (
        rows.with_columns(query=pl.col("query").first().over(folded))
        .group_by("query", "text", maintain_order=True)
        .agg(pl.col("grade").mean(), weight=pl.len().cast(pl.Float32))
    )


def _told(frame: pl.DataFrame, name: str) -> pl.Expr:
    """A column as text; lists, of bullet points say, joined as columns are."""
    column, kind = pl.col(name), frame.schema[name]
    if isinstance(kind, pl.List) and not kind.inner.is_nested():
        return column.list.eval(pl.element().cast(pl.String)).list.join(". ", ignore_nulls=True)
    if kind.is_nested() or kind == pl.Binary:
        raise UserError(
            f"column {name!r} holds {kind}", where=name, mend="give a column of texts or numbers"
        )
    return column.cast(pl.String)


def _plain(text: str) -> str:
    """Entities put right, white space tidied."""
    return clean(html.unescape(text))


def _divided(query: pl.Series, seed: int, most: int | None, path: Path) -> list[str]:
    """The split of every row; empty where its query was not drawn."""
    folded = query.str.to_lowercase()
    names = sorted(set(folded))
    if len(names) < LEAST_QUERIES:
        raise UserError(
            f"{len(names)} {'query' if len(names) == 1 else 'queries'}: too few to learn from some "
            "and be judged on others",
            where=str(path),
            mend=f"give at least {LEAST_QUERIES} queries",
        )
    order = np.random.default_rng(seed).permutation(len(names))[:most]
    place = (np.arange(len(order)) + 0.5) / len(order)
    ends = np.cumsum(list(SHARES.values()))
    which = np.searchsorted(ends[:-1], place, side="right")
    of = {names[at]: list(SHARES)[number] for at, number in zip(order, which, strict=True)}
    return [of.get(name, "") for name in folded]
