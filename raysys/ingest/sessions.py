"""Events of whole users: duplicates out, sessions in.

Both need all events of a user together: a unit of `settling` holds whole users, and hands on what
they did on the days before.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.compute as pc
from numba import njit
from pydantic import Field

from raysys import schema
from raysys.config import Settings
from raysys.ingest.rules import ROW, SOURCE

_DAY_MS: Final = 86_400_000
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

    Events that the log named are equal when user and id are; others when every column is.

    Args:
        events: all events of some users, with `SOURCE`, `ROW` and `OWN_ID`.
    """
    every = [name for name in schema.LOGGED_EVENTS.names if name != "event_id"]
    numbered = events.with_row_index("_at").sort(SOURCE, ROW)
    own = numbered.filter(OWN_ID).unique(["user_id", "event_id"], keep="first")["_at"]
    made = numbered.filter(~pl.col(OWN_ID)).unique(every, keep="first")["_at"]
    duplicate = pl.Series([True]).new_from_index(0, events.height)
    return duplicate.scatter(pl.concat([own, made]), False)


@dataclass(frozen=True)
class Sessions:
    """Events with `session_id`, and how many of their sessions began before `start`."""

    events: pl.DataFrame
    continued: int


def find_sessions(
    events: pl.DataFrame,
    before: Iterable[pl.DataFrame],
    settings: SessionSettings,
    start: int,
) -> Sessions:
    """Events with `session_id`: the log's own, else one for each stretch without a long pause.

    A made session is named by its user and its first moment, so it stays the same whatever
    comes later: `USER@MILLISECONDS`.

    Args:
        events: all events of some users from `start` on, by time; timestamps in ms.
        before: `user_id`, `timestamp`, `session_id` of the day before `start`, of the day before
            that, …, each by time; asked only as far as sessions reach back.
        settings: the gap, and whether the log's ids stand.
        start: UTC ms.
    """
    gap = round(settings.gap_minutes * 60_000)
    own = pl.col("session_id").is_not_null() if settings.keep_own_ids else pl.lit(False)
    owned = events.select(own.alias("own")).to_series()
    if owned.len() != events.height:  # a literal is one row
        owned = owned.new_from_index(0, events.height)
    earlier = _earlier(events, before, gap, start)
    continued = _own_continued(events.filter(owned), earlier.filter(own), start + gap)
    if owned.all():
        return Sessions(events, continued)
    past, bare = earlier.filter(~own), events.filter(~owned)
    user = pl.concat([past["user_id"], bare["user_id"]])
    moment = pl.concat([past["timestamp"], bare["timestamp"]]).to_numpy()
    coded = pc.dictionary_encode(user.to_arrow())
    number, begin, who = _stretches(
        coded.indices.to_numpy(), moment, gap, len(coded.dictionary), np.int64(-(2**62))
    )
    names = pl.DataFrame({"begin": begin, "who": who}).select(
        pl.format(
            "{}@{}", pl.Series(coded.dictionary.to_pylist(), dtype=pl.String).gather(who), "begin"
        )
    )
    number = number[past.height :]
    continued += len(np.unique(number[begin[number] < start]))
    made = names.to_series().gather(number)
    if owned.any():
        at = pl.arange(events.height, eager=True).filter(~owned)
        session = events["session_id"].scatter(at, made)
    else:
        session = made
    return Sessions(events.with_columns(session.alias("session_id")), continued)


def _earlier(
    events: pl.DataFrame, before: Iterable[pl.DataFrame], gap: int, start: int
) -> pl.DataFrame:
    """What users did before `start` who went on within the gap, as far back as a session can go."""
    early = events.filter(pl.col("timestamp") <= start + gap)
    users = early.select(pl.col("user_id").unique())
    frames: list[pl.DataFrame] = []
    if users.height:
        for frame in before:
            rows = frame.join(users, on="user_id", how="semi", maintain_order="left")
            if rows.height == 0:
                break
            frames.insert(0, rows)
            midnight = int(rows["timestamp"][0]) // _DAY_MS * _DAY_MS
            users = rows.filter(pl.col("timestamp") <= midnight + gap).select(
                pl.col("user_id").unique()
            )
            if users.height == 0:
                break
    if not frames:
        return events.select("user_id", "timestamp", "session_id").clear()
    return pl.concat(frames)


def _own_continued(events: pl.DataFrame, earlier: pl.DataFrame, until: int) -> int:
    """How many of the log's own sessions were there before."""
    if earlier.height == 0 or events.height == 0:
        return 0
    early = events.filter(pl.col("timestamp") <= until).select("user_id", "session_id").unique()
    return early.join(earlier, on=["user_id", "session_id"], how="semi").height


@njit(cache=True)
def _stretches(
    users: npt.NDArray[np.int32],
    moments: npt.NDArray[np.int64],
    gap: int,
    n_users: int,
    never: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Session of every event in time order: its number, and begin and user of each number."""
    n = len(users)
    number = np.empty(n, dtype=np.int64)
    begin = np.empty(n, dtype=np.int64)
    who = np.empty(n, dtype=np.int32)
    last = np.full(n_users, never, dtype=np.int64)
    current = np.zeros(n_users, dtype=np.int64)
    count = 0
    for i in range(n):
        user = users[i]
        if last[user] == never or moments[i] - last[user] > gap:
            begin[count] = moments[i]
            who[count] = user
            current[user] = count
            count += 1
        last[user] = moments[i]
        number[i] = current[user]
    return number, begin[:count].copy(), who[:count].copy()
