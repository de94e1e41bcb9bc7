"""What is kept of scores of all items: the first places, and where the right item stands."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from numba import njit

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
NOWHERE: Final = 1 << 40
"""Where a target stands that is unknown, or was not proposed: beyond any k, however few items."""


def survey(scores: Float32, targets: Int32, k: int) -> tuple[Int32, Float32, Int64, Float32]:
    """One look at dense scores float32[b, n]: what of them is kept.

    A score that is no number is below every other, and a target with one stands `NOWHERE`: a model
    that has diverged is not the best of all.

    Args:
        scores: of all items.
        targets: int32[b]; -1: unknown.
        k: how many best items; at most n.

    Returns the k best items of each row, best first, ties by number, int32[b, k], and their
    scores; where the target stands, int64[b], `NOWHERE` where unknown; and the sum of all scores.
    """
    k = min(k, scores.shape[1])
    items = np.empty((len(scores), k), dtype=np.int32)
    best = np.empty((len(scores), k), dtype=np.float32)
    rank = np.empty(len(scores), dtype=np.int64)
    _survey(scores, targets, items, best, rank)
    return items, best, rank, scores.sum(axis=1)


@njit(cache=True, nogil=True)
def _survey(scores, targets, items, best, rank):  # type: ignore[no-untyped-def]
    n = scores.shape[1]
    k = items.shape[1]
    for row in range(len(scores)):
        mine = scores[row]
        target = targets[row]
        if target < 0 or mine[target] != mine[target]:
            rank[row] = NOWHERE
        else:
            own = mine[target]
            ahead, same = np.int32(0), np.int32(0)
            for j in range(n):
                ahead += np.int32(mine[j] > own)
                same += np.int32(mine[j] == own)
            if same > 1:
                for j in range(target):
                    ahead += np.int32(mine[j] == own)
            rank[row] = ahead + 1
        held = 0
        for j in range(n):
            value = mine[j]
            if value != value:
                value = np.float32(-np.inf)
            if held == k and value <= best[row, k - 1]:
                continue
            place = held if held < k else k - 1
            while place > 0 and best[row, place - 1] < value:
                best[row, place] = best[row, place - 1]
                items[row, place] = items[row, place - 1]
                place -= 1
            best[row, place] = value
            items[row, place] = j
            if held < k:
                held += 1
