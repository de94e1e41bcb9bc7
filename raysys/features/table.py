"""State kept per key, and the one kernel that updates and reads it, offline and online alike.

A table keeps, for every key it has met (an item, a user, a user with a category, …):

- decayed counts: sum of weights, each halved every half-life since its event (several half-lives),
- decayed sums of a value (a price, say), so that sums / counts is a decayed mean,
- how many distinct moments it was seen, the first and the last of them.

History is replayed by `replay` over columns, serving calls `apply` on one event and `read` for one
request: the same compiled lines, so that both give the same values to the last bit.

A late event (older than the newest of its key) counts with what is left of it by then; it is a
moment of its own in no case, and moves the first moment back if it is older than that.

With `max_idle_days` a key ages out: where nothing came for longer than that, it reads as if it had
never been seen, and starts anew with its next event. That does not depend on when `compact` takes
the dead records away. An event that would have aged out already when it arrives is not counted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from raysys.features.hashing import find as _find
from raysys.features.hashing import slots_for as _slots_for
from raysys.features.kernels import (
    _EMPTY,
    _FOREVER,
    _NEVER,
    DAY_MS,
    _apply,
    _chain,
    _members,
    _read,
    _replay,
)

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]


class Table:
    """Open-addressing hash of int64 keys onto records.

    Args:
        half_lives_days: float64[h], each above 0.
        fan: keys are `first * fan + second`; records of one `first` can be listed by `members`
            when `fan` > 1. 1 for tables with a single key.
        capacity: records to make room for; grows by itself.
        max_idle_days: keys without an event for longer than this age out; None: never.
        max_records: `compact` keeps no more than these, the newest by their last event; None: all.
    """

    def __init__(
        self,
        half_lives_days: Float64,
        fan: int = 1,
        capacity: int = 1024,
        *,
        max_idle_days: float | None = None,
        max_records: int | None = None,
    ) -> None:
        self.half_lives_ms = np.asarray(half_lives_days, dtype=np.float64) * DAY_MS
        self.fan = fan
        self.idle_ms = idle_ms(max_idle_days)
        self.max_records = max_records
        self.clock = np.full(1, _NEVER, dtype=np.int64)  # newest moment counted
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
        self._link(int(keys.max()))
        done = 0
        while done < len(keys):  # it stops where a new key finds no room
            self._reserve(len(self) + 1)
            done = _apply(
                *(done, keys, times, weights, values, self.half_lives_ms, self.idle_ms, self.fan),
                *(self.clock, self.size, self.slots, self.keys, self.counts, self.sums),
                *(self.times, self.head, self.next),
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
                *(self.idle_ms, self.fan, self.clock, self.size, self.slots, self.keys),
                *(self.counts, self.sums, self.times, self.head, self.next),
                *(out_counts, out_means, clocks),
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
            *(records, time, self.half_lives_ms, self.idle_ms, self.counts, self.sums, self.times),
            *(counts, means, clocks),
        )
        return Stats(counts, means, clocks)

    def alive(self, records: Int64, time: int) -> Bool:
        """Which records (none below 0) have not aged out by a moment: bool[n]."""
        kept: Bool = time - self.times[records, 2] <= self.idle_ms
        return kept

    def members(self, first: int, time: int | None = None) -> Int64:
        """Records whose key begins with `first`, newest key first: int64[m].

        Given a moment, without those that have aged out by then.
        """
        if first < 0 or first >= len(self.head):
            return np.empty(0, dtype=np.int64)
        records = _members(first, self.head, self.next)
        if time is None or self.idle_ms >= _FOREVER:
            return records
        return records[self.alive(records, time)]

    def second(self, records: Int64) -> Int64:
        """The second part of the records' keys: int64[m]."""
        found: Int64 = self.keys[records] % self.fan
        return found

    def compact(self) -> int:
        """Take away what has aged out and what is beyond `max_records`; how many records went.

        All other records keep their order, and read and count on as before to the last bit.
        """
        size = len(self)
        last = self.times[:size, 2]
        kept = np.flatnonzero(self.clock[0] - last <= self.idle_ms)
        kept = newest(kept, last, self.max_records)
        if len(kept) == size:
            return 0
        old = {name: getattr(self, name) for name in ("keys", "counts", "sums", "times")}
        self.size[0] = len(kept)
        self._allocate(max(1024, len(kept) + len(kept) // 4))
        for name, array in old.items():
            getattr(self, name)[: len(kept)] = array[kept]
        self._index()
        return size - len(kept)

    @property
    def nbytes(self) -> int:
        """Memory held, room to grow included."""
        held = (self.slots, self.keys, self.counts, self.sums, self.times, self.head, self.next)
        return sum(array.nbytes for array in held)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Everything to save, cut to size."""
        size = len(self)
        limits = [self.idle_ms, -1 if self.max_records is None else self.max_records]
        return {
            "half_lives_ms": self.half_lives_ms,
            "fan": np.array([self.fan], dtype=np.int64),
            "limits": np.array(limits, dtype=np.int64),
            "clock": self.clock.copy(),
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
        table.idle_ms, most = (int(limit) for limit in arrays["limits"])
        table.max_records = None if most < 0 else most
        table.clock[:] = arrays["clock"]
        table.size[0] = size
        for name in ("keys", "counts", "sums", "times"):
            getattr(table, name)[:size] = arrays[name]
        table._index()
        return table

    def _index(self) -> None:
        """Make slots and chains for the records that are there."""
        keys = self.keys[: len(self)]
        self.slots = _slots_for(keys, len(self.keys))
        if self.fan > 1:
            top = int(keys.max()) // self.fan if len(keys) else 0
            self.head = np.full(max(1024, top + 1), _EMPTY, dtype=np.int64)
            _chain(keys, self.fan, self.head, self.next)

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


def idle_ms(max_idle_days: float | None) -> int:
    """The longest pause a key survives, in ms."""
    return _FOREVER if max_idle_days is None else int(max_idle_days * DAY_MS)


def newest(records: Int64, last: Int64, most: int | None) -> Int64:
    """Of rising record numbers the `most` whose last event is newest, still rising: int64[m].

    Of equally old ones those that came later are kept.
    """
    if most is None or len(records) <= most:
        return records
    order = np.lexsort((records, last[records]))
    return np.sort(records[order[len(records) - most :]])
