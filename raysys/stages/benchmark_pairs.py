"""Judged pairs of query and text out of any table, divided by query: for `raysys benchmark`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from raysys import schema
from raysys.datasets.grades import MISSING, Grades, Scale, grades_of, plain, spelled_out
from raysys.datasets.relevance_names import small
from raysys.datasets.table_joins import PART, Join, missing
from raysys.datasets.tables import look
from raysys.errors import UserError
from raysys.stages.relevance_columns import locale_columns, locale_of, roles_of
from raysys.text.markup import without_markup
from raysys.text.pairs import clean

log = logging.getLogger("raysys")

SHARES = {"train": 0.72, "validation": 0.08, "test": 0.2}
LEAST_QUERIES = 10
SPLIT_WORDS: Final = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "development"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""What a column of splits may say, in lower case."""
SPLIT_COLUMNS: Final = ("split", "set", "subset", "partition")

_QUERY: Final = ("query", "locale")  # by which queries are told apart


@dataclass(frozen=True)
class Judged:
    """Pairs with grades.

    Attributes:
        table: `schema.LABELLED_PAIRS`, and `locale` where there are several; a pair stands once in
            a split, and no query in two of them that were drawn.
        dropped: rows without a query, a text or a grade.
        merged: rows that judge a pair which another row judges, too.
        told: for reports: what columns, grades and joins were taken for.
    """

    table: pa.Table
    dropped: int
    merged: int = 0
    told: dict[str, Any] = field(default_factory=dict)

    def split(self, name: str) -> pa.Table:
        """Rows of train, validation or test."""
        return self.table.filter(pc.equal(self.table["split"], name))


@dataclass(frozen=True)
class Pool:
    """Pairs before they are divided.

    Attributes:
        rows: `query`, `locale` (empty where a file has one or none), `text`, `grade`, `weight`,
            `given`: the split that the files say, or null.
        path: of the first file.
        dropped: see `Judged`, as for the others.
    """

    rows: pl.DataFrame
    path: Path
    dropped: int
    merged: int
    told: dict[str, Any]


def read_pairs(
    path: Path,
    query_col: str | None,
    text_cols: Sequence[str],
    label_col: str | None,
    *,
    seed: int = 0,
    queries: int | None = None,
    **files: Any,
) -> Judged:
    """Read and divide a file of judged pairs; see `pool_of` and `divided`."""
    pool = pool_of(path, query_col, text_cols, label_col, **files)
    return divided(pool, seed=seed, queries=queries)


def pool_of(
    path: Path,
    query_col: str | None = None,
    text_cols: Sequence[str] = (),
    label_col: str | None = None,
    *,
    joins: Sequence[Path] = (),
    on: Sequence[str] = (),
    grades: Sequence[str] = (),
    split_col: str | None = None,
    test: Path | None = None,
) -> Pool:
    """Read a file of judged pairs.

    Case does not tell queries apart: one is spelt as it first stands. Nor does an id, but a locale
    does. Several judgements of a pair become their mean, whose weight is their number.

    Args:
        path: CSV, TSV, JSON lines, Parquet or qrels, perhaps packed.
        query_col: column of the query; None: guessed by names that are known.
        text_cols: columns of the item's text, joined by ". "; none: guessed.
        label_col: column of the grade, a number (higher is more relevant) or a word; None: guessed.
        joins: further files with columns of the query or of the item.
        on: columns by which they are joined; none: those that both have.
        grades: words of grades from the lowest, see `grades.spelled_out`; none: known scales.
        split_col: column that says which rows are train and which test.
        test: a file like the first, whose queries are the test's.

    Raises:
        UserError: no such file or column, a column of nested values, labels that are neither
            numbers nor of a known scale, or all the same.
    """
    if split_col and test:
        raise UserError("give --split-col or --test, not both", where="--test")
    scale = spelled_out(grades) if grades else None
    asked = [name for name in (query_col, *text_cols, label_col, split_col) if name]
    first = look(path, asked, whole=True)
    join = Join.of(first, [look(each) for each in joins], on)
    roles = roles_of(join, query_col, text_cols, label_col)
    names = [roles.query, *roles.text, roles.label]
    if split_col:
        names.append(join.named(split_col))
    parts = []
    if test is not None:
        parts.append(look(test, asked, whole=True))
        for name in join.first_columns(names):
            if name not in parts[0].columns:
                raise missing(name, parts[0].columns, parts[0], where=str(test))
    locales = locale_columns(join, roles, parts[0].columns if parts else ())
    frame, joined = join.read(list(dict.fromkeys([*names, *locales])), parts)
    locale = locale_of(frame, roles.query, locales) if locales else None
    where = f"{path}: {roles.label}"
    label = frame[roles.label].str.strip_chars()
    taken = _grades(label, scale, where)
    rows = frame.select(
        query=pl.col(roles.query),
        locale=pl.lit("") if locale is None else locale,
        text=pl.concat_str(
            [_filled(name) for name in roles.text],
            separator=". ",
            ignore_nulls=True,
        ),
        grade=_numbers(label, taken),
        given=_given(frame, join.named(split_col) if split_col else None, test, path),
    )
    rows = rows.with_columns(_each(rows["query"], _plain), _each(rows["text"], _plain))
    kept = rows.filter(
        (pl.col("query") != "") & (pl.col("text") != "") & pl.col("grade").is_finite()
    )
    if not kept.height or kept["grade"].n_unique() < 2:
        raise UserError(
            "no row has a query, a text and a label"
            if not kept.height
            else f"every label is {kept['grade'][0]:g}",
            where=where,
            mend="relevance is learned from pairs of at least two grades",
        )
    merged = _merged(kept)
    columns = {"query": roles.query, "text": list(roles.text), "label": roles.label}
    told = {
        "columns": columns if locale is None else {**columns, "locale": locales[0]},
        "guessed": list(roles.guessed),
        "scale": taken.scale if taken else "numbers",
        "grades": taken.numbers if taken else {},
        "joined": joined,
        "split": split_col or (test.name if test else "drawn by query"),
    }
    if not (split_col or test):
        _tell_of_splits(first.columns)
    return Pool(merged, path, rows.height - kept.height, kept.height - merged.height, told)


def divided(pool: Pool, *, seed: int = 0, queries: int | None = None) -> Judged:
    """Divide pairs by query: as the files say, else at random.

    Args:
        pool: the pairs.
        seed: of the division.
        queries: at most so many, drawn at random; None: all.

    Raises:
        UserError: too few queries to learn from some and be judged on others, or none that could
            be judged: NDCG says nothing of a query with one product.
    """
    rows, told = pool.rows, dict(pool.told)
    _enough(rows, pool.path)
    if rows["given"].null_count() == rows.height:
        split = pl.Series(_drawn(rows, seed, queries))
    else:
        split = _as_given(rows, seed, queries, pool.path)
        both = rows.filter(split != "").group_by(_QUERY).agg(n=pl.col("given").n_unique())
        told["queries_in_two_splits"] = int((both["n"] > 1).sum())
        if told["queries_in_two_splits"]:
            log.warning(
                "relevance: %s queries stand in more than one split: the figures are not of "
                "queries that nobody has seen",
                f"{told['queries_in_two_splits']:,}",
            )
    kept = rows.with_columns(split=split).filter(pl.col("split") != "")
    _judgeable(kept, pool.path)
    table = kept.select(
        "query",
        item_id=pl.col("text"),
        text=pl.col("text"),
        grade=pl.col("grade"),
        weight=pl.col("weight"),
        split=pl.col("split"),
    ).to_arrow()
    table = table.cast(schema.LABELLED_PAIRS)
    if kept["locale"].n_unique() > 1:
        table = table.append_column("locale", kept["locale"].to_arrow())
    return Judged(table, pool.dropped, pool.merged, told)


def _grades(label: pl.Series, scale: Scale | None, where: str) -> Grades | None:
    """What words are taken for; None: all labels are numbers.

    Raises:
        UserError: there are words that no scale has.
    """
    named = scale.numbers() if scale else {}
    nothing = [word for word in MISSING if plain(word) not in named]
    said = label.filter(~label.str.to_lowercase().is_in(nothing).fill_null(value=True))
    numbers = said.cast(pl.Float32, strict=False).is_finite().fill_null(value=False)
    if scale is None and numbers.all():
        return None
    words = _counts(said)
    nones = _counts(label.filter((label.str.to_lowercase() == "none") & ("none" in nothing)))
    try:  # it may be a grade of `none < low < medium < high`
        found = grades_of(words | nones, scale, where=where)
    except UserError:
        if not nones:
            raise
        found = grades_of(words, scale, where=where)
    shown = ", ".join(f"{word!r} {number:g}" for word, number in found.numbers.items())
    log.info("relevance: grades are taken as %s (%s)", shown, found.scale)
    return found


def _counts(words: pl.Series) -> dict[str, int]:
    counts = words.value_counts(sort=True)
    return dict(zip(counts[words.name], counts["count"], strict=True))


def _numbers(label: pl.Series, taken: Grades | None) -> pl.Series:
    if taken is not None:
        return label.replace_strict(taken.numbers, default=None, return_dtype=pl.Float32)
    return label.cast(pl.Float32, strict=False)


def _given(frame: pl.DataFrame, column: str | None, test: Path | None, path: Path) -> pl.Series:
    """The split of every row as the files say it; null: they say none."""
    if test is not None:
        return frame[PART].replace_strict({0: "train", 1: "test"}, return_dtype=pl.String)
    if column is None:
        return pl.Series([None], dtype=pl.String).new_from_index(0, frame.height)
    said = frame[column].str.strip_chars().str.to_lowercase()
    unknown = said.filter(~said.is_in(list(SPLIT_WORDS)).fill_null(value=False))
    if unknown.len():
        counts = said.value_counts(sort=True).head(8).rows()
        raise UserError(
            "splits that are not known: " + ", ".join(f"{word!r} {n:,}" for word, n in counts),
            where=f"{path}: {column}",
            mend="a split is train, validation or test",
        )
    return said.replace(SPLIT_WORDS)


def _tell_of_splits(columns: Sequence[str]) -> None:
    for name in columns:
        if small(name) in SPLIT_COLUMNS:
            log.info("relevance: splits are drawn; --split-col %s takes those of the file", name)


def _merged(rows: pl.DataFrame) -> pl.DataFrame:
    """Each pair of a split once, in the order of the file."""
    folded = pl.col("query").str.to_lowercase()
    return (
        rows.with_columns(query=pl.col("query").first().over(folded, "locale"))
        .group_by(*_QUERY, "text", "given", maintain_order=True)
        .agg(pl.col("grade").mean(), weight=pl.len().cast(pl.Float32))
    )


def _filled(name: str) -> pl.Expr:
    """A text without its outer blanks; null: there is none."""
    text = pl.col(name).str.strip_chars()
    return pl.when(text != "").then(text)


def _each(column: pl.Series, change: Callable[[str], str]) -> pl.Series:
    """A column of texts changed, each distinct one once; null is empty."""
    column = column.fill_null("")
    distinct = column.unique(maintain_order=True)
    changed = pl.Series([change(text) for text in distinct.to_list()], dtype=pl.String)
    return column.replace_strict(distinct, changed, return_dtype=pl.String)


def _plain(text: str) -> str:
    """Tags left out, entities put right, white space tidied."""
    return clean(without_markup(text))


def _keys(rows: pl.DataFrame) -> list[tuple[str, str]]:
    """The query of every row, in lower case, and its locale."""
    return list(zip(rows["query"].str.to_lowercase(), rows["locale"], strict=True))


def _enough(rows: pl.DataFrame, path: Path) -> None:
    """Refuse queries that are too few."""
    count = len(set(_keys(rows)))
    if count < LEAST_QUERIES:
        raise UserError(
            f"{count} {'query' if count == 1 else 'queries'}: too few to learn from some "
            "and be judged on others",
            where=str(path),
            mend=f"give at least {LEAST_QUERIES} queries",
        )


def _judgeable(rows: pl.DataFrame, path: Path) -> None:
    """Refuse pairs whose test says nothing of any order."""
    sizes = rows.group_by("split", *_QUERY).agg(n=pl.len(), best=pl.col("grade").max())
    if sizes["n"].max() == 1:
        raise UserError(
            f"each of {sizes.height:,} queries has one product: NDCG is not defined",
            where=str(path),
            mend="give several judged products a query, and check which column is the query",
        )
    low = rows.filter(pl.col("split") == "train")["grade"].min()
    test = sizes.filter(pl.col("split") == "test")
    if not test.filter((pl.col("n") > 1) & (pl.col("best") > low)).height:
        raise UserError(
            f"none of {test.height:,} test queries has two products of which one is above the "
            "lowest grade: NDCG is not defined",
            where=str(path),
            mend="give more judged queries",
        )


def _drawn(rows: pl.DataFrame, seed: int, most: int | None) -> list[str]:
    """The split of every row; empty where its query was not drawn."""
    keys = _keys(rows)
    names = sorted(set(keys))
    order = np.random.default_rng(seed).permutation(len(names))[:most]
    place = (np.arange(len(order)) + 0.5) / len(order)
    ends = np.cumsum(list(SHARES.values()))
    which = np.searchsorted(ends[:-1], place, side="right")
    of = {names[at]: list(SHARES)[number] for at, number in zip(order, which, strict=True)}
    return [of.get(key, "") for key in keys]


def _as_given(rows: pl.DataFrame, seed: int, most: int | None, path: Path) -> pl.Series:
    """The split of every row as the files say it, validation drawn from train if they say none."""
    draws = np.random.default_rng(seed)
    queries = rows.select("given", *_QUERY)
    names = {
        split: sorted(set(queries.filter(given=split).drop("given").iter_rows()))
        for split in SHARES
    }
    lacking = [split for split in ("train", "test") if not names[split]]
    if lacking:
        raise UserError(
            f"no pair is in {' and '.join(lacking)}",
            where=str(path),
            mend="a split column says train and test, and a test file has rows like the first",
        )
    total = sum(map(len, names.values()))
    kept = {}
    for split, found in names.items():
        order = [found[at] for at in draws.permutation(len(found))]
        kept[split] = order if most is None else order[: -(-most * len(found) // total)]
    of = {(split, name): split for split, found in kept.items() for name in found}
    if not kept["validation"]:
        held = round(len(kept["train"]) * SHARES["validation"] / (1 - SHARES["test"]))
        of |= {("train", name): "validation" for name in kept["train"][: max(1, held)]}
    told = ((given, (query, locale)) for given, query, locale in queries.iter_rows())
    return pl.Series([of.get(each, "") for each in told], dtype=pl.String)
