"""Events of whole users: duplicates out, sessions in.

Both need all events of a user together, which the partition by user gives.
"""

from __future__ import annotations

from typing import Final

import polars as pl
from pydantic import Field

from raysys import schema
from raysys.config import Settings
from raysys.ingest.rules import ROW, SOURCE

ORDER: Final = ("timestamp", "user_id", SOURCE, ROW)
"""The order of events everywhere: by time; what is simultaneous, by user and as in the file."""


OWN_ID: Final = "_own_id"
"""Column of events on their way: whether the log itself named the event."""


class SessionSettings(Settings):
    """How events are gathered into sessions."""

    gap_minutes: float = Field(default=30, gt=0)
    """A user's session ends when nothing happens for longer than this."""

    keep_own_ids: bool = True
    """Where the log names sessions itself, those names stand."""


def find_duplicates(events: pl.DataFrame) -> pl.Series:
    """Which events came before: Boolean[n], false for the first of each kind in file order.

    Events that the log named are equal when their ids are; others when every column is.

    Args:
        events: all events of some users, with `SOURCE`, `ROW` and `OWN_ID`.
    """
    every = [name for name in schema.LOGGED_EVENTS.names if name != "event_id"]
    numbered = events.with_row_index("_at").sort(SOURCE, ROW)
    own = numbered.filter(OWN_ID).unique("event_id", keep="first")["_at"]
    made = numbered.filter(~pl.col(OWN_ID)).unique(every, keep="first")["_at"]
    duplicate = pl.Series([True]).new_from_index(0, events.height)
    return duplicate.scatter(pl.concat([own, made]), False)


def assign_sessions(events: pl.DataFrame, settings: SessionSettings) -> pl.DataFrame:
    """Events with `session_id`: the log's own, else one for each stretch without a long pause.

    A made session is named by its user and its first moment, so it stays the same whatever
    comes later: `USER@MILLISECONDS`.

    Args:
        events: all events of some users; timestamps in ms.
        settings: the gap, and whether the log's ids stand.
    """
    gap = round(settings.gap_minutes * 60_000)
    own = pl.col("session_id").is_not_null() if settings.keep_own_ids else pl.lit(False)
    bare = events.filter(~own)
    if bare.height == 0:
        return events
    begins = (
        (pl.col("user_id") != pl.col("user_id").shift())
        | (pl.col("timestamp") - pl.col("timestamp").shift() > gap)
    ).fill_null(True)
    bare = bare.sort("user_id", "timestamp", SOURCE, ROW).with_columns(
        pl.when(begins).then("timestamp").forward_fill().alias("_begin")
    )
    bare = bare.with_columns(pl.format("{}@{}", "user_id", "_begin").alias("session_id")).drop(
        "_begin"
    )
    return pl.concat([events.filter(own), bare])
