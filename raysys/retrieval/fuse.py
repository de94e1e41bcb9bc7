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


def fuse_items(
    rankings: Sequence[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]],
    n_items: int,
    *,
    k: int = 60,
) -> tuple[Hits, npt.NDArray[np.uint8]]:
    """The same for items of a catalogue, in no order but that of their numbers, and who had them.

    Tens of thousands of items are many texts' worth, of which a few hundred will be used: nothing
    is sorted here, and a table with a place for every item costs less than finding equal ones.

    Args:
        rankings: at most 8; see `fuse`.
        n_items: numbers are below it.
        k: see `fuse`.

    Returns:
        Every item of any ranking, and uint8[n], bit i set where ranking i has the item.
    """
    sums, held = np.zeros(n_items), np.zeros(n_items, np.uint8)
    for bit, (items, ranks) in enumerate(rankings):
        sums[items] += 1.0 / (k + ranks)
        held[items] |= np.uint8(1 << bit)
    found = np.flatnonzero(held != 0).astype(np.int32)  # of bytes it is several times slower
    return Hits(found, sums[found].astype(np.float32)), held[found]


def top(hits: Hits, limit: int, prior: npt.NDArray[np.float32] | None) -> npt.NDArray[np.int64]:
    """Places of the `limit` highest scores, best first: int64[≤ limit].

    Args:
        hits: in any order.
        limit: most places.
        prior: float32[n_items]; of equal scores the more wanted item comes first, then the lower
            number. None: the lower number.
    """
    places = np.arange(len(hits))
    if len(hits) > limit:
        bar = -np.partition(-hits.scores, limit - 1)[limit - 1]
        places = np.flatnonzero(hits.scores >= bar)
    rows, scores = hits.rows[places], hits.scores[places]
    wanted = np.zeros(len(rows), np.float32) if prior is None else prior[rows]
    order: npt.NDArray[np.int64] = places[np.lexsort((rows, -wanted, -scores))[:limit]]
    return order
