"""The kinds of features: what a column is, by its `kind`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from raysys.config import Settings
from raysys.features.plan_tables import CategoryColumn, Days, Name


class FromTable(Settings):
    """A number read from a table for each candidate.

    `decayed_count` and `decayed_mean` need `half_life_days`; the others read clocks: `moments`
    (how often, on distinct moments), `recency`, `age` and `interval` (days), `frequency`
    (moments ÷ age, a day at least), `overdue` (recency ÷ interval: above 1 when the usual time
    has passed).
    """

    name: Name
    kind: Literal[
        "decayed_count",
        "decayed_mean",
        "moments",
        "recency",
        "age",
        "interval",
        "frequency",
        "overdue",
    ]
    table: str
    half_life_days: Days | None = None


class Prior(Settings):
    """A Beta prior with a = strength × mean, b = strength × (1 − mean).

    Attributes:
        strength: how many trials it weighs.
        mean: of the coarsest level; null: the plain rate of that level at the moment.
    """

    strength: Annotated[float, Field(gt=0)]
    mean: Annotated[float, Field(gt=0, lt=1)] | None = None


class Rate(Settings):
    """Successes ÷ trials with a prior: (of + a) ÷ (over + a + b), both decayed counts.

    Attributes:
        of: table of the successes (clicks); or several, from fine to coarse.
        over: table of the trials (impressions), as many. The rate of each level is the mean of
            the finer level's prior, so that what has few trials is drawn towards its parent.
        half_life_days: kept by all of them.
        prior: its strength, for all levels, and the coarsest level's mean.
    """

    name: Name
    kind: Literal["rate"]
    of: str | Annotated[list[str], Field(min_length=1, max_length=5)]
    over: str | Annotated[list[str], Field(min_length=1, max_length=5)]
    half_life_days: Days
    prior: Prior

    @property
    def levels(self) -> list[tuple[str, str]]:
        """Tables of successes and trials, from fine to coarse."""
        of, over = ([x] if isinstance(x, str) else x for x in (self.of, self.over))
        return list(zip(of, over, strict=True))

    @model_validator(mode="after")
    def _paired(self) -> Rate:
        counts = [1 if isinstance(x, str) else len(x) for x in (self.of, self.over)]
        if counts[0] != counts[1]:
            raise ValueError(
                f"of names {counts[0]} tables, over {counts[1]}: one for one is needed"
            )
        if counts[0] == 1 and self.prior.mean is None:
            raise ValueError("prior.mean: needed where there is no coarser level to take it from")
        return self


class OfTwo(Settings):
    """`share`: of ÷ over (NaN where over is 0); `log_ratio`: log of (of + 1) ÷ (over + 1) when
    they are counts, of of ÷ over when `smoothing` is 0."""

    name: Name
    kind: Literal["share", "log_ratio"]
    of: str
    over: str
    smoothing: Annotated[float, Field(ge=0)] = 1.0


class FromWindow(Settings):
    """An aggregate over the last `span` (in the window's unit): how much (`window_count`), of its
    value `window_sum`, `window_mean`, `window_min`, `window_max`; days with any (`window_days`)."""

    name: Name
    kind: Literal[
        "window_count", "window_sum", "window_mean", "window_min", "window_max", "window_days"
    ]
    window: str
    span: int


class FromLast(Settings):
    """Of the last things of a key: the candidate's place among them, 1 the newest (`last_rank`);
    how many there are (`last_count`); the share that has the candidate's `column` (`last_share`).

    Attributes:
        among: the newest so many of them; null: all that are kept.
        column: with `last_share`: the column that must be the same.
    """

    name: Name
    kind: Literal["last_rank", "last_count", "last_share"]
    last: str
    among: Annotated[int, Field(ge=1)] | None = None
    column: CategoryColumn | None = None


class Similarity(Settings):
    """Cosine of the candidate's vector with that of the query, or with the mean of last items'.

    Attributes:
        vectors: the vectors' name.
        to: `query`, or the name of last items.
        among: the newest so many of those; null: all that are kept.
    """

    name: Name
    kind: Literal["similarity"]
    vectors: str
    to: str
    among: Annotated[int, Field(ge=1)] | None = None


class Component(Settings):
    """One component of the candidate's vector."""

    name: Name
    kind: Literal["component"]
    vectors: str
    component: Annotated[int, Field(ge=0)]


class Static(Settings):
    """A column of the catalogue: its number, or for text the code of its label.

    Codes are fixed when the features are made: the place of the label among the sorted ones.

    Attributes:
        min_count: labels of fewer items are treated like those that come up later.
        unseen: a later or rare label is NaN (`nan`), or has a code of its own, the highest (`own`).
    """

    name: Name
    kind: Literal["static"]
    column: Literal["price"] | CategoryColumn
    min_count: Annotated[int, Field(ge=1)] = 1
    unseen: Literal["nan", "own"] = "nan"

    @model_validator(mode="after")
    def _labels(self) -> Static:
        if self.column == "price" and (self.min_count > 1 or self.unseen == "own"):
            raise ValueError("price has no labels: min_count and unseen are for the other columns")
        return self


class UserAttribute(Settings):
    """What the shop tells of the user who asks: a number, or the code of a label.

    Codes are fixed when the features are made: the place of the label among the sorted ones. It is
    taken to have been the same at all times.

    Attributes:
        attribute: its name, in the users' files of `raysys ingest` and in `user` updates.
        read_as: `number`: what does not read as one is NaN.
        min_count: labels of fewer users are treated like those that come up later.
        unseen: a later or rare label is NaN (`nan`), or has a code of its own, the highest (`own`).
    """

    name: Name
    kind: Literal["user_attribute"]
    attribute: Annotated[str, Field(min_length=1)]
    read_as: Literal["label", "number"] = "label"
    min_count: Annotated[int, Field(ge=1)] = 1
    unseen: Literal["nan", "own"] = "nan"

    @model_validator(mode="after")
    def _labels(self) -> UserAttribute:
        if self.attribute == "user_id":
            raise ValueError("user_id is what users go by, not one of their attributes")
        if self.read_as == "number" and (self.min_count > 1 or self.unseen == "own"):
            raise ValueError("numbers have no labels: min_count and unseen are for read_as: label")
        return self


class Promotion(Settings):
    """1 if the candidate is promoted in the request's store and week, 0 if not, NaN unknown."""

    name: Name
    kind: Literal["promotion"]
    medium: Literal["display", "mailer"]


class Moment(Settings):
    """The request's own clock, UTC: hour of the day (0–23) or day of the week (Monday 0)."""

    name: Name
    kind: Literal["moment"]
    unit: Literal["hour", "weekday"]


class CoVisitation(Settings):
    """Summed cosine of the candidate with the user's last `history` items (co-purchase)."""

    name: Name
    kind: Literal["covisitation"]
    history: Annotated[int, Field(ge=1, le=200)] = 20


class ShownPosition(Settings):
    """The position at which the candidate was shown, 1 for the first; NaN where it was not.

    No model may score by it: when serving, nothing has been shown yet and it is always NaN. It is
    there for learners that undo position bias while they fit.
    """

    name: Name
    kind: Literal["shown_position"]


FeatureSpec = Annotated[
    FromTable
    | Rate
    | OfTwo
    | FromWindow
    | FromLast
    | Similarity
    | Component
    | Static
    | UserAttribute
    | Promotion
    | Moment
    | CoVisitation
    | ShownPosition,
    Field(discriminator="kind"),
]
