"""Experiments as YAML: arms, shares, layers, who is eligible, what is measured.

Layers follow Tang, Agarwal, O'Brien and Meyer (Overlapping experiment infrastructure, KDD 2010):
experiments of one layer occupy disjoint slices of it and never share a user; experiments of
different layers are drawn independently and may.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from itertools import combinations
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from raysys.config import Settings

Scalar = str | bool | int | float
Attributes = Mapping[str, Scalar]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,59}$")]
EventType = Literal["impression", "view", "click", "favorite", "cart", "purchase", "search"]
Share = Annotated[Decimal, Field(gt=0, le=1)]

_HASH_SPACE = 1 << 64


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
        told = _text(value)
        if self.any_of is not None and told not in map(_text, self.any_of):
            return False
        if self.none_of is not None and told in map(_text, self.none_of):
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


class Experiment(Settings):
    """One experiment. The first arm is the control.

    Attributes:
        name: unique in the file; exposures carry it.
        question: what is to be learnt, in a sentence.
        salt: of the draw; null: the name. A new salt is a new draw.
        surfaces: where it runs; empty: everywhere.
        layer: the slice of a layer that it occupies; null: a layer of its own.
        arms: at least two.
        eligibility: attribute → condition; all have to be met.
        testers: user id → arm, whatever the draw says; left out of the analysis.
        primary: the metric that decides.
        secondary: metrics that are told beside it, corrected together.
        guardrails: metrics that must not suffer.
        segments: attributes by whose values effects are told apart.
        minimum_effect: relative lift of the primary metric that is worth having.
        alpha: probability of a false alarm, over all arms.
        power: with which the minimum effect is found.
        analysis: `sequential` (intervals hold however often one looks) or `fixed` (narrower, for
            one look at the end).
        expected_users: in all arms at the end; sequential intervals are narrowest there.
        window_days: of events after a user's first exposure that count; null: all until the end.
        covariate_days: before the first exposure, for CUPED; 0: none.
        start: UTC; users are drawn from here on.
        end: UTC; null: open.
    """

    name: Name
    question: str = ""
    salt: Name | None = None
    surfaces: tuple[Name, ...] = ()
    layer: Slice | None = None
    arms: tuple[Arm, ...] = Field(min_length=2)
    eligibility: dict[str, Condition] = {}
    testers: dict[str, Name] = {}
    primary: Name
    secondary: tuple[Name, ...] = ()
    guardrails: tuple[Guardrail, ...] = ()
    segments: tuple[str, ...] = ()
    minimum_effect: float = Field(gt=0, lt=10)
    alpha: float = Field(0.05, gt=0, lt=0.5)
    power: float = Field(0.8, gt=0.5, lt=1)
    analysis: Literal["sequential", "fixed"] = "sequential"
    expected_users: int = Field(10_000, ge=100)
    window_days: float | None = Field(None, gt=0)
    covariate_days: float = Field(28, ge=0)
    start: dt.datetime
    end: dt.datetime | None = None

    @field_validator("start", "end")
    @classmethod
    def _utc(cls, value: dt.datetime | None) -> dt.datetime | None:
        if value is None or value.tzinfo is not None:
            return value
        return value.replace(tzinfo=dt.UTC)

    @model_validator(mode="after")
    def _sound(self) -> Experiment:
        _refuse_twice((arm.name for arm in self.arms), "arms")
        if self.total > 1:
            told = " + ".join(str(arm.share) for arm in self.arms)
            raise ValueError(f"shares exceed one: {told} = {sum(a.share for a in self.arms)}")
        if self.end is not None and self.end <= self.start:
            raise ValueError("end is not after start")
        if self.analysis == "fixed" and self.end is None:
            raise ValueError("analysis: fixed judges once, at the end: say when that is")
        names = [arm.name for arm in self.arms]
        for user_id, arm in self.testers.items():
            if arm not in names:
                raise ValueError(f"testers.{user_id}: no arm {arm!r}; one of: {', '.join(names)}")
        metrics = [self.primary, *self.secondary, *(rail.metric for rail in self.guardrails)]
        _refuse_twice(metrics, "primary, secondary, guardrails")
        return self

    @property
    def control(self) -> Arm:
        """What the others are compared with."""
        return self.arms[0]

    @property
    def total(self) -> Fraction:
        """Share of eligible users in any arm."""
        return sum((Fraction(arm.share) for arm in self.arms), Fraction(0))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all its metrics, the primary first."""
        return (self.primary, *self.secondary, *(rail.metric for rail in self.guardrails))

    @cached_property
    def arm(self) -> dict[str, Arm]:
        """Arms by name."""
        return {arm.name: arm for arm in self.arms}

    @cached_property
    def bounds(self) -> tuple[int, tuple[int, ...]]:
        """Of 64-bit hashes: below the first a user is in, below each other in that arm.

        They are exact: arms are cut by their parts of the total, so that a ramp that keeps these
        moves nobody who is in.
        """
        total = self.total
        cut, ends = Fraction(0), []
        for arm in self.arms:
            cut += Fraction(arm.share) / total
            ends.append(int(cut * _HASH_SPACE))
        return int(total * _HASH_SPACE), tuple(ends)

    @cached_property
    def slice_bounds(self) -> tuple[int, int] | None:
        """Of 64-bit hashes of the layer: from, to; None: the whole."""
        if self.layer is None:
            return None
        return (
            int(Fraction(self.layer.from_) * _HASH_SPACE),
            int(Fraction(self.layer.to) * _HASH_SPACE),
        )

    def runs_at(self, moment: dt.datetime) -> bool:
        """Whether users are drawn at this moment."""
        return self.start <= moment and (self.end is None or moment < self.end)

    def eligible(self, attributes: Attributes) -> bool:
        """Whether all conditions are met."""
        return all(c.met(attributes.get(name)) for name, c in self.eligibility.items())


class ExperimentsSettings(Settings):
    """The YAML of `raysys experiment`: all experiments of a shop, and their metrics.

    Attributes:
        metrics: defined once, used by name.
        experiments: running, planned and past.
    """

    metrics: tuple[Metric, ...] = Field(min_length=1)
    experiments: tuple[Experiment, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _sound(self) -> ExperimentsSettings:
        _refuse_twice((metric.name for metric in self.metrics), "metrics")
        _refuse_twice((e.name for e in self.experiments), "experiments")
        _refuse_twice((e.salt or e.name for e in self.experiments), "experiments: salts")
        known = [metric.name for metric in self.metrics]
        for experiment in self.experiments:
            for name in experiment.metrics:
                if name not in known:
                    raise ValueError(
                        f"{experiment.name}: no metric {name!r}; one of: {', '.join(known)}"
                    )
        _refuse_overlaps(self.experiments)
        refuse_conflicts(self.experiments)
        return self

    def metric(self, name: str) -> Metric:
        """A metric by its name."""
        return next(metric for metric in self.metrics if metric.name == name)

    def find(self, name: str) -> Experiment | None:
        """An experiment by its name."""
        return next((each for each in self.experiments if each.name == name), None)


def _refuse_twice(names: Iterable[str], where: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{where}: {name!r} is there twice")
        seen.add(name)


def _refuse_overlaps(experiments: Iterable[Experiment]) -> None:
    """Experiments that run at once in one layer must not share users."""
    layers: dict[str, list[tuple[Slice, Experiment]]] = {}
    for experiment in experiments:
        if experiment.layer is not None:
            layers.setdefault(experiment.layer.name, []).append((experiment.layer, experiment))
    for name, members in layers.items():
        for (one_slice, one), (other_slice, other) in combinations(members, 2):
            apart = one_slice.to <= other_slice.from_ or other_slice.to <= one_slice.from_
            if not apart and _at_once(one, other):
                raise ValueError(
                    f"{one.name} and {other.name} overlap in layer {name!r}: "
                    f"[{one_slice.from_}, {one_slice.to}) and "
                    f"[{other_slice.from_}, {other_slice.to}) share users at the same time"
                )


def refuse_conflicts(experiments: Iterable[Experiment]) -> None:
    """Experiments that decide the same thing for the same list must exclude each other.

    Raises:
        ValueError: naming two, and what both decide.
    """
    for one, other in combinations(experiments, 2):
        together = not one.surfaces or not other.surfaces or set(one.surfaces) & set(other.surfaces)
        exclusive = one.layer and other.layer and one.layer.name == other.layer.name
        if not together or exclusive or not _at_once(one, other):
            continue
        both = set[str]().union(*(arm.sets() for arm in one.arms)) & set[str]().union(
            *(arm.sets() for arm in other.arms)
        )
        if both:
            raise ValueError(
                f"{one.name} and {other.name} both decide {', '.join(sorted(both))} for the same "
                "lists at the same time: put them into disjoint slices of one layer"
            )


def _at_once(one: Experiment, other: Experiment) -> bool:
    first, second = sorted((one, other), key=lambda each: each.start)
    return first.end is None or second.start < first.end


def _text(value: Scalar) -> str:
    """Values compare as texts: attributes of users are texts."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
