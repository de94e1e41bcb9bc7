"""What experiments as YAML consist of: arms, conditions, slices of layers, metrics, bandits."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from raysys.config import Settings

Scalar = str | bool | int | float
Attributes = Mapping[str, Scalar]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,59}$")]
EventType = Literal["impression", "view", "click", "favorite", "cart", "purchase", "search"]
Share = Annotated[Decimal, Field(gt=0, le=1)]


class Condition(Settings):
    """What an attribute has to be; a bare value or list in YAML means `any_of`.

    An attribute that is missing meets no condition but `known: false`.

    Attributes:
        any_of: one of these.
        none_of: none of these.
        at_least: a number not below this.
        at_most: a number not above this.
        known: whether the attribute is there at all.
    """

    any_of: tuple[Scalar, ...] | None = Field(None, min_length=1)
    none_of: tuple[Scalar, ...] | None = Field(None, min_length=1)
    at_least: float | None = None
    at_most: float | None = None
    known: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            return {"any_of": value}
        return {"any_of": [value]} if isinstance(value, str | bool | int | float) else value

    @model_validator(mode="after")
    def _says_something(self) -> Condition:
        if not self.model_fields_set:
            raise ValueError("say any_of, none_of, at_least, at_most or known")
        if self.known is False and len(self.model_fields_set) > 1:
            raise ValueError("known: false goes with no other condition")
        return self

    def met(self, value: Scalar | None) -> bool:
        """Whether a value (None: missing) meets all parts of the condition."""
        if value is None:
            return self.known is False
        if self.known is False:
            return False
        told = as_text(value)
        if self.any_of is not None and told not in map(as_text, self.any_of):
            return False
        if self.none_of is not None and told in map(as_text, self.none_of):
            return False
        if self.at_least is None and self.at_most is None:
            return True
        try:
            number = float(value)
        except ValueError:
            return False
        low = -float("inf") if self.at_least is None else self.at_least
        high = float("inf") if self.at_most is None else self.at_most
        return low <= number <= high


class Arm(Settings):
    """A variant: what its users get.

    Attributes:
        name: within the experiment.
        share: of the experiment's eligible users, in (0, 1].
        bundle: name or id of the bundle that answers; null: the surface's own.
        policy: settings that go over the surface's policy.
        parameters: anything else that the code that asks for the arm reads.
    """

    name: Name
    share: Share
    bundle: str | None = None
    policy: dict[str, Any] = {}
    parameters: dict[str, Any] = {}

    def sets(self) -> set[str]:
        """What this arm decides: `bundle`, `policy.KEY`, `parameters.KEY`."""
        found = {"bundle"} if self.bundle is not None else set()
        found |= {f"policy.{key}" for key in self.policy}
        return found | {f"parameters.{key}" for key in self.parameters}


class Slice(Settings):
    """A part of a layer: experiments in disjoint slices of one layer exclude each other.

    Attributes:
        name: of the layer.
        from_: where the slice begins, in [0, 1).
        to: where it ends, in (0, 1].
    """

    name: Name
    from_: Decimal = Field(Decimal(0), ge=0, lt=1, alias="from")
    to: Decimal = Field(Decimal(1), gt=0, le=1)

    @model_validator(mode="after")
    def _not_empty(self) -> Slice:
        if self.from_ >= self.to:
            raise ValueError(f"from {self.from_} is not below to {self.to}")
        return self


class Measure(Settings):
    """What is summed over a user's events.

    Attributes:
        events: which count.
        value: 1 for each (`count`), 1 if there is any (`any`), price times quantity (`revenue`),
            or `quantity`.
    """

    events: tuple[EventType, ...] = Field(min_length=1)
    value: Literal["any", "count", "revenue", "quantity"] = "count"

    @field_validator("events", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


class Metric(Measure):
    """A figure of every user, averaged over an arm's users; with `per` a ratio of two sums.

    Attributes:
        name: by which experiments refer to it.
        per: the denominator of a ratio, such as impressions for a click rate; null: per user.
        better: `higher` or `lower`.
        winsorise: users' sums above this quantile (over all arms) are set to it; null: none.
    """

    name: Name
    per: Measure | None = None
    better: Literal["higher", "lower"] = "higher"
    winsorise: float | None = Field(None, gt=0.5, lt=1)

    @model_validator(mode="after")
    def _sound(self) -> Metric:
        if self.name in ("user_id", "arm", "arrived"):
            raise ValueError(f"{self.name!r} is a column of another meaning: choose another name")
        if self.winsorise is not None and self.value == "any":
            raise ValueError("winsorise: a share of users has no outliers")
        if self.per is not None and self.per.value == "any":
            raise ValueError("per: count events, not whether there is one")
        return self


class Guardrail(Settings):
    """A metric that must not suffer.

    Attributes:
        metric: its name.
        tolerance: relative loss that is acceptable, such as 0.02; above 0, as no data can show
            that nothing at all was lost.
    """

    metric: Name
    tolerance: float = Field(0.02, gt=0, lt=1)

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: object) -> object:
        return {"metric": value} if isinstance(value, str) else value


class BanditSettings(Settings):
    """How a bandit gives an experiment's users to its arms.

    A list is rewarded (1, else 0) if it got an event of the primary metric. Every `update_minutes`
    the arms are weighed anew by all lists so far; until then a user keeps the arm.

    Attributes:
        kind: `thompson`, by the probability that an arm is the best (Beta posteriors); `linucb`, by
            upper bounds of a linear model over arms and `context`.
        context: attributes of who asks, whose values tell rewards apart; of `linucb`.
        floor: least probability of any arm; above 0, or the log could not judge the others.
        width: of the bound, in posterior deviations; of `linucb`.
        update_minutes: between two looks at what came of the lists.
        settle_minutes: a list younger than this is not looked at: clicks may come yet.
    """

    kind: Literal["thompson", "linucb"] = "thompson"
    context: tuple[str, ...] = ()
    floor: float = Field(0.05, gt=0, lt=0.5)
    width: float = Field(1.0, ge=0, le=10)
    update_minutes: float = Field(10, gt=0, le=10_080)
    settle_minutes: float = Field(30, ge=0, le=10_080)

    @model_validator(mode="before")
    @classmethod
    def _bare(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _sound(self) -> BanditSettings:
        if self.context and self.kind != "linucb":
            raise ValueError("context: only `kind: linucb` reads attributes")
        if len(set(self.context)) < len(self.context):
            raise ValueError("context: each attribute once")
        return self


def as_text(value: Scalar) -> str:
    """Values compare as texts: attributes of users are texts."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
