"""Fit an ensemble on out-of-fold base scores: methods compete on blocks of time held out.

The weights are fitted on the last fold, whose scores come from the very models that will be
served; models of earlier folds saw less, and stand in other proportions to each other. Each method
is fitted without one block of time and judged on it, for every block; the winner is fitted again
on all of them. No score here comes from a model that saw its row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from raysys.config import Settings
from raysys.ensemble.average import select
from raysys.ensemble.calibrate import fit_calibration
from raysys.ensemble.combination import FALLBACKS, Combination, Ensemble, combine
from raysys.ensemble.folds import BaseScores
from raysys.ensemble.normalise import FORMS, Form, normalise
from raysys.ensemble.ranking import Judgements, ndcg
from raysys.ensemble.stack import fit_listwise

Method = Literal["average_standard", "average_rank", "stack_standard", "stack_rank", "stack_both"]
Weights = npt.NDArray[np.float64]
HELD_OUT = "held_out_ndcg"


class EnsembleSettings(Settings):
    """How base scores become one.

    Attributes:
        methods: what competes: greedy weighted averages and listwise stacking, over z-scores
            (`standard`), normal quantiles of ranks (`rank`) or both. One that is within a standard
            error of the best wins if it comes earlier in the list.
        blocks: of time, held out in turn.
        k: of the NDCG by which they compete.
        rounds: of greedy selection.
        ridge: of stacking.
        max_requests: at most so many requests, evenly over time, are fitted on.
        bins: of the calibration.
    """

    methods: tuple[Method, ...] = Field(
        default=(
            "stack_standard",
            "average_standard",
            "stack_both",
            "stack_rank",
            "average_rank",
        ),
        min_length=1,
    )
    blocks: int = Field(default=3, ge=2)
    k: int = Field(default=10, ge=1)
    rounds: int = Field(default=20, ge=1)
    ridge: float = Field(default=1e-4, ge=0)
    max_requests: int = Field(default=10_000, ge=1)
    bins: int = Field(default=200, ge=2)


def fit_ensemble(
    scores: BaseScores, families: Mapping[str, str], settings: EnsembleSettings | None = None
) -> Ensemble:
    """An ensemble with every fallback that has members, and every member alone.

    Args:
        scores: out-of-fold base scores of all members.
        families: family of every member, by which fallbacks choose theirs.
        settings: see `EnsembleSettings`.

    Raises:
        ValueError: no members, or no relevant candidate to learn from.
    """
    if not families:
        raise ValueError("an ensemble needs at least one member")
    settings = settings or EnsembleSettings()
    bench = _Bench(scores, tuple(families), settings)
    fallbacks: dict[str, Combination] = {}
    made: dict[tuple[str, ...], Combination] = {}
    chosen = {
        fallback: tuple(name for name, family in families.items() if family in wanted)
        for fallback, wanted in FALLBACKS.items()
    }
    for members in sorted(filter(None, set(chosen.values())), key=len):
        made[members] = bench.combine(members, list(made.values()))
    for fallback, members in chosen.items():
        if members:
            fallbacks[fallback] = made[members]
    alone = {name: bench.combine((name,)) for name in families}
    return Ensemble(families, fallbacks, alone, bench.scores.folds)


class _Bench:
    """Base scores, normalised once, on which every fallback is fitted."""

    def __init__(
        self, scores: BaseScores, members: tuple[str, ...], settings: EnsembleSettings
    ) -> None:
        self.settings = settings
        served = np.flatnonzero(scores.fold == scores.fold.max())
        self.scores = scores.take(served)
        chosen = _evenly(len(served), settings.max_requests)
        sample = self.scores.take(chosen)
        self.judgements = sample.judgements
        self.forms = {
            (name, form): normalise(sample.base[name], sample.offsets, form)
            for name in members
            for form in FORMS
        }
        blocks = np.array_split(np.arange(len(chosen)), settings.blocks)
        self.blocks = [block for block in blocks if len(block)]
        self._values: dict[tuple[str, ...], npt.NDArray[np.float64]] = {}

    def combine(self, members: tuple[str, ...], made: Sequence[Combination] = ()) -> Combination:
        """The best combination of these members, calibrated on all rows.

        Args:
            members: names of learners.
            made: combinations of others; one of fewer of these members takes the place if it is
                better by more than a standard error: the others do harm then.
        """
        method, values, figures = self._compete(members)
        self._values[members] = values
        narrower = [c for c in made if set(c.members) < set(members)]
        rival = max(narrower, key=lambda c: c.figures[HELD_OUT], default=None)
        if rival is not None and not _within_one_error(self._values[rival.members] - values):
            self._values[members] = self._values[rival.members]
            return _among(rival, members)
        weights = self._fit(method, members, np.arange(self.judgements.n_requests))
        # Calibration needs no sample: it is a sort.
        combined = combine(members, weights, self.scores.base, self.scores.offsets)
        curve = fit_calibration(combined, self.scores.label, bins=self.settings.bins)
        return Combination(members, weights, curve, method, figures)

    def _compete(
        self, members: tuple[str, ...]
    ) -> tuple[str, npt.NDArray[np.float64], dict[str, float]]:
        """The method to take, its NDCG of each request held out, and the means of every method."""
        everything = np.arange(self.judgements.n_requests)
        if len(members) == 1:
            values = self._judge(self._fit("alone", members, everything), members, everything)
            return "alone", values, {HELD_OUT: _mean(values)}
        methods = self.settings.methods
        if len(self.blocks) == 1:  # a single request: nothing to choose by
            return methods[0], np.full(len(everything), np.nan), {HELD_OUT: 0.0}
        values_of = {method: self._held_out(method, members) for method in methods}
        figures = {f"{HELD_OUT}_{name}": _mean(values) for name, values in values_of.items()}
        best = max(methods, key=lambda name: figures[f"{HELD_OUT}_{name}"])
        method = next(
            name for name in methods if _within_one_error(values_of[best] - values_of[name])
        )
        return method, values_of[method], {HELD_OUT: figures[f"{HELD_OUT}_{method}"], **figures}

    def _held_out(self, method: str, members: tuple[str, ...]) -> npt.NDArray[np.float64]:
        """NDCG of every request by weights that were fitted without its block: float64[r]."""
        values = np.full(self.judgements.n_requests, np.nan)
        for block in self.blocks:
            others = np.setdiff1d(np.arange(len(values)), block)
            weights = self._fit(method, members, others)
            values[block] = self._judge(weights, members, block)
        return values

    def _fit(self, method: str, members: tuple[str, ...], which: npt.NDArray[np.int64]) -> Weights:
        """Weights float64[2, m] of a method, fitted on the requests in `which`."""
        weights: Weights = np.zeros((len(FORMS), len(members)))
        if method == "alone":
            weights[0, 0] = 1.0
            return weights
        kind, _, form = method.partition("_")
        used = [index for index, name in enumerate(FORMS) if form in (name, "both")]
        judgements = self.judgements.take(which)
        inputs = self._inputs(members, which, [FORMS[index] for index in used])
        fitted = _FITTERS[kind](inputs, judgements, self.settings)
        weights[used] = fitted.reshape(len(used), len(members))
        return weights

    def _judge(
        self, weights: Weights, members: tuple[str, ...], which: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """NDCG of the requests in `which`: float64[len(which)], NaN where nothing is relevant."""
        inputs = self._inputs(members, which, list(FORMS))
        combined = (weights.ravel() @ inputs).astype(np.float32)
        judgements = self.judgements.take(which)
        return ndcg(judgements, judgements.ranks(combined), self.settings.k)

    def _inputs(
        self, members: tuple[str, ...], which: npt.NDArray[np.int64], forms: list[Form]
    ) -> npt.NDArray[np.float32]:
        """Normalised scores float32[len(forms) * m, rows]: all members; one form, then the next."""
        rows = self.judgements.rows(which)
        return np.stack([self.forms[name, form][rows] for form in forms for name in members])


def _among(combination: Combination, members: tuple[str, ...]) -> Combination:
    """The same combination among more members, whose weight is zero."""
    weights = np.zeros((len(FORMS), len(members)))
    for name, pair in zip(combination.members, combination.weights.T, strict=True):
        weights[:, members.index(name)] = pair
    return replace(combination, members=members, weights=weights)


def _average(
    inputs: npt.NDArray[np.float32], judgements: Judgements, settings: EnsembleSettings
) -> Weights:
    return select(inputs, judgements, rounds=settings.rounds, k=settings.k)


def _stack(
    inputs: npt.NDArray[np.float32], judgements: Judgements, settings: EnsembleSettings
) -> Weights:
    return fit_listwise(inputs, judgements, ridge=settings.ridge)


_FITTERS: dict[str, Callable[[npt.NDArray[np.float32], Judgements, EnsembleSettings], Weights]] = {
    "average": _average,
    "stack": _stack,
}


def _mean(values: npt.NDArray[np.float64]) -> float:
    """Mean over the requests that had something relevant; 0 if none had."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0


def _within_one_error(differences: npt.NDArray[np.float64]) -> bool:
    """Whether paired differences are no larger in the mean than their standard error."""
    known = differences[~np.isnan(differences)]
    if len(known) < 2:
        return True
    return bool(known.mean() <= known.std(ddof=1) / np.sqrt(len(known)))


def _evenly(count: int, most: int) -> npt.NDArray[np.int64]:
    """At most `most` of `count` indices, evenly spread: the same choice every time."""
    if count <= most:
        return np.arange(count)
    return np.linspace(0, count - 1, most).round().astype(np.int64)
