"""Reads the segments of a node's log, while others append to them."""

from __future__ import annotations

import bisect
import logging
import os
import threading
from pathlib import Path
from typing import Final

from raysys.eventlog import blocks
from raysys.eventlog.entries import Entry

log = logging.getLogger("raysys")

_OPEN: Final = 8  # segments kept open
_PLACES: Final = 64  # places where reads ended that are kept


class SegmentReader:
    """Entries by offset, for the threads of one process.

    Args:
        folder: of the log.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[int, int] = {}
        self._places: dict[int, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def read(self, after: int, end: int, limit: int) -> list[Entry]:
        """Entries behind an offset, in order.

        Args:
            after: the offset.
            end: no entry behind this one: it may be durable, but nobody said so yet.
            limit: a block in which it is reached is read whole.

        Raises:
            OSError: a segment cannot be read.
        """
        found: list[Entry] = []
        with self._lock:
            place = self._seek(after) if after < end else None
            while place is not None and len(found) < limit:
                segment, start = place
                read = blocks.entries_at(self._opened(segment), start)
                if read is None:
                    place = self._beyond(segment, start, found[-1].offset if found else after, end)
                    continue
                block, entries = read
                if block.first > end:
                    break
                found += [entry for entry in entries if entry.offset > after]
                place = (segment, block.end)
                self._remember(block.last, place)
                if block.last >= end:
                    break
        return found

    def close(self) -> None:
        """Let the files go."""
        with self._lock:
            for file in self._files.values():
                os.close(file)
            self._files = {}

    def _seek(self, after: int) -> tuple[int, int] | None:
        """Segment and byte where the entry after an offset is, or what comes next."""
        if after in self._places:
            place = self._places[after]
            if blocks.segment_path(self._folder, place[0]).exists():
                return place
        there = blocks.segments(self._folder)
        if not there:
            return None
        segment = there[max(0, bisect.bisect_right(there, after + 1) - 1)]
        file, start = self._opened(segment), 0
        while (block := blocks.peek(file, start)) is not None and block.last <= after:
            start = block.end
        return segment, start

    def _beyond(self, segment: int, start: int, read: int, end: int) -> tuple[int, int] | None:
        """Where to go on when no block begins here: the next segment, or behind damage."""
        following = next((s for s in blocks.segments(self._folder) if s > segment), None)
        if following == read + 1:
            return following, 0
        whole = blocks.next_block(self._opened(segment), start)
        if whole is not None and whole.first <= end:
            log.error("%s: entries %d to %d are damaged", self._folder, read + 1, whole.first - 1)
            return segment, whole.start
        return None if following is None else (following, 0)

    def _opened(self, segment: int) -> int:
        if segment not in self._files:
            while len(self._files) >= _OPEN:
                os.close(self._files.pop(next(iter(self._files))))
            path = blocks.segment_path(self._folder, segment)
            self._files[segment] = os.open(path, os.O_RDONLY)
        return self._files[segment]

    def _remember(self, after: int, place: tuple[int, int]) -> None:
        self._places[after] = place
        if len(self._places) > _PLACES:
            del self._places[next(iter(self._places))]
