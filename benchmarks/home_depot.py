"""Home Depot's judged pairs: as tables, what models said of them, and how well.

Queries are cut into train, validation and test.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from raysys import schema
from raysys.evaluation.intervals import Bootstrap, Interval
from raysys.text.pairs import Pairs, ndcg_by_query


def read(path: Path, queries: int | None, seed: int = 0) -> pa.Table:
    """`schema.LABELLED_PAIRS`; of so many queries only, if given."""
    raw = pl.read_csv(path)
    names = sorted(set(raw["search_term"]))
    order = np.random.default_rng(seed).permutation(len(names))[:queries]
    split = np.where(
        np.arange(len(order)) < 0.72 * len(order),
        "train",
        np.where(np.arange(len(order)) < 0.8 * len(order), "validation", "test"),
    )
    of = {names[at]: str(part) for at, part in zip(order, split, strict=True)}
    rows = raw.filter(pl.col("search_term").is_in(list(of))).to_dicts()
    columns = {
        "query": [row["search_term"] for row in rows],
        "item_id": [str(row["product_uid"]) for row in rows],
        "text": [html.unescape(row["product_title"]) for row in rows],
        "grade": [row["relevance"] for row in rows],
        "weight": [1.0] * len(rows),
        "split": [of[row["search_term"]] for row in rows],
    }
    return pa.table(columns, schema=schema.LABELLED_PAIRS)


@dataclass(frozen=True)
class Said:
    """Grades of the pairs of each split by one model."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class Judge:
    """RMSE and NDCG@10 (queries of five products or more, gain = relevance - 1), paired."""

    pairs: Pairs

    @property
    def gain(self) -> np.ndarray:
        return (self.pairs.grade - 1).astype(np.float32)

    def ndcg(self, said: np.ndarray) -> np.ndarray:
        """By query, NaN where it has too few products or none relevant."""
        names, values = ndcg_by_query(said.astype(np.float32), self.gain, self.pairs.query)
        size = np.bincount(self.pairs.query)[names]
        return np.where(size >= 5, values, np.nan)

    def rmse(self, said: np.ndarray) -> float:
        return float(np.sqrt(np.mean((said - self.pairs.grade) ** 2)))

    def rmse_of(self, said: np.ndarray, other: np.ndarray | None, draws: Bootstrap) -> Interval:
        """Of one, or how much lower than another's, drawn by query."""
        query = np.unique(self.pairs.query, return_inverse=True)[1]

        def replicated(guess: np.ndarray) -> np.ndarray:
            error = (guess - self.pairs.grade).astype(np.float64) ** 2
            sums = np.stack([draws.sums(error, query), draws.sums(np.ones(len(error)), query)], 1)
            totals = draws.replicate(sums)
            return np.sqrt(totals[:, 0] / totals[:, 1])

        if other is None:
            return draws.interval(self.rmse(said), replicated(said))
        return draws.interval(
            self.rmse(other) - self.rmse(said), replicated(other) - replicated(said)
        )
