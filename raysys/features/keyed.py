"""State kept per key: what every kind of it offers, and the part that kinds have in common.

Every kind (`Table`, `Window`, `Last`) is driven by the same methods:

- `apply(keys, times, weights, values)` counts events, in columns or one by one,
- `find(keys)` gives records, `read(records, time)` what they say at a moment,
- `replay(keys, times, weights, values, counts, reads)` does both over a history,
- `compact()` takes away what has aged out, `arrays()` and `from_arrays()` save and restore.

Keys are int64, -1 for none: such an event is not counted, such a read knows nothing. Duplicates
are the event log's business: state counts what it is given, as often as it is given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from raysys.features.hashing import admit, find, slots_for
from raysys.features.table import newest

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
Arrays = dict[str, npt.NDArray[Any]]

OF_STATE = frozenset({"half_lives_ms", "fan", "limits", "clock", "shape", "spans", "max_records"})
"""Names in `arrays()` that a state has once; all others have a row for each record. States of
disjoint keys are joined by putting their rows one after the other, with the newest `clock`."""

LONG_AGO = -(1 << 62)  # ms; before every moment


class State(Protocol):
    """What every kind of state by key offers, beside `find`, `read` and `replay` of its own."""

    def __len__(self) -> int:
        """Records held."""
        ...

    @property
    def nbytes(self) -> int:
        """Memory held, room to grow included."""
        ...

    def apply(self, keys: Int64, times: Int64, weights: Float64, values: Float64) -> None:
        """Count events; keys below 0 are skipped."""
        ...

    def compact(self) -> int:
        """Take away what has aged out; how many records went."""
        ...

    def arrays(self) -> Arrays:
        """Everything to save."""
        ...


class Keyed(ABC):
    """Records of equal size by int64 key, each in arrays of its own; grows by itself.

    Args:
        layout: what a record holds, by name: shape, dtype, and the value it has while empty.
        capacity: records to make room for.
        max_records: `compact` keeps no more than these, the newest by their last event; None: all.

    Attributes:
        data: array[capacity, *shape] by name of the layout.
        last: int64[capacity], UTC ms of each record's newest event.
        clock: int64[1], UTC ms of the newest event of all.
    """

    def __init__(
        self,
        layout: Mapping[str, tuple[tuple[int, ...], Any, Any]],
        capacity: int = 1024,
        max_records: int | None = None,
    ) -> None:
        self._layout = {**layout, "last": ((), np.int64, LONG_AGO)}
        self.max_records = max_records
        self.clock = np.full(1, LONG_AGO, dtype=np.int64)
        self.size = np.zeros(1, dtype=np.int64)
        self._allocate(capacity)

    def _allocate(self, capacity: int) -> None:
        self.keys = np.empty(capacity, dtype=np.int64)
        self.slots = slots_for(self.keys[:0], capacity)
        self.data: Arrays = {
            name: np.full((capacity, *shape), empty, dtype=dtype)
            for name, (shape, dtype, empty) in self._layout.items()
        }

    def __len__(self) -> int:
        return int(self.size[0])

    @property
    def last(self) -> Int64:
        """UTC ms of each record's newest event: int64[capacity]."""
        return self.data["last"]

    @property
    def nbytes(self) -> int:
        """Memory held, room to grow included."""
        held = (self.keys, self.slots, *self.data.values())
        return sum(array.nbytes for array in held)

    def find(self, keys: Int64) -> Int64:
        """Record numbers of keys: int64[n], -1 where never seen."""
        return find(keys, self.slots, self.keys)

    @abstractmethod
    def apply(self, keys: Int64, times: Int64, weights: Float64, values: Float64) -> None:
        """Count events: int64[n], int64[n] UTC ms, float64[n], float64[n]."""

    @abstractmethod
    def read(self, records: Int64, time: int) -> Any:
        """What records (int64[n], -1: never seen) say at a moment, none before their events."""

    @abstractmethod
    def replay(
        self,
        keys: Int64,
        times: Int64,
        weights: Float64,
        values: Float64,
        counts: Bool,
        reads: Bool,
    ) -> Any:
        """Count rows and read others on the way, each as of its own moment.

        A read sees strictly earlier moments only: it gives to the last bit what `read` gives
        where `apply` is called moment by moment. A moment must not be cut in two calls.

        Args:
            keys: int64[n], below 0: not counted, and read as a key never seen.
            times: int64[n], UTC ms, ascending, all after what was counted already.
            weights: float64[n]; values: float64[n].
            counts: bool[n], the row is an event to count.
            reads: bool[n], the row is a read; a row may be both.

        Returns:
            what `read` gives, one column for each True of `reads`, in their order.

        Raises:
            ValueError: rows out of order, or within a moment that was counted already.
        """

    @abstractmethod
    def _spent(self) -> Bool:
        """Which records say nothing any more at `clock` or later: bool[len(self)]."""

    @abstractmethod
    def _shape(self) -> Arrays:
        """What `from_arrays` needs to make an empty one like this."""

    def compact(self) -> int:
        """Take away what has aged out and what is beyond `max_records`; how many records went.

        All other records keep their order, and read and count on as before to the last bit.
        """
        size = len(self)
        kept = newest(np.flatnonzero(~self._spent()), self.last[:size], self.max_records)
        if len(kept) == size:
            return 0
        keys, data = self.keys, self.data
        self._allocate(max(1024, len(kept) + len(kept) // 4))
        self._fill(keys[kept], {name: array[kept] for name, array in data.items()})
        return size - len(kept)

    def arrays(self) -> Arrays:
        """Everything to save, cut to size."""
        size = len(self)
        most = -1 if self.max_records is None else self.max_records
        return {
            **self._shape(),
            "max_records": np.array([most], dtype=np.int64),
            "clock": self.clock.copy(),
            "keys": self.keys[:size].copy(),
            **{name: array[:size].copy() for name, array in self.data.items()},
        }

    def _restore(self, arrays: Arrays) -> None:
        """Take over what `arrays` gave of a state of the same shape."""
        most = int(arrays["max_records"][0])
        self.max_records = None if most < 0 else most
        self.clock[:] = arrays["clock"]
        self._allocate(max(1024, 2 * len(arrays["keys"])))
        self._fill(arrays["keys"], {name: arrays[name] for name in self._layout})

    def _fill(self, keys: Int64, data: Arrays) -> None:
        self.size[0] = len(keys)
        self.keys[: len(keys)] = keys
        self.slots = slots_for(keys, len(self.keys))
        for name, array in data.items():
            self.data[name][: len(keys)] = array

    def _admit(self, keys: Int64, counts: Bool) -> Int64:
        """Record numbers of keys, made where a row counts and its key is new: int64[n].

        A new record is empty and reads like a key never seen, so it may be there early.
        """
        found = np.empty(len(keys), dtype=np.int64)
        row = 0
        while row < len(keys):  # it stops where a new key finds no room
            self._reserve(len(self) + 1)
            row = admit(row, keys, counts, self.slots, self.keys, self.size, found)
        self._hold(len(self))
        return found

    def _reserve(self, wanted: int) -> None:
        """Room for keys; records follow in `_hold`, when it is known how many are new."""
        if wanted > len(self.keys):
            grown = np.empty(max(wanted, 2 * len(self.keys)), dtype=np.int64)
            grown[: len(self)] = self.keys[: len(self)]
            self.keys = grown
            self.slots = slots_for(grown[: len(self)], len(grown))

    def _hold(self, wanted: int) -> None:
        """Room for records."""
        held = len(self.last)
        if wanted > held:
            for name, (shape, dtype, empty) in self._layout.items():
                room: npt.NDArray[Any] = np.full((max(wanted, 2 * held), *shape), empty, dtype)
                room[:held] = self.data[name]
                self.data[name] = room

    def _check_order(self, times: Int64) -> None:
        if len(times) and (int(times[0]) <= int(self.clock[0]) or (np.diff(times) < 0).any()):
            raise ValueError("rows must follow each other in time, no moment cut in two calls")
