"""Items bought together: the nearest neighbours of each item by cosine over orders.

Item-based collaborative filtering (Sarwar et al. 2001) with the shrinkage of Bell and Koren
(2007): cos(i, j) = n_ij / sqrt(n_i n_j) · n_ij / (n_ij + shrinkage).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit
from safetensors.numpy import load_file, save_file

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]


class CoVisitation:
    """Neighbours of every item, best first.

    Attributes:
        neighbours: int32[n_items, k], -1 beyond the last.
        scores: float32[n_items, k], in (0, 1].
    """

    def __init__(self, neighbours: Int32, scores: Float32) -> None:
        self.neighbours = neighbours
        self.scores = scores

    @classmethod
    def fit(
        cls,
        orders: npt.NDArray[Any],
        items: Int32,
        n_items: int,
        *,
        k: int = 30,
        min_count: int = 4,
        shrinkage: float = 5.0,
        max_order: int = 200,
    ) -> CoVisitation:
        """Count pairs within orders.

        Args:
            orders: int[n], the order (or session) of each event.
            items: int32[n], its item; below 0 is skipped.
            n_items: rows of the result.
            k: neighbours kept an item.
            min_count: orders an item needs to have neighbours or be one.
            shrinkage: pairs seen this often count half.
            max_order: items beyond this in one order are skipped (wholesale buyers, robots).
        """
        known = items >= 0
        pairs = np.stack([orders[known].astype(np.int64), items[known].astype(np.int64)])
        pairs = pairs[:, np.lexsort((pairs[1], pairs[0]))]
        if pairs.shape[1]:
            fresh = np.ones(pairs.shape[1], dtype=bool)
            fresh[1:] = (np.diff(pairs[0]) != 0) | (np.diff(pairs[1]) != 0)
            pairs = pairs[:, fresh]
        count = np.bincount(pairs[1], minlength=n_items)
        pairs = pairs[:, count[pairs[1]] >= min_count]
        _, order = np.unique(pairs[0], return_inverse=True)
        by_order = np.concatenate([[0], np.cumsum(np.bincount(order))]).astype(np.int64)
        by_item = np.argsort(pairs[1], kind="stable")
        starts = np.concatenate([[0], np.cumsum(np.bincount(pairs[1], minlength=n_items))])
        neighbours = np.full((n_items, k), -1, dtype=np.int32)
        scores = np.zeros((n_items, k), dtype=np.float32)
        _count_pairs(
            *(by_order, pairs[1], order[by_item], starts.astype(np.int64), count),
            *(shrinkage, max_order, neighbours, scores),
        )
        return cls(neighbours, scores)

    def near(self, seeds: Int32, limit: int) -> tuple[Int32, Float32]:
        """Items near several seeds, best first, seeds left out.

        Returns:
            int32[m] and their summed scores float32[m], m ≤ limit.
        """
        if not len(seeds):
            return np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32)
        found = self.neighbours[seeds].ravel()
        kept = found >= 0
        items, place = np.unique(found[kept], return_inverse=True)
        sums = np.bincount(place, weights=self.scores[seeds].ravel()[kept], minlength=len(items))
        fresh = ~np.isin(items, seeds)
        items, sums = items[fresh], sums[fresh]
        best = np.lexsort((items, -sums))[:limit]
        return items[best].astype(np.int32), sums[best].astype(np.float32)

    def score(self, seeds: Int32, items: Int32) -> Float32:
        """Summed score of each item with the seeds (its own neighbourhood left out): float32[n]."""
        return _score(seeds, items, self.neighbours, self.scores)

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        save_file({"neighbours": self.neighbours, "scores": self.scores}, path)

    @classmethod
    def load(cls, path: Path) -> CoVisitation:
        """Read what `save` wrote."""
        arrays = load_file(path)
        return cls(arrays["neighbours"], arrays["scores"])


@njit(cache=True)
def _count_pairs(  # type: ignore[no-untyped-def]
    by_order, items, item_orders, starts, count, shrinkage, max_order, neighbours, scores
):
    n_items, k = neighbours.shape
    together = np.zeros(n_items, dtype=np.int32)
    touched = np.empty(n_items, dtype=np.int64)
    for i in range(n_items):
        n_touched = 0
        for at in range(starts[i], starts[i + 1]):
            order = item_orders[at]
            begin = by_order[order]
            for row in range(begin, min(by_order[order + 1], begin + max_order)):
                j = items[row]
                if j == i:
                    continue
                if together[j] == 0:
                    touched[n_touched] = j
                    n_touched += 1
                together[j] += 1
        if n_touched == 0:
            continue
        found = np.sort(touched[:n_touched])
        cosine = np.empty(n_touched, dtype=np.float32)
        for t in range(n_touched):
            both = together[found[t]]
            together[found[t]] = 0
            cosine[t] = both / np.sqrt(count[i] * count[found[t]]) * both / (both + shrinkage)
        best = np.argsort(-cosine, kind="mergesort")[:k]
        for place in range(len(best)):
            neighbours[i, place] = found[best[place]]
            scores[i, place] = cosine[best[place]]


@njit(cache=True)
def _score(seeds, items, neighbours, scores):  # type: ignore[no-untyped-def]
    out = np.zeros(len(items), dtype=np.float32)
    order = np.argsort(items)
    ranked = items[order]
    for seed in seeds:
        for place in range(neighbours.shape[1]):
            j = neighbours[seed, place]
            if j < 0:
                break
            at = np.searchsorted(ranked, j)
            while at < len(ranked) and ranked[at] == j:
                out[order[at]] += scores[seed, place]
                at += 1
    return out
