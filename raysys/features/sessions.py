"""The numbers of sessions that are still open, so that new events find theirs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

_MOST = np.iinfo(np.int32).max
_NONE = (0, -1)


def made_name(user_id: str, time: int) -> str:
    """What `ingest.sessions` calls a session that the log does not name: by its first moment."""
    return f"{user_id}@{time}"


def is_made(user_id: str, session_id: str) -> bool:
    """Whether a session has such a name, as the log does not name it."""
    begin = f"{user_id}@"
    return session_id.startswith(begin) and session_id.removeprefix(begin).isdigit()


def with_last(sessions: pl.DataFrame, last: np.ndarray, users: Sequence[str]) -> pl.DataFrame:
    """Sessions as `Sessions.name` takes them, with `last` of those that the log does not name.

    Args:
        sessions: user, session_id, session.
        last: by number of a session the moment of its newest event, UTC ms.
        users: user_id by number.
    """
    moments = [
        int(last[number]) if is_made(users[user], name) else None
        for user, name, number in sessions.select("user", "session_id", "session").iter_rows()
    ]
    return sessions.with_columns(last=pl.Series(moments, dtype=pl.Int64))


class Sessions:
    """Numbers of sessions by user and name; each new one gets the next number.

    Args:
        keep: names remembered; the oldest are forgotten, as their sessions have ended long since.
    """

    def __init__(self, keep: int = 100_000) -> None:
        self.keep = keep
        self.count = 0  # numbers given so far
        self._numbers: dict[tuple[int, str], int] = {}
        self._made: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def number(self, user: int, session_id: str | None) -> int:
        """The number of a session, -1 when it is unknown or None."""
        return -1 if session_id is None else self._numbers.get((user, session_id), -1)

    def open(self, user: int, session_id: str) -> int:
        """The number of a session, made when it is new.

        Raises:
            OverflowError: after 2³¹ sessions.
        """
        number = self.number(user, session_id)
        if number < 0:
            number = self.count
            if number > _MOST:
                raise OverflowError("more sessions than an int32 can number")
            self.count += 1
            self._numbers[user, session_id] = number
            if len(self._numbers) > self.keep:  # insertion order is the order of numbers
                del self._numbers[next(iter(self._numbers))]
        return number

    def last_made(self, user: int) -> tuple[int, int]:
        """Of a user's newest event of a made session: UTC ms, and the session, -1 for none."""
        return self._made.get(user, _NONE)

    def go_on(self, user: int, number: int, time: int) -> None:
        """Take note of an event in such a session; one that came late moves nothing."""
        if user not in self._made or time >= self._made[user][0]:
            self._made[user] = (time, number)

    def seen(self, numbers: np.ndarray) -> None:
        """Take note of numbers that a log gave."""
        self.count = max(self.count, int(numbers.max(initial=-1)) + 1)

    def name(self, sessions: pl.DataFrame) -> None:
        """Take over names: columns user, session_id, session, numbers rising; and perhaps `last`.

        `last` is the moment of the newest event of those that no log names (`made_name`).
        """
        if "last" not in sessions.columns:  # written by an older version
            sessions = sessions.with_columns(last=pl.lit(None, pl.Int64))
        told = sessions.select("user", "session_id", "session", "last").tail(self.keep)
        for user, session_id, number, last in told.iter_rows():
            self._numbers[user, session_id] = number
            self.count = max(self.count, number + 1)
            if last is not None:
                self.go_on(user, number, last)

    def frame(self) -> pl.DataFrame:
        """The names held: user, session_id, session, and `last` of each user's `last_made`."""
        users, names = [user for user, _ in self._numbers], [name for _, name in self._numbers]
        numbers = list(self._numbers.values())
        made = [self.last_made(user) for user in users]
        last = [time if at == n else None for (time, at), n in zip(made, numbers, strict=True)]
        return pl.DataFrame(
            {"user": users, "session_id": names, "session": numbers, "last": last},
            schema={
                **{"user": pl.Int32, "session_id": pl.String},
                **{"session": pl.Int32, "last": pl.Int64},
            },
        )
