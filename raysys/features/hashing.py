"""An open-addressing hash from int64 keys to record numbers: what all state by key rests on.

Slots hold record numbers, -1 where free; records hold their own key. Nothing is ever deleted:
whoever drops records builds the slots anew.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

Int64 = npt.NDArray[np.int64]


def slots_for(keys: Int64, capacity: int) -> Int64:
    """A hash of at least twice the capacity, a power of two, with the given keys in it.

    Where a key comes twice its later record is found.
    """
    length = 1 << int(np.ceil(np.log2(max(8, 2 * capacity))))
    slots = np.full(length, -1, dtype=np.int64)
    _insert_all(keys, slots)
    return slots


@njit(cache=True, inline="always")
def _hash(key, mask):  # type: ignore[no-untyped-def]
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    return np.int64((mixed >> np.uint64(29)) & np.uint64(mask))


@njit(cache=True)
def lookup(key, slots, keys):  # type: ignore[no-untyped-def]
    """Place of a key in the hash: its record's place, or the empty one where it belongs."""
    mask = len(slots) - 1
    place = _hash(key, mask)
    while slots[place] != -1 and keys[slots[place]] != key:
        place = (place + 1) & mask
    return place


@njit(cache=True)
def find(keys, slots, known):  # type: ignore[no-untyped-def]
    """Record numbers of keys: int64[n], -1 where the key is below 0 or was never seen."""
    found = np.empty(len(keys), dtype=np.int64)
    for i in range(len(keys)):
        found[i] = -1 if keys[i] < 0 else slots[lookup(keys[i], slots, known)]
    return found


@njit(cache=True)
def admit(row, keys, wanted, slots, known, size, found):  # type: ignore[no-untyped-def]
    """Like `find`, into `found`, but keys that are wanted and new get the next records.

    From `row` on: the row to go on with; below n when `known` is full.
    """
    while row < len(keys):
        found[row] = -1
        if keys[row] >= 0:
            place = lookup(keys[row], slots, known)
            if slots[place] == -1 and wanted[row]:
                if size[0] == len(known):
                    break
                known[size[0]] = keys[row]
                slots[place] = size[0]
                size[0] += 1
            found[row] = slots[place]
        row += 1
    return row


@njit(cache=True)
def _insert_all(keys, slots):  # type: ignore[no-untyped-def]
    for record in range(len(keys)):
        slots[lookup(keys[record], slots, keys)] = record
