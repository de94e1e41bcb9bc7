"""What sells: items by popularity, over all and within each category."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]


class Popular:
    """Items in order of popularity at one moment.

    Args:
        popularity: float64[n_items], 0 for what never sold.
        category: int32[n_items], -1 where unknown.
        per_category: items kept a category.
        keep: items kept over all.
    """

    def __init__(
        self,
        popularity: npt.NDArray[np.float64],
        category: Int32,
        *,
        per_category: int = 50,
        keep: int = 1000,
    ) -> None:
        sold = np.flatnonzero(popularity > 0)
        order = sold[np.lexsort((sold, -popularity[sold]))].astype(np.int32)
        self.items: Int32 = order[:keep]
        grouped = order[np.argsort(category[order], kind="stable")]
        codes = category[grouped]
        n_categories = int(category.max(initial=-1)) + 1
        starts = np.searchsorted(codes, np.arange(n_categories))
        ends = np.searchsorted(codes, np.arange(n_categories), side="right")
        self._by_category = [
            grouped[a : min(a + per_category, b)] for a, b in zip(starts, ends, strict=True)
        ]

    def top(self, limit: int) -> Int32:
        """The most popular items: int32[≤ limit]."""
        return self.items[:limit]

    def in_categories(self, categories: Int32, limit: int) -> Int32:
        """The most popular of several categories, taking turns: int32[≤ limit]."""
        lists = [self._by_category[code] for code in categories if code >= 0]
        turns = [(rank, at) for at, items in enumerate(lists) for rank in range(len(items))]
        turns.sort()
        return np.array([lists[at][rank] for rank, at in turns[:limit]], dtype=np.int32)
