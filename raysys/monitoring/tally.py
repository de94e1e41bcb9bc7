"""Counts of values by bins that add up: of replicas, of stretches of time, in any order.

The bins are those of a reference, so a count is all that has to be kept of a value. How many
people the counts come from is estimated by linear counting (Whang, Vander-Zanden and Taylor, ACM
TODS 1990): a bitmap of hashes, whose union is that of the people. Nobody can be read out of it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from raysys.features.drift import Cut

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

_BITS: Final = 1 << 14  # tells up to some 100,000 people; beyond that it says at least so many
_BYTES: Final = _BITS // 8


class Grid:
    """Bins of several variables, side by side.

    Args:
        cuts: of each variable.

    Attributes:
        starts: int64[v + 1]; bins of variable i are starts[i] : starts[i + 1].
    """

    def __init__(self, cuts: Sequence[Cut]) -> None:
        self.cuts = tuple(cuts)
        sizes = np.array([cut.bins for cut in cuts], dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._codes = [at for at, cut in enumerate(self.cuts) if cut.categorical]
        most = max((len(cut.ends) for cut in self.cuts if not cut.categorical), default=0)
        self._ends = np.full((len(self.cuts), most), np.inf, np.float32)
        for at, cut in enumerate(self.cuts):
            if not cut.categorical:
                self._ends[at, : len(cut.ends)] = cut.ends

    @property
    def size(self) -> int:
        """Bins of all variables."""
        return int(self.starts[-1])

    def count(self, values: Float32, which: Sequence[int] | None = None) -> Int64:
        """Rows by bin: int64[size].

        Args:
            values: float32[n, v], NaN where missing.
            which: the variables that the columns are; None: all, in order.
        """
        chosen = list(range(len(self.cuts)) if which is None else which)
        # ends below the value, which is what searchsorted counts; infinity pads and is never below
        places = (values[:, :, None] > self._ends[chosen][None]).sum(-1)
        for column, at in enumerate(chosen):
            if at in self._codes:
                places[:, column] = self.cuts[at].place(values[:, column])
        last = np.diff(self.starts)[chosen] - 1
        places = np.where(np.isnan(values), last, places) + self.starts[:-1][chosen]
        return np.bincount(places.ravel(), minlength=self.size).astype(np.int64)


@dataclass(frozen=True)
class Tally:
    """What was counted.

    Attributes:
        counts: int64[size of the grid], rows by bin.
        requests: answers they come from; rows: candidates.
        people: uint8, a bitmap of hashes of who asked.
    """

    counts: Int64
    requests: int
    rows: int
    people: npt.NDArray[np.uint8]

    @classmethod
    def empty(cls, size: int) -> Tally:
        """Nothing yet."""
        return cls(np.zeros(size, np.int64), 0, 0, np.zeros(_BYTES, np.uint8))

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.counts + other.counts,
            self.requests + other.requests,
            self.rows + other.rows,
            self.people | other.people,
        )

    def add(self, counts: Int64, rows: int, who: str) -> Tally:
        """With one more request.

        Args:
            counts: int64[size].
            rows: candidates that were counted.
            who: names who asked; not kept.
        """
        people = self.people.copy()
        bit = int.from_bytes(hashlib.blake2b(who.encode(), digest_size=8).digest()) % _BITS
        people[bit // 8] |= np.uint8(1 << bit % 8)
        return replace(
            self,
            counts=self.counts + counts,
            requests=self.requests + 1,
            rows=self.rows + rows,
            people=people,
        )

    @property
    def n_people(self) -> float:
        """About how many people asked; at most one a request."""
        empty = _BITS - int(np.unpackbits(self.people).sum())
        return min(float(self.requests), -_BITS * math.log(max(empty, 1) / _BITS))
