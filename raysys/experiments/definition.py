"""Experiments as YAML: arms, shares, layers, who is eligible, what is measured.

Layers follow Tang, Agarwal, O'Brien and Meyer (Overlapping experiment infrastructure, KDD 2010):
experiments of one layer occupy disjoint slices of it and never share a user; experiments of
different layers are drawn independently and may.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from fractions import Fraction
from functools import cached_property
from itertools import combinations
from typing import Literal

from pydantic import Field, field_validator, model_validator

from raysys.config import Settings
from raysys.experiments.parts import (
    Arm,
    Attributes,
    BanditSettings,
    Condition,
    Guardrail,
    Metric,
    Name,
    Slice,
)

_HASH_SPACE = 1 << 64
_INTERLEAVED_USERS = 500  # that have clicked: every one judges both arms


class Experiment(Settings):
    """One experiment. The first arm is the control.

    Attributes:
        name: unique in the file; exposures carry it.
        question: what is to be learnt, in a sentence.
        salt: of the draw; null: the name. A new salt is a new draw.
        surfaces: where it runs; empty: everywhere.
        layer: the slice of a layer that it occupies; null: a layer of its own.
        arms: at least two.
        interleave: every list is drafted from the lists of both arms, which have equal shares; what
            users click says which one they prefer. Needs far fewer users than two arms apart.
        bandit: arms are weighed by what came of their lists, instead of by their shares, which are
            equal; null: shares decide.
        eligibility: attribute → condition; all have to be met.
        testers: user id → arm, whatever the draw says; left out of the analysis.
        primary: the metric that decides.
        secondary: metrics that are told beside it, corrected together.
        guardrails: metrics that must not suffer.
        segments: attributes by whose values effects are told apart.
        minimum_effect: relative lift of the primary metric that is worth having; with `interleave`
            the lead, of lists. A bandit needs none.
        alpha: probability of a false alarm, over all arms.
        power: with which the minimum effect is found.
        analysis: `sequential` (intervals hold however often one looks) or `fixed` (narrower, for
            one look at the end).
        expected_users: in all arms at the end; sequential intervals are narrowest there. With
            `interleave` 500 where it is left out.
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
    interleave: bool = False
    bandit: BanditSettings | None = None
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

    @model_validator(mode="before")
    @classmethod
    def _by_kind(cls, value: object) -> object:
        if isinstance(value, dict) and value.get("bandit"):
            return {"minimum_effect": 0.05, **value}  # nobody reads it
        if isinstance(value, dict) and value.get("interleave"):
            return {"expected_users": _INTERLEAVED_USERS, **value}
        return value

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
        if self.by_lists:
            self._check_by_lists()
        return self

    def _check_by_lists(self) -> None:
        what = "interleave" if self.interleave else "bandit"
        if self.interleave and self.bandit is not None:
            raise ValueError("interleave and bandit: one of them")
        if self.interleave and len(self.arms) != 2:
            raise ValueError(f"interleave: {len(self.arms)} arms, and a list is drafted from two")
        if len({arm.share for arm in self.arms}) > 1:
            told = "every list is of both arms" if self.interleave else "the bandit weighs the arms"
            raise ValueError(f"{what}: give all arms the same share, as {told}")
        if self.bandit is not None and self.bandit.floor * len(self.arms) >= 1:
            most = 1 / len(self.arms)
            raise ValueError(f"bandit: floor {self.bandit.floor} of each arm is not below {most:g}")
        for name in ("secondary", "guardrails", "segments"):
            if getattr(self, name):
                raise ValueError(f"{name}: an experiment with `{what}` is judged by its primary")

    @property
    def control(self) -> Arm:
        """What the others are compared with."""
        return self.arms[0]

    @property
    def by_lists(self) -> bool:
        """Whether single lists are compared, and what came of each; else users are."""
        return self.interleave or self.bandit is not None

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
            if experiment.by_lists:
                _check_counted(experiment, self.metric(experiment.primary))
        _refuse_overlaps(self.experiments)
        refuse_conflicts(self.experiments)
        return self

    def metric(self, name: str) -> Metric:
        """A metric by its name."""
        return next(metric for metric in self.metrics if metric.name == name)

    def find(self, name: str) -> Experiment | None:
        """An experiment by its name."""
        return next((each for each in self.experiments if each.name == name), None)


def _check_counted(experiment: Experiment, metric: Metric) -> None:
    """What comes of a single list can be counted, and nothing else."""
    if metric.value not in ("any", "count") or metric.per is not None:
        raise ValueError(
            f"{experiment.name}: {metric.name} is no count of events: of single lists it is asked "
            "whether, or how often, something was clicked or bought (value: any or count, no per)"
        )
    if metric.better == "lower":
        raise ValueError(f"{experiment.name}: {metric.name}: lists are better by more events")


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
        both = _decided(one) & _decided(other)
        if both:
            raise ValueError(
                f"{one.name} and {other.name} both decide {', '.join(sorted(both))} for the same "
                "lists at the same time: put them into disjoint slices of one layer"
            )


def _decided(experiment: Experiment) -> set[str]:
    found = set[str]().union(*(arm.sets() for arm in experiment.arms))
    return found | ({"which lists are drafted"} if experiment.interleave else set())


def _at_once(one: Experiment, other: Experiment) -> bool:
    first, second = sorted((one, other), key=lambda each: each.start)
    return first.end is None or second.start < first.end
