"""Several sources of candidates into one list that remembers who proposed what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Candidates:
    """Items to score for one request.

    Attributes:
        items: int32[n], distinct, best first.
        sources: uint8[n], bit i set when source `names[i]` proposed the item.
        names: the sources.
    """

    items: Int32
    sources: npt.NDArray[np.uint8]
    names: tuple[str, ...]

    def sources_of(self, position: int) -> list[str]:
        """Names of the sources that proposed the item at a position (0-based)."""
        mask = int(self.sources[position])
        return [name for bit, name in enumerate(self.names) if mask >> bit & 1]


def merge(proposals: Mapping[str, Int32], limit: int) -> Candidates:
    """Interleave ranked lists: all first ranks, then all second ranks, … until `limit` items.

    Args:
        proposals: at most 8 sources, in order of precedence; each int32[m], best first.
        limit: most items to return.
    """
    names = tuple(proposals)
    lists = list(proposals.values())
    sizes = np.array([len(items) for items in lists])
    if not sizes.sum():
        return Candidates(np.empty(0, np.int32), np.empty(0, np.uint8), names)
    items = np.concatenate(lists)
    rank = np.concatenate([np.arange(size) for size in sizes])
    source = np.repeat(np.arange(len(lists)), sizes)
    order = np.lexsort((source, rank))
    _, first, inverse = np.unique(items[order], return_index=True, return_inverse=True)
    masks = np.zeros(len(first), dtype=np.uint8)
    np.bitwise_or.at(masks, inverse, (1 << source[order]).astype(np.uint8))
    kept = np.argsort(first)[:limit]
    return Candidates(items[order][first[kept]].astype(np.int32), masks[kept], names)
