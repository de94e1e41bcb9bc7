"""Records that are written behind an answer, where the disk refuses them."""

from __future__ import annotations

import os
import threading
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from raysys.serving import segment_writer
from raysys.serving.segment_writer import SegmentArgs, SegmentWriter, segments

SCHEMA = pa.schema([("timestamp", pa.timestamp("ms", "UTC")), ("n", pa.int64())])


def test_what_could_not_be_written_takes_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: Counter[str] = Counter()

    def count(rows: int, what: str) -> None:
        counts[what] += rows

    def full(_file: int) -> None:
        raise OSError(28, "No space left on device")

    args = SegmentArgs(segment_rows=1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        writer = SegmentWriter(args, tmp_path, SCHEMA, count, "records")
        writer.note(lambda: {"timestamp": 1_700_000_000_000, "n": 1})
        writer.close()
    assert counts == {"failed": 1}
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    writer = SegmentWriter(args, tmp_path, SCHEMA, count, "records")
    writer.note(lambda: {"timestamp": 1_700_000_000_000, "n": 1})
    writer.close()
    assert counts == {"failed": 1, "written": 1} and len(list(segments(tmp_path))) == 1


def test_a_disk_that_hangs_does_not_keep_a_replica_from_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_writer, "_NOBODY_WAITS_S", 0.01)
    begun, goes_on = threading.Event(), threading.Event()

    def hangs() -> dict[str, int]:
        begun.set()
        goes_on.wait(60)
        return {"timestamp": 1_700_000_000_000, "n": 1}

    writer = SegmentWriter(SegmentArgs(max_waiting=1), tmp_path, SCHEMA, lambda *_: None, "records")
    writer.note(hangs)
    assert begun.wait(30)
    writer.note(hangs)  # the queue is full now
    ended = threading.Thread(target=writer.close, daemon=True)
    ended.start()
    ended.join(30)
    assert not ended.is_alive()
    goes_on.set()
