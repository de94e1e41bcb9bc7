"""Records written as Parquet behind an answer: a bounded queue, and a thread that empties it.

Each segment (see `raysys.segments`) is written beside its place, synced, and renamed into it.
Answers never wait: what the queue has no room for is dropped, and counted. What is queued when a
process is killed is lost: at most the seconds of one segment; a replica that ends writes all it
has. Every hour, and when it ends, it makes one of its little segments; every hour what is too old
goes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import random
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from raysys.config import Settings
from raysys.segments import MERGED_BYTES, Segment, merge, name_of, tidy
from raysys.storage import sync_folder

log = logging.getLogger("raysys")

Record = Callable[[], dict[str, Any]]
Count = Callable[[int, Literal["written", "dropped", "failed"]], None]
_NOBODY_WAITS_S: Final = 30  # for a disk, when a replica ends
_MERGE_WAITS_S: Final = 2  # for the last merge; what it does not get to stays in parts
_UPKEEP_S: Final = 3600.0


class SegmentArgs(Settings):
    """How often records are written.

    Attributes:
        segment_s: a segment is written so often,
        segment_rows: or when so many records are waiting.
        max_waiting: beyond this many unwritten ones, records are dropped and counted.
        keep_days: what is older is removed, users' ids and queries with it; null: nothing is.
    """

    segment_s: Annotated[float, Field(gt=0)] = 10
    segment_rows: Annotated[int, Field(ge=1)] = 5000
    max_waiting: Annotated[int, Field(ge=1)] = 20_000
    keep_days: Annotated[float, Field(gt=0)] | None = None


class SegmentWriter:
    """Takes records and writes them; safe to use from several threads.

    Args:
        args: how often.
        folder: of the segments, absolute; made if need be.
        schema: of a record; has a column `timestamp` (ms, UTC).
        count: counts records by what became of them: written, dropped, failed.
        what: records are called in the log of the process.
    """

    def __init__(
        self,
        args: SegmentArgs,
        folder: Path,
        schema: pa.Schema,
        count: Count,
        what: str,
    ) -> None:
        self.args, self._folder, self._schema = args, folder, schema
        self._count, self._what = count, what
        self._folder.mkdir(parents=True, exist_ok=True)
        self._replica = uuid.uuid4().hex[:8]
        self._queue: queue.Queue[Record | None] = queue.Queue(args.max_waiting)
        self._written = 0
        self._alone: list[Segment] = []  # written since the last merge
        self._upkeep_due = time.monotonic() + _UPKEEP_S * random.uniform(0.5, 1)  # not all at once
        self._flushed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=what, daemon=True)
        self._thread.start()

    def note(self, record: Record) -> None:
        """Have a record written; never waits.

        Args:
            record: gives a row of the schema; called in the writing thread.
        """
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self._count(1, "dropped")

    def close(self) -> None:
        """Write what is there, and end; not where the disk hangs for long.

        The segments are merged after that: others of the replica have yet to be written.
        """
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=_NOBODY_WAITS_S)
            self._flushed.wait(timeout=_NOBODY_WAITS_S)
            self._thread.join(timeout=_MERGE_WAITS_S)

    def _run(self) -> None:
        rows: list[dict[str, Any]] = []
        due = time.monotonic() + self.args.segment_s
        while True:
            try:
                record = self._queue.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                record = _nothing
            if record is not None and record is not _nothing:
                try:
                    rows.append(record())
                except Exception:
                    log.exception("one of the %s could not be recorded", self._what)
                    self._count(1, "failed")
            ended = record is None
            if ended or len(rows) >= self.args.segment_rows or time.monotonic() >= due:
                if rows:
                    self._write(rows)
                rows, due = [], time.monotonic() + self.args.segment_s
            if ended:
                self._flushed.set()
                self._merge()
                return
            if time.monotonic() >= self._upkeep_due:
                self._upkeep_due = time.monotonic() + _UPKEEP_S
                self._tidy()  # first: it may be what a merge needs room for
                self._merge()

    def _tidy(self) -> None:
        """Remove what nobody needs any more."""
        try:
            tidy(self._folder, self.args.keep_days)
        except Exception:
            log.exception("old segments of the %s could not be removed", self._what)

    def _merge(self) -> None:
        """Make one of many little segments."""
        for parts in _mergeable(self._alone):
            try:
                merge(parts)
            except Exception:  # they can be read as they are
                log.exception("segments of the %s could not be made one", self._what)
        self._alone = []

    def _write(self, rows: list[dict[str, Any]]) -> None:
        fresh: Path | None = None
        try:
            table = pa.Table.from_pylist(rows, schema=self._schema)
            first, last = (int(f(table["timestamp"]).cast(pa.int64()).as_py()) for f in _ENDS)
            day = datetime.fromtimestamp(first / 1000, UTC).date().isoformat()
            folder = self._folder / f"date={day}"
            folder.mkdir(exist_ok=True)
            self._written += 1
            numbers = range(self._written, self._written + 1)
            name = name_of(first, last, self._replica, numbers)
            fresh = folder / f".{name}.new"  # no reader takes it for a segment
            with fresh.open("wb") as file:
                pq.write_table(table, file, compression="zstd")
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(folder / name)
            self._alone.append(Segment(folder / name, first, last, self._replica, numbers))
            sync_folder(folder)
            self._count(len(rows), "written")
        except Exception:  # a full disk must not end the writing, nor be filled further
            if fresh is not None:
                with contextlib.suppress(OSError):
                    fresh.unlink(missing_ok=True)
            log.exception("%d %s could not be written", len(rows), self._what)
            self._count(len(rows), "failed")


def _mergeable(alone: list[Segment]) -> list[list[Segment]]:
    """Segments of a date that follow each other and make one of no more than `MERGED_BYTES`."""
    groups: list[list[Segment]] = []
    room = 0
    for each in alone:
        try:
            size = each.path.stat().st_size
        except OSError:  # too old by now
            continue
        last = groups[-1][-1] if groups else None
        follows = last is not None and last.numbers[-1] + 1 == each.numbers[0]
        if follows and last is not None and last.path.parent == each.path.parent and size <= room:
            groups[-1].append(each)
        else:
            groups.append([each])
            room = MERGED_BYTES
        room -= size
    return [each for each in groups if len(each) > 1]


def _nothing() -> dict[str, Any]:
    return {}


_ENDS = (pc.min, pc.max)
