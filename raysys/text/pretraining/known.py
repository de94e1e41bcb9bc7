"""What is known to belong together, so that it is never taken for a negative."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from raysys.text.pretraining.behaviour import NONE, Pairs

Int64 = npt.NDArray[np.int64]


class Known:
    """The pairs of a shop, to be asked whether two texts are one.

    Args:
        pairs: all of them, held-out ones as well.
    """

    def __init__(self, pairs: Pairs) -> None:
        self._item = pairs.item
        self._width = np.int64(max(1, len(pairs.texts)))
        self._keys = np.unique(pairs.left * self._width + pairs.right)

    def together(self, left: Int64, right: Int64, other: Int64) -> npt.NDArray[np.bool_]:
        """Whether `other` would be a false negative for a pair: bool, of the common shape.

        Args:
            left, right: codes of the pair's texts.
            other: code of a text.

        It is when the log or the catalogue has (left, other) as a pair, when it is one of the
        pair's own texts, and when it is of the same item as one of them.
        """
        left, right, other = np.broadcast_arrays(left, right, other)
        keys = left * self._width + other
        place = np.searchsorted(self._keys, keys).clip(max=max(0, len(self._keys) - 1))
        found = self._keys[place] == keys if len(self._keys) else np.zeros(keys.shape, bool)
        found |= (other == left) | (other == right)
        item = self._item[other]
        return found | ((item != NONE) & ((item == self._item[left]) | (item == self._item[right])))
