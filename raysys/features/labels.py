"""What behaviour is worth: gains of event types, and how events are credited to impressions."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from raysys.config import Settings
from raysys.features.plan import EventType
from raysys.schema import EVENT_TYPES

HOUR_MS: Final = 3_600_000

OUTCOMES: Final = ("view", "click", "favorite", "cart", "purchase")
"""Event types that are credited to an impression."""

WINDOWS_HOURS: Final[dict[str, float]] = {
    "view": 1.0, "click": 1.0, "favorite": 24.0, "cart": 24.0, "purchase": 168.0,
}  # fmt: skip
"""How long after an impression an event of a type still counts as its outcome."""

Outcome = Literal["view", "click", "favorite", "cart", "purchase"]


class LabelSettings(Settings):
    """What each event type is worth as a label, and which impression gets it.

    A plain mapping of event types to gains, as in `labels: {click: 1, purchase: 5}`, is short for
    `labels: {gains: {click: 1, purchase: 5}}`.

    Attributes:
        gains: of each event type that labels; others are worth 0. `impression: 0` may be written
            out, it changes nothing.
        windows_hours: by event type, how long after an impression it still counts; an hour for
            view and click, a day for favorite and cart, a week for purchase unless given.
        touch: of several impressions in the window, which gets an outcome: the `last`, the
            `first`, or `all` in equal shares.
        combine: what an impression with several outcomes is worth: the `highest` of their gains,
            or the `sum`, each event type once.
        same_session: credit only impressions of the outcome's own session.
        most_touches: with `touch: all`, the latest so many impressions share one outcome.
    """

    gains: dict[EventType, Annotated[float, Field(ge=0)]] = {"purchase": 1.0}
    windows_hours: dict[Outcome, Annotated[float, Field(gt=0)]] = {}
    touch: Literal["last", "first", "all"] = "last"
    combine: Literal["highest", "sum"] = "highest"
    same_session: bool = False
    most_touches: int = Field(100, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, given: Any) -> Any:
        """A mapping without any key of ours holds gains: the form of older configurations."""
        if isinstance(given, dict) and given and not set(given) & set(cls.model_fields):
            return {"gains": given}
        return given

    @model_validator(mode="after")
    def _something_counts(self) -> LabelSettings:
        if not any(gain > 0 for gain in self.gains.values()):
            raise ValueError("labels: at least one event type with a gain above 0")
        return self

    @property
    def by_kind(self) -> npt.NDArray[np.float32]:
        """Gain of every event type, in the order of `schema.EVENT_TYPES`: float32[8]."""
        return np.array([self.gains.get(kind, 0.0) for kind in EVENT_TYPES], dtype=np.float32)

    @property
    def windows_ms(self) -> npt.NDArray[np.int64]:
        """Window of every event type in ms, -1 for those that are no outcome: int64[8]."""
        hours = {**WINDOWS_HOURS, **{str(kind): h for kind, h in self.windows_hours.items()}}
        return np.array(
            [round(hours[kind] * HOUR_MS) if kind in hours else -1 for kind in EVENT_TYPES],
            dtype=np.int64,
        )

    @property
    def longest_ms(self) -> int:
        """The longest window of an outcome that is worth something, ms; 0 when there is none.

        A purchase counts for a week, say: an impression six days before the end of a fold may
        still be bought from, after the end. Counting that purchase would let the fold see what
        comes after it; not counting it would teach that the impression failed. So outcomes at or
        after the end are cut, and impressions within this window before it are not fitted on.
        """
        return int(self.windows_ms[self.by_kind > 0].clip(min=0).max(initial=0))
