"""What a deployment recorded of its answers, and the events that they got, as tables.

Read are the columns that are needed, of the rows that overlap the time: of many groups of them
some, and of many lists a share, drawn by name and request id: what a look costs is bounded.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl
import pyarrow.parquet as pq

from raysys.errors import UserError
from raysys.eventlog.entries import EventLog
from raysys.eventlog.rolled import Rolled
from raysys.segments import segments

_NEEDED: Final = ("request_id", "timestamp", "surface", "item_ids", "took_ms")
_WANTED: Final = (*_NEEDED, "place", "user_id", "session_id", "query", "bundle", "arm")
_TAIL: Final = 300_000
"""Entries of the log that are not rolled yet and are read at most, the newest."""

_FILES: Final = 2000
"""Files of shown lists that are opened at most: a busy replica writes one every few seconds."""

_SPARE: Final = 10  # rows that are read for one that is kept

_DRAW: Final = 1 << 20

EVENTS: Final = pl.Schema(
    {
        "event_type": pl.String,
        "request_id": pl.String,
        "item_id": pl.String,
        "received": pl.Int64,  # UTC ms
    }
)
Reactions = Callable[[int, pl.Series], pl.DataFrame]
"""Events that came in since a moment, UTC ms, and name one of these requests; see `EVENTS`."""


@dataclass(frozen=True)
class Lists:
    """Lists that were answered.

    Attributes:
        rows: request_id, at (UTC ms), surface, place, who, query, bundle, arm, item_ids, took_ms.
        total: how many there were in all, about; more than rows where a share was drawn.
    """

    rows: pl.DataFrame
    total: int


def read_lists(folder: Path, since: int, until: int, most: int) -> Lists:
    """Lists answered from `since` (UTC ms) on and before `until`.

    Args:
        folder: that the deployment's `shown_lists.folder` names.
        since, until: UTC ms.
        most: rows, about.

    Raises:
        UserError: no such folder, or a file lacks columns.
    """
    if not folder.is_dir():
        raise UserError(
            "no folder of shown lists",
            where=str(folder),
            mend="give the folder that the serve config names (`shown_lists.folder`)",
        )
    paths = _paths(folder, since, until)
    opened = 0
    groups: list[_Group] = []
    for path in paths[:_FILES]:
        with contextlib.suppress(FileNotFoundError), pq.ParquetFile(path) as file:
            groups += _groups(path, file, since, until)  # one at a time: a process may open 1000
            opened += 1
    groups.sort(key=lambda each: each.draw)
    inside = sum(each.inside for each in groups)
    total = round(inside * len(paths) / max(1, opened))
    chosen: dict[Path, list[int]] = {}
    taken = read = 0
    expected = 0.0
    for each in groups:
        if taken >= _SPARE * most:
            break
        read += 1
        chosen.setdefault(each.path, []).append(each.number)
        taken += each.rows
        expected += each.inside
    limit = _DRAW if expected <= most else round(_DRAW * most / expected)
    parts = []
    for path, numbers in sorted(chosen.items()):
        with contextlib.suppress(FileNotFoundError), pq.ParquetFile(path) as file:
            part = _read(file, sorted(numbers), since, until, limit)
            if len(part):
                parts.append(part)
    if not parts:
        return Lists(_rows(pl.DataFrame({name: [] for name in _NEEDED})), 0)
    found = _rows(pl.concat(parts, how="diagonal_relaxed")).sort("at", "request_id")
    drawn = limit < _DRAW or read < len(groups) or opened < len(paths)
    return Lists(found, total if drawn else len(found))


def read_events(folder: Path) -> Reactions:
    """Of Parquet files in the columns of `schema.LOGGED_EVENTS`, such as a log's rolled ones.

    Args:
        folder: of the files, or one file.

    Raises:
        UserError: nothing there.
    """
    paths = [folder] if folder.is_file() else sorted(folder.glob("**/*.parquet"))
    if not paths:
        raise UserError("no Parquet file of events here", where=str(folder))
    return lambda since, ids: _concat([_from_file(path, since, ids) for path in paths])


def follow_log(log: EventLog, rolled: Rolled) -> Reactions:
    """Of a deployment's event log: its rolled files, and what is not rolled yet.

    Raises (when it is called):
        LogUnavailable: the log cannot be read.
    """

    def reactions(since: int, ids: pl.Series) -> pl.DataFrame:
        files = [
            rolled.events / f"{stretch.name}.parquet"
            for stretch in rolled.stretches()
            if stretch.received >= since and stretch.events
        ]
        parts = [_from_file(path, since, ids) for path in files if path.exists()]
        wanted = set(ids)
        at = max(rolled.last(), log.end() - _TAIL)
        rows: list[dict[str, Any]] = []
        while entries := log.read(at):
            at = entries[-1].offset
            rows += [
                {
                    "event_type": each.body.get("event_type"),
                    "request_id": each.body["request_id"],
                    "item_id": each.body.get("item_id"),
                    "received": each.received,
                }
                for each in entries
                if each.kind == "event"
                and each.quarantined is None
                and each.received >= since
                and each.body.get("request_id") in wanted
            ]
        return _concat([*parts, pl.DataFrame(rows, schema=EVENTS)])

    return reactions


def _paths(folder: Path, since: int, until: int) -> list[Path]:
    """Files that overlap a time, in an order drawn by their names."""
    found = [each.path for each in segments(folder, since, until - 1)]
    return sorted(found, key=lambda path: hashlib.blake2b(path.name.encode()).digest())


@dataclass(frozen=True)
class _Group:
    """Some rows of a file that are read together.

    Attributes:
        path, number: the file, and which of its row groups.
        rows: of it; inside: of these so many lie in the time that is asked for, about.
        draw: its place in a random order that stays the same.
    """

    path: Path
    number: int
    rows: int
    inside: float
    draw: bytes


def _groups(path: Path, file: pq.ParquetFile, since: int, until: int) -> list[_Group]:
    """The row groups of a file that overlap a time."""
    found = []
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        first, last = _span(group, path)
        if group.num_rows and last >= since and first < until:
            share = (min(last, until) - max(first, since)) / (last - first) if last > first else 1.0
            draw = hashlib.blake2b(f"{path.name} {number}".encode()).digest()
            found.append(_Group(path, number, group.num_rows, group.num_rows * share, draw))
    return found


def _span(group: Any, path: Path) -> tuple[int, int]:
    """First and last moment of a row group, UTC ms; those of its file where it says none."""
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema == "timestamp" and column.is_stats_set:
            ends = column.statistics.min, column.statistics.max
            if all(isinstance(each, dt.datetime) for each in ends):
                first, last = (round(each.timestamp() * 1000) for each in ends)
                return first, last
    first, last = (int(part) for part in path.name.split("-")[:2])
    return first, last


def _read(
    file: pq.ParquetFile, groups: list[int], since: int, until: int, limit: int
) -> pl.DataFrame:
    names = file.schema_arrow.names
    lacking = [name for name in _NEEDED if name not in names]
    if lacking:
        raise UserError(f"shown lists lack the columns {', '.join(lacking)}")
    wanted = [name for name in _WANTED if name in names]
    table = file.read_row_groups(groups, columns=wanted, use_threads=False)
    frame = pl.DataFrame(pl.from_arrow(table))
    at = pl.col("timestamp").dt.epoch("ms")
    frame = frame.filter(at >= since, at < until)
    if limit < _DRAW:
        frame = frame.filter(pl.col("request_id").hash(17) % _DRAW < limit)
    return frame


def _rows(frame: pl.DataFrame) -> pl.DataFrame:
    """With all columns; who asks is a user, a session, or a stranger of that one request."""
    for name in _WANTED:
        if name not in frame.columns:
            frame = frame.with_columns(pl.lit(None, pl.String).alias(name))
    who = pl.coalesce(
        pl.concat_str(pl.lit("u "), pl.col("user_id").cast(pl.String)),
        pl.concat_str(pl.lit("s "), pl.col("session_id").cast(pl.String)),
        pl.concat_str(pl.lit("r "), pl.col("request_id").cast(pl.String)),
    )
    at = pl.col("timestamp")
    if frame.schema["timestamp"].is_temporal():
        at = at.dt.epoch("ms")
    texts = [pl.col(name).cast(pl.String) for name in ("place", "query", "bundle", "arm")]
    return frame.select(
        pl.col("request_id").cast(pl.String),
        at.cast(pl.Int64).alias("at"),
        pl.col("surface").cast(pl.String),
        *texts,
        who.alias("who"),
        pl.col("item_ids").cast(pl.List(pl.String)),
        pl.col("took_ms").cast(pl.Float64),
    ).unique("request_id", keep="first", maintain_order=True)


def _from_file(path: Path, since: int, ids: pl.Series) -> pl.DataFrame:
    lazy = pl.scan_parquet(path, hive_partitioning=False)
    names = lazy.collect_schema().names()
    moment = "received" if "received" in names else "timestamp"
    lacking = [n for n in ("event_type", "request_id", "item_id", moment) if n not in names]
    if lacking:
        raise UserError(f"events lack the column {', '.join(lacking)}", where=str(path))
    return (
        lazy.select(
            pl.col("event_type").cast(pl.String),
            pl.col("request_id").cast(pl.String),
            pl.col("item_id").cast(pl.String),
            pl.col(moment).dt.epoch("ms").alias("received"),
        )
        .filter(pl.col("request_id").is_in(ids.implode()), pl.col("received") >= since)
        .collect()
    )


def _concat(parts: Sequence[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat([pl.DataFrame(schema=EVENTS), *parts])
