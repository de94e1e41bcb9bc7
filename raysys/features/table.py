"""State kept per key, and the one kernel that updates and reads it, offline and online alike.

A table keeps, for every key it has met (an item, a user, a user with a category, …):

- decayed counts: sum of weights, each halved every half-life since its event (several half-lives),
- decayed sums of a value (a price, say), so that sums / counts is a decayed mean,
- how many distinct moments it was seen, the first and the last of them.

History is replayed by `replay` over columns, serving calls `apply` on one event and `read` for one
request: the same compiled lines, so that both give the same values to the last bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

DAY_MS = 86_400_000.0
_EMPTY = -1
_NEVER = -(1 << 62)
_AHEAD = 64  # rows whose records are looked up together, so that the cache misses overlap


class Table:
    """Open-addressing hash of int64 keys onto records.

    Args:
        half_lives_days: float64[h], each above 0.
        fan: keys are `first * fan + second`; records of one `first` can be listed by `members`
            when `fan` > 1. 1 for tables with a single key.
        capacity: records to make room for; grows by itself.
    """

    def __init__(self, half_lives_days: Float64, fan: int = 1, capacity: int = 1024) -> None:
        self.half_lives_ms = np.asarray(half_lives_days, dtype=np.float64) * DAY_MS
        self.fan = fan
        self.size = np.zeros(1, dtype=np.int64)
        self.counted_until = _NEVER  # by `replay`
        self._allocate(capacity)
        self.head = np.full(1024 if fan > 1 else 0, _EMPTY, dtype=np.int64)

    def _allocate(self, capacity: int) -> None:
        width = len(self.half_lives_ms)
        self.slots = _slots_for(np.empty(0, dtype=np.int64), capacity)
        # All that is kept for a key lies side by side: one or two cache lines, not five.
        whole = np.zeros((capacity, 4 + 2 * width), dtype=np.int64)
        self.keys = whole[:, 0]
        self.times = whole[:, 1:4]  # moments, first, last
        self.counts = whole.view(np.float64)[:, 4 : 4 + width]
        self.sums = whole.view(np.float64)[:, 4 + width :]
        self.next = np.full(capacity if self.fan > 1 else 0, _EMPTY, dtype=np.int64)

    def __len__(self) -> int:
        return int(self.size[0])

    def apply(self, keys: Int64, times: Int64, weights: Float64, values: Float64) -> None:
        """Count events in time order; keys below 0 are skipped.

        Args:
            keys: int64[n]; times: int64[n], UTC ms; weights: float64[n];
            values: float64[n], NaN where an event has none (it then counts as the mean so far).
        """
        if not len(keys):
            return
        self._reserve(len(self) + len(keys))
        self._link(int(keys.max()))
        _apply(
            *(keys, times, weights, values, self.half_lives_ms, self.fan, self.size, self.slots),
            *(self.keys, self.counts, self.sums, self.times, self.head, self.next),
        )

    def replay(
        self,
        keys: Int64,
        times: Int64,
        weights: Float64,
        values: Float64,
        counts: Bool,
        reads: Bool,
    ) -> Stats:
        """Count rows and read others on the way, each read as of its own moment.

        A read sees strictly earlier moments only: what it gives, and what the table then holds,
        is to the last bit what `read` and then `apply` give, one moment at a time. No moment may be
        cut in two calls: the second could not tell its own events from earlier ones.

        Args:
            keys: int64[n], below 0: not counted, and read as a key never seen.
            times: int64[n], UTC ms, ascending, none before what was counted already.
            weights: float64[n]; values: float64[n], NaN where an event has none.
            counts: bool[n], the row is an event to count.
            reads: bool[n], the row is a read; a row may be both.

        Returns:
            one column for each True of `reads`, in their order.

        Raises:
            ValueError: the rows are not in time order, or begin within a moment that an earlier
                call has counted.
        """
        width, wanted = len(self.half_lives_ms), int(np.count_nonzero(reads))
        out_counts = np.zeros((width, wanted), dtype=np.float64)
        out_means = np.empty((width, wanted), dtype=np.float64)
        clocks = np.empty((4, wanted), dtype=np.float64)
        if len(times) and (int(times[0]) <= self.counted_until or (np.diff(times) < 0).any()):
            raise ValueError("rows must follow each other in time, no moment cut in two calls")
        counted = keys[counts]
        if len(counted):
            self.counted_until = int(times[np.flatnonzero(counts)[-1]])
            self._link(int(counted.max()))
        row, read = 0, 0
        while row < len(keys):
            row, read = _replay(
                *(row, read, keys, times, weights, values, counts, reads, self.half_lives_ms),
                *(self.fan, self.size, self.slots, self.keys, self.counts, self.sums, self.times),
                *(self.head, self.next, out_counts, out_means, clocks),
            )
            if row < len(keys):  # it stopped at a moment that might not find room
                moment = np.searchsorted(times[row:], times[row], side="right")
                self._reserve(max(2 * len(self.keys), len(self) + int(moment)))
        return Stats(out_counts, out_means, clocks)

    def find(self, keys: Int64) -> Int64:
        """Record numbers of keys: int64[n], -1 where never seen."""
        return _find(keys, self.slots, self.keys)

    def read(self, records: Int64, time: int) -> Stats:
        """What the records say at a moment, which must not lie before their last event."""
        width = len(self.half_lives_ms)
        counts = np.zeros((width, len(records)), dtype=np.float64)
        means = np.empty((width, len(records)), dtype=np.float64)
        clocks = np.empty((4, len(records)), dtype=np.float64)
        _read(
            *(records, time, self.half_lives_ms, self.counts, self.sums, self.times),
            *(counts, means, clocks),
        )
        return Stats(counts, means, clocks)

    def members(self, first: int) -> Int64:
        """Records whose key begins with `first`, newest key first: int64[m]."""
        if first < 0 or first >= len(self.head):
            return np.empty(0, dtype=np.int64)
        return _members(first, self.head, self.next)

    def second(self, records: Int64) -> Int64:
        """The second part of the records' keys: int64[m]."""
        found: Int64 = self.keys[records] % self.fan
        return found

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Everything to save, cut to size."""
        size = len(self)
        return {
            "half_lives_ms": self.half_lives_ms,
            "fan": np.array([self.fan], dtype=np.int64),
            "keys": self.keys[:size].copy(),
            "counts": self.counts[:size].copy(),
            "sums": self.sums[:size].copy(),
            "times": self.times[:size].copy(),
        }

    @classmethod
    def from_arrays(cls, arrays: dict[str, npt.NDArray[Any]]) -> Table:
        """Rebuild what `arrays` gave: the same reads and updates to the last bit."""
        size = len(arrays["keys"])
        table = cls(arrays["half_lives_ms"] / DAY_MS, int(arrays["fan"][0]), max(1024, size * 2))
        table.half_lives_ms = arrays["half_lives_ms"].copy()
        table.size[0] = size
        for name in ("keys", "counts", "sums", "times"):
            getattr(table, name)[:size] = arrays[name]
        table.slots = _slots_for(table.keys[:size], len(table.keys))
        if table.fan > 1 and size:
            top = int(table.keys[:size].max()) // table.fan
            table.head = np.full(max(1024, top + 1), _EMPTY, dtype=np.int64)
            _chain(table.keys[:size], table.fan, table.head, table.next)
        return table

    def _link(self, key: int) -> None:
        """Make room for the list of members that this key would be in."""
        top = key // self.fan
        if self.fan > 1 and top >= len(self.head):
            grown = np.full(max(2 * len(self.head), top + 1), _EMPTY, dtype=np.int64)
            grown[: len(self.head)] = self.head
            self.head = grown

    def _reserve(self, wanted: int) -> None:
        if wanted <= len(self.keys):
            return
        old, size = self, len(self)
        keep = (old.keys, old.counts, old.sums, old.times, old.next)
        self._allocate(max(wanted, 2 * len(self.keys)))
        for name, array in zip(("keys", "counts", "sums", "times", "next"), keep, strict=True):
            if len(array):
                getattr(self, name)[:size] = array[:size]
        self.slots = _slots_for(self.keys[:size], len(self.keys))


class Stats:
    """What n records say at one moment.

    Attributes:
        counts: float64[h, n], 0 for a key never seen.
        means: float64[h, n], NaN for a key never seen.
        moments, recency, age, interval: float64[n]; days, NaN where unknown. `interval` is the
            mean time between moments (needs two), `recency` the time since the last one.
    """

    def __init__(self, counts: Float64, means: Float64, clocks: Float64) -> None:
        self.counts = counts
        self.means = means
        self.moments, self.recency, self.age, self.interval = clocks


def _slots_for(keys: Int64, capacity: int) -> Int64:
    """A hash of twice the capacity, a power of two, with the given keys in it."""
    length = 1 << int(np.ceil(np.log2(max(8, 2 * capacity))))
    slots = np.full(length, _EMPTY, dtype=np.int64)
    _insert_all(keys, slots)
    return slots


@njit(cache=True, inline="always")
def _hash(key, mask):  # type: ignore[no-untyped-def]
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    return np.int64((mixed >> np.uint64(29)) & np.uint64(mask))


@njit(cache=True)
def _lookup(key, slots, keys):  # type: ignore[no-untyped-def]
    """Place of a key in the hash: its record's place, or the empty one where it belongs."""
    mask = len(slots) - 1
    place = _hash(key, mask)
    while slots[place] != -1 and keys[slots[place]] != key:
        place = (place + 1) & mask
    return place


@njit(cache=True)
def _insert_all(keys, slots):  # type: ignore[no-untyped-def]
    for record in range(len(keys)):
        slots[_lookup(keys[record], slots, keys)] = record


@njit(cache=True)
def _chain(keys, fan, head, following):  # type: ignore[no-untyped-def]
    for record in range(len(keys)):
        first = keys[record] // fan
        following[record] = head[first]
        head[first] = record


@njit(cache=True, inline="always")
def _tell(  # type: ignore[no-untyped-def]
    record, time, half_lives, counts, sums, times, at, out_counts, out_means, clocks
):
    """What a record says at a moment, into column `at`; nothing is known of record -1."""
    if record < 0:
        out_counts[:, at] = 0.0
        out_means[:, at] = np.nan
        clocks[0, at] = 0.0
        clocks[1:, at] = np.nan
        return
    moments, first, last = times[record, 0], times[record, 1], times[record, 2]
    for h in range(len(half_lives)):
        factor = 2.0 ** (-(time - last) / half_lives[h])
        out_counts[h, at] = counts[record, h] * factor
        total = counts[record, h]
        out_means[h, at] = sums[record, h] / total if total > 0 else np.nan
    clocks[0, at] = moments
    clocks[1, at] = (time - last) / DAY_MS
    clocks[2, at] = (time - first) / DAY_MS
    clocks[3, at] = (last - first) / DAY_MS / (moments - 1) if moments > 1 else np.nan


@njit(cache=True)
def _read(records, time, half_lives, counts, sums, times, out_counts, out_means, clocks):  # type: ignore[no-untyped-def]
    for at in range(len(records)):
        _tell(
            records[at],
            time,
            half_lives,
            counts,
            sums,
            times,
            at,
            out_counts,
            out_means,
            clocks,
        )


@njit(cache=True, inline="always")
def _count(  # type: ignore[no-untyped-def]
    record, time, weight_of, value_of, half_lives, counts, sums, times
):
    """One event onto its record."""
    last = times[record, 2]
    if time > last or times[record, 0] == 0:
        times[record, 0] += 1
    late = 0.0
    if time > last:  # most events of an order share one moment: nothing decays
        for h in range(len(half_lives)):
            factor = 2.0 ** (-(time - last) / half_lives[h])
            counts[record, h] *= factor
            sums[record, h] *= factor
        times[record, 2] = time
    elif time < last:
        late = float(last - time)
        if time < times[record, 1]:
            times[record, 1] = time
    for h in range(len(half_lives)):
        weight = weight_of
        if late > 0.0:
            weight *= 2.0 ** (-late / half_lives[h])
        value = value_of
        if value != value:  # NaN: the mean so far, so that the mean stays as it is
            value = sums[record, h] / counts[record, h] if counts[record, h] > 0 else 0.0
        counts[record, h] += weight
        sums[record, h] += weight * value


@njit(cache=True, inline="always")
def _enter(  # type: ignore[no-untyped-def]
    key, time, place, fan, size, slots, known, counts, sums, times, head, following
):
    """A record for a key never seen, at its place in the hash."""
    record = size[0]
    size[0] += 1
    slots[place] = record
    known[record] = key
    counts[record, :] = 0.0
    sums[record, :] = 0.0
    times[record, 0] = 0
    times[record, 1] = time
    times[record, 2] = time
    if fan > 1:
        first = key // fan
        following[record] = head[first]
        head[first] = record
    return record


@njit(cache=True)
def _apply(  # type: ignore[no-untyped-def]
    keys,
    when,
    weights,
    values,
    half_lives,
    fan,
    size,
    slots,
    known,
    counts,
    sums,
    times,
    head,
    following,
):
    for event in range(len(keys)):
        key = keys[event]
        if key < 0:
            continue
        time = when[event]
        place = _lookup(key, slots, known)
        record = np.int64(slots[place])
        if record == -1:
            record = _enter(
                key, time, place, fan, size, slots, known, counts, sums, times, head, following
            )
        _count(record, time, weights[event], values[event], half_lives, counts, sums, times)


@njit(cache=True)
def _replay(  # type: ignore[no-untyped-def]
    row,
    read,
    keys,
    when,
    weights,
    values,
    counted,
    reads,
    half_lives,
    fan,
    size,
    slots,
    known,
    counts,
    sums,
    times,
    head,
    following,
    out_counts,
    out_means,
    clocks,
):
    """From `row` on: the row and the read to go on with; a row below n when the table is too small.

    Records are looked up some rows ahead, all independent of each other, so that the processor
    waits for memory once for many rows and finds them in its cache when it counts.
    """
    n = len(keys)
    records = np.empty(n, dtype=np.int64)
    ahead = row
    while row < n:
        time = when[row]
        end = row + 1
        while end < n and when[end] == time:
            end += 1
        if size[0] + (end - row) > len(known):
            break
        if end > ahead:
            ahead = min(n, max(end, row + _AHEAD))
            for event in range(row, ahead):
                key = keys[event]
                records[event] = -1 if key < 0 else slots[_lookup(key, slots, known)]
        for event in range(row, end):
            if not reads[event]:
                continue
            record = records[event]
            if record == -1 and keys[event] >= 0:  # entered since it was looked up?
                record = slots[_lookup(keys[event], slots, known)]
            _tell(
                record, time, half_lives, counts, sums, times, read, out_counts, out_means, clocks
            )
            read += 1
        for event in range(row, end):
            key = keys[event]
            if key < 0 or not counted[event]:
                continue
            record = records[event]
            if record == -1:
                place = _lookup(key, slots, known)
                record = np.int64(slots[place])
                if record == -1:
                    record = _enter(
                        key,
                        time,
                        place,
                        fan,
                        size,
                        slots,
                        known,
                        counts,
                        sums,
                        times,
                        head,
                        following,
                    )
            _count(record, time, weights[event], values[event], half_lives, counts, sums, times)
        row = end
    return row, read


@njit(cache=True)
def _find(keys, slots, known):  # type: ignore[no-untyped-def]
    found = np.empty(len(keys), dtype=np.int64)
    for i in range(len(keys)):
        found[i] = -1 if keys[i] < 0 else slots[_lookup(keys[i], slots, known)]
    return found


@njit(cache=True)
def _members(first, head, following):  # type: ignore[no-untyped-def]
    count = 0
    record = head[first]
    while record != -1:
        count += 1
        record = following[record]
    found = np.empty(count, dtype=np.int64)
    record = head[first]
    for i in range(count):
        found[i] = record
        record = following[record]
    return found
