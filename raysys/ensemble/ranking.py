"""Where the relevant items of each request land, and NDCG: what the ensemble is fitted for.

Candidates with equal scores are ordered by item number: the order of rows in a file must not
decide, since it could follow the label. Items that were bought but not retrieved are in nobody's
list; they enlarge the ideal, so they cost every learner the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from numba import njit

from raysys.features.batch import Batch

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Judgements:
    """What was relevant among the candidates of r requests, n rows side by side by request.

    Attributes:
        item: int32[n], item numbers; they decide between equal scores.
        label: float32[n], above 0 where relevant; the gain of NDCG.
        offsets: int64[r + 1]; rows of request i are offsets[i] : offsets[i + 1].
        n_relevant: int32[r], relevant items of the request, retrieved or not.
    """

    item: npt.NDArray[np.int32]
    label: npt.NDArray[np.float32]
    offsets: npt.NDArray[np.int64]
    n_relevant: npt.NDArray[np.int32]

    @classmethod
    def of(cls, batch: Batch) -> Judgements:
        """The judgements of a labelled batch.

        Raises:
            ValueError: the batch has no labels, as when serving.
        """
        if batch.label is None or batch.n_relevant is None:
            raise ValueError("a batch without labels cannot be judged")
        return cls(batch.item, batch.label, batch.offsets, batch.n_relevant)

    @property
    def n_requests(self) -> int:
        """Number of requests."""
        return len(self.offsets) - 1

    @property
    def judged(self) -> npt.NDArray[np.bool_]:
        """Whether a request has anything relevant: bool[r]; the others have no value."""
        return self.n_relevant > 0

    @cached_property
    def relevant(self) -> npt.NDArray[np.int64]:
        """Rows that are relevant, in order: int64[m]."""
        return np.flatnonzero(self.label > 0)

    @cached_property
    def owner(self) -> npt.NDArray[np.int64]:
        """The request (0 … r-1) of every relevant row: int64[m]."""
        return np.searchsorted(self.offsets, self.relevant, side="right") - 1

    def only(self, rows: npt.NDArray[np.bool_], n_relevant: npt.NDArray[np.int32]) -> Judgements:
        """The same lists, of which only what is in `rows` (bool[n]) counts as relevant.

        Args:
            rows: what keeps its label.
            n_relevant: int32[r], how many items of this kind were relevant, missed ones included.
        """
        label = np.where(rows, self.label, np.float32(0))
        return Judgements(self.item, label, self.offsets, n_relevant)

    def rows(self, which: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Rows of the given requests, one request after the other."""
        return rows_of(self.offsets, which)[0]

    def take(self, which: npt.NDArray[np.int64]) -> Judgements:
        """The given requests, in the given order."""
        rows, offsets = rows_of(self.offsets, which)
        return Judgements(self.item[rows], self.label[rows], offsets, self.n_relevant[which])

    def ranks(self, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
        """Rank (1 is best) of every relevant row within its request: int32[m].

        Raises:
            ValueError: scores that are not finite, or not one a row.
        """
        if scores.shape != self.item.shape:
            raise ValueError(f"{scores.shape} scores for {self.item.shape} candidates")
        if not np.isfinite(scores).all():
            raise ValueError("scores must be finite")
        return _ranks(scores, self.item, self.offsets, self.relevant, self.owner)

    def ideal_dcg(self, k: int) -> Float64:
        """DCG@k of the best list there could be, had retrieval missed nothing: float64[r].

        What retrieval missed enters with a gain of 1.
        """
        if k not in self._ideals:
            self._ideals[k] = self._ideal_dcg(k)
        return self._ideals[k]

    @cached_property
    def _ideals(self) -> dict[int, Float64]:
        return {}

    def _ideal_dcg(self, k: int) -> Float64:
        found = np.bincount(self.owner, minlength=self.n_requests)
        missed = np.maximum(self.n_relevant - found, 0)
        owner = np.concatenate([self.owner, np.repeat(np.arange(self.n_requests), missed)])
        gain = np.concatenate([self.label[self.relevant], np.ones(missed.sum(), np.float32)])
        order = np.lexsort((-gain, owner))
        owner, gain = owner[order], gain[order]
        first = np.concatenate([[0], np.cumsum(found + missed)])[:-1]
        rank = np.arange(len(owner)) - first[owner] + 1
        return _dcg(owner, gain, rank, k, self.n_requests)


def ndcg(judgements: Judgements, ranks: npt.NDArray[np.int32], k: int = 10) -> Float64:
    """NDCG@k of every request with linear gains: float64[r] in [0, 1]; NaN if nothing is relevant.

    Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 2002.

    Args:
        judgements: what was relevant.
        ranks: from `judgements.ranks(scores)`.
        k: how many places of the list count.
    """
    gain = judgements.label[judgements.relevant]
    dcg = _dcg(judgements.owner, gain, ranks, k, judgements.n_requests)
    return divide(dcg, judgements.ideal_dcg(k), judgements.judged)


def divide(value: Float64, by: Float64, judged: npt.NDArray[np.bool_]) -> Float64:
    """`value / by`, float64[r], NaN where the request is not judged."""
    result = np.full(len(value), np.nan)
    np.divide(value, by, out=result, where=judged)
    return result


def rows_of(
    offsets: npt.NDArray[np.int64], which: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows of the given requests, one request after the other, and their new offsets."""
    sizes = np.diff(offsets)[which]
    fresh = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return np.repeat(offsets[which] - fresh[:-1], sizes) + np.arange(fresh[-1]), fresh


def _dcg(
    owner: npt.NDArray[np.int64],
    gain: npt.NDArray[np.float32],
    rank: npt.NDArray[np.int64] | npt.NDArray[np.int32],
    k: int,
    n_requests: int,
) -> Float64:
    """Discounted gains of ranks 1 … k summed by request: float64[n_requests]."""
    counted = np.where(rank <= k, gain / np.log2(rank + 1.0), 0.0)
    summed = np.bincount(owner, weights=counted, minlength=n_requests)
    return summed.astype(np.float64)  # without any row, bincount counts in integers


@njit(cache=True, nogil=True)
def _ranks(scores, item, offsets, relevant, owner):  # type: ignore[no-untyped-def]
    """Count who is ahead of each relevant row: no sort, and a loop that vectorises."""
    ranks = np.empty(len(relevant), dtype=np.int32)
    for m in range(len(relevant)):
        start, stop = offsets[owner[m]], offsets[owner[m] + 1]
        own, number = scores[relevant[m]], item[relevant[m]]
        ahead, same = np.int32(0), np.int32(0)
        mine = scores[start:stop]
        for row in range(len(mine)):
            ahead += np.int32(mine[row] > own)
            same += np.int32(mine[row] == own)
        if same > 1:
            for row in range(start, stop):
                ahead += np.int32((scores[row] == own) & (item[row] < number))
        ranks[m] = ahead + 1
    return ranks
