"""Segments: rows are in one of them only, however they were merged and whoever was killed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys import segments as module
from raysys.segments import Segment, merge, name_of, read_once, segments, tidy

SCHEMA = pa.schema([("timestamp", pa.timestamp("ms", "UTC")), ("n", pa.int64())])
DAY = 86_400_000
NOON = int(time.time() * 1000) // DAY * DAY - DAY // 2  # of yesterday


def write(root: Path, writer: str, number: int, moments: list[int]) -> Segment:
    day = pl.Series([min(moments)]).cast(pl.Datetime("ms")).dt.date().to_list()[0]
    folder = root / f"date={day}"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"timestamp": at, "n": 1000 * number + at % 1000} for at in moments]
    path = folder / name_of(min(moments), max(moments), writer, range(number, number + 1))
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path)
    found = Segment.of(path)
    assert found is not None
    return found


def rows_of(paths: list[Path]) -> list[int]:
    return [n for path in paths for n in pq.read_table(path, partitioning=None)["n"].to_pylist()]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_names_say_what_is_held() -> None:
    for numbers in (range(7, 8), range(7, 12)):
        each = Segment.of(Path("date=2026-01-01") / name_of(1, 2, "ab12", numbers))
        assert each is not None and (each.first, each.last, each.writer) == (1, 2, "ab12")
        assert each.numbers == numbers
    for name in (".1-2-ab-3.parquet.new", "part-0.parquet", "1-2-ab-3.csv", "1-2.parquet"):
        assert Segment.of(Path(name)) is None


def test_a_merged_one_has_the_rows_of_its_parts_and_is_read_instead(tmp_path: Path) -> None:
    parts = [write(tmp_path, "a", n, [NOON + 10 * n, NOON + 10 * n + 5]) for n in range(1, 5)]
    other = write(tmp_path, "b", 1, [NOON + 1])
    before = rows_of([each.path for each in reversed(segments(tmp_path))])
    merged = merge(parts[:3])
    assert rows_of([merged.path]) == rows_of([each.path for each in parts[:3]])
    assert pq.read_schema(merged.path) == SCHEMA
    left = {merged.path, parts[3].path, other.path}
    assert {each.path for each in segments(tmp_path)} == left
    assert sorted(rows_of([each.path for each in segments(tmp_path)])) == sorted(before)
    foreign = tmp_path / "events.parquet"
    everything = [foreign, *sorted(tmp_path.rglob("date=*/*.parquet"))]
    assert len(everything) == 7 and set(read_once(everything)) == {foreign, *left}


def test_what_is_covered_goes_after_an_hour(tmp_path: Path) -> None:
    parts = [write(tmp_path, "a", n, [NOON + n]) for n in range(1, 4)]
    alone = write(tmp_path, "b", 2, [NOON])  # of another writer
    merged = merge(parts)
    assert tidy(tmp_path) == 0  # who listed them before may still open them
    past = time.time() - module.GRACE_S - 1
    os.utime(merged.path, (past, past))
    assert tidy(tmp_path) == 3
    assert names(tmp_path) == sorted([merged.path.name, alone.path.name])


def test_what_is_covered_goes_also_where_the_clock_stands_in_the_past(tmp_path: Path) -> None:
    long_ago = NOON - 2000 * DAY
    merged = merge([write(tmp_path, "a", n, [long_ago + n]) for n in range(1, 4)])
    past = time.time() - module.GRACE_S - 1
    os.utime(merged.path, (past, past))
    assert tidy(tmp_path) == 3 and names(tmp_path) == [merged.path.name]
    assert tidy(tmp_path, keep_days=30) == 0 and merged.path.parent.is_dir()


@pytest.mark.parametrize("at", ["written", "renamed"])
def test_a_merge_that_is_cut_off_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    parts = [write(tmp_path, "a", n, [NOON + n]) for n in range(1, 4)]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    place = {"written": (os, "fsync"), "renamed": (Path, "replace")}[at]
    with monkeypatch.context() as patched:
        patched.setattr(*place, killed)
        with pytest.raises(KeyboardInterrupt):
            merge(parts)
    assert {each.path for each in segments(tmp_path)} == {each.path for each in parts}
    assert names(tmp_path) == sorted(each.path.name for each in parts)


def test_what_a_killed_process_left_goes_after_a_day(tmp_path: Path) -> None:
    kept = write(tmp_path, "a", 1, [NOON])
    left = kept.path.parent / ".1-2-a-2.parquet.new"
    left.write_bytes(b"half")
    assert tidy(tmp_path) == 0  # it may be written just now
    long_ago = time.time() - 90_000
    os.utime(left, (long_ago, long_ago))
    assert tidy(tmp_path) == 1 and names(tmp_path) == [kept.path.name]


def test_what_is_too_old_goes_with_its_folder_and_nothing_else_does(tmp_path: Path) -> None:
    now = int(time.time() * 1000)
    days = {back: write(tmp_path, "a", back, [now - back * DAY]) for back in (0, 6, 8, 30)}
    mine = days[8].path.parent / "notes.txt"
    mine.write_text("of somebody")
    (tmp_path / "settings-abc.json").write_text("{}")
    assert tidy(tmp_path) == 0
    assert tidy(tmp_path, keep_days=7) == 0  # they were written just now, by another clock
    for back, each in days.items():
        for path in (each.path, each.path.parent):
            os.utime(path, (time.time() - back * 86_400,) * 2)
    assert tidy(tmp_path, keep_days=7) == 2
    assert {each.path for each in segments(tmp_path)} == {days[0].path, days[6].path}
    assert mine.exists() and not days[30].path.parent.exists()
    assert (tmp_path / "settings-abc.json").exists()


STRETCHES = st.lists(
    st.tuples(st.integers(0, 3 * DAY), st.integers(0, 600_000)), min_size=1, max_size=8
)


@given(STRETCHES, st.integers(-DAY, 4 * DAY), st.integers(0, 2 * DAY), st.booleans())
def test_every_row_of_a_time_is_in_one_segment(
    tmp_path_factory: pytest.TempPathFactory,
    stretches: list[tuple[int, int]],
    since: int,
    length: int,
    merged: bool,
) -> None:
    root = tmp_path_factory.mktemp("segments")
    moments: list[int] = []
    by_folder: dict[Path, list[Segment]] = {}
    for number, (first, span) in enumerate(sorted(stretches), start=1):
        mine = [NOON + first, NOON + first + span]
        moments += mine
        each = write(root, "a", number, mine)
        by_folder.setdefault(each.path.parent, []).append(each)
    if merged:
        for parts in by_folder.values():
            if len(parts) > 1:
                merge(parts)
    low, high = NOON + since, NOON + since + length
    found = segments(root, low, high)
    told = [
        at
        for each in found
        for at in pq.read_table(each.path, partitioning=None)["timestamp"]
        .cast(pa.int64())
        .to_pylist()
    ]
    assert sorted(at for at in told if low <= at <= high) == sorted(
        at for at in moments if low <= at <= high
    )
    assert [each.first for each in found] == sorted((e.first for e in found), reverse=True)
