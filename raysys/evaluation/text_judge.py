"""Learners of a text task judged side by side: figures with intervals, gains that are paired.

Everything is drawn with the same `Bootstrap`: of texts, or of groups and queries with all their
rows where there are some.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raysys.evaluation.intervals import Bootstrap, Float64, Interval
from raysys.evaluation.span_metrics import span_report
from raysys.evaluation.text_metrics import LabelJudgement, label_scores

CRITERION: Final = {
    "classify": "macro_f1",
    "sentiment": "macro_f1",
    "entities": "micro_f1",
    "relevance": "ndcg@10",
}
"""By which figure learners of a task are chosen; more is better."""

LEVELS: Final = " > "
DEPTH: Final = 10
_MOST: Final = 50_000_000  # clusters times draws that are held at once
_BINS: Final = 15
_RATES: Final = ("precision", "recall", "f1")

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ByLabel:
    """How one label fares."""

    label: str
    support: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Reliability:
    """What was promised and what came true, by bin of the promised probability.

    Attributes:
        promised: float64[bins], means.
        true: float64[bins], shares.
        count: int64[bins].
        error: expected calibration error.
    """

    promised: Float64
    true: Float64
    count: Int64
    error: float


@dataclass(frozen=True)
class Cut:
    """From which grade a text is relevant.

    Attributes:
        grade: a text with this grade, or a higher one, is.
        low, high: the ends of the scale, the one below the other.
    """

    grade: float
    low: float
    high: float

    def place(self, grade: Float64) -> Float64:
        """Grades between the lowest (0) and the highest (1), as if these were probabilities."""
        found = (grade - self.low) / max(self.high - self.low, 1e-12)
        return np.asarray(found.clip(0, 1), dtype=np.float64)


@dataclass(frozen=True)
class TextVerdict:
    """What came of judging one learner.

    Attributes:
        figures: by name, the criterion among them.
        basis: what the criterion is computed from, for gains: labels, counts of spans, or NDCG by
            query.
        by_label: of labels that occur, the most frequent first.
        reliability: of probabilities; None where the task gives none.
        wrong: bool[n], which rows it got wrong; for relevance those that err most.
    """

    figures: dict[str, Interval]
    basis: LabelJudgement | Float64
    by_label: tuple[ByLabel, ...] = ()
    reliability: Reliability | None = None
    wrong: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, bool))


class TextJudge:
    """Judges predictions of one split.

    Args:
        task: classify, entities, sentiment or relevance.
        truth: `LABELLED_TEXTS`, or `LABELLED_PAIRS`.
        cluster: int64[n], what is drawn together.
        least_grade: for relevance: a gain is a grade less this.
        cut: for relevance: by which probabilities are judged; None: they are not.
        resamples: draws; fewer where there are very many clusters.
        seed: of the draws.
    """

    def __init__(
        self,
        task: str,
        truth: pa.Table,
        cluster: Int64,
        *,
        least_grade: float = 0.0,
        cut: Cut | None = None,
        resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        self.task, self.truth = task, truth
        self.least_grade, self.cut = least_grade, cut
        clusters = len(np.unique(cluster))
        draws = int(min(resamples, max(100, _MOST // max(1, clusters))))
        self.bootstrap = Bootstrap(cluster, resamples=draws, seed=seed)
        self.criterion = CRITERION[task]

    def verdict(self, said: pa.Table) -> TextVerdict:
        """Judge `PREDICTIONS` of the rows of the truth, in their order."""
        how: dict[str, Callable[[pa.Table], TextVerdict]] = {
            "classify": self._labels,
            "sentiment": self._labels,
            "entities": self._spans,
            "relevance": self._grades,
        }
        return how[self.task](said)

    def gain(self, verdict: TextVerdict, other: TextVerdict) -> Interval:
        """The criterion of one less that of another, on the same draws."""
        mine, theirs = verdict.basis, other.basis
        if isinstance(mine, LabelJudgement) and isinstance(theirs, LabelJudgement):
            return mine.macro_f1_gain(theirs, self.bootstrap)
        assert isinstance(mine, np.ndarray) and isinstance(theirs, np.ndarray)
        if self.task == "relevance":
            return self.bootstrap.difference(mine, theirs)
        drawn = [_f1(self.bootstrap.replicate(counts)) for counts in (mine, theirs)]
        value = float(_f1(mine.sum(0)) - _f1(theirs.sum(0)))
        return self.bootstrap.interval(value, drawn[0] - drawn[1])

    def _labels(self, said: pa.Table) -> TextVerdict:
        truth, given = self.truth["label"].to_pylist(), said["label"].to_pylist()
        judgement = LabelJudgement.of(given, truth)
        draws = self.bootstrap
        figures = {
            "macro_f1": judgement.macro_f1(draws),
            "accuracy": draws.mean(judgement.right),
        }
        for depth in range(1, max(name.count(LEVELS) for name in judgement.names) + 1):
            same = [_cut(a, depth) == _cut(b, depth) for a, b in zip(truth, given, strict=True)]
            figures[f"accuracy_level_{depth}"] = draws.mean(np.array(same, np.float64))
        answered = np.array([label is not None for label in given], np.float64)
        if not answered.all():
            figures["answered"] = draws.mean(answered)
        if "rating" in said.column_names:
            rating = np.array(self.truth["rating"].to_pylist(), dtype=np.float64)
            guess = np.array(said["rating"].to_pylist(), dtype=np.float64)
            if np.isfinite(guess - rating).any():
                figures["rating_rmse"] = self._rmse(guess - rating)
        best = [(c[0]["label"], c[0]["probability"]) for c in said["choices"].to_pylist()]
        hit = np.array([label == a for (label, _), a in zip(best, truth, strict=True)])
        promised = np.array([probability for _, probability in best], dtype=np.float64)
        reliability = reliability_of(promised, hit)
        figures["calibration_error"] = _without_interval(reliability.error)
        by_label = [
            ByLabel(name, found.support, *(_known(getattr(found, key)) for key in _RATES))
            for name, found in label_scores(judgement).items()
        ]
        wrong = judgement.right == 0
        return TextVerdict(figures, judgement, _frequent_first(by_label), reliability, wrong)

    def _spans(self, said: pa.Table) -> TextVerdict:
        told = said["spans"].to_pylist()
        truth = [_span_set(spans) for spans in self.truth["spans"].to_pylist()]
        found = [_span_set(spans) for spans in told]
        draws = self.bootstrap
        counts = np.zeros((draws.n_clusters, 3))
        for row, (a, b) in enumerate(zip(truth, found, strict=True)):
            counts[draws.cluster[row]] += (len(a & b), len(b), len(a))
        drawn = draws.replicate(counts)
        report = span_report(truth, found, resamples=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision, recall = drawn[:, 0] / drawn[:, 1], drawn[:, 0] / drawn[:, 2]
        micro = report.micro
        figures = {
            "micro_f1": draws.interval(_known(micro.f1.value), _f1(drawn)),
            "precision": draws.interval(_known(micro.precision.value), precision),
            "recall": draws.interval(_known(micro.recall.value), recall),
            "macro_f1": _without_interval(_known(report.macro.f1.value)),
        }
        by_label = [
            ByLabel(name, scores.spans, *(_known(getattr(scores, key).value) for key in _RATES))
            for name, scores in report.by_label.items()
            if scores.spans
        ]
        reliability = None
        promised = [span["probability"] for spans in told for span in spans or ()]
        if promised:
            hit = [_key(s) in a for a, spans in zip(truth, told, strict=True) for s in spans or ()]
            reliability = reliability_of(np.array(promised, np.float64), np.array(hit))
            figures["calibration_error"] = _without_interval(reliability.error)
        wrong = np.array([a != b for a, b in zip(truth, found, strict=True)], dtype=bool)
        return TextVerdict(figures, counts, _frequent_first(by_label), reliability, wrong)

    def _grades(self, said: pa.Table) -> TextVerdict:
        grade = self.truth["grade"].to_numpy().astype(np.float64)
        guess = said["grade"].to_numpy().astype(np.float64)
        gain = np.maximum(grade - self.least_grade, 0)
        values = ndcg_by_cluster(self.bootstrap.cluster, guess, gain, DEPTH)
        of_rows = np.full(len(grade), np.nan)  # one row stands for its query
        _, first = np.unique(self.bootstrap.cluster, return_index=True)
        of_rows[first] = values
        error = np.abs(guess - grade)
        figures = {"ndcg@10": self.bootstrap.mean(of_rows), "rmse": self._rmse(error)}
        reliability = None
        if self.cut is not None and "probability" in said.column_names:
            true = grade >= self.cut.grade
            told, reliability = self._relevant(said, true, self.cut.place(guess))
            figures |= told
        wrong = error > np.quantile(error, 0.95)
        return TextVerdict(figures, of_rows, reliability=reliability, wrong=wrong)

    def _relevant(
        self, said: pa.Table, true: npt.NDArray[np.bool_], before: Float64
    ) -> tuple[dict[str, Interval], Reliability]:
        """Whether texts are relevant, as it was said; and by `before`, a grade's place alone."""
        draws = self.bootstrap
        given = said["relevant"].to_numpy()
        promised = said["probability"].to_numpy().astype(np.float64)
        of_rows = np.stack([true & given, given, true], axis=1).astype(np.float64)
        counts = np.zeros((draws.n_clusters, 3))
        np.add.at(counts, draws.cluster, of_rows)
        figures = {
            "relevant_f1": draws.interval(float(_f1(counts.sum(0))), _f1(draws.replicate(counts))),
            "brier": draws.mean((promised - true) ** 2),
            "brier_before": draws.mean((before - true) ** 2),
            "calibration_error": self._calibration_error(promised, true),
            "calibration_error_before": self._calibration_error(before, true),
        }
        return figures, reliability_of(promised, true)

    def _calibration_error(self, promised: Float64, true: npt.NDArray[np.bool_]) -> Interval:
        """That of `reliability_of`, with its interval."""
        cell = np.minimum((promised * _BINS).astype(np.int64), _BINS - 1)
        told = promised.astype(np.float32), true.astype(np.float32)
        return self.bootstrap.calibration_error(cell, *told, np.arange(len(cell)))

    def _rmse(self, error: Float64) -> Interval:
        """Root of the mean of squares of those errors that are known."""
        mean = self.bootstrap.mean(error**2)
        return Interval(*(float(np.sqrt(value)) for value in (mean.value, mean.low, mean.high)))


def reliability_of(promised: Float64, hit: npt.NDArray[np.bool_]) -> Reliability:
    """Bins of equal width; the error is weighted by their counts (Naeini et al., AAAI 2015)."""
    cell = np.minimum((promised * _BINS).astype(np.int64), _BINS - 1)
    count = np.bincount(cell, minlength=_BINS)
    filled = count > 0
    mean = np.bincount(cell, weights=promised, minlength=_BINS)[filled] / count[filled]
    hits = np.bincount(cell, weights=hit.astype(np.float64), minlength=_BINS)[filled]
    true = np.asarray(hits / count[filled], dtype=np.float64)
    error = float((np.abs(mean - true) * count[filled]).sum() / max(1, count.sum()))
    return Reliability(
        np.asarray(mean, dtype=np.float64), true, count[filled].astype(np.int64), error
    )


def ndcg_by_cluster(query: Int64, score: Float64, gain: Float64, depth: int) -> Float64:
    """NDCG of each query's rows, linear gains: float64[queries]; NaN where there is no choice.

    Ties of scores get the mean gain of those tied (McSherry and Najork, ECIR 2008), so the order
    of a file does not decide. A query of which all grades are equal has no value.
    """
    n = int(query.max(initial=-1)) + 1
    values = np.full(n, np.nan)
    order = np.lexsort((-score, query))
    query, score, gain = query[order], score[order], gain[order]
    starts = np.flatnonzero(np.r_[True, query[1:] != query[:-1]])
    ends = np.r_[starts[1:], len(query)]
    discount = 1 / np.log2(np.arange(2, depth + 2))
    for start, end in zip(starts, ends, strict=True):
        gains, scores = gain[start:end], score[start:end]
        if gains.max() == gains.min():
            continue
        _, tied, size = np.unique(-scores, return_inverse=True, return_counts=True)
        mean = np.bincount(tied, weights=gains) / size
        shown = mean[tied][:depth]
        ideal = np.sort(gains)[::-1][:depth]
        values[query[start]] = (shown @ discount[: len(shown)]) / (ideal @ discount[: len(ideal)])
    return values


def _f1(counts: Float64) -> Float64:
    """F1 of (right, given, there are): float64[…]; 0 where nothing is right."""
    return np.asarray(2 * counts[..., 0] / np.maximum(counts[..., 1] + counts[..., 2], 1e-9))


def _without_interval(value: float) -> Interval:
    return Interval(value, float("nan"), float("nan"))


def _known(value: float) -> float:
    """Precision of what was never given is nothing, which counts as 0."""
    return 0.0 if np.isnan(value) else float(value)


def _frequent_first(labels: Sequence[ByLabel]) -> tuple[ByLabel, ...]:
    return tuple(sorted(labels, key=lambda label: (-label.support, label.label)))


def _cut(label: str | None, depth: int) -> str | None:
    return None if label is None else LEVELS.join(label.split(LEVELS)[:depth])


def _span_set(spans: Sequence[dict[str, Any]] | None) -> set[tuple[int, int, str]]:
    return {_key(span) for span in spans or ()}


def _key(span: dict[str, Any]) -> tuple[int, int, str]:
    return span["start"], span["end"], span["label"]
