"""Events over HTTP: what may be sent, what is answered, and the reading of half-bad batches."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SkipValidation,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from raysys.datasets.times import EARLIEST
from raysys.eventlog.entries import NewEntry
from raysys.features.incoming import VISITOR, visitor
from raysys.ingest.currencies import is_code
from raysys.serving.api import Id, Query
from raysys.serving.problems import FieldError, field_errors

MAX_EVENTS: Final = 1_000
MAX_ATTRIBUTES: Final = 200
MAX_ERRORS: Final = 5  # of one event
_ISO: Final = re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}")
_LATEST: Final = 4_102_444_800_000  # 2100-01-01: beyond that it is no moment of a shop


def _moment(value: object) -> object:
    """UTC ms of a number or an ISO 8601 text with its zone.

    Raises:
        ValueError: neither, or seconds where milliseconds belong.
    """
    if isinstance(value, str) and _ISO.match(value):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError as error:
            raise ValueError(f"no ISO 8601 moment: {error}") from None
        if moment.tzinfo is None:
            raise ValueError("the moment names no zone: end it with Z, or +01:00")
        try:
            value = round(moment.astimezone(UTC).timestamp() * 1000)
        except OverflowError:  # in UTC it is before the year 1, or after 9999
            raise ValueError("must be UTC milliseconds between 1990 and 2100") from None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("must be UTC milliseconds (an integer), or ISO 8601 text with its zone")
    if abs(value) < EARLIEST and EARLIEST <= abs(value) * 1000 <= _LATEST:
        raise ValueError("must be milliseconds; this looks like seconds")
    if not EARLIEST <= value <= _LATEST:
        raise ValueError("must be UTC milliseconds between 1990 and 2100")
    return value


def _currency(value: object) -> object:
    if isinstance(value, str) and not is_code(value):
        raise ValueError("must be an ISO 4217 code, such as EUR")
    return value


Moment = Annotated[
    int,
    BeforeValidator(_moment),
    WithJsonSchema({
        "anyOf": [{"type": "integer"}, {"type": "string", "format": "date-time"}],
        "description": "When it happened: UTC milliseconds, or ISO 8601 with its zone. Left out: "
        "when it arrived; then a repetition is the same event by its event_id alone.",
    }),
]  # fmt: skip
Currency = Annotated[str, BeforeValidator(_currency), Field(description="ISO 4217.")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
Price = Annotated[float, Field(ge=0, le=1e7, allow_inf_nan=False)]
EventId = Annotated[
    Id,
    Field(description="Yours, the same when you send it again: so it counts once. Left out: made."),
]


class _Sent(BaseModel):
    """Unknown fields are refused, so that a misspelt one is not lost; null is as if left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    event_id: EventId | None = None
    timestamp: Moment | None = None

    @property
    def kind(self) -> str:
        """See `entries.KINDS`."""
        return "event"

    def body(self) -> dict[str, Any]:
        """Columns that hold something."""
        return self.model_dump(exclude_none=True)


class _OfUser(_Sent):
    """What somebody did."""

    user_id: Annotated[
        Id | None, Field(description="Left out: nobody known; session_id stands for the user.")
    ] = None
    session_id: Id | None = None
    request_id: Annotated[
        Id | None, Field(description="Of the answer that this reacts to, so that they join.")
    ] = None
    store_id: Id | None = None
    week: Annotated[int, Field(ge=0, le=1_000_000)] | None = None

    @model_validator(mode="after")
    def _somebody(self) -> _OfUser:
        if self.user_id is None and self.session_id is None:
            raise ValueError("user_id or session_id is required")
        if self.user_id is not None and self.user_id.startswith(VISITOR):
            raise ValueError(f"user_id must not begin with {VISITOR!r}: leave it out instead")
        return self

    def body(self) -> dict[str, Any]:
        """Columns that hold something; a user there always is."""
        told = self.model_dump(exclude_none=True)
        if self.user_id is None:
            told["user_id"] = visitor(str(self.session_id))
        return told


class _Priced(_OfUser):
    """What can have a price and a number of pieces."""

    item_id: Id
    position: Annotated[
        int | None, Field(ge=1, le=1_000_000, strict=True, description="In the list, from 1.")
    ] = None
    quantity: Annotated[float, Field(gt=0, le=1e7, allow_inf_nan=False)] | None = None
    price: Annotated[Price | None, Field(description="Of one unit, as seen or paid.")] = None
    currency: Currency | None = None
    order_id: Annotated[Id | None, Field(description="The basket that this belongs to.")] = None
    query: Annotated[Query | None, Field(description="The search whose list it was in.")] = None


class BehaviourEvent(_Priced):
    """An item was shown, looked at, clicked, remembered, put into the cart or bought."""

    event_type: Literal["impression", "view", "click", "favorite", "cart", "purchase"]


class RatingEvent(_Priced):
    """An item was rated."""

    event_type: Literal["rating"]
    rating: Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]


class SearchEvent(_OfUser):
    """Something was searched for."""

    event_type: Literal["search"]
    query: Query
    item_id: Id | None = None


class ItemUpdate(_Sent):
    """What the shop says anew of an item: all that is known of it, as this takes the row's place.

    Price, title, description and size count at once; the rest, and new items, with the next bundle.
    """

    event_type: Literal["item"]
    item_id: Id
    title: Text | None = None
    description: Annotated[str, StringConstraints(max_length=10_000)] | None = None
    department: Text | None = None
    category: Text | None = None
    subcategory: Text | None = None
    brand: Text | None = None
    manufacturer: Text | None = None
    size: Text | None = None
    price: Price | None = None
    currency: Currency | None = None
    available_from: Moment | None = None

    @property
    def kind(self) -> str:
        """See `entries.KINDS`."""
        return "item"


class UserUpdate(_Sent):
    """What the shop says anew of a user: takes the place of what it said."""

    event_type: Literal["user"]
    user_id: Id
    attributes: Annotated[dict[Id, Text], Field(max_length=MAX_ATTRIBUTES)] = {}

    @model_validator(mode="after")
    def _no_key(self) -> UserUpdate:
        if "user_id" in self.attributes:
            raise ValueError("attributes must not hold user_id")
        return self

    @property
    def kind(self) -> str:
        """See `entries.KINDS`."""
        return "user"


Sent = Annotated[
    BehaviourEvent | RatingEvent | SearchEvent | ItemUpdate | UserUpdate,
    Field(discriminator="event_type"),
]
_ONE: Final[TypeAdapter[Any]] = TypeAdapter(Sent)


class EventsRequest(BaseModel):
    """A batch of events; each is judged by itself."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "events": [
                        {
                            "event_id": "5f1c",
                            "event_type": "click",
                            "user_id": "1",
                            "item_id": "1082185",
                            "position": 3,
                        }
                    ]
                }
            ]
        },
    )

    # each is validated by itself, so that a bad one costs no good one
    events: Annotated[list[SkipValidation[Sent]], Field(min_length=1, max_length=MAX_EVENTS)]


Status = Literal["accepted", "duplicate", "quarantined", "rejected"]
STATUSES: Final = get_args(Status)


class EventOutcome(BaseModel):
    """What became of one event; what says nothing is left out."""

    index: int = Field(description="Its place in the batch, from 0.")
    status: Status
    event_id: str | None = None
    made_id: bool = Field(False, description="The id is the server's.")
    reason: str | None = Field(None, description="Why it is put aside.")
    errors: tuple[FieldError, ...] = ()


class EventsAnswer(BaseModel):
    """What became of a batch. Accepted and quarantined events are on the disk."""

    accepted: int
    duplicate: int = Field(description="Were there already: nothing is wrong.")
    quarantined: int = Field(description="Kept, but put aside: see their reasons.")
    rejected: int = Field(description="Not kept: mend these and send them again.")
    events: list[EventOutcome] = Field(description="In the order sent.")


@dataclass(frozen=True)
class Clock:
    """Between which moments an event can have happened.

    Attributes:
        now: UTC ms; what an event without a moment gets.
        earliest, latest: UTC ms.
        quarantine: keep what lies outside, put aside.
        follows: the clock is the log's: each event moves it on, within a batch too.
    """

    now: int
    earliest: int
    latest: int
    quarantine: bool
    follows: bool = False

    def after(self, timestamp: int) -> Clock:
        """The clock when this has happened."""
        ahead = timestamp - self.now
        if not self.follows or ahead <= 0:
            return self
        return replace(self, now=timestamp, latest=self.latest + ahead)

    def misplaced(self, timestamp: int) -> str | None:
        """What is wrong with a moment."""
        if timestamp < self.earliest:
            days = (self.now - timestamp) / 86_400_000
            most = (self.now - self.earliest) / 86_400_000
            return f"{days:,.1f} days old; at most {most:,.0f} are taken (events.max_age_days)"
        if timestamp > self.latest:
            return f"{_span(timestamp - self.now)} ahead of the clock ({_told(self.now)})"
        return None


def read_events(
    sent: Sequence[Any], clock: Clock
) -> tuple[list[NewEntry], list[int], list[EventOutcome]]:
    """The good events of a batch, and what can be said of all of them already.

    Returns:
        entries in order of their moments, as the log should have them; the index of each in the
        batch; and an outcome for every event: `accepted` until the log says otherwise.
    """
    outcomes: list[EventOutcome] = []
    entries: list[tuple[NewEntry, int]] = []
    for index, each in enumerate(sent):
        try:
            event = _ONE.validate_python(each)
        except ValidationError as error:
            outcomes.append(_rejected(index, field_errors(error, f"body.events.{index}", _TAGS)))
            continue
        timestamp = clock.now if event.timestamp is None else event.timestamp
        reason = clock.misplaced(timestamp)
        if reason is not None and not clock.quarantine:
            path = f"body.events.{index}.timestamp"
            wrong = FieldError(path=path, message=reason, value=str(event.timestamp))
            outcomes.append(_rejected(index, [wrong]))
            continue
        if reason is None:
            clock = clock.after(timestamp)
        made = event.event_id is None
        event_id = event.event_id or uuid.uuid4().hex
        body = {**event.body(), "event_id": event_id, "timestamp": timestamp}
        if event.kind != "event":
            del body["event_type"]
        entries.append((NewEntry(event_id, timestamp, event.kind, body, reason), index))
        status: Status = "accepted" if reason is None else "quarantined"
        outcomes.append(
            EventOutcome(index=index, status=status, event_id=event_id, made_id=made, reason=reason)
        )
    entries.sort(key=lambda pair: pair[0].timestamp)
    return [entry for entry, _ in entries], [index for _, index in entries], outcomes


_TAGS: Final = frozenset(
    (
        *("impression", "view", "click", "favorite", "cart", "purchase"),
        *("rating", "search", "item", "user"),
    )
)
"""Words that pydantic puts into paths to say which model it tried."""


def _rejected(index: int, errors: list[FieldError]) -> EventOutcome:
    return EventOutcome(index=index, status="rejected", errors=tuple(errors[:MAX_ERRORS]))


def _span(ms: int) -> str:
    """A length of time as people say it."""
    for name, length in (("days", 86_400_000), ("hours", 3_600_000), ("minutes", 60_000)):
        if ms >= 2 * length:
            return f"{ms / length:,.1f} {name}"
    return f"{ms / 1000:,.0f} seconds"


def _told(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
