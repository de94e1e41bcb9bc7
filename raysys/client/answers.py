"""Typed answers. Fields that a newer server adds are kept, so that an older client goes on."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class _Answer(BaseModel):
    model_config = ConfigDict(extra="allow")


class ListedItem(_Answer):
    """One item of a list.

    Attributes:
        item_id: the shop's.
        score: higher is better, within one answer; None: unknown to the catalogue.
        position: 1 for the first.
        why: with `explain`: sources, features, base scores.
    """

    item_id: str
    score: float | None = None
    position: int
    why: dict[str, Any] | None = None


class ListAnswer(_Answer):
    """A ranked list.

    Attributes:
        request_id: send it back with events, so that feedback joins.
        items: best first.
        bundle: id of the bundle that answered.
        arm: the name by which it was chosen: champion, challenger.
        experiments: experiment → arm that this list shows.
        degraded: whether something was left out.
        left_out: what.
        cold_start: whether nothing was known of the user.
        unknown_item_ids: items that the catalogue lacks.
        took_ms: in the server.
        explanation: with `explain`: candidates, weights, milliseconds a stage.
    """

    request_id: str
    items: list[ListedItem]
    bundle: str
    arm: str
    experiments: dict[str, str] = {}
    degraded: bool
    left_out: list[str] = []
    cold_start: bool
    unknown_item_ids: list[str] = []
    took_ms: float
    explanation: dict[str, Any] | None = None

    @property
    def item_ids(self) -> list[str]:
        """Of the items, best first."""
        return [item.item_id for item in self.items]


class Profile(_Answer):
    """What is known of a user, with its evidence."""

    user_id: str
    as_of: int
    value: dict[str, Any]
    interests: dict[str, list[dict[str, Any]]]
    recent_items: list[dict[str, Any]]
    bundle: str


class Label(_Answer):
    """What one text is, or how it sounds."""

    label: str | None
    probability: float
    choices: list[dict[str, Any]] = []


class Sentiment(Label):
    """How one text sounds."""

    rating: float | None = None


class Span(_Answer):
    """A part of a text that means something; characters from `start` to before `end`."""

    start: int
    end: int
    label: str
    text: str
    probability: float


class Spans(_Answer):
    """What was found in one text."""

    spans: list[Span]


class Grade(_Answer):
    """How well one text answers the query; position 1 is the best.

    Attributes:
        probability: that it is relevant; None: the model gives grades alone.
        relevant: whether that is enough.
    """

    grade: float
    position: int
    probability: float | None = None
    relevant: bool | None = None


class _TextAnswer(_Answer):
    request_id: str
    bundle: str
    took_ms: float


class Labels(_TextAnswer):
    """One a text, in their order."""

    results: list[Label]


class Sentiments(_TextAnswer):
    """One a text, in their order."""

    results: list[Sentiment]


class Entities(_TextAnswer):
    """One a text, in their order."""

    results: list[Spans]


class Grades(_TextAnswer):
    """One a text, in their order."""

    results: list[Grade]


class EventOutcome(_Answer):
    """What became of one event: accepted, duplicate, quarantined or rejected."""

    index: int
    status: str
    event_id: str | None = None
    reason: str | None = None
    errors: list[dict[str, Any]] = []


class EventsAnswer(_Answer):
    """What became of events; those accepted are on the server's disk."""

    accepted: int
    duplicate: int
    quarantined: int = 0
    rejected: int
    events: list[EventOutcome]


class Readiness(_Answer):
    """What answers."""

    status: str
    bundle: str | None = None
    text: dict[str, str] = {}


class PointerAnswer(_Answer):
    """What a name means now, and what the figures say."""

    name: str
    bundle: str
    before: str | None = None
    reason: str
    live: bool


class BundlesAnswer(_Answer):
    """All bundles, what names mean, and how that changed."""

    pointers: dict[str, str]
    bundles: list[dict[str, Any]]
    journal: list[dict[str, str]]


class CanaryAnswer(_Answer):
    """What the replica that answered serves and tries."""

    champion: str | None
    asked_by: str = "user_config"
    canary: dict[str, Any] | None
    arms: dict[str, dict[str, Any]]
    halted: list[dict[str, Any]]
