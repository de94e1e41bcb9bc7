"""What sells: items by popularity, over all and within each category."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from raysys.retrieval.allowed import Allowed

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
        grouped = order[np.argsort(category[order], kind="stable")]
        codes = category[grouped]
        n_categories = int(category.max(initial=-1)) + 1
        starts = np.searchsorted(codes, np.arange(n_categories))
        ends = np.searchsorted(codes, np.arange(n_categories), side="right")
        kept = np.minimum(ends - starts, per_category)
        rows = np.repeat(starts - np.cumsum(kept) + kept, kept) + np.arange(kept.sum())
        self._take(order[:keep], grouped[rows], kept)

    def _take(self, items: Int32, by_category: Int32, sizes: npt.NDArray[np.int64]) -> None:
        self.items: Int32 = items
        ends = np.cumsum(sizes)
        self._by_category = [
            by_category[a:b] for a, b in zip((ends - sizes).tolist(), ends.tolist(), strict=True)
        ]

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        arrays = {
            "items": self.items,
            "by_category": np.concatenate([*self._by_category, np.empty(0, np.int32)]),
            "sizes": np.array([len(items) for items in self._by_category], dtype=np.int64),
        }
        save_file(arrays, path)

    @classmethod
    def load(cls, path: Path) -> Popular:
        """Read what `save` wrote."""
        arrays = load_file(path)
        popular = cls.__new__(cls)
        popular._take(arrays["items"], arrays["by_category"], arrays["sizes"])
        return popular

    def top(self, limit: int, allowed: Allowed | None = None) -> Int32:
        """The most popular items (of those allowed): int32[≤ limit]."""
        items = self.items if allowed is None else allowed.keep(self.items)
        return items[:limit]

    def in_categories(self, categories: Int32, limit: int, allowed: Allowed | None = None) -> Int32:
        """The most popular (of those allowed) of several categories, taking turns: int32[≤ limit].

        Of each category as many are kept as `per_category` said.
        """
        lists = [self._by_category[code] for code in categories if code >= 0]
        if allowed is not None:
            lists = [allowed.keep(items) for items in lists]
        if not lists:
            return np.empty(0, dtype=np.int32)
        rank = np.concatenate([np.arange(len(items)) for items in lists])
        turns = np.argsort(rank, kind="stable")[:limit]  # by rank, then by category
        chosen: Int32 = np.concatenate(lists)[turns]
        return chosen
