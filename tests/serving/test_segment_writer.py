"""Records that are written behind an answer, where the disk refuses them."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys.segments import merge, segments
from raysys.serving import segment_writer
from raysys.serving.segment_writer import SegmentArgs, SegmentWriter

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


def test_a_replica_leaves_one_segment_where_it_wrote_many(tmp_path: Path) -> None:
    writer = SegmentWriter(
        SegmentArgs(segment_rows=1), tmp_path, SCHEMA, lambda *_: None, "records"
    )
    for n in range(20):
        writer.note(lambda n=n: {"timestamp": 1_700_000_000_000 + n, "n": n})
    writer.close()
    (merged,) = segments(tmp_path)
    assert merged.numbers == range(1, 21)
    assert (merged.first, merged.last) == (1_700_000_000_000, 1_700_000_000_019)
    assert pq.read_table(merged.path, partitioning=None)["n"].to_pylist() == list(range(20))


def test_large_segments_stay_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = SegmentWriter(SegmentArgs(), tmp_path / "one", SCHEMA, lambda *_: None, "records")
    alone.note(lambda: {"timestamp": 1_700_000_000_000, "n": 1})
    alone.close()
    (one,) = segments(tmp_path / "one")
    monkeypatch.setattr(segment_writer, "MERGED_BYTES", one.path.stat().st_size * 5 // 2)
    tmp_path = tmp_path / "many"
    writer = SegmentWriter(
        SegmentArgs(segment_rows=1), tmp_path, SCHEMA, lambda *_: None, "records"
    )
    for n in range(5):
        writer.note(lambda n=n: {"timestamp": 1_700_000_000_000 + n, "n": n})
    writer.close()
    found = segments(tmp_path)
    assert sorted(len(each.numbers) for each in found) == [1, 2, 2]
    assert sorted(n for each in found for n in each.numbers) == [1, 2, 3, 4, 5]


def test_while_it_runs_it_merges_and_forgets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = int(time.time() * 1000)
    args = SegmentArgs(segment_rows=1, segment_s=0.02, keep_days=2)
    old = SegmentWriter(args, tmp_path, SCHEMA, lambda *_: None, "records")
    old.note(lambda: {"timestamp": now - 3 * 86_400_000, "n": 0})
    monkeypatch.setattr(segment_writer, "tidy", lambda *_: 0)
    old.close()
    monkeypatch.undo()
    (written,) = segments(tmp_path)
    os.utime(written.path, (time.time() - 3 * 86_400,) * 2)
    merged = threading.Event()

    def told(parts: list) -> object:
        found = merge(parts)
        merged.set()
        return found

    monkeypatch.setattr(segment_writer, "merge", told)
    monkeypatch.setattr(segment_writer, "_UPKEEP_S", 0.2)
    writer = SegmentWriter(args, tmp_path, SCHEMA, lambda *_: None, "records")
    n = 0
    until = time.monotonic() + 30
    while not merged.is_set() and time.monotonic() < until:
        n += 1
        writer.note(lambda n=n: {"timestamp": now + n, "n": n})
        merged.wait(0.01)
    assert merged.is_set()
    writer.close()
    rows = [
        row
        for each in segments(tmp_path)
        for row in pq.read_table(each.path, partitioning=None)["n"].to_pylist()
    ]
    assert sorted(rows) == list(range(1, n + 1))  # what was three days old is gone


def test_an_upkeep_that_fails_is_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(segment_writer, "merge", full)
    tidied: list[Path] = []
    monkeypatch.setattr(segment_writer, "tidy", lambda folder, _: tidied.append(folder))
    monkeypatch.setattr(segment_writer, "_UPKEEP_S", 0.0)
    writer = SegmentWriter(
        SegmentArgs(segment_rows=1), tmp_path, SCHEMA, lambda *_: None, "records"
    )
    for n in range(3):
        writer.note(lambda n=n: {"timestamp": 1_700_000_000_000 + n, "n": n})
    writer.close()
    assert len(segments(tmp_path)) == 3 and tidied  # a full disk is what it is for


@pytest.mark.parametrize(
    ("fails", "numbers", "rows"),
    [
        (2, [[1], [3, 4]], [0, 2, 3]),  # the second file: its number is in no name
        (1, [[1, 2, 3, 4]], [0, 1, 2, 3]),  # the folder, after the first is in its place
    ],
)
def test_what_a_name_claims_it_holds(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fails: int,
    numbers: list[list[int]],
    rows: list[int],
) -> None:
    counts: Counter[str] = Counter()
    sync, calls = os.fsync, iter(range(100))

    def once(file: int) -> None:
        if next(calls) == fails:
            raise OSError(5, "Input/output error")
        sync(file)

    def count(rows: int, what: str) -> None:
        counts[what] += rows

    monkeypatch.setattr(os, "fsync", once)
    writer = SegmentWriter(SegmentArgs(segment_rows=1), tmp_path, SCHEMA, count, "records")
    for n in range(4):
        writer.note(lambda n=n: {"timestamp": 1_700_000_000_000 + n, "n": n})
    writer.close()
    assert counts == {"written": 3, "failed": 1}
    found = segments(tmp_path)
    assert sorted(list(each.numbers) for each in found) == numbers
    held = [pq.read_table(each.path, partitioning=None)["n"].to_pylist() for each in found]
    assert sorted(n for each in held for n in each) == rows
