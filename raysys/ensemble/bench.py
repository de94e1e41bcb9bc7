"""Where methods compete: base scores normalised once, cut into blocks that are held out in turn."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from raysys.ensemble.calibrate import Choice, choose_calibration
from raysys.ensemble.combination import Combination, Stacked, combine
from raysys.ensemble.folds import BaseScores
from raysys.ensemble.methods import (
    FIRST_LEVEL,
    LINEAR,
    WITH_TREES,
    EnsembleSettings,
    Formula,
    Lesson,
    Parts,
    blended,
    fit_method,
)
from raysys.ensemble.normalise import FORMS, normalise
from raysys.ensemble.ranking import ndcg, rows_of
from raysys.ensemble.splits import cross_folds, folds_by_group, folds_by_time

HELD_OUT = "held_out_ndcg"
HOUR_MS = 3_600_000
CALIBRATED = 1500
"""Requests, evenly over time, by which calibrations are compared; the winner is fitted on all."""

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Beside:
    """What is known of the requests of the last fold beside their base scores.

    Attributes:
        moment: int64[r], UTC ms; None: only their order is known.
        group: int64[r], by which blocks are cut unless by time: the user, query or session of
            each; a negative number is a group of its own. None: unknown.
        names: raw features that trees may read.
        raw: float32[n, len(names)], of every candidate.
        window_ms: how long after a request its labels may still change.
    """

    moment: Int64 | None = None
    group: Int64 | None = None
    names: tuple[str, ...] = ()
    raw: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    window_ms: int = 0

    def take(self, requests: Int64, rows: Int64) -> Beside:
        """Of some requests, int64[s], whose candidates are `rows` of all, int64[m]."""
        return Beside(
            None if self.moment is None else self.moment[requests],
            None if self.group is None else self.group[requests],
            self.names,
            self.raw[rows] if self.names else self.raw,
            self.window_ms,
        )

    def window(self, settings: EnsembleSettings) -> int:
        """How long labels may still change, ms, if the settings do not say; 0 without moments."""
        if self.moment is None:
            return 0
        hours = settings.gap_hours
        return self.window_ms if hours is None else round(hours * HOUR_MS)


@dataclass(frozen=True)
class Trial:
    """A method judged on blocks that it was not fitted on.

    Attributes:
        values: float64[r], NDCG of every request; NaN where nothing is relevant.
        scores: float32[n], of every row; None where the method was fitted on all of them.
    """

    values: Float64
    scores: npt.NDArray[np.float32] | None = None

    @property
    def mean(self) -> float:
        """Mean NDCG of the requests that had something relevant; 0 if none had."""
        known = self.values[~np.isnan(self.values)]
        return float(known.mean()) if len(known) else 0.0


class Bench:
    """Base scores of the last fold, on which every fallback is fitted.

    Args:
        scores: out-of-fold base scores; only those of the last fold are read.
        members: names of learners.
        settings: see `EnsembleSettings`.
        beside: see `Beside`; of all requests of the last fold, in the order of `scores`.

    Raises:
        ValueError: no relevant candidate, unknown groups, or labels that take longer to settle
            than there is time.
    """

    def __init__(
        self,
        scores: BaseScores,
        members: tuple[str, ...],
        settings: EnsembleSettings,
        beside: Beside | None = None,
    ) -> None:
        self.settings, self.members = settings, members
        self._beside = beside = beside or Beside()
        self.scores = scores.take(np.flatnonzero(scores.fold == scores.fold.max()))
        if not len(self.scores.judgements.relevant):
            raise ValueError("no candidate of the validation fold is relevant")
        chosen = evenly(self.scores.n_requests, settings.max_requests)
        sample = self.scores.take(chosen)
        n = len(sample.label)
        self.lesson = Lesson(
            sample.judgements,
            {
                (name, form): normalise(sample.base[name], sample.offsets, form)
                for name in members
                for form in FORMS
            },
            beside.raw[self.scores.judgements.rows(chosen)]
            if beside.names
            else np.empty((n, 0), np.float32),
            beside.names,
        )
        self.judgements = self.lesson.judgements
        self._moment = (
            beside.moment[chosen] if beside.moment is not None else np.arange(len(chosen))
        )
        self._window = beside.window(settings)
        self._group = None if beside.group is None else beside.group[chosen].astype(np.int64)
        self.parts = self._cut(np.arange(len(chosen)), settings.blocks)
        self._lessons: dict[bytes, Lesson] = {}
        self._trials: dict[tuple[str, tuple[str, ...]], Trial] = {}
        self._fits: dict[tuple[str, tuple[str, ...], bytes], Formula] = {}

    def combine(
        self,
        members: tuple[str, ...],
        made: tuple[Combination, ...] = (),
        methods: tuple[str, ...] | None = None,
    ) -> Combination:
        """The best combination of these members, calibrated on out-of-fold scores.

        Args:
            members: names of learners.
            made: combinations of others; one of fewer of these members takes the place if it is
                better by more than two standard errors: the others do harm then. The bar is
                higher than between methods, since what is dropped can no longer help.
            methods: that compete; None: all of the settings.
        """
        method, figures = self._compete(members, methods or self.settings.methods)
        mine = self.trial(method, members)
        for rival in sorted(made, key=lambda c: -c.figures[HELD_OUT]):
            if not set(rival.members) < set(members):
                continue
            theirs = self.trial(rival.method, rival.members)
            if not within_errors(theirs.values - mine.values, 2):
                self._trials[rival.method, members] = theirs
                return _among(rival, members)
            break
        formula = self.fit(method, members, np.arange(self.judgements.n_requests))
        linear = combine(members, formula.weights, self.scores.base, self.scores.offsets)
        choice = self._calibrate(linear, self.scores.label, self.scores.offsets)
        if formula.trees is None:
            figures |= _told(choice)
            return Combination(members, formula.weights, choice.calibration, method, figures)
        assert mine.scores is not None  # trees know the rows they were fitted on too well
        own = self._calibrate(mine.scores, self.judgements.label, self.judgements.offsets)
        figures |= _told(own)
        stacked = Stacked(formula.trees, own.calibration)
        return Combination(members, formula.weights, choice.calibration, method, figures, stacked)

    def smaller(self, requests: int) -> Bench:
        """A bench of at most so many of the requests; this one if it has no more."""
        if self.judgements.n_requests <= requests:
            return self
        fewer = self.settings.model_copy(update={"max_requests": requests})
        return Bench(self.scores, self.members, fewer, self._beside)

    def trial(self, method: str, members: tuple[str, ...]) -> Trial:
        """A method judged block by block, each time fitted on the others; remembered."""
        key = (method, members)
        if key not in self._trials:
            self._trials[key] = self._try(method, members)
        return self._trials[key]

    def fit(self, method: str, members: tuple[str, ...], which: Int64) -> Formula:
        """A method fitted on the requests in `which`; linear ones are remembered."""
        key = (method, members, which.tobytes())
        if key in self._fits:
            return self._fits[key]
        if method == "blend":  # of fits that the competition needs anyway
            found = [self.fit(each, members, which).weights for each in FIRST_LEVEL]
            whole = blended(np.stack([weights / weights.sum() for weights in found]))
            return Formula(members, whole)
        parts = self._cut(which, self.settings.blocks) if method == "two_level" else []
        formula = fit_method(method, members, self._lesson(which), self.settings, parts)
        if method in LINEAR:
            self._fits[key] = formula
        return formula

    def _try(self, method: str, members: tuple[str, ...]) -> Trial:
        if method == "alone":
            scores = self.lesson.forms[members[0], "standard"]
            return Trial(self._judge(scores, np.arange(self.judgements.n_requests)))
        values = np.full(self.judgements.n_requests, np.nan)
        scores = np.zeros(len(self.judgements.item), dtype=np.float32)
        for fitted, scored in self.parts:
            formula = self.fit(method, members, fitted)
            said = formula.score(self._lesson(scored))
            scores[self.judgements.rows(scored)] = said
            values[scored] = self._judge(said, scored)
        return Trial(values, scores)

    def _compete(
        self, members: tuple[str, ...], methods: tuple[str, ...]
    ) -> tuple[str, dict[str, float]]:
        """The method to take, and the held-out NDCG of every method."""
        if len(members) == 1:
            return "alone", {HELD_OUT: self.trial("alone", members).mean}
        if len(self.parts) == 1:  # a single request: nothing to choose by
            linear = next((m for m in methods if m not in WITH_TREES), "blend")
            everything = np.full(self.judgements.n_requests, np.nan)
            self._trials[linear, members] = Trial(everything)
            return linear, {HELD_OUT: 0.0}
        trials = {method: self.trial(method, members) for method in methods}
        best = max(methods, key=lambda name: trials[name].mean)
        method = next(
            name for name in methods if within_errors(trials[best].values - trials[name].values, 1)
        )
        figures = {f"{HELD_OUT}_{name}": trial.mean for name, trial in trials.items()}
        return method, {HELD_OUT: trials[method].mean, **figures}

    def _lesson(self, which: Int64) -> Lesson:
        """The requests in `which`; the same few sets are asked for again and again."""
        key = which.tobytes()
        if key not in self._lessons:
            self._lessons[key] = self.lesson.take(which)
        return self._lessons[key]

    def _judge(self, scores: npt.NDArray[np.float32], which: Int64) -> Float64:
        """NDCG of the requests in `which` by scores of their rows."""
        judgements = self._lesson(which).judgements
        return ndcg(judgements, judgements.ranks(scores), self.settings.k)

    def _cut(self, which: Int64, blocks: int) -> Parts:
        """Of the requests in `which`, by their place there: those to fit on and those to score."""
        group = None if self._group is None else self._group[which]
        return cut(self.settings, blocks, self._moment[which], self._window, group)

    def _calibrate(
        self, scores: npt.NDArray[np.float32], label: npt.NDArray[np.float32], offsets: Int64
    ) -> Choice:
        """The calibration that loses least on blocks of requests it was not fitted on."""
        settings = self.settings
        which = evenly(len(offsets) - 1, CALIBRATED)  # enough to tell two curves apart
        rows, sizes = rows_of(offsets, which)
        fold = folds_by_time(np.repeat(np.arange(len(which)), np.diff(sizes)), settings.blocks)
        parts = [(rows[fitted], rows[judged]) for fitted, judged in cross_folds(fold)]
        return choose_calibration(scores, label, parts, settings.calibrations, bins=settings.bins)


def cut(
    settings: EnsembleSettings, blocks: int, moment: Int64, window: int, group: Int64 | None
) -> Parts:
    """Requests to fit on and those to score, block by block; none is on both sides, nor its group.

    Args:
        settings: `block_by` says by what blocks are cut.
        blocks: at most.
        moment: int64[r], when each request happened; they stand in its order.
        window: how long after it labels may still change; of no account between groups.
        group: int64[r], see `Beside`.

    Raises:
        ValueError: unknown groups, or no request is left to fit on beside some block.
    """
    if settings.block_by != "time":
        if group is None:
            raise ValueError(
                f"blocks by {settings.block_by} need the {settings.block_by} of each request"
            )
        known = len(np.unique(group[group >= 0])) + int((group < 0).sum())
        return list(cross_folds(folds_by_group(group, min(blocks, known))))
    # requests of one moment may stand in two blocks: only their order is sure
    fold = folds_by_time(np.arange(len(moment)), blocks)
    parts = list(cross_folds(fold, moment, window))
    if len(parts) > 1 and not all(len(fitted) for fitted, _ in parts):
        raise ValueError(
            f"labels take {window / HOUR_MS:g} hours to settle, so that no request is left to fit "
            "on beside some block; give fewer blocks or a smaller gap_hours"
        )
    return parts


def within_errors(differences: Float64, errors: float) -> bool:
    """Whether paired differences are no larger in the mean than so many standard errors."""
    known = differences[~np.isnan(differences)]
    if len(known) < 2:
        return True
    return bool(known.mean() <= errors * known.std(ddof=1) / np.sqrt(len(known)))


def evenly(count: int, most: int) -> Int64:
    """At most `most` of `count` indices, evenly spread: the same choice every time."""
    if count <= most:
        return np.arange(count)
    return np.linspace(0, count - 1, most).round().astype(np.int64)


def _told(choice: Choice) -> dict[str, float]:
    return {f"held_out_log_loss_{name}": loss for name, loss in choice.log_loss.items()}


def _among(combination: Combination, members: tuple[str, ...]) -> Combination:
    """The same combination among more members, whose weight is zero."""
    weights = np.zeros((len(FORMS), len(members)))
    for name, pair in zip(combination.members, combination.weights.T, strict=True):
        weights[:, members.index(name)] = pair
    return replace(combination, members=members, weights=weights)
