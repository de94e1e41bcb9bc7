"""Segments: Parquet files that processes write beside each other, one every few seconds.

`date=2026-11-26/FIRST-LAST-WRITER-N.parquet`: first and last moment of its rows (UTC ms), whose it
is, and the writer's number N of it, or `N_M` where one holds what those from N to M held. A writer
merges its own little ones, so that a year has not a million files. What a merged one covers stays
for an hour, for those who listed it before; names say what is covered, so nobody reads rows twice,
whenever a writer is killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from raysys.storage import sync_folder

GRACE_S: Final = 3600.0
"""How long what a merged segment covers is left for those who listed it."""
MERGED_BYTES: Final = 64 << 20
_GROUP_ROWS: Final = 2000  # of a merged one, about: who wants a share of the rows reads some
_RECENT_S: Final = 7 * 86_400.0  # since something was written into a folder
_DAY: Final = timedelta(days=1)
_ABANDONED_S: Final = 86_400.0
_NAME: Final = re.compile(r"(\d+)-(\d+)-([0-9a-z]+)-(\d+)(?:_(\d+))?\.parquet")


@dataclass(frozen=True)
class Segment:
    """A file of a folder of segments.

    Attributes:
        path: of the file.
        first, last: moments between which its rows lie, UTC ms.
        writer: whose it is.
        numbers: of the segments that it holds: one, or those that were merged.
    """

    path: Path
    first: int
    last: int
    writer: str
    numbers: range

    @classmethod
    def of(cls, path: Path) -> Segment | None:
        """What a file's name says; None: it is no segment."""
        found = _NAME.fullmatch(path.name)
        if found is None:
            return None
        first, last, writer, number, until = found.groups()
        numbers = range(int(number), int(until or number) + 1)
        return cls(path, int(first), int(last), writer, numbers)


def name_of(first: int, last: int, writer: str, numbers: range) -> str:
    """The name of a segment's file; see `Segment`."""
    held = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]}_{numbers[-1]}"
    return f"{first}-{last}-{writer}-{held}.parquet"


def segments(folder: Path, since: int | None = None, until: int | None = None) -> list[Segment]:
    """Segments that may have rows from `since` to `until` (UTC ms; None: all), the newest first.

    A row is in one of them only. They may be gone when they are opened (`keep_days`).
    """
    found: list[Segment] = []
    for place, day in _places(folder):
        if since is not None and day < datetime.fromtimestamp(since / 1000, UTC).date() - _DAY:
            continue  # a segment lies under the day of its first row
        if until is not None and day > datetime.fromtimestamp(until / 1000, UTC).date():
            continue
        there = [each for path in _listed(place) if (each := Segment.of(path)) is not None]
        found += [
            each
            for each in _held_once(there)
            if (since is None or each.last >= since) and (until is None or each.first <= until)
        ]
    return sorted(found, key=lambda each: (each.first, each.path.name), reverse=True)


def read_once(paths: Iterable[Path]) -> list[Path]:
    """Files without those whose rows a merged segment among them holds too; in their order."""
    paths = list(paths)
    known = {path: Segment.of(path) for path in paths}
    by_folder: dict[Path, list[Segment]] = defaultdict(list)
    for path, each in known.items():
        if each is not None:
            by_folder[path.parent].append(each)
    kept = {each.path for there in by_folder.values() for each in _held_once(there)}
    return [path for path in paths if known[path] is None or path in kept]


def merge(parts: Sequence[Segment]) -> Segment:
    """One segment with the rows of several of one writer, of one date, in their order.

    It appears whole or not at all; the parts stay (see `tidy`). Memory holds some thousand rows.
    """
    numbers = range(parts[0].numbers[0], parts[-1].numbers[-1] + 1)
    first, last = min(each.first for each in parts), max(each.last for each in parts)
    folder = parts[0].path.parent
    name = name_of(first, last, parts[0].writer, numbers)
    fresh = folder / f".{name}.new"
    try:
        with fresh.open("wb") as file:
            _copy(parts, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(folder / name)
    except BaseException:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise
    sync_folder(folder)
    return Segment(folder / name, first, last, parts[0].writer, numbers)


def tidy(folder: Path, keep_days: float | None = None) -> int:
    """Remove what merged segments have covered for an hour, and what is too old; how many files.

    Any number of processes may do so at the same time. What is looked at are folders in which
    something changed lately, and dates that are too old.

    Args:
        folder: of segments.
        keep_days: segments are removed all of whose rows are older, and which are so themselves:
            where `clock` stands at a log's end, rows that are written now say so long ago. None:
            none is.
    """
    now = time.time()
    longest = None if keep_days is None else keep_days * 86_400
    removed = 0
    for place, day in _places(folder):
        began = datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()
        quiet = _age(place, now)
        old = longest is not None and began < now - longest
        if not old and quiet > _RECENT_S:
            continue
        for path in _outdated(place, now, longest):
            with contextlib.suppress(FileNotFoundError):  # another process did it
                path.unlink()
                removed += 1
        if old and quiet > _ABANDONED_S:  # nobody writes there
            with contextlib.suppress(OSError):  # there is something in it
                place.rmdir()
    return removed


def _outdated(place: Path, now: float, longest: float | None) -> Iterator[Path]:
    """Files of a date that nobody needs any more."""
    kept = []
    for path in _listed(place):
        if path.name.startswith(".") and path.name.endswith(".new"):  # who wrote it was killed
            if _age(path, now) > _ABANDONED_S:
                yield path
        elif (each := Segment.of(path)) is not None:
            if longest is None or now - each.last / 1000 <= longest or _age(path, now) <= longest:
                kept.append(each)
            else:
                yield path
    ages: dict[Path, float] = {}
    for each, merged in _covered(kept):
        if merged.path not in ages:
            ages[merged.path] = _age(merged.path, now)
        if ages[merged.path] > GRACE_S:
            yield each.path


def _places(folder: Path) -> Iterator[tuple[Path, date]]:
    """The folders by date, and their dates."""
    for place in folder.glob("date=*"):
        with contextlib.suppress(ValueError):
            yield place, date.fromisoformat(place.name.removeprefix("date="))


def _listed(place: Path) -> list[Path]:
    """What lies in a folder; nothing where it is gone, as dates that are too old are."""
    try:
        return list(place.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _copy(parts: Sequence[Segment], file: object) -> None:
    """The rows of segments into one file, some thousand at a time."""
    waiting: list[pa.Table] = []
    schema = pq.read_schema(parts[0].path)
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for each in parts:
            waiting.append(pq.read_table(each.path, partitioning=None))
            if sum(len(table) for table in waiting) >= _GROUP_ROWS:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting))


def _held_once(there: Sequence[Segment]) -> list[Segment]:
    """Segments of a date without those that another of their writer covers."""
    hidden = {each.path for each, _ in _covered(there)}
    return [each for each in there if each.path not in hidden]


def _covered(there: Sequence[Segment]) -> Iterator[tuple[Segment, Segment]]:
    """Segments of a date all of whose rows another one of their writer holds too, and which."""
    by_writer: dict[str, list[Segment]] = defaultdict(list)
    for each in there:
        by_writer[each.writer].append(each)
    for mine in by_writer.values():
        widest: Segment | None = None
        for each in sorted(mine, key=lambda one: (one.numbers[0], -len(one.numbers))):
            if widest is None or each.numbers[-1] > widest.numbers[-1]:
                widest = each
            elif len(widest.numbers) > len(each.numbers):
                yield each, widest


def _age(path: Path, now: float) -> float:
    try:
        return now - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
