"""The event log of one node: segments on its disk, appended to by all its processes.

Whoever appends holds a lock of the operating system's, which a killed process lets go. Under it:
look the ids up, write one block, sync it, take note of the ids, move the end. A process that dies
between sync and end leaves a block that the next one finds behind the end, and takes over: nobody
was told of it, but who sends it again is told, rightly, that it is there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from raysys.errors import UserError
from raysys.eventlog import blocks
from raysys.eventlog.entries import (
    Appended,
    Entry,
    Held,
    LogUnavailable,
    NewEntry,
    Outcome,
)
from raysys.eventlog.group import GroupCommit
from raysys.eventlog.head import Head, SharedHead, this_boot
from raysys.eventlog.ids import DAY_MS, SharedIds, known_until, remove_all
from raysys.eventlog.reader import SegmentReader
from raysys.eventlog.rolled import Rolled
from raysys.eventlog.settings import LogSettings
from raysys.storage import sync_folder, write_atomic

log = logging.getLogger("raysys")

_POLL_S: Final = 0.01  # between looks at what other processes appended


class LocalLog:
    """See `EventLog`.

    Args:
        folder: of the log, on a disk of this machine; made if it is not there.
        settings: size of segments, of the queue, and how long ids are known.

    Raises:
        UserError: the folder cannot be written to.
        LogUnavailable: the disk is full.
    """

    def __init__(self, folder: Path, settings: LogSettings) -> None:
        self.folder, self.settings = folder, settings
        self._group: GroupCommit = GroupCommit(self._write, settings.queue_events)
        self._boot = this_boot()
        self._threads = threading.Lock()
        self._news = threading.Condition()
        self._ids: SharedIds | None = None
        self._writing: tuple[int, int] | None = None  # segment and its descriptor
        self._reader = SegmentReader(folder)
        self._trusted = self._closed = False
        try:
            (folder / "positions").mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o644)
            self._head = SharedHead(folder / "head")
        except OSError as error:
            raise UserError(
                f"the event log cannot be opened: {error.strerror}",
                where=str(folder),
                mend="give a folder of a local disk that the server may write to (events.path)",
            ) from None
        with self._locked(), _in_our_words(folder):
            self._remember_days = _longest(folder / "remember_days", settings.remember_days)
            self._state()
            assert self._ids is not None
            self._ids.known([])  # compiled now, so that the first event need not wait
            self._ids.add([], np.empty(0, np.int64))

    def submit(self, entries: Sequence[NewEntry]) -> Future[Appended]:
        """See `EventLog`."""
        return self._group.submit(entries)

    def append(self, entries: Sequence[NewEntry]) -> Appended:
        """See `EventLog`."""
        return self.submit(entries).result()

    def end(self) -> int:
        """See `EventLog`."""
        head = self._head.read()
        return head.end if head is not None else 0

    def damaged(self) -> int:
        """Damaged bytes that were left out since the log began."""
        head = self._head.read()
        return head.damaged if head is not None else 0

    def first(self) -> int:
        """See `EventLog`."""
        return next(iter(blocks.segments(self.folder)), self.end() + 1)

    def read(self, after: int, limit: int = 10_000) -> list[Entry]:
        """See `EventLog`."""
        with _in_our_words(self.folder):
            return self._reader.read(after, self.end(), limit)

    def wait(self, after: int, timeout_s: float) -> bool:
        """See `EventLog`."""
        deadline = time.monotonic() + timeout_s
        while self.end() <= after:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            with self._news:
                self._news.wait(min(left, _POLL_S))
        return True

    def position(self, consumer: str) -> int:
        """See `EventLog`."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int((self.folder / "positions" / _named(consumer)).read_text())
        return 0

    def commit(self, consumer: str, offset: int) -> None:
        """See `EventLog`."""
        path = self.folder / "positions" / _named(consumer)
        with _in_our_words(self.folder):
            fresh = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
            with fresh.open("w") as file:
                file.write(str(offset))
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
            sync_folder(path.parent)

    def drop(self, until: int) -> int:
        """See `EventLog`; whole segments go, never the one that is written to."""
        with self._locked(), _in_our_words(self.folder):
            there = blocks.segments(self.folder)
            gone = 0
            for first, following in itertools.pairwise(there):
                if following - 1 > until:
                    break
                blocks.segment_path(self.folder, first).unlink()
                gone += following - first
            return gone

    @contextlib.contextmanager
    def exclusively(self, name: str) -> Iterator[Held | None]:
        """See `EventLog`."""
        file = os.open(self.folder / f"{_named(name)}.lock", os.O_CREAT | os.O_RDWR, 0o644)
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            yield lambda: True  # as long as this process lives
        finally:
            os.close(file)  # which lets the lock go

    def close(self) -> None:
        """See `EventLog`."""
        self._group.close()
        with self._threads:
            if self._closed:
                return
            self._closed = True
            if self._ids is not None:
                self._ids.close()
                self._ids = None
            self._reader.close()
            if self._writing is not None:
                os.close(self._writing[1])
                self._writing = None
            os.close(self._lock)

    # --- appending, all under the lock

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._threads:  # the system's lock knows processes, not threads
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _write(self, batches: Sequence[Sequence[NewEntry]]) -> list[Appended]:
        with self._locked(), _in_our_words(self.folder):
            head = self._state()
            ids = self._ids
            assert ids is not None  # `_state` sees to it
            whole = [entry for batch in batches for entry in batch]
            digests = [entry.digest for entry in whole]
            known = ids.known(digests) if whole else np.empty(0, np.bool_)
            seen: set[bytes] = set()
            fresh: list[NewEntry] = []
            outcomes: list[Outcome] = []
            for entry, digest, there in zip(whole, digests, known, strict=True):
                again = bool(there) or digest in seen
                outcomes.append("duplicate" if again else "accepted")
                if not again:
                    seen.add(digest)
                    fresh.append(entry)
            if fresh:
                head = self._commit(head, fresh)
        with self._news:
            self._news.notify_all()
        appended, at = [], 0
        for batch in batches:
            appended.append(Appended(outcomes[at : at + len(batch)], head.end))
            at += len(batch)
        return appended

    def _commit(self, head: Head, fresh: Sequence[NewEntry]) -> Head:
        """Write one block and move the end behind it."""
        head = self._roomy(head, len(fresh))
        received = time.time_ns() // 1_000_000
        data = blocks.packed(fresh, head.end + 1, received)
        size = self.settings.segment_mb << 20
        segment, start = head.segment, head.byte
        if blocks.segment_path(self.folder, head.end + 1).exists():
            # Of somebody who was killed, or failed, before the first block was in it. Readers look
            # for the next entry there, and may have it open: it is this file or none.
            segment, start = head.end + 1, 0
            sync_folder(self.folder)
        elif not segment or start + len(data) > os.fstat(self._segment(segment)).st_size:
            segment, start = head.end + 1, 0
            blocks.make_segment(self.folder, segment, max(size, len(data)))
        file = self._segment(segment)
        if start + len(data) > os.fstat(file).st_size:
            os.posix_fallocate(file, 0, start + len(data))
        blocks.write_at(file, data, start)
        os.fdatasync(file)
        block = blocks.Block(start, start + len(data), head.end + 1, len(fresh))
        return self._take(replace(head, segment=segment), block, fresh, received)

    def _take(
        self,
        head: Head,
        block: blocks.Block,
        entries: Sequence[NewEntry],
        received: int,
        *,
        tell: bool = True,
    ) -> Head:
        """Take note of a durable block: its ids first, then the end, and tell others of it."""
        assert self._ids is not None
        times = np.array([entry.timestamp for entry in entries], dtype=np.int64)
        until = known_until(times, received, self._remember_days)
        new = self._ids.add([entry.digest for entry in entries], until)
        head = replace(head, end=block.last, last=block.start, byte=block.end, ids=head.ids + new)
        if tell:
            self._head.write(head)
        return head

    def _roomy(self, head: Head, more: int, *, tell: bool = True) -> Head:
        """Make the index of ids anew where it has no room, and tell others of it."""
        ids = self._ids
        assert ids is not None
        if not ids.is_full(head.ids, more):
            return head
        fresh, held = ids.grown(head.ids, more, time.time_ns() // 1_000_000 // DAY_MS)
        head = replace(head, generation=fresh.generation, ids=held)
        if tell:
            self._head.write(head)
        self._ids = fresh
        ids.remove()
        return head

    def _state(self) -> Head:
        """Where the log ends; after a restart or damage found out by reading it."""
        head = self._head.read()
        if head is None or head.boot != self._boot or not (self._trusted or self._holds(head)):
            head = self._recovered(head)
        self._trusted = True
        if self._ids is None or self._ids.generation != head.generation:
            if self._ids is not None:
                self._ids.close()
            self._ids = SharedIds(self.folder, head.generation)
        return self._adopted(head)

    def _holds(self, head: Head) -> bool:
        """Whether the files are as the head says: it may have been copied, or they damaged."""
        if not (self.folder / f"ids-{head.generation}.bin").exists():
            return False
        if not head.segment:
            return not blocks.segments(self.folder)
        if not blocks.segment_path(self.folder, head.segment).exists():
            return False
        block = blocks.block_at(self._segment(head.segment), head.last)
        return block is not None and (block.end, block.last) == (head.byte, head.end)

    def _adopted(self, head: Head) -> Head:
        """Take over what somebody wrote who was killed before saying so."""
        while True:
            segment, start = head.segment, head.byte
            found = blocks.entries_at(self._segment(segment), start) if segment else None
            if found is None:
                segment, start = head.end + 1, 0
                if not blocks.segment_path(self.folder, segment).exists():
                    return head
                found = blocks.entries_at(self._segment(segment), start)
            if found is None or found[0].first != head.end + 1:
                return head
            block, entries = found
            # It may have been killed before the sync, or that has failed: then what we read is in
            # memory alone, and Linux takes it for written until it is written once more.
            file = self._segment(segment)
            blocks.write_at(file, os.pread(file, block.end - block.start, block.start), block.start)
            os.fdatasync(file)
            head = self._roomy(head, len(entries))
            came = entries[0].received
            head = self._take(replace(head, segment=segment), block, _again(entries), came)

    def _recovered(self, before: Head | None) -> Head:
        """Read all segments: where the log ends, and the index of ids made anew."""
        began = time.monotonic()
        generation = before.generation + 1 if before else 1
        remove_all(self.folder)
        if self._ids is not None:
            self._ids.close()
        self._ids = SharedIds(self.folder, generation)
        rolled = Rolled(self.folder)
        head = Head(self._boot, generation=generation, damaged=before.damaged if before else 0)
        today = time.time_ns() // 1_000_000 // DAY_MS
        for digests, until in rolled.ids(self._remember_days, today):
            head = self._roomy(head, len(digests), tell=False)
            head = replace(head, ids=head.ids + self._ids.add(digests, until))
        rolled_to = rolled.last()
        damaged, in_last, end = 0, 0, rolled_to
        there = blocks.segments(self.folder)
        for first in there:
            in_last = 0
            if first > end + 1:
                damaged += 1
                log.error("%s: entries %d to %d are not there", self.folder, end + 1, first - 1)
            head = replace(head, segment=first, byte=0, last=0, end=first - 1)
            file = self._segment(first)
            for found in blocks.scan(file):
                if isinstance(found, int):
                    damaged += found
                    in_last += found
                    continue
                read = blocks.entries_at(file, found.start)
                assert read is not None  # it was whole a moment ago
                head = self._roomy(head, found.entries, tell=False)
                came = read[1][0].received
                head = self._take(head, found, _again(read[1]), came, tell=False)
            end = head.end
        if not there:
            head = replace(head, end=rolled_to)
        elif head.end < rolled_to:  # no offset is given twice, and what is rolled is not lost
            damaged += 1
            in_last += 1
            log.warning(
                "%s: entries %d to %d are not there, the rolled files hold them",
                self.folder, head.end + 1, rolled_to,
            )  # fmt: skip
            head = replace(head, end=rolled_to)
        elif head.end > rolled_to and blocks.peek(self._segment(head.segment), head.byte):
            log.warning("%s: its last write was cut off; nobody was told of it", self.folder)
        if before is not None and before.boot == self._boot and before.end > head.end:
            damaged += 1
            in_last += 1
            log.error(
                "%s: acknowledged events %d to %d are damaged and lost",
                self.folder, head.end + 1, before.end,
            )  # fmt: skip
            head = replace(head, end=before.end)  # no offset is given twice
        if damaged > head.damaged:  # what was found before is found again, until it is dropped
            log.error("%s: %d damaged bytes were left out", self.folder, damaged)
            head = replace(head, damaged=damaged)
        if in_last and head.segment:  # begin a new one: what lies behind damage is not written over
            head = replace(head, segment=0, byte=0, last=0)
        self._head.write(head)
        if there:
            seconds = time.monotonic() - began
            log.info("%s: read again up to %d in %.1f s", self.folder, head.end, seconds)
        return head

    def _segment(self, first: int) -> int:
        """Descriptor of the segment that is written to."""
        if self._writing is None or self._writing[0] != first:
            if self._writing is not None:
                os.close(self._writing[1])
                self._writing = None
            path = blocks.segment_path(self.folder, first)
            self._writing = (first, os.open(path, os.O_RDWR))
        return self._writing[1]


def _again(entries: Sequence[Entry]) -> list[NewEntry]:
    """Entries as they were appended."""
    return [
        NewEntry(e.body["event_id"], e.body["timestamp"], e.kind, e.body, e.quarantined)
        for e in entries
    ]


def _longest(path: Path, days: int) -> int:
    """How long ids are known: the most that anybody asked for who opened this log.

    Whoever opens it first after a restart makes the index anew, for all: a tool with settings of
    its own must not shorten it for a server that takes older events.
    """
    known = 0
    with contextlib.suppress(FileNotFoundError, ValueError):
        known = int(path.read_text())
    if days > known:
        write_atomic(path, f"{days}\n")
    return max(days, known)


def _named(consumer: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", consumer):
        raise ValueError(f"{consumer!r} is no name of a consumer")
    return consumer


@contextlib.contextmanager
def _in_our_words(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise LogUnavailable(f"the disk that holds {folder} is full") from error
        raise LogUnavailable(f"{folder}: {error.strerror or error}") from error
