"""Events of several sources as one table: what ingest wrote, and event logs with their newest end.

An ingest that read the event log holds its events too: each counts once, by its id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from raysys.errors import UserError
from raysys.eventlog.entries import EventLog, LogUnavailable
from raysys.eventlog.opening import open_log
from raysys.eventlog.rolled import Rolled
from raysys.eventlog.settings import LogSettings
from raysys.experiments.users import read_events, scan

Columns = Mapping[str, pl.DataType | type[pl.DataType]]
COLUMNS: Columns = {
    "event_id": pl.String,
    "event_type": pl.String,
    "user_id": pl.String,
    "timestamp": pl.Datetime("ms", "UTC"),
    "price": pl.Float64,
    "quantity": pl.Float64,
}
ANSWERING: Columns = {
    "event_type": pl.String,
    "request_id": pl.String,
    "item_id": pl.String,
}
_AT_ONCE = 50_000


def events_of(paths: Sequence[Path]) -> pl.LazyFrame:
    """Events in the columns that metrics read.

    Args:
        paths: each a Parquet file, a folder of them, or the folder of an event log: then what is
            rolled, and, of a log of this machine, what is not yet.

    Raises:
        UserError: nothing there, columns are missing, or a log cannot be read.
    """
    frames: list[pl.LazyFrame] = []
    for path in paths:
        frame = _of_log(path) if is_event_log(path) else read_events(path)
        if frames and "event_id" in frame.collect_schema().names():
            frame = _without(frame, frames)
        frames.append(frame)
    if not frames:
        raise UserError("no events", mend="give --events: Parquet, or the folder of an event log")
    return pl.concat([frame.select(list(COLUMNS)[1:]) for frame in frames])


def answering(path: Path) -> pl.LazyFrame:
    """What came of shown lists: event_type, request_id and item_id of events, once or more.

    Args:
        path: as one of `events_of`.

    Raises:
        UserError: as `events_of`.
    """
    if is_event_log(path):
        return _of_log(path, ANSWERING)
    return scan(path, tuple(ANSWERING), "events").select(list(ANSWERING))


def is_event_log(path: Path) -> bool:
    """Whether a folder is that of an event log."""
    return (path / "head").exists() or (path / "rolled").is_dir()


def logged_events(
    rolled: Rolled, log: EventLog | None, columns: Columns | None = None
) -> pl.LazyFrame:
    """Used events of a log.

    Args:
        rolled: its files.
        log: for what these do not hold yet; None: nothing else is known.
        columns: with their types; None: those that metrics read.

    Raises:
        LogUnavailable: the log cannot be read.
    """
    columns = columns or COLUMNS
    stretches = rolled.stretches()
    paths = [rolled.events / f"{each.name}.parquet" for each in stretches if each.events]
    frames = [
        pl.scan_parquet(path, hive_partitioning=False).select(
            pl.col(name).cast(kind) for name, kind in columns.items()
        )
        for path in paths
    ]
    if log is not None:
        frames.append(_tail(log, stretches[-1].last if stretches else 0, columns).lazy())
    return pl.concat(frames) if frames else pl.LazyFrame(schema=columns)


def _of_log(path: Path, columns: Columns | None = None) -> pl.LazyFrame:
    rolled = Rolled(path)
    if not (path / "head").exists():  # Redis has the rest: `raysys events roll` brings it here
        return logged_events(rolled, None, columns)
    try:
        log = open_log(LogSettings(), path)
        try:
            return logged_events(rolled, log, columns)
        finally:
            log.close()
    except LogUnavailable as error:
        raise UserError(str(error), where=str(path), mend="try again later") from None


def _tail(log: EventLog, after: int, columns: Columns) -> pl.DataFrame:
    """Used events of offsets above `after`."""
    rows = []
    while entries := log.read(after, _AT_ONCE):
        after = entries[-1].offset
        rows += [
            tuple(entry.body.get(name) for name in columns)
            for entry in entries
            if entry.kind == "event" and entry.quarantined is None
        ]
    written = {name: pl.Int64 if name == "timestamp" else kind for name, kind in columns.items()}
    return pl.DataFrame(rows, schema=written, orient="row").cast(pl.Schema(columns))


def _without(frame: pl.LazyFrame, others: Sequence[pl.LazyFrame]) -> pl.LazyFrame:
    """Without the events that others have; of one that knows no ids nothing is left out."""
    for other in others:
        if "event_id" in other.collect_schema().names():
            frame = frame.join(other.select("event_id"), on="event_id", how="anti")
    return frame
