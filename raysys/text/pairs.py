"""Judged pairs (query, item) as arrays: each text once, grades on one scale, lists by query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raysys.errors import UserError

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

MAX_CHARACTERS = 2000
"""Read of each text: plenty for relevance, and a broken feed may hold a megabyte."""


def clean(text: str | None) -> str:
    """One line without repeated spaces, of at most `MAX_CHARACTERS`; None is empty."""
    return " ".join((text or "")[: 4 * MAX_CHARACTERS].split())[:MAX_CHARACTERS]


@dataclass(frozen=True)
class Scale:
    """The grades that judgements use.

    Attributes:
        levels: sorted distinct grades, two or more.
    """

    levels: tuple[float, ...]

    @classmethod
    def of(cls, grade: Float32, *, where: str) -> Scale:
        """The scale of training grades.

        Raises:
            UserError: no grades, grades that are no numbers, or all the same.
        """
        if not np.isfinite(grade).all():
            raise UserError("a grade is no number", where=where, mend="leave such pairs out")
        levels = np.unique(grade)
        if len(levels) < 2:
            raise UserError(
                "no judged pairs" if not len(levels) else f"all pairs have the grade {levels[0]:g}",
                where=where,
                mend="relevance is learned from pairs of at least two grades",
            )
        return cls(tuple(float(each) for each in levels))

    @property
    def low(self) -> float:
        """The lowest grade."""
        return self.levels[0]

    @property
    def high(self) -> float:
        """The highest grade."""
        return self.levels[-1]

    def share(self, grade: Float32) -> Float32:
        """Each grade's place between the lowest (0) and the highest (1): float32[n]."""
        return ((grade - self.low) / (self.high - self.low)).clip(0, 1).astype(np.float32)

    def grade(self, share: Float32) -> Float32:
        """What `share` came from; within the scale."""
        return (self.low + share.clip(0, 1) * (self.high - self.low)).astype(np.float32)

    def level(self, grade: Float32) -> Int64:
        """The place of each grade among the levels, the nearest, the lower of two: int64[n]."""
        levels = np.array(self.levels)
        middles = (levels[:-1] + levels[1:]) / 2
        return np.searchsorted(middles, grade).astype(np.int64)  # a table of all would be too large


@dataclass(frozen=True)
class Pairs:
    """n pairs of distinct texts.

    Attributes:
        queries: distinct queries, cleaned, each with a pair; one of two locales stands twice.
        items: distinct item texts, cleaned, each with a pair.
        query: int64[n], row of `queries`.
        item: int64[n], row of `items`.
        grade: float32[n]; NaN where a table has none.
        weight: float32[n]; 1 where a table has none.
    """

    queries: tuple[str, ...]
    items: tuple[str, ...]
    query: Int64
    item: Int64
    grade: Float32
    weight: Float32

    def __len__(self) -> int:
        return len(self.query)

    @classmethod
    def of(cls, table: pa.Table) -> Pairs:
        """Pairs of a table with `query` and `text`, and perhaps `grade`, `weight` and `locale`.

        Raises:
            UserError: a column is missing, or a weight is negative or no number.
        """
        for name in ("query", "text"):
            if name not in table.column_names:
                raise UserError(f"pairs have no column {name!r}", where="relevance")
        query, queries = _codes(table["query"].to_pylist())
        if "locale" in table.column_names and len(table):
            locale = _codes(table["locale"].to_pylist())[0]
            both, query = np.unique(np.stack([query, locale]), axis=1, return_inverse=True)
            queries, query = tuple(queries[at] for at in both[0]), query.reshape(-1)
        item, items = _codes(table["text"].to_pylist())
        weight = _column(table, "weight", 1.0)
        if not (np.isfinite(weight).all() and (weight >= 0).all()):
            raise UserError("a weight is negative or no number", where="relevance: weight")
        return cls(queries, items, query, item, _column(table, "grade", np.nan), weight)

    @cached_property
    def readable(self) -> npt.NDArray[np.bool_]:
        """Whether both texts of a pair say something: bool[n]."""
        queries = np.array([bool(text) for text in self.queries], dtype=bool)
        items = np.array([bool(text) for text in self.items], dtype=bool)
        return queries[self.query] & items[self.item]

    def take(self, rows: Int64) -> Pairs:
        """Some pairs, in the given order, and no other texts than theirs."""
        some, query = np.unique(self.query[rows], return_inverse=True)
        held, item = np.unique(self.item[rows], return_inverse=True)
        return Pairs(
            tuple(self.queries[at] for at in some),
            tuple(self.items[at] for at in held),
            query.astype(np.int64),
            item.astype(np.int64),
            self.grade[rows],
            self.weight[rows],
        )

    def lists(self) -> list[Int64]:
        """Rows of each query that has some, in the order of `queries`."""
        order = np.argsort(self.query, kind="stable")
        ends = np.cumsum(np.bincount(self.query, minlength=len(self.queries)))
        return [rows for rows in np.split(order, ends[:-1]) if len(rows)]


def trainable(table: pa.Table, *, where: str) -> Pairs:
    """The pairs one can learn from: both texts say something, and the weight is not 0.

    Raises:
        UserError: there is none; see `Pairs.of`.
    """
    pairs = Pairs.of(table)
    rows = np.flatnonzero(pairs.readable & (pairs.weight > 0))
    if not len(rows):
        raise UserError("no pair with a query, a text and a weight", where=where)
    return pairs.take(rows)


def mean_ndcg(scores: Float32, gain: Float32, query: Int64, k: int = 10) -> float:
    """Mean NDCG@k over queries that have a gain; gains count as they are; 0 where none has.

    (Järvelin and Kekäläinen 2002.) See `ndcg_by_query`.
    """
    values = ndcg_by_query(scores, gain, query, k)[1]
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else 0.0


def ndcg_by_query(
    scores: Float32, gain: Float32, query: Int64, k: int = 10
) -> tuple[Int64, npt.NDArray[np.float64]]:
    """Sorted distinct queries and NDCG@k of each; NaN without a gain.

    Equal scores get the mean gain of their rows (McSherry and Najork, ECIR 2008): the order of a
    file, which may be sorted by grade, decides nothing.
    """
    names, code = np.unique(query, return_inverse=True)
    return names, _dcg(scores, gain, code, len(names), k) / _ideal(gain, code, len(names), k)


def _ideal(gain: Float32, code: Int64, n: int, k: int) -> npt.NDArray[np.float64]:
    best = _dcg(gain, gain, code, n, k)
    return np.where(best > 0, best, np.nan)


def _dcg(scores: Float32, gain: Float32, code: Int64, n: int, k: int) -> npt.NDArray[np.float64]:
    order = np.lexsort((-scores, code))
    sizes = np.bincount(code, minlength=n)
    place = np.arange(len(code)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    code, scores = code[order], scores[order]
    first = (np.diff(code, prepend=-1) != 0) | (np.diff(scores, prepend=np.nan) != 0)
    tied = np.cumsum(first) - 1
    mean = np.bincount(tied, weights=gain[order]) / np.bincount(tied)
    worth = np.where(place < k, mean[tied] / np.log2(place + 2.0), 0.0)
    return np.bincount(code, weights=worth, minlength=n).astype(np.float64)


def by_length(lengths: Int64, tokens: int) -> list[Int64]:
    """Rows in order of length, longest first, cut so that a padded batch has about `tokens`."""
    order = np.argsort(-lengths, kind="stable")
    batches, at = [], 0
    while at < len(order):
        size = max(1, tokens // max(1, int(lengths[order[at]])))
        batches.append(order[at : at + size])
        at += size
    return batches


def _codes(texts: Sequence[str | None]) -> tuple[Int64, tuple[str, ...]]:
    seen: dict[str, int] = {}
    codes = [seen.setdefault(clean(text), len(seen)) for text in texts]
    return np.array(codes, dtype=np.int64), tuple(seen)


def _column(table: pa.Table, name: str, otherwise: float) -> Float32:
    if name not in table.column_names:
        return np.full(table.num_rows, otherwise, dtype=np.float32)
    values = table[name].to_numpy().astype(np.float32)
    return np.where(np.isnan(values), np.float32(otherwise), values) if name == "weight" else values
