"""Ways to combine base scores, each fitted on some requests: averages, linear stacks, trees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from pydantic import Field

from raysys.config import Settings
from raysys.ensemble.average import select
from raysys.ensemble.calibrate import CalibrationMethod
from raysys.ensemble.normalise import FORMS, Form
from raysys.ensemble.ranking import Judgements
from raysys.ensemble.stack import fit_listwise
from raysys.ensemble.tree_stack import (
    Forms,
    TreeStack,
    TreeStackSettings,
    gain_by_member,
    grow,
    tree_inputs,
)

Linear = Literal["average_standard", "average_rank", "stack_standard", "stack_rank", "stack_both"]
Method = Literal[
    "blend",
    "average_standard",
    "average_rank",
    "stack_standard",
    "stack_rank",
    "stack_both",
    "two_level",
    "tree",
]
Weights = npt.NDArray[np.float64]
Parts = Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]

LINEAR: tuple[str, ...] = get_args(Linear)
WITH_TREES = ("two_level", "tree")
FIRST_LEVEL: tuple[Linear, ...] = ("stack_standard", "average_standard", "stack_both")
"""What `blend` is the mean of, and what trees of two levels see and add to."""


class KeepSettings(Settings):
    """When a member is worth the time it takes.

    Attributes:
        ndcg_per_ms: what a member must add to the NDCG of the others for each millisecond that it
            takes for a request of 100 candidates on one thread; 0.001, say.
    """

    ndcg_per_ms: float = Field(gt=0)


class EnsembleSettings(Settings):
    """How base scores become one.

    Attributes:
        methods: what competes: greedy weighted averages (`average`) and listwise stacking
            (`stack`), over z-scores (`standard`), normal quantiles of ranks (`rank`) or both; the
            mean of three of them (`blend`); trees over base scores and raw features (`tree`);
            trees that add to a blend (`two_level`). One that is within a standard error of the
            best wins if it comes earlier in the list. Trees compete for all members together
            only, unless nothing else does: fallbacks are for when there is no time.
        blocks: held out in turn.
        block_by: blocks of `time`; or of `user`, `query` or `session` where those to come are
            others: no block shares one with what was fitted on. Requests without a query, or
            without a session, are each a group of their own.
        gap_hours: requests whose label may still change so long after them, and so into the
            block that is judged, are left out of the fit; null: as long as the windows of
            labels in `raysys features`.
        k: of the NDCG by which they compete.
        rounds: of greedy selection.
        ridge: of stacking.
        trees: of `tree` and `two_level`.
        max_requests: at most so many requests, evenly over time, are fitted on.
        calibrations: what competes, by held-out log loss, to turn scores into probabilities.
        bins: of the isotonic calibration.
        keep: drop members that do not pay for their time; null: none is dropped for that.
    """

    methods: tuple[Method, ...] = Field(
        default=("blend", "two_level", "stack_standard", "average_standard", "stack_both"),
        min_length=1,
    )
    blocks: int = Field(default=3, ge=2)
    block_by: Literal["time", "user", "query", "session"] = "time"
    gap_hours: float | None = Field(default=None, ge=0)
    k: int = Field(default=10, ge=1)
    rounds: int = Field(default=20, ge=1)
    ridge: float = Field(default=1e-4, ge=0)
    trees: TreeStackSettings = TreeStackSettings()
    max_requests: int = Field(default=10_000, ge=1)
    calibrations: tuple[CalibrationMethod, ...] = Field(("isotonic", "platt"), min_length=1)
    bins: int = Field(default=200, ge=2)
    keep: KeepSettings | None = None


@dataclass(frozen=True)
class Lesson:
    """Normalised base scores of some requests, in time order, and what was relevant in them.

    Attributes:
        judgements: of n rows.
        forms: float32[n] by member and form.
        raw: float32[n, p], raw features that trees may read.
        names: of the raw features.
    """

    judgements: Judgements
    forms: Forms
    raw: npt.NDArray[np.float32]
    names: tuple[str, ...] = ()

    def take(self, which: npt.NDArray[np.int64]) -> Lesson:
        """The given requests, in the given order."""
        rows = self.judgements.rows(which)
        forms = {key: scores[rows] for key, scores in self.forms.items()}
        return Lesson(self.judgements.take(which), forms, self.raw[rows], self.names)


@dataclass(frozen=True)
class Formula:
    """What a method made of a lesson.

    Attributes:
        members: names of learners.
        weights: float64[2, m]; beside trees, those that answer when something is missing.
        trees: that answer instead; None for the linear methods.
    """

    members: tuple[str, ...]
    weights: Weights
    trees: TreeStack | None = None

    def score(self, lesson: Lesson) -> npt.NDArray[np.float32]:
        """Combined scores of its rows, float32[n]."""
        if self.trees is not None:
            return self.trees.score(lesson.forms, lesson.raw)
        return self.linear(lesson)

    def linear(self, lesson: Lesson) -> npt.NDArray[np.float32]:
        """What the weights say, float32[n]."""
        total = np.zeros(len(lesson.judgements.item))
        for form, row in zip(FORMS, self.weights.tolist(), strict=True):
            for name, weight in zip(self.members, row, strict=True):
                if weight:
                    total += weight * lesson.forms[name, form]
        return total.astype(np.float32)


def fit_method(
    method: str, members: tuple[str, ...], lesson: Lesson, settings: EnsembleSettings, parts: Parts
) -> Formula:
    """One method fitted on all requests of a lesson.

    Args:
        method: one of `Method`, or `alone` for a single member.
        members: names of learners.
        lesson: to fit on.
        settings: see `EnsembleSettings`.
        parts: requests of the lesson to fit on and to score, by which trees get their first level
            out of fold; not read by other methods.

    Raises:
        ValueError: no relevant candidate to learn from.
    """
    if method == "alone":
        weights: Weights = np.zeros((len(FORMS), 1))
        weights[0, 0] = 1.0
        return Formula(members, weights)
    if method == "blend":
        return Formula(members, blended(_levels(FIRST_LEVEL, members, lesson, settings)))
    if method in LINEAR:
        return Formula(members, _linear(method, members, lesson, settings))
    levels = FIRST_LEVEL if method == "two_level" else ()
    return _trees(levels, members, lesson, settings, parts)


def blended(levels: Weights) -> Weights:
    """The mean float64[2, m] of several weights float64[l, 2, m] that sum to 1 each.

    Methods differ by less than chance on any one fold; their mean errs less than the one that
    happened to be ahead there.
    """
    return np.asarray(levels.mean(axis=0), dtype=np.float64)


def _levels(
    methods: Sequence[str], members: tuple[str, ...], lesson: Lesson, settings: EnsembleSettings
) -> Weights:
    """Weights of several methods, float64[l, 2, m], summing to 1 each."""
    found = np.empty((len(methods), len(FORMS), len(members)))
    for at, method in enumerate(methods):
        weights = _linear(method, members, lesson, settings)
        found[at] = weights / weights.sum()
    return found


def _linear(
    method: str, members: tuple[str, ...], lesson: Lesson, settings: EnsembleSettings
) -> Weights:
    """Weights float64[2, m]."""
    kind, _, form = method.partition("_")
    used = [index for index, name in enumerate(FORMS) if form in (name, "both")]
    forms: list[Form] = [FORMS[index] for index in used]
    inputs = np.stack([lesson.forms[name, form] for form in forms for name in members])
    weights: Weights = np.zeros((len(FORMS), len(members)))
    if kind == "average":
        fitted = select(inputs, lesson.judgements, rounds=settings.rounds, k=settings.k)
    else:
        fitted = fit_listwise(inputs, lesson.judgements, ridge=settings.ridge)
    weights[used] = fitted.reshape(len(used), len(members))
    return weights


def _trees(
    levels: Sequence[str],
    members: tuple[str, ...],
    lesson: Lesson,
    settings: EnsembleSettings,
    parts: Parts,
) -> Formula:
    """Trees whose first-level columns come from weights that did not see the row."""
    whole = _levels(levels, members, lesson, settings)
    inputs, start = tree_inputs(lesson.forms, members, whole, lesson.raw)
    if levels:
        for fitted, scored in parts:
            inside, outside = lesson.take(fitted), lesson.take(scored)
            rows = lesson.judgements.rows(scored)
            unseen = _levels(levels, members, inside, settings)
            found, begun = tree_inputs(outside.forms, members, unseen, outside.raw)
            inputs[rows], start[rows] = found, begun
    booster = grow(inputs, start, lesson.judgements, settings.trees, k=settings.k)
    weights = blended(whole) if levels else _linear("stack_standard", members, lesson, settings)
    share = gain_by_member(booster, members, whole)
    stack = TreeStack(members, lesson.names, whole, booster.model_to_string(), share)
    return Formula(members, weights, stack)
