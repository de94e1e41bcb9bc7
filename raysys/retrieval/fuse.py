"""What searches found, and how several findings become one: reciprocal rank fusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Hits:
    """What one search found, best first.

    Attributes:
        rows: int32[n], distinct numbers of what was found.
        scores: float32[n], falling.
    """

    rows: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def none(cls) -> Hits:
        """Nothing was found."""
        return cls(np.empty(0, np.int32), np.empty(0, np.float32))

    @property
    def ranks(self) -> npt.NDArray[np.int32]:
        """int32[n], 1 for the best; equal scores share the better rank."""
        if not len(self):
            return np.empty(0, np.int32)
        first = np.concatenate([[True], self.scores[1:] != self.scores[:-1]])
        starts = np.flatnonzero(first)
        return (starts[np.cumsum(first) - 1] + 1).astype(np.int32)


def best(rows: npt.NDArray[np.int32], scores: npt.NDArray[np.float32], limit: int) -> Hits:
    """The `limit` highest scores, best first; of equal ones the lower row, so that it repeats."""
    if len(rows) > limit:
        # All that tie with the last place take part, then rows decide which of them stay.
        bar = -np.partition(-scores, limit - 1)[limit - 1]
        kept = np.flatnonzero(scores >= bar)
        rows, scores = rows[kept], scores[kept]
    order = np.lexsort((rows, -scores))[:limit]
    return Hits(rows[order], scores[order].astype(np.float32))


def fuse(
    rankings: Sequence[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]], *, k: int = 60
) -> Hits:
    """One ranking of several by the sum of 1 / (k + rank) (Cormack, Clarke & Büttcher 2009).

    Args:
        rankings: pairs of items int32[n], each once, and their ranks int32[n], from 1.
        k: how little the first places stand out; 60 is the paper's.

    Returns:
        Every item of any ranking, best first; equal sums in the order of item numbers.
    """
    if not any(len(items) for items, _ in rankings):
        return Hits.none()
    items = np.concatenate([items for items, _ in rankings])
    gains = np.concatenate([1.0 / (k + ranks) for _, ranks in rankings])
    distinct, position = np.unique(items, return_inverse=True)
    sums = np.bincount(position, weights=gains, minlength=len(distinct))
    return best(distinct.astype(np.int32), sums.astype(np.float32), len(distinct))
