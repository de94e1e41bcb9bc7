"""Segments of a local log: files of blocks, a block for each commit, whole or not there.

A segment is made at its full size, all zeros, so that a commit changes no file's length: a sync
is then one write to the disk, and a full disk shows when a segment is made, never in one.

    segment   00000000000000000001.seg, named by its first offset: block, block, …, zeros
    block     magic, length of the payload, entries, first offset, CRC-32 of all; payload
    payload   JSON: [received, [[kind, quarantined, body], …]]

At most one block is on its way to the disk at any time. So whatever follows a damaged block and is
whole was durable once, and what was damaged is said aloud; with nothing behind it, it is the torn
end of a write that nobody was told had happened.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic_core import from_json, to_json

from raysys.eventlog.entries import Entry, NewEntry
from raysys.storage import sync_folder

MAGIC: Final = b"\xf5RL1"  # no UTF-8 has the first byte
_HEAD: Final = struct.Struct("<4sIIQ")
_CRC: Final = struct.Struct("<I")
HEADER: Final = _HEAD.size + _CRC.size
_ENDING: Final = ".seg"


@dataclass(frozen=True, slots=True)
class Block:
    """Where a block lies.

    Attributes:
        start, end: bytes in its segment.
        first: offset of its first entry; entries: how many.
    """

    start: int
    end: int
    first: int
    entries: int

    @property
    def last(self) -> int:
        """Offset of its last entry."""
        return self.first + self.entries - 1


def packed(entries: Sequence[NewEntry], first: int, received: int) -> bytes:
    """A block."""
    rows = [[entry.kind, entry.quarantined, entry.body] for entry in entries]
    payload = to_json([received, rows])
    head = _HEAD.pack(MAGIC, len(payload), len(entries), first)
    return head + _CRC.pack(zlib.crc32(payload, zlib.crc32(head))) + payload


def write_at(file: int, data: bytes, start: int) -> None:
    """Write all of it from a byte on."""
    written = 0
    while written < len(data):
        written += os.pwrite(file, data[written:], start + written)


def block_at(file: int, start: int) -> Block | None:
    """The whole block that begins at a byte; None: there is none. `file` is a descriptor."""
    found = _read(file, start)
    return found[0] if found else None


def entries_at(file: int, start: int) -> tuple[Block, list[Entry]] | None:
    """A block and its entries; None: there is none."""
    found = _read(file, start)
    if found is None:
        return None
    block, payload = found
    received, rows = from_json(payload)
    return block, [
        Entry(block.first + at, received, kind, body, quarantined)
        for at, (kind, quarantined, body) in enumerate(rows)
    ]


def peek(file: int, start: int) -> Block | None:
    """The block that a header announces, its payload not looked at; None: no header."""
    head = os.pread(file, HEADER, start)
    if len(head) < HEADER or not head.startswith(MAGIC):
        return None
    _, length, entries, first = _HEAD.unpack_from(head)
    return Block(start, start + HEADER + length, first, entries)


def _read(file: int, start: int) -> tuple[Block, bytes] | None:
    block = peek(file, start)
    if block is None:
        return None
    whole = os.pread(file, block.end - start, start)
    if len(whole) < block.end - start:
        return None
    (crc,) = _CRC.unpack_from(whole, _HEAD.size)
    payload = whole[HEADER:]
    if crc != zlib.crc32(payload, zlib.crc32(whole[: _HEAD.size])):
        return None
    return block, payload


def scan(file: int, start: int = 0) -> Iterator[Block | int]:
    """All whole blocks from a byte on; for damaged bytes between two of them, how many."""
    while True:
        block = block_at(file, start)
        if block is None:
            begin, block = start, next_block(file, start)
            if block is None:
                return
            yield block.start - begin
        yield block
        start = block.end


def next_block(file: int, start: int) -> Block | None:
    """The first whole block behind a byte."""
    size, step = os.fstat(file).st_size, 1 << 20
    at = start + 1
    while at < size:
        piece = os.pread(file, step + len(MAGIC), at)
        place = piece.find(MAGIC)
        while place >= 0:
            block = block_at(file, at + place)
            if block is not None:
                return block
            place = piece.find(MAGIC, place + 1)
        at += step
    return None


def segment_path(folder: Path, first: int) -> Path:
    """Where the segment with this first offset lies."""
    return folder / f"{first:020d}{_ENDING}"


def segments(folder: Path) -> list[int]:
    """First offsets of all segments, rising."""
    return sorted(int(path.stem) for path in folder.glob(f"*{_ENDING}") if path.stem.isdigit())


def make_segment(folder: Path, first: int, size: int) -> Path:
    """A segment of zeros, durable; there whole or not at all. Only who holds the log's lock may.

    Raises:
        OSError: no space.
    """
    path = segment_path(folder, first)
    for leftover in folder.glob("*.new"):  # of a writer that was killed: it held the lock, too
        leftover.unlink(missing_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}.new")
    file = os.open(fresh, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    try:
        zeros, left = bytes(1 << 20), size
        while left > 0:
            left -= os.write(file, zeros[: min(left, len(zeros))])
        os.fsync(file)
        fresh.rename(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    finally:
        os.close(file)
    sync_folder(folder)
    return path
