"""Which ids a local log knows: an index in memory that all processes of a node share.

A hash table in a mapped file: 16 bytes a slot, 96 bits of an id's digest and the day until which
it must be known. Among 30 million ids two share those bits with a probability of 6 in 10^15. Ids
beyond their day go when the table is made anew, larger; until then they are still known.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from numba import njit

UInt64 = npt.NDArray[np.uint64]
Bool = npt.NDArray[np.bool_]

DAY_MS: Final = 86_400_000
_SLOTS: Final = 1 << 16  # of the smallest table
_FULL: Final = 0.6


class SharedIds:
    """One generation of the index.

    Args:
        folder: of the log.
        generation: names the file.
        slots: of a new file, a power of two; of one that is there as many as it has.
    """

    def __init__(self, folder: Path, generation: int, slots: int = _SLOTS) -> None:
        self.generation = generation
        self._folder = folder
        path = _path(folder, generation)
        file = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            size = os.fstat(file).st_size
            if size == 0:
                size = 16 * slots
                os.posix_fallocate(file, 0, size)  # a full disk shows here, not as a crash later
            self._map = mmap.mmap(file, size)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(file)
        self._table: UInt64 = np.frombuffer(self._map, dtype=np.uint64).reshape(-1, 2)

    def known(self, digests: Sequence[bytes]) -> Bool:
        """Which ids are in it: bool[n]."""
        return _known(self._table, _keys(digests, np.zeros(len(digests), np.uint64)))

    def add(self, digests: Sequence[bytes], until: npt.NDArray[np.int64]) -> int:
        """Add ids; how many were new.

        Args:
            digests: n of them, 16 bytes each.
            until: int64[n], day (UTC ms ÷ one day) up to which each must be known.
        """
        return int(_add(self._table, _keys(digests, until.astype(np.uint64))))

    def is_full(self, held: int, more: int) -> bool:
        """Whether `more` ids on top of those held would make it slow."""
        return held + more > _FULL * len(self._table)

    def grown(self, held: int, more: int, today: int) -> tuple[SharedIds, int]:
        """A new generation with room, without ids that may be forgotten; and how many it holds.

        Raises:
            OSError: no space.
        """
        living = int(np.count_nonzero((self._table[:, 1] & np.uint64(0xFFFFFFFF)) >= today))
        slots = _SLOTS
        while min(living, held) + more > _FULL * slots / 2:
            slots *= 2
        generation = self.generation + 1
        _path(self._folder, generation).unlink(missing_ok=True)  # of somebody killed at this
        fresh = SharedIds(self._folder, generation, slots)
        return fresh, int(_move(self._table, fresh._table, np.uint64(max(0, today))))

    def close(self) -> None:
        """Unmap."""
        del self._table
        self._map.close()

    def remove(self) -> None:
        """Unmap, and remove the file: others who have it mapped go on reading what it said."""
        self.close()
        _path(self._folder, self.generation).unlink(missing_ok=True)


def known_until(
    timestamps: npt.NDArray[np.int64], received: npt.NDArray[np.int64] | int, days: int
) -> npt.NDArray[np.int64]:
    """Day up to which each id must be known: so many after its event, or after it came in.

    Args:
        timestamps: int64[n], UTC ms of the events.
        received: int64[n] or one, UTC ms: old events may be sent today, and again tomorrow.
        days: how many.
    """
    newest: npt.NDArray[np.int64] = np.maximum(timestamps, received) // DAY_MS + days
    return np.maximum(0, newest)


def remove_all(folder: Path) -> None:
    """Remove every generation."""
    for path in folder.glob("ids-*.bin"):
        path.unlink(missing_ok=True)


def _path(folder: Path, generation: int) -> Path:
    return folder / f"ids-{generation}.bin"


def _keys(digests: Sequence[bytes], until: UInt64) -> UInt64:
    """Slots' contents: uint64[n, 2]."""
    keys = np.frombuffer(b"".join(digests), dtype=np.uint64).reshape(-1, 2).copy()
    keys[:, 0] |= np.uint64(1)  # an empty slot has 0
    keys[:, 1] = (keys[:, 1] & np.uint64(0xFFFFFFFF00000000)) | until
    return keys


@njit(cache=True, inline="always")
def _place(table, high, low):  # type: ignore[no-untyped-def]
    """Slot of a key, or the empty one where it belongs."""
    mask = np.uint64(len(table) - 1)
    place = (high >> np.uint64(1)) & mask
    while table[place, 0] != np.uint64(0):
        if table[place, 0] == high and table[place, 1] >> np.uint64(32) == low >> np.uint64(32):
            break
        place = (place + np.uint64(1)) & mask
    return place


@njit(cache=True)
def _known(table, keys):  # type: ignore[no-untyped-def]
    found = np.empty(len(keys), dtype=np.bool_)
    for row in range(len(keys)):
        place = _place(table, keys[row, 0], keys[row, 1])
        found[row] = table[place, 0] != np.uint64(0)
    return found


@njit(cache=True)
def _add(table, keys):  # type: ignore[no-untyped-def]
    new = 0
    for row in range(len(keys)):
        place = _place(table, keys[row, 0], keys[row, 1])
        if table[place, 0] == np.uint64(0):
            new += 1
            table[place, 1] = keys[row, 1]
            table[place, 0] = keys[row, 0]  # last: whoever is killed here leaves the slot empty
        elif table[place, 1] < keys[row, 1]:
            table[place, 1] = keys[row, 1]
    return new


@njit(cache=True)
def _move(old, new, today):  # type: ignore[no-untyped-def]
    moved = 0
    for row in range(len(old)):
        if old[row, 0] != np.uint64(0) and old[row, 1] & np.uint64(0xFFFFFFFF) >= today:
            place = _place(new, old[row, 0], old[row, 1])
            new[place, 1] = old[row, 1]
            new[place, 0] = old[row, 0]
            moved += 1
    return moved
