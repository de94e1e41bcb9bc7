"""Promotion weeks as a log tells of them: which is the newest that was known at a moment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from raysys.features.numbered import NumberedLog

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class KnownWeeks:
    """The newest week that a log has told of, as time goes on.

    Attributes:
        times, weeks: int64[k], both rising: strictly after each moment (UTC ms) its week is known.
    """

    times: Int64
    weeks: Int64

    @classmethod
    def of(cls, log: NumberedLog) -> KnownWeeks:
        """Those of a whole log."""
        steps: list[tuple[int, int]] = []
        for each in log.slices():
            newest = np.maximum.accumulate(each.week)
            for row in np.flatnonzero(np.diff(newest, prepend=-1) > 0):
                if not steps or newest[row] > steps[-1][1]:
                    steps.append((int(each.events.time[row]), int(newest[row])))
        told = np.array(steps, dtype=np.int64).reshape(-1, 2)
        return cls(told[:, 0], told[:, 1])

    def before(self, times: npt.ArrayLike) -> Int64:
        """The newest week that was known strictly before each moment: int64[n], -1 for none."""
        found: Int64 = np.append(self.weeks, -1)[np.searchsorted(self.times, times) - 1]
        return found

    def save(self, path: Path) -> None:
        """Write as one array."""
        np.save(path, np.stack([self.times, self.weeks]))

    @classmethod
    def load(cls, path: Path) -> KnownWeeks:
        """Read what `save` wrote."""
        return cls(*np.load(path))


def span_of_weeks(log: NumberedLog, start: int, end: int) -> tuple[int, int]:
    """First and last promotion week between two moments, -1 where the log tells of none."""
    low, high = 1 << 30, -1
    for each in log.between(start, end):
        known = each.week[each.week >= 0]
        if len(known):
            low, high = min(low, int(known.min())), max(high, int(known.max()))
    return (low, high) if high >= 0 else (-1, -1)
