"""The only items that a list may hold: asked by every source while it looks, not afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

_CHUNK = 4096


class Allowed:
    """A set of items, and what it means for texts and vectors that several items share.

    Args:
        items: bool[n_items]; not to be changed afterwards.
    """

    def __init__(self, items: Mask) -> None:
        self.items = items
        self._whole = items
        self._rows: list[tuple[Any, Mask]] = []

    @cached_property
    def count(self) -> int:
        """How many items it has."""
        return int(np.count_nonzero(self.items))

    def rows(self, row_of_item: Int32) -> Mask:
        """Rows (distinct texts, or vectors) that an allowed item has: bool[m]; made once.

        Args:
            row_of_item: int32[n_items], the same array at every call.
        """
        for known, mask in self._rows:
            if known is row_of_item:
                return mask
        mask = np.zeros(int(row_of_item.max(initial=-1)) + 1, dtype=bool)
        mask[row_of_item[self._whole]] = True
        self._rows.append((row_of_item, mask))
        return mask

    def keep(self, found: Int32) -> Int32:
        """Those of some items that are allowed, in their order: int32[≤ n]."""
        kept: Int32 = found[self.items[found]]
        return kept

    def without(self, items: npt.NDArray[Any] | Sequence[int]) -> Allowed:
        """This set less some items.

        Its rows are the whole set's, so that they need not be counted again: a row whose items are
        all gone may be found, and has nothing to show.
        """
        left = self.items.copy()
        left[items] = False
        fresh = Allowed(left)
        fresh._whole, fresh._rows = self._whole, self._rows
        return fresh


def first_of(order: Int32, n: int, allowed: Allowed | None, taken: Int32) -> Int32:
    """The first n of an order that are allowed and not taken: int32[≤ n].

    Args:
        order: int32[m], best first.
        n: most items.
        allowed: None: all.
        taken: int32[t], left out.
    """
    found: list[Int32] = []
    missing, size = n, max(_CHUNK, 2 * (n + len(taken)))
    for start in range(0, len(order), size):
        if missing <= 0:
            break
        part = order[start : start + size]
        if allowed is not None:
            part = allowed.keep(part)
        part = part[~np.isin(part, taken)][:missing] if len(taken) else part[:missing]
        found.append(part)
        missing -= len(part)
    return np.concatenate(found) if found else np.empty(0, dtype=np.int32)
