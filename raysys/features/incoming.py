"""Events as they come in, by names, into the numbers of a live state: `numbering`, one at a time.

What a log says and what `numbering` makes of it must be the same here, as a model was trained on
the one and meets the other. Where an event names no session it belongs to the user's last one of
such events, unless that ended: by the rule of `ingest.sessions`, and its names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from raysys.features.live import LiveFeatures
from raysys.features.log import EventColumns, normalised
from raysys.features.sessions import made_name
from raysys.features.state import States
from raysys.schema import EVENT_TYPES

_KINDS: Final = {name: number for number, name in enumerate(EVENT_TYPES)}
VISITOR: Final = "session:"
"""Begins the user_id of those of whom nothing but a session is known."""


def visitor(session_id: str) -> str:
    """The user_id under which somebody goes who did not say who it is."""
    return f"{VISITOR}{session_id}"


class Incoming:
    """Counts events in a live state.

    Args:
        live: the state; unknown users get numbers in it, other unknown things do not.
        gap_minutes: a session ends when its user does nothing for longer than this.
        new_users: most users that get numbers; beyond these a user stays unknown. As many others
            get one by what is told of them before they do anything.
    """

    def __init__(
        self, live: LiveFeatures, gap_minutes: float = 30, new_users: int = 1_000_000
    ) -> None:
        self.live = live
        self.gap_ms = round(gap_minutes * 60_000)
        self._most = live.n_users + new_users
        self._new_users, self._told_of = new_users, 0

    def apply(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Count events, in the order given.

        Args:
            events: columns of `schema.LOGGED_EVENTS` by name, those that hold something;
                `timestamp` in UTC ms.
        """
        with self.live.lock:
            self.live.apply(self._columns(events))

    def warm_up(self) -> None:
        """Compile what counts, on a state of its own: the first event need not wait for it."""
        live, nothing = self.live, EventColumns.nothing()
        one = {
            field.name: np.zeros(1, getattr(nothing, field.name).dtype) for field in fields(nothing)
        }
        States(live.plan, live.state.space, live.state.examination).apply(EventColumns(**one))

    def _columns(self, events: Sequence[Mapping[str, Any]]) -> EventColumns:
        live = self.live
        user = [self.number(event["user_id"]) for event in events]
        items = [live.catalogue.number(event.get("item_id", "")) for event in events]
        return EventColumns(
            user=np.array(user, dtype=np.int32),
            item=np.array([-1 if n is None else n for n in items], dtype=np.int32),
            kind=np.array([_KINDS[event["event_type"]] for event in events], dtype=np.int8),
            time=np.array([event["timestamp"] for event in events], dtype=np.int64),
            quantity=_reals(events, "quantity"),
            price=_reals(events, "price"),
            store=np.array(
                [live.store_number(event.get("store_id")) for event in events], dtype=np.int32
            ),
            order=np.zeros(len(events), dtype=np.int64),  # read by no state
            session=np.array(self._sessions(user, events), dtype=np.int32),
            query=np.array(self._queries(events), dtype=np.int32),
            position=np.array([event.get("position", 0) for event in events], dtype=np.int32),
        )

    def number(self, user_id: str) -> int:
        """The number of a user, a new one's while there are some; -1 beyond."""
        if self.live.n_users - self._told_of < self._most:
            return self.live.open_user(user_id)
        return self.live.user_number(user_id)

    def number_told(self, user_id: str) -> int:
        """The same for somebody of whom the shop tells; it leaves events their numbers."""
        number = self.live.user_number(user_id)
        if number < 0 and self._told_of < self._new_users:
            number = self.live.open_user(user_id)
            self._told_of += number >= 0
        return number

    def _sessions(self, users: Sequence[int], events: Sequence[Mapping[str, Any]]) -> list[int]:
        """Number of each event's session, -1 of users without a number."""
        sessions, numbers = self.live.sessions, list[int]()
        for user, event in zip(users, events, strict=True):
            name, time = event.get("session_id"), event["timestamp"]
            if user < 0:
                numbers.append(-1)
                continue
            if name is not None:
                numbers.append(sessions.open(user, name))
                continue
            last, number = sessions.last_made(user)
            if number < 0 or time - last > self.gap_ms:
                number = sessions.open(user, made_name(event["user_id"], time))
            sessions.go_on(user, number, time)
            numbers.append(number)
        return numbers

    def _queries(self, events: Sequence[Mapping[str, Any]]) -> list[int]:
        texts = [event.get("query") for event in events]
        if not self.live.queries or not any(texts):
            return [-1] * len(events)
        told = pl.DataFrame({"query": pl.Series(texts, dtype=pl.String)}).select(
            normalised(pl.col("query"))
        )
        return [self.live.number_of_query(text) for text in told.to_series().to_list()]


def _reals(events: Sequence[Mapping[str, Any]], name: str) -> npt.NDArray[np.float64]:
    return np.array([event.get(name, np.nan) for event in events], dtype=np.float64)
