"""Fit an ensemble on out-of-fold base scores: candidates of method compete by forward time.

Each method is fitted on the earlier folds and judged on the last one; the winner is fitted again
on all of them. No score here comes from a model that saw its row, so the weights need no further
protection than that.
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


class EnsembleSettings(Settings):
    """How base scores become one.

    Attributes:
        methods: what competes: greedy weighted averages and listwise stacking, over z-scores
            (`standard`), normal quantiles of ranks (`rank`) or both.
        k: of the NDCG by which they compete.
        rounds: of greedy selection.
        ridge: of stacking.
        max_requests: at most so many requests, evenly over time, are fitted on.
        bins: of the calibration.
    """

    methods: tuple[Method, ...] = Field(
        default=(
            "average_standard",
            "average_rank",
            "stack_standard",
            "stack_rank",
            "stack_both",
        ),
        min_length=1,
    )
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
    return Ensemble(families, fallbacks, alone, scores.folds)


class _Bench:
    """Base scores, normalised once, on which every fallback is fitted."""

    def __init__(
        self, scores: BaseScores, members: tuple[str, ...], settings: EnsembleSettings
    ) -> None:
        self.settings = settings
        self.scores = scores
        chosen = _evenly(scores.n_requests, settings.max_requests)
        sample = scores.take(chosen)
        self.judgements = sample.judgements
        self.forms = {
            (name, form): normalise(sample.base[name], sample.offsets, form)
            for name in members
            for form in FORMS
        }
        self.earlier, self.last = _split(sample.fold)

    def combine(self, members: tuple[str, ...], made: Sequence[Combination] = ()) -> Combination:
        """The best combination of these members, calibrated on all rows.

        Args:
            members: names of learners.
            made: combinations of others; one of fewer of these members competes as it is, so that
                a member whose help does not show forward in time gets no weight.
        """
        forward: dict[str, float] = {}
        method = "alone"
        if len(members) > 1:
            for name in self.settings.methods:
                weights = self._fit(name, members, self.earlier)
                forward[name] = self._judge(weights, members, self.last)
            method = max(forward, key=lambda name: forward[name])
            narrower = [c for c in made if set(c.members) < set(members)]
            rival = max(narrower, key=lambda c: c.figures["forward_ndcg"], default=None)
            if rival is not None and rival.figures["forward_ndcg"] > forward[method]:
                return _among(rival, members)
        weights = self._fit(method, members, np.arange(self.judgements.n_requests))
        # Calibration needs no sample: it is a sort.
        combined = combine(members, weights, self.scores.base, self.scores.offsets)
        curve = fit_calibration(combined, self.scores.label, bins=self.settings.bins)
        alone = forward.get(method) or self._judge(weights, members, self.last)
        figures = {"forward_ndcg": alone, **{f"forward_{n}": v for n, v in forward.items()}}
        return Combination(members, weights, curve, method, figures)

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
    ) -> float:
        """Mean NDCG of weights on the requests in `which`."""
        inputs = self._inputs(members, which, list(FORMS))
        combined = (weights.ravel() @ inputs).astype(np.float32)
        judgements = self.judgements.take(which)
        values = ndcg(judgements, judgements.ranks(combined), self.settings.k)
        return float(np.nanmean(values)) if judgements.judged.any() else 0.0

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


def _split(fold: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Requests (in time order) of the earlier folds, and of the last; of one fold: two thirds."""
    last = fold == fold.max()
    if last.all():
        last = np.arange(len(fold)) >= (2 * len(fold)) // 3
    return np.flatnonzero(~last), np.flatnonzero(last)


def _evenly(count: int, most: int) -> npt.NDArray[np.int64]:
    """At most `most` of `count` indices, evenly spread: the same choice every time."""
    if count <= most:
        return np.arange(count)
    return np.linspace(0, count - 1, most).round().astype(np.int64)
