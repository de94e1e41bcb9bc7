"""Feature columns to values of like size, by their quantiles: what a network can read.

Heavy tails and units do not matter to it, and what is unknown is a column of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from numba import njit

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

SAMPLE = 200_000
KNOTS = 64
SPREAD = 1.7  # of scaled columns: that of evenly spread values with variance one


@dataclass(frozen=True)
class Scale:
    """Columns of any kind to values of like size, by their quantiles when fitted.

    Attributes:
        knots: a rising float32[q] for each column; of one value where nothing is known or varies.
    """

    knots: tuple[Float32, ...]

    @classmethod
    def fit(cls, values: Float32, seed: int) -> Scale:
        """From (a sample of) the columns of float32[n, f]."""
        if len(values) > SAMPLE:
            rows = np.random.default_rng(seed).choice(len(values), SAMPLE, replace=False)
            values = values[rows]
        knots = []
        for column in values.T:
            known = column[np.isfinite(column)]
            if len(known):
                quantiles = np.quantile(known, np.linspace(0, 1, KNOTS)).astype(np.float32)
                knots.append(np.unique(quantiles))
            else:
                knots.append(np.zeros(1, np.float32))
        return cls(tuple(knots))

    @cached_property
    def _flat(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], Int64]:
        """All knots, the place that each one has, and where those of each column end."""
        places = [np.linspace(-SPREAD, SPREAD, len(knots)) for knots in self.knots]
        ends = np.cumsum([len(knots) for knots in self.knots]).astype(np.int64)
        return np.concatenate(self.knots).astype(np.float64), np.concatenate(places), ends

    def __call__(self, values: Float32) -> Float32:
        """float32[n, 2f]: each column scaled (0 where unknown), then whether it was unknown."""
        n, width = values.shape
        scaled = np.zeros((n, 2 * width), dtype=np.float32)
        _scale(np.ascontiguousarray(values), *self._flat, scaled)
        return scaled


@njit(cache=True, nogil=True)
def _scale(values, knots, places, ends, out):  # type: ignore[no-untyped-def]
    """What `np.interp` gives, of all columns at once: a request is too small for a call each."""
    n, width = values.shape
    for at in range(width):
        first, last = (ends[at - 1] if at else 0), ends[at] - 1
        for row in range(n):
            value = np.float64(values[row, at])
            if not np.isfinite(value):
                out[row, width + at] = 1.0
            elif first == last:
                continue
            elif value <= knots[first]:
                out[row, at] = places[first]
            elif value >= knots[last]:
                out[row, at] = places[last]
            else:
                low, size = first, last - first + 1
                while size > 1:  # as many steps for every value: no branch to guess
                    half = size // 2
                    low += half * (knots[low + half] <= value)
                    size -= half
                high = low + 1
                slope = (places[high] - places[low]) / (knots[high] - knots[low])
                out[row, at] = slope * (value - knots[low]) + places[low]
