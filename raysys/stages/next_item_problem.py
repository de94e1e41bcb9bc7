"""What a next-item benchmark asks: a divided data set, its cases, and how ranks are judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raysys.errors import UserError
from raysys.learners.sequence_protocol import ItemFacts, Sequences

Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

LONGEST = 1000
"""Of a longer prefix the last items are asked with: no member reads more."""


@dataclass(frozen=True)
class Cases:
    """What is asked: prefixes and what came next.

    Attributes:
        prefixes: r of them.
        targets: int32[r]; -1 for an item that training does not know.
        group: int64[r], 0 …; cases of one session or user.
    """

    prefixes: Sequences
    targets: Int32
    group: Int64

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, which: Int64) -> Cases:
        """The given cases."""
        return Cases(self.prefixes.take(which), self.targets[which], self.group[which])

    def sample(self, n: int, seed: int) -> Cases:
        """At most n of them, drawn evenly, in order."""
        if len(self) <= n:
            return self
        rng = np.random.default_rng(seed)
        return self.take(np.sort(rng.choice(len(self), n, replace=False)))


@dataclass(frozen=True)
class Measure:
    """A figure of a ranking: what a target at some rank (int64[r]) is worth (float64[r])."""

    name: str
    of: Callable[[Int64], Float64]


def hits(k: int) -> Callable[[Int64], Float64]:
    """1 within the first k places."""
    return lambda rank: (rank <= k).astype(np.float64)


def reciprocal(k: int) -> Callable[[Int64], Float64]:
    """1 / rank within the first k places."""
    return lambda rank: np.where(rank <= k, 1.0 / np.maximum(rank, 1), 0.0)


def discounted(k: int) -> Callable[[Int64], Float64]:
    """NDCG@k with one relevant item: 1 / log2(rank + 1) within the first k places."""
    return lambda rank: np.where(rank <= k, 1.0 / np.log2(np.maximum(rank, 1) + 1.0), 0.0)


@dataclass(frozen=True)
class Problem:
    """A data set, divided.

    Attributes:
        fit: what is learned from while settings and weights are chosen.
        whole: what is learned from in the end: `fit` and what validation asked for.
        validation, test: what is asked.
        n_items: that training knows.
        facts: of them.
        k: places that count.
        measures: the figures; the first is the main one.
        counts: what was read, for the report.
    """

    fit: Sequences
    whole: Sequences
    validation: Cases
    test: Cases
    n_items: int
    facts: ItemFacts
    k: int
    measures: tuple[Measure, Measure]
    counts: dict[str, int]

    def quality(self, rank: Int64) -> Float64:
        """What settings and weights are chosen by: both measures, in equal parts."""
        first, second = self.measures
        return (first.of(rank) + second.of(rank)) / 2


def refuse_one_item(n_items: int, where: str) -> None:
    """Nothing is to be ranked where there is one item.

    Raises:
        UserError: there is.
    """
    if n_items < 2:
        raise UserError(
            "all that is learned from is one and the same item",
            where=where,
            mend="give two items at least: with one there is nothing to rank",
        )
