"""Events of whole users: duplicates out, sessions in.

Both need all events of a user together: a unit of `settling` holds whole users, and hands on what
they did on the days before.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.compute as pc
from numba import njit
from pydantic import Field

from raysys.config import Settings

_DAY_MS: Final = 86_400_000


class SessionSettings(Settings):
    """How events are gathered into sessions."""

    gap_minutes: float = Field(default=30, gt=0)
    """A user's session ends when nothing happens for longer than this."""

    keep_own_ids: bool = True
    """Where the log names sessions itself, those names stand."""


CONTINUED: Final = "_continued"
"""Column of settled events: whether their session began before the unit's first day."""

USER: Final = "_user"
SESSION: Final = "_session"
"""Columns of settled events: numbers of users and of their sessions; cheap to group by."""


def find_sessions(
    events: pl.DataFrame,
    before: Iterable[pl.DataFrame],
    settings: SessionSettings,
    start: int,
) -> pl.DataFrame:
    """Events with `session_id`: the log's own, else one for each stretch without a long pause.

    Also with `CONTINUED`, true where the session was there before `start`, and with `USER` and
    `SESSION`, Int32 and Int64: numbers among these events; a user's sessions have numbers apart.

    A made session is named by its user and its first moment, so it stays the same whatever
    comes later: `USER@MILLISECONDS`.

    Args:
        events: all events of some users from `start` on, by time; timestamps in ms.
        before: `user_id`, `timestamp`, `session_id` of the day before `start`, of the day before
            that, …, each by time, days without events too; asked only as far as sessions reach
            back.
        settings: the gap, and whether the log's ids stand.
        start: UTC ms.
    """
    gap = round(settings.gap_minutes * 60_000)
    own = pl.col("session_id").is_not_null() if settings.keep_own_ids else pl.lit(False)
    owned = events.select(own.alias("own")).to_series()
    if owned.len() != events.height:  # a literal is one row
        owned = owned.new_from_index(0, events.height)
    earlier = _earlier(events, before, gap, start)
    events = _own_continued(events, owned, earlier.filter(own))
    past = earlier.filter(~own)
    coded = pc.dictionary_encode(pl.concat([past["user_id"], events["user_id"]]).to_arrow())
    user = coded.indices.to_numpy()
    events = events.with_columns(pl.Series(USER, user[past.height :]))
    if owned.all():
        return events.with_columns(pl.Series(SESSION, _named(events["session_id"])))
    bare = np.flatnonzero(~owned.to_numpy())
    number, begin, who = _stretches(
        np.concatenate([user[: past.height], user[past.height :][bare]]),
        np.concatenate([past["timestamp"].to_numpy(), events["timestamp"].to_numpy()[bare]]),
        gap,
        len(coded.dictionary),
        np.int64(-(2**62)),
    )
    users = pl.Series(coded.dictionary.to_pylist(), dtype=pl.String)
    names = pl.DataFrame({"begin": begin, "who": who}).select(
        pl.format("{}@{}", users.gather(who), "begin")
    )
    number = number[past.height :]
    made = names.to_series().gather(number)
    began = pl.Series(begin[number] < start)
    if owned.any():
        made = events["session_id"].scatter(bare, made)
        began = events[CONTINUED].scatter(bare, began)
        # the log's names are numbered from below, so that none is a made session's number
        named = -1 - _named(events["session_id"])
        named[bare] = number
        number = named
    return events.with_columns(
        made.alias("session_id"), began.alias(CONTINUED), pl.Series(SESSION, number)
    )


def began(user: pl.Expr, session: pl.Expr) -> pl.Expr:
    """When a made session began, as its name says: ms; null for one that the log named."""
    start = pl.concat_str(user, pl.lit("@"))
    told = pl.when(session.str.starts_with(start)).then(session.str.strip_prefix(start))
    return told.cast(pl.Int64, strict=False)


def _named(sessions: pl.Series) -> npt.NDArray[np.int64]:
    """Equal numbers for equal names: int64[n]; -1 for null."""
    coded = pc.dictionary_encode(sessions.to_arrow()).indices
    return pc.fill_null(coded, -1).to_numpy(zero_copy_only=False).astype(np.int64)


def _earlier(
    events: pl.DataFrame, before: Iterable[pl.DataFrame], gap: int, start: int
) -> pl.DataFrame:
    """What users did before `start` who went on within the gap, as far back as a session can go."""
    moment = pl.col("timestamp")
    # for each user the first moment that is known, while a day may hold one within the gap of it
    first = events.filter(moment <= start + gap).group_by("user_id").agg(moment.min())
    frames: list[pl.DataFrame] = []
    midnight = start
    for frame in before if first.height else ():
        midnight -= _DAY_MS
        rows = frame.join(first, on="user_id", how="semi", maintain_order="left")
        if rows.height:
            frames.insert(0, rows)
            known = pl.concat([first, rows.select("user_id", "timestamp")])
            first = known.group_by("user_id").agg(moment.min())
        first = first.filter(moment <= midnight + gap)
        if first.height == 0:
            break
    if not frames:
        return events.select("user_id", "timestamp", "session_id").clear()
    return pl.concat(frames)


def _own_continued(events: pl.DataFrame, owned: pl.Series, earlier: pl.DataFrame) -> pl.DataFrame:
    """Events with `CONTINUED`, of the log's own sessions: whether they were there before."""
    if not earlier.height or not owned.any():
        return events.with_columns(pl.lit(False).alias(CONTINUED))
    known = earlier.select("user_id", "session_id").unique().with_columns(_there=pl.lit(True))
    there = events.join(known, on=["user_id", "session_id"], how="left", maintain_order="left")
    return events.with_columns((there["_there"].fill_null(False) & owned).alias(CONTINUED))


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
