"""Versions of what is known of users and sessions, so that a cache never answers from before."""

from __future__ import annotations

import threading
from collections import OrderedDict

_MOST = 1_000_000


class Versions:
    """Counts of events by user and session; safe to use from several threads.

    Of those that have not been heard of for longest, after a million others, the count is forgotten
    together with the era, which is part of every version: none can come twice.

    Whoever changes the state keeps both attributes.

    Attributes:
        base: what the state was loaded from beside the bundle, such as a snapshot and its place in
            the event log; "": the bundle's own. Replicas that share a cache count from the same
            base, or do not answer for each other.
        state: how far the state has counted, such as a place in the event log; "": it is as it is
            in the bundle. Shown lists record it.
    """

    def __init__(self) -> None:
        self.state = ""
        self.base = ""
        self._counts: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._era = 0
        self._lock = threading.Lock()

    def bump(self, user_id: str | None = None, session_id: str | None = None) -> None:
        """One more event of a user or session was counted."""
        with self._lock:
            for key in (("user", user_id), ("session", session_id)):
                if key[1] is not None:
                    self._counts[key[0], key[1]] = self._counts.pop((key[0], key[1]), 0) + 1
            while len(self._counts) > _MOST:
                self._counts.popitem(last=False)
                self._era += 1

    def of(self, user_id: str | None, session_id: str | None) -> tuple[str, int, int, int]:
        """The version of what is known of a user and a session."""
        with self._lock:
            user = 0 if user_id is None else self._counts.get(("user", user_id), 0)
            session = 0 if session_id is None else self._counts.get(("session", session_id), 0)
            return self.base, self._era, user, session
