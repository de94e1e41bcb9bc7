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
class TextVerdict:
    """What came of judging one learner.

    Attributes:
        figures: by name, the criterion among them.
        replicates: of the criterion, float64[draws]; paired between verdicts of one judge.
        by_label: of labels that occur, the most frequent first.
        reliability: of probabilities; None where the task gives none.
        wrong: bool[n], which rows it got wrong; for relevance those that err most.
    """

    figures: dict[str, Interval]
    replicates: Float64
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
        resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        self.task, self.truth, self.least_grade = task, truth, least_grade
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
        value = verdict.figures[self.criterion].value - other.figures[self.criterion].value
        return self.bootstrap.interval(value, verdict.replicates - other.replicates)

    def _labels(self, said: pa.Table) -> TextVerdict:
        truth, given = self.truth["label"].to_pylist(), said["label"].to_pylist()
        right = np.array([a == b for a, b in zip(truth, given, strict=True)], dtype=np.float64)
        labels = sorted(set(truth))
        place = {label: at for at, label in enumerate(labels)}
        there = np.array([place[label] for label in truth], dtype=np.int64)
        here = np.array([place.get(label, -1) for label in given], dtype=np.int64)
        counts, replicates = self._f1_by_label(there, here, len(labels))
        f1 = _f1(counts)
        figures = {
            "macro_f1": self.bootstrap.interval(float(f1.mean()), replicates),
            "accuracy": self.bootstrap_rows(right),
        }
        deepest = max(label.count(LEVELS) for label in labels) + 1
        for depth in range(1, deepest):
            same = [_cut(a, depth) == _cut(b, depth) for a, b in zip(truth, given, strict=True)]
            figures[f"accuracy_level_{depth}"] = self.bootstrap_rows(np.array(same, np.float64))
        answered = np.array([label is not None for label in given], np.float64)
        if not answered.all():
            figures["answered"] = self.bootstrap_rows(answered)
        rating = np.array(self.truth["rating"].to_pylist(), dtype=np.float64)
        if "rating" in said.column_names and not np.isnan(rating).all():
            guess = np.array(said["rating"].to_pylist(), dtype=np.float64)
            if not np.isnan(guess).all():
                figures["rating_rmse"] = self._rmse(guess - rating)
        best = [(c[0]["label"], c[0]["probability"]) for c in said["choices"].to_pylist()]
        hit = np.array([label == a for (label, _), a in zip(best, truth, strict=True)])
        promised = np.array([probability for _, probability in best], dtype=np.float64)
        reliability = reliability_of(promised, hit)
        figures["calibration_error"] = Interval(reliability.error, float("nan"), float("nan"))
        by_label = [
            ByLabel(labels[at], int(counts[at, 2]), *_rates(counts[at]))
            for at in np.argsort(-counts[:, 2], kind="stable")
        ]
        return TextVerdict(figures, replicates, tuple(by_label), reliability, right == 0)

    def _f1_by_label(self, there: Int64, here: Int64, k: int) -> tuple[Float64, Float64]:
        """(right, given, there are) of each label: float64[k, 3]; draws of macro F1."""
        draws = self.bootstrap
        total = np.zeros((k, 3))
        sum_f1 = np.zeros(len(draws._weights))
        occurs = np.zeros(len(draws._weights))
        for start in range(0, k, 32):  # a block of labels at a time: their counts are dense
            few = min(32, k - start)
            columns = []
            for which in (np.where(there == here, here, -1), here, there):
                rows = np.flatnonzero((which >= start) & (which < start + few))
                cell = draws.cluster[rows] * few + which[rows] - start
                columns.append(np.bincount(cell, minlength=draws.n_clusters * few))
            counts = np.stack(columns, axis=1).reshape(draws.n_clusters, few, 3).astype(np.float64)
            total[start : start + few] = counts.sum(0)
            drawn = draws.replicate(counts)
            seen = drawn[..., 2] > 0.5  # a label that a draw lacks says nothing of it
            sum_f1 += np.where(seen, _f1(drawn), 0.0).sum(1)
            occurs += seen.sum(1)
        with np.errstate(invalid="ignore"):
            return total, sum_f1 / occurs

    def _spans(self, said: pa.Table) -> TextVerdict:
        truth = [_span_set(spans) for spans in self.truth["spans"].to_pylist()]
        found = [_span_set(spans) for spans in said["spans"].to_pylist()]
        labels = sorted({span[2] for spans in truth for span in spans})
        place = {label: at for at, label in enumerate([*labels, None])}
        draws = self.bootstrap
        counts = np.zeros((draws.n_clusters, len(place), 3))
        for row, (a, b) in enumerate(zip(truth, found, strict=True)):
            for column, some in enumerate((a & b, b, a)):
                for span in some:
                    at = place.get(span[2], len(labels))
                    counts[draws.cluster[row], at, column] += 1
        total, drawn = counts.sum(0), draws.replicate(counts)
        micro = _f1(drawn.sum(1))
        seen = drawn[:, :-1, 2] > 0.5
        macro = np.where(seen, _f1(drawn[:, :-1]), 0.0).sum(1) / np.maximum(seen.sum(1), 1)
        summed = total.sum(0)
        precision, recall, f1 = _rates(summed)
        everything = drawn.sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            p_drawn = everything[:, 0] / everything[:, 1]
            r_drawn = everything[:, 0] / everything[:, 2]
        figures = {
            "micro_f1": draws.interval(f1, micro),
            "precision": draws.interval(precision, p_drawn),
            "recall": draws.interval(recall, r_drawn),
            "macro_f1": draws.interval(float(_f1(total[:-1]).mean()) if labels else 0.0, macro),
        }
        by_label = [
            ByLabel(labels[at], int(total[at, 2]), *_rates(total[at]))
            for at in np.argsort(-total[:-1, 2], kind="stable")
        ]
        pairs = [
            (span["probability"], (span["start"], span["end"], span["label"]) in a)
            for a, spans in zip(truth, said["spans"].to_pylist(), strict=True)
            for span in spans or ()
        ]
        reliability = None
        if pairs:
            promised, hit = (np.array(column) for column in zip(*pairs, strict=True))
            reliability = reliability_of(promised.astype(np.float64), hit.astype(bool))
            nothing = float("nan")
            figures["calibration_error"] = Interval(reliability.error, nothing, nothing)
        wrong = np.array([a != b for a, b in zip(truth, found, strict=True)], dtype=bool)
        return TextVerdict(figures, micro, tuple(by_label), reliability, wrong)

    def _grades(self, said: pa.Table) -> TextVerdict:
        grade = self.truth["grade"].to_numpy().astype(np.float64)
        guess = said["grade"].to_numpy().astype(np.float64)
        error = guess - grade
        values = ndcg_by_cluster(
            self.bootstrap.cluster, guess, np.maximum(grade - self.least_grade, 0), DEPTH
        )
        per_row = np.full(len(grade), np.nan)  # one row stands for its query
        _, first = np.unique(self.bootstrap.cluster, return_index=True)
        per_row[first] = values
        ndcg = self.bootstrap.mean(per_row)
        figures = {"ndcg@10": ndcg, "rmse": self._rmse(error)}
        replicates = self.bootstrap._means(per_row)
        worst = np.abs(error) > np.quantile(np.abs(error), 0.95)
        return TextVerdict(figures, replicates, wrong=worst)

    def _rmse(self, error: Float64) -> Interval:
        """Root of the mean of squares of those errors that are known."""
        squares = error**2
        mean = self.bootstrap_rows(squares)
        return Interval(*(float(np.sqrt(value)) for value in (mean.value, mean.low, mean.high)))

    def bootstrap_rows(self, values: Float64) -> Interval:
        """Mean over rows (NaN: none), clusters drawn."""
        return self.bootstrap.mean(values)


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
    both = counts[..., 1] + counts[..., 2]
    return np.asarray(2 * counts[..., 0] / np.maximum(both, 1e-9))


def _rates(counts: Float64) -> tuple[float, float, float]:
    """Precision, recall and F1; precision of what was never given is 0."""
    right, given, there = (float(value) for value in counts)
    return right / max(given, 1.0), right / max(there, 1.0), float(_f1(counts))


def _cut(label: str | None, depth: int) -> str | None:
    return None if label is None else LEVELS.join(label.split(LEVELS)[:depth])


def _span_set(spans: Sequence[dict[str, Any]] | None) -> set[tuple[int, int, str]]:
    return {(span["start"], span["end"], span["label"]) for span in spans or ()}
