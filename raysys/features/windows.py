"""Exact aggregates over the last hours or days, by key: a ring of buckets each.

Time is cut into buckets of equal width, from 1970 in UTC on. A window of k buckets at moment t is
the bucket that t lies in, as far as it has come, and the k - 1 whole ones before it: so it spans
more than k - 1 and at most k widths. Within that it is exact: what counts is what happened in
those buckets, whole, and nothing else.

A late event goes to the bucket of its own moment, so that counts of whole weights, smallest,
largest and days are as if it had come in time, and sums too but for the rounding of their last
bits. One whose bucket no window can reach any more is not counted.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt
from numba import njit

from raysys.features.keyed import LONG_AGO, Arrays, Bool, Float64, Int64, Keyed

HOUR_MS = 3_600_000
_DAY_MS = 24 * HOUR_MS
_EMPTY = np.iinfo(np.int32).min
# The cells of a bucket: sum of weights; where values are kept also the weight of the events that
# have one, the sum of weight × value, the smallest and the largest (NaN while there is none).
_CELLS = 5


class WindowStats:
    """What n records say at one moment, of s windows.

    Attributes:
        counts: float64[s, n], sum of weights; 0 for a key never seen.
        sums: float64[s, n], sum of weight × value over the events with a value; 0 where none.
        means, lows, highs: float64[s, n], of the values; NaN where there is none.
        days: float64[s, n], distinct UTC days with an event.
        cells: float64[6, s, n], all of these.

    Of a window that keeps no values, sums, means, lows and highs are NaN.
    """

    def __init__(self, cells: Float64) -> None:
        self.cells = cells
        self.counts, self.sums, self.means, self.lows, self.highs, self.days = cells


class Window(Keyed):
    """Aggregates over windows of whole buckets.

    Args:
        width_ms: of a bucket; divides a day or is divided by one.
        spans: int64[s], windows in buckets, rising.
        valued: keep sums, means, smallest and largest of values, not only counts.
        capacity, max_records: see `Keyed`.
    """

    def __init__(
        self,
        width_ms: int,
        spans: npt.ArrayLike,
        *,
        valued: bool = False,
        capacity: int = 1024,
        max_records: int | None = None,
    ) -> None:
        self.width_ms = width_ms
        self.spans = np.asarray(spans, dtype=np.int64)
        self.valued = valued
        ring = int(self.spans[-1])
        layout: dict[str, tuple[tuple[int, ...], Any, Any]] = {
            "stamps": ((ring,), np.int32, _EMPTY),  # the bucket that each place of the ring holds
            "cells": ((ring, _CELLS if valued else 1), np.float64, 0.0),
        }
        super().__init__(layout, capacity, max_records)

    def apply(self, keys: Int64, times: Int64, weights: Float64, values: Float64) -> None:
        """Count events; keys below 0 are skipped.

        Args:
            keys: int64[n]; times: int64[n], UTC ms; weights: float64[n];
            values: float64[n], NaN where an event has none.
        """
        records = self._admit(keys, np.ones(len(keys), dtype=np.bool_))
        _apply(records, times, weights, values, self.width_ms, self.clock, *self._parts())

    def read(self, records: Int64, time: int) -> WindowStats:
        """What the records say at a moment, which must not lie before their last event."""
        cells = np.empty((6, len(self.spans), len(records)), dtype=np.float64)
        _read(records, time, self.width_ms, self.spans, *self._parts(), cells)
        return WindowStats(cells)

    def replay(
        self,
        keys: Int64,
        times: Int64,
        weights: Float64,
        values: Float64,
        counts: Bool,
        reads: Bool,
    ) -> WindowStats:
        """Count rows and read others on the way: see `Keyed.replay`."""
        self._check_order(times)
        records = self._admit(keys, counts)
        cells = np.empty((6, len(self.spans), int(np.count_nonzero(reads))), dtype=np.float64)
        _replay(
            *(records, times, weights, values, counts, reads, self.width_ms, self.spans),
            *(self.clock, *self._parts(), cells),
        )
        return WindowStats(cells)

    def _parts(self) -> tuple[npt.NDArray[np.int32], Float64, Int64]:
        return self.data["stamps"], self.data["cells"], self.last

    def _spent(self) -> Bool:
        reach = int(self.clock[0]) // self.width_ms - int(self.spans[-1])
        spent: Bool = self.last[: len(self)] // self.width_ms <= reach
        return spent

    def _shape(self) -> Arrays:
        shape = [self.width_ms, int(self.valued)]
        return {"shape": np.array(shape, dtype=np.int64), "spans": self.spans}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Rebuild what `arrays` gave: the same reads and updates to the last bit."""
        width, valued = (int(number) for number in arrays["shape"])
        window = cls(width, arrays["spans"].copy(), valued=bool(valued))
        window._restore(arrays)
        return window


@njit(cache=True, inline="always")
def _count(record, time, weight, value, width, clock, stamps, cells, last):  # type: ignore[no-untyped-def]
    """One event into the bucket of its moment."""
    clock[0] = max(clock[0], time)
    bucket = time // width
    place = bucket % stamps.shape[1]
    if stamps[record, place] > bucket:
        return  # so late that its place serves a newer bucket
    last[record] = max(last[record], time)
    if stamps[record, place] < bucket:
        stamps[record, place] = bucket
        cells[record, place, :] = 0.0
        if cells.shape[2] > 1:
            cells[record, place, 3:] = np.nan
    cells[record, place, 0] += weight
    if cells.shape[2] > 1 and value == value:
        cells[record, place, 1] += weight
        cells[record, place, 2] += weight * value
        if not cells[record, place, 3] <= value:  # NaN too
            cells[record, place, 3] = value
        if not cells[record, place, 4] >= value:
            cells[record, place, 4] = value


@njit(cache=True, inline="always")
def _tell(record, time, width, spans, stamps, cells, last, at, out):  # type: ignore[no-untyped-def]
    """All windows of one record at a moment, into column `at`."""
    ring, valued = stamps.shape[1], cells.shape[2] > 1
    now = time // width
    count, weight, total, low, high, days = 0.0, 0.0, 0.0, np.nan, np.nan, 0.0
    day = LONG_AGO
    # where even the newest event lies behind, nothing needs to be looked at
    empty = record < 0 or last[record] // width <= now - ring
    back = 0
    for s in range(len(spans)):
        while back < spans[s] and not empty:
            bucket = now - back
            place = bucket % ring
            back += 1
            if stamps[record, place] != bucket:
                continue
            count += cells[record, place, 0]
            this = bucket * width // _DAY_MS
            if this != day:
                days += 1.0
                day = this
            if valued and cells[record, place, 3] == cells[record, place, 3]:
                weight += cells[record, place, 1]
                total += cells[record, place, 2]
                if not low <= cells[record, place, 3]:
                    low = cells[record, place, 3]
                if not high >= cells[record, place, 4]:
                    high = cells[record, place, 4]
        out[0, s, at] = count
        out[1, s, at] = total if valued else np.nan
        out[2, s, at] = total / weight if weight > 0.0 else np.nan
        out[3, s, at] = low
        out[4, s, at] = high
        out[5, s, at] = days


@njit(cache=True)
def _apply(records, times, weights, values, width, clock, stamps, cells, last):  # type: ignore[no-untyped-def]
    for row in range(len(records)):
        if records[row] >= 0:
            _count(
                records[row],
                times[row],
                weights[row],
                values[row],
                width,
                clock,
                stamps,
                cells,
                last,
            )


@njit(cache=True)
def _read(records, time, width, spans, stamps, cells, last, out):  # type: ignore[no-untyped-def]
    for at in range(len(records)):
        _tell(records[at], time, width, spans, stamps, cells, last, at, out)


@njit(cache=True)
def _replay(  # type: ignore[no-untyped-def]
    records,
    times,
    weights,
    values,
    counts,
    reads,
    width,
    spans,
    clock,
    stamps,
    cells,
    last,
    out,
):
    row, at = 0, 0
    while row < len(records):
        end = row
        while end < len(records) and times[end] == times[row]:  # a moment: first all of its reads
            if reads[end]:
                _tell(records[end], times[end], width, spans, stamps, cells, last, at, out)
                at += 1
            end += 1
        for event in range(row, end):
            if counts[event] and records[event] >= 0:
                _count(
                    records[event],
                    times[event],
                    weights[event],
                    values[event],
                    width,
                    clock,
                    stamps,
                    cells,
                    last,
                )
        row = end
