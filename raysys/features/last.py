"""The last n distinct things of each key, newest first: a user's items, a session's categories.

What is kept is, for each thing, when it was last seen; of these the n newest. Things of one moment
are ordered by their number, the highest first. So the order in which events arrive does not matter:
a late event takes the place it would have had, and one that comes twice changes nothing.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt
from numba import njit

from raysys.features.keyed import LONG_AGO, Arrays, Bool, Float64, Int64, Keyed
from raysys.features.table import idle_ms

Int32 = npt.NDArray[np.int32]


class LastStats:
    """What m records hold at one moment.

    Attributes:
        values: int32[m, n], newest first, -1 beyond the last.
    """

    def __init__(self, values: Int32) -> None:
        self.values = values

    @property
    def counts(self) -> Float64:
        """How many each holds: float64[m]."""
        counts: Float64 = (self.values >= 0).sum(axis=1).astype(np.float64)
        return counts


class Last(Keyed):
    """The last distinct values of each key.

    Args:
        n: values kept a key.
        max_idle_days: values seen longer ago are not told any more; None: all are.
        capacity, max_records: see `Keyed`.
    """

    def __init__(
        self,
        n: int,
        *,
        max_idle_days: float | None = None,
        capacity: int = 1024,
        max_records: int | None = None,
    ) -> None:
        self.n = n
        self.idle_ms = idle_ms(max_idle_days)
        layout: dict[str, tuple[tuple[int, ...], Any, Any]] = {
            "values": ((n,), np.int32, -1),
            "times": ((n,), np.int64, LONG_AGO),
        }
        super().__init__(layout, capacity, max_records)

    def apply(self, keys: Int64, times: Int64, weights: Float64, values: Float64) -> None:
        """Take note of values; keys below 0 are skipped.

        Args:
            keys: int64[n]; times: int64[n], UTC ms; weights: not read;
            values: float64[n], numbers of things below 2³¹; below 0 or NaN: skipped.
        """
        kept = _thing(values)
        records = self._admit(keys, kept)
        _apply(records, times, kept, values, self.clock, *self._parts())

    def read(self, records: Int64, time: int) -> LastStats:
        """What the records hold at a moment, which must not lie before their last event."""
        out = np.empty((len(records), self.n), dtype=np.int32)
        _read(records, time, self.idle_ms, self.data["values"], self.data["times"], out)
        return LastStats(out)

    def replay(
        self,
        keys: Int64,
        times: Int64,
        weights: Float64,
        values: Float64,
        counts: Bool,
        reads: Bool,
    ) -> LastStats:
        """Count rows and read others on the way: see `Keyed.replay`."""
        self._check_order(times)
        counts = counts & _thing(values)
        records = self._admit(keys, counts)
        out = np.empty((int(np.count_nonzero(reads)), self.n), dtype=np.int32)
        _replay(
            *(records, times, values, counts, reads, self.idle_ms, self.clock),
            *(*self._parts(), out),
        )
        return LastStats(out)

    def _parts(self) -> tuple[Int32, Int64, Int64]:
        return self.data["values"], self.data["times"], self.last

    def _spent(self) -> Bool:
        spent: Bool = self.clock[0] - self.last[: len(self)] > self.idle_ms
        return spent

    def _shape(self) -> Arrays:
        return {"shape": np.array([self.n, self.idle_ms], dtype=np.int64)}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Rebuild what `arrays` gave: the same reads and updates to the last bit."""
        n, idle = (int(number) for number in arrays["shape"])
        last = cls(n)
        last.idle_ms = idle
        last._restore(arrays)
        return last


def _thing(values: Float64) -> Bool:
    """Which values are numbers of things."""
    known: Bool = values >= 0  # NaN is not
    return known


@njit(cache=True, inline="always")
def _note(record, time, thing, clock, values, times, last):  # type: ignore[no-untyped-def]
    """Put a thing where its moment says; the oldest makes way."""
    clock[0] = max(clock[0], time)
    last[record] = max(last[record], time)
    n = values.shape[1]
    at = 0
    while at < n and values[record, at] != thing and values[record, at] != -1:
        at += 1
    if at == n:  # not held, and no room
        at = n - 1
        oldest, value = times[record, at], values[record, at]
        if time < oldest or (time == oldest and thing < value):
            return
    elif time <= times[record, at]:
        return
    while at > 0 and (
        times[record, at - 1] < time
        or (times[record, at - 1] == time and values[record, at - 1] < thing)
    ):
        values[record, at] = values[record, at - 1]
        times[record, at] = times[record, at - 1]
        at -= 1
    values[record, at] = thing
    times[record, at] = time


@njit(cache=True, inline="always")
def _tell(record, time, idle, values, times, at, out):  # type: ignore[no-untyped-def]
    for place in range(values.shape[1]):
        held = record >= 0 and values[record, place] >= 0 and time - times[record, place] <= idle
        out[at, place] = values[record, place] if held else -1


@njit(cache=True)
def _apply(records, moments, kept, things, clock, values, times, last):  # type: ignore[no-untyped-def]
    for row in range(len(records)):
        if records[row] >= 0 and kept[row]:
            _note(records[row], moments[row], np.int32(things[row]), clock, values, times, last)


@njit(cache=True)
def _read(records, time, idle, values, times, out):  # type: ignore[no-untyped-def]
    for at in range(len(records)):
        _tell(records[at], time, idle, values, times, at, out)


@njit(cache=True)
def _replay(  # type: ignore[no-untyped-def]
    records, moments, things, counts, reads, idle, clock, values, times, last, out
):
    row, at = 0, 0
    while row < len(records):
        end = row
        while end < len(records) and moments[end] == moments[row]:  # first all of its reads
            if reads[end]:
                _tell(records[end], moments[end], idle, values, times, at, out)
                at += 1
            end += 1
        for event in range(row, end):
            if counts[event] and records[event] >= 0:
                _note(
                    records[event],
                    moments[event],
                    np.int32(things[event]),
                    clock,
                    values,
                    times,
                    last,
                )
        row = end
