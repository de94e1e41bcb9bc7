"""Events on their way: cut into batches, and what became of each event of all of them."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from raysys.client.answers import EventOutcome, EventsAnswer
from raysys.client.calls import Call, Event
from raysys.client.failures import ApiError, Unreachable

MAX_EVENTS = 1000  # of one request
MAX_BYTES = 900_000  # of one request; the server refuses more than 1 MiB

_PLACE = re.compile(r"body\.events\.(\d+)(?:\.|$)")


class Batches:
    """Calls that send events, one after the other: tell of each call how it ended, then go on.

    Each event has an id before it is sent for the first time, so that it counts once however often
    its batch is sent.

    Args:
        sent: events, as many as there are; they stay as they are.

    Raises:
        ValueError: JSON cannot say one of them (NaN, for one); nothing has been sent.
    """

    def __init__(self, sent: Sequence[Event]) -> None:
        self._events: list[dict[str, Any]] = [
            {**event, "event_id": event.get("event_id") or uuid.uuid4().hex} for event in sent
        ]
        self._bounds = _cut([_bytes_of(event) for event in self._events])
        self._done: list[tuple[int, EventsAnswer]] = []

    def __iter__(self) -> Iterator[Call[EventsAnswer]]:
        """Calls; those that have been answered do not come again."""
        while len(self._done) < len(self._bounds):
            yield Call("POST", "/v1/events", EventsAnswer, {"events": self._now()})

    def answered(self, answer: EventsAnswer) -> None:
        """The call was answered."""
        self._done.append((self._bounds[len(self._done)][0], answer))

    def failed(self, error: ApiError | Unreachable) -> None:
        """The call was not answered; where only its own events are at fault, the rest goes on.

        Raises:
            ApiError, Unreachable: the others would fare no better; it carries what is known.
        """
        batch = self._now()
        if isinstance(error, ApiError) and _own_fault(error, len(batch)):
            self.answered(_rejected(batch, error))
            return
        self._give_up(error)

    def joined(self) -> EventsAnswer:
        """What became of all events so far, as if they had been one batch."""
        outcomes = [
            outcome.model_copy(update={"index": outcome.index + first})
            for first, part in self._done
            for outcome in part.events
        ]
        parts = [part for _, part in self._done]
        return EventsAnswer(
            accepted=sum(part.accepted for part in parts),
            duplicate=sum(part.duplicate for part in parts),
            quarantined=sum(part.quarantined for part in parts),
            rejected=sum(part.rejected for part in parts),
            events=outcomes,
        )

    def _now(self) -> list[dict[str, Any]]:
        first, end = self._bounds[len(self._done)]
        return self._events[first:end]

    def _give_up(self, error: ApiError | Unreachable) -> NoReturn:
        error.answered = self.joined()
        error.unanswered = self._events[self._bounds[len(self._done)][0] :]
        raise error


def _bytes_of(event: Event) -> int:
    """As httpx writes it."""
    told = json.dumps(event, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return len(told.encode()) + 1  # and a comma


def _cut(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """First and end of each batch; an event that is too large for any goes alone."""
    bounds: list[tuple[int, int]] = []
    first, total = 0, 0
    for at, size in enumerate(sizes):
        if at > first and (at - first == MAX_EVENTS or total + size > MAX_BYTES):
            bounds.append((first, at))
            first, total = at, 0
        total += size
    return [*bounds, (first, len(sizes))] if len(sizes) else []


def _own_fault(error: ApiError, size: int) -> bool:
    """Whether the events of a batch are refused for what they are, and others may be taken."""
    nothing_good = error.status == 422 and error.kind == "invalid-request"
    return nothing_good or (error.status == 413 and size == 1)


def _rejected(batch: Sequence[Event], error: ApiError) -> EventsAnswer:
    """The outcomes of a batch in which nothing was good; the server names the first errors."""
    named: dict[int, list[dict[str, Any]]] = {}
    for each in error.errors:
        if found := _PLACE.match(str(each.get("path", ""))):
            named.setdefault(int(found[1]), []).append(each)
    outcomes = [
        EventOutcome(
            index=index,
            status="rejected",
            event_id=event["event_id"],
            reason=None if index in named else error.detail,
            errors=named.get(index, []),
        )
        for index, event in enumerate(batch)
    ]
    return EventsAnswer(accepted=0, duplicate=0, rejected=len(outcomes), events=outcomes)
