"""The numbers of sessions that are still open, so that new events find theirs."""

from __future__ import annotations

import numpy as np
import polars as pl

_MOST = np.iinfo(np.int32).max


class Sessions:
    """Numbers of sessions by user and name; each new one gets the next number.

    Args:
        keep: names remembered; the oldest are forgotten, as their sessions have ended long since.
    """

    def __init__(self, keep: int = 100_000) -> None:
        self.keep = keep
        self.count = 0  # numbers given so far
        self._numbers: dict[tuple[int, str], int] = {}

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

    def seen(self, numbers: np.ndarray) -> None:
        """Take note of numbers that a log gave."""
        self.count = max(self.count, int(numbers.max(initial=-1)) + 1)

    def name(self, sessions: pl.DataFrame) -> None:
        """Take over names: columns user, session_id, session, numbers rising (`Log.sessions`)."""
        for user, session_id, number in sessions.tail(self.keep).iter_rows():
            self._numbers[user, session_id] = number
            self.count = max(self.count, number + 1)

    def frame(self) -> pl.DataFrame:
        """The names held: user, session_id, session."""
        users, names = ([key[at] for key in self._numbers] for at in (0, 1))
        return pl.DataFrame(
            {"user": users, "session_id": names, "session": list(self._numbers.values())},
            schema={"user": pl.Int32, "session_id": pl.String, "session": pl.Int32},
        )
