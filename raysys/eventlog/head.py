"""Where a local log ends, in memory that all processes of a node share.

A mapped file with two slots and a number that says which one holds: a writer fills the other one
and turns the number, so that one killed in between has changed nothing. It is a cache: after the
machine was restarted, what it says may be newer than what the disk kept, and is not believed.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SLOT: Final = struct.Struct("<16sQQQQQQQ")
_CRC: Final = struct.Struct("<I")
_WHICH: Final = struct.Struct("<Q")
_PLACES: Final = (256, 512)
_SIZE: Final = 4096


@dataclass(frozen=True, slots=True)
class Head:
    """What the slot says.

    Attributes:
        boot: of the machine that wrote it, 16 bytes.
        end: offset of the newest durable entry, 0 for none.
        segment: first offset of the segment that is written to, 0 for none.
        last, byte: where its last block begins, and where it ends.
        generation, ids: which file holds the index of ids, and how many it holds.
        damaged: bytes that were found damaged since the log began.
    """

    boot: bytes
    end: int = 0
    segment: int = 0
    last: int = 0
    byte: int = 0
    generation: int = 0
    ids: int = 0
    damaged: int = 0


class SharedHead:
    """The mapped file.

    Args:
        path: made if it is not there.
    """

    def __init__(self, path: Path) -> None:
        file = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            if os.fstat(file).st_size < _SIZE:
                os.ftruncate(file, _SIZE)
            self._map = mmap.mmap(file, _SIZE)
        finally:
            os.close(file)

    def read(self) -> Head | None:
        """What it says; None: nothing, or nothing that can be believed."""
        for _ in range(100):
            (which,) = _WHICH.unpack_from(self._map, 0)
            place = _PLACES[which & 1]
            told = bytes(self._map[place : place + _SLOT.size + _CRC.size])
            if _CRC.unpack_from(told, _SLOT.size)[0] == zlib.crc32(told[: _SLOT.size]) and any(
                told
            ):
                return Head(*_SLOT.unpack_from(told))
            if _WHICH.unpack_from(self._map, 0)[0] == which:
                return None  # not just turned while we read
        return None

    def write(self, head: Head) -> None:
        """Say something new; only who holds the log's lock may."""
        (which,) = _WHICH.unpack_from(self._map, 0)
        told = _SLOT.pack(
            head.boot, head.end, head.segment, head.last, head.byte, head.generation, head.ids,
            head.damaged,
        )  # fmt: skip
        place = _PLACES[(which + 1) & 1]
        self._map[place : place + _SLOT.size + _CRC.size] = told + _CRC.pack(zlib.crc32(told))
        _WHICH.pack_into(self._map, 0, which + 1)

    def close(self) -> None:
        """Unmap."""
        self._map.close()


def this_boot() -> bytes:
    """16 bytes that differ after the machine was restarted."""
    told = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return bytes.fromhex(told.replace("-", ""))
