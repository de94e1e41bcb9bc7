"""How well texts are labelled: accuracy, F1, confusion, calibration, rating error, with intervals.

What is given where no label reached its threshold (None) counts as wrong. Intervals come from
`Bootstrap` over texts, or over groups of texts that resemble each other; everything judged with
one `Bootstrap` shares its draws, so that differences are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raysys.evaluation.intervals import Bootstrap, Interval
from raysys.learners.text_calibration import calibration_error

_LABELS = 64

Float64 = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]

__all__ = [
    "LabelJudgement",
    "LabelScores",
    "calibration_error",
    "confusion",
    "label_scores",
    "squared_errors",
]


@dataclass(frozen=True)
class LabelScores:
    """Of one label.

    Attributes:
        precision: share of the texts given the label that have it; NaN where it was never given.
        recall: share of the texts with the label that were given it; NaN where none has it.
        f1: their harmonic mean, 0 where nothing is right; NaN where the label does not occur.
        support: texts that have it.
    """

    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class LabelJudgement:
    """Said beside true labels of n texts.

    Attributes:
        names: k labels.
        said: int64[n], -1: none was given, or one that is not among the names.
        truth: int64[n], all ≥ 0.
    """

    names: tuple[str, ...]
    said: Codes
    truth: Codes

    @classmethod
    def of(cls, said: Sequence[str | None], truth: Sequence[str]) -> LabelJudgement:
        """From labels; their names in order of the alphabet.

        Raises:
            ValueError: lengths differ, or a true label is missing.
        """
        if len(said) != len(truth) or any(label is None for label in truth):
            raise ValueError("each text needs what was said and a true label")
        names = tuple(sorted(set(truth)))
        place = {name: at for at, name in enumerate(names)}
        return cls(
            names,
            np.array([place.get(label or "", -1) for label in said], dtype=np.int64),
            np.array([place[label] for label in truth], dtype=np.int64),
        )

    @property
    def right(self) -> Float64:
        """1 where said and true label agree, else 0: float64[n]; its mean is accuracy.

        Where every text is given a label that is micro F1 as well.
        """
        return (self.said == self.truth).astype(np.float64)

    def macro_f1(self, bootstrap: Bootstrap | None = None) -> Interval:
        """Mean F1 of the labels that occur, with its interval over texts."""
        value = float(_macro_f1(self._totals()[None])[0])
        if bootstrap is None:
            return Interval(value, float("nan"), float("nan"))
        return bootstrap.interval(value, self._replicates(bootstrap))

    def macro_f1_gain(self, other: LabelJudgement, bootstrap: Bootstrap) -> Interval:
        """Of this macro F1 over another's on the same texts, paired."""
        value = self.macro_f1().value - other.macro_f1().value
        return bootstrap.interval(value, self._replicates(bootstrap) - other._replicates(bootstrap))

    def micro_f1(self) -> float:
        """F1 of all labels together: below accuracy's recall where texts got none."""
        given = int((self.said >= 0).sum())
        return float(2 * self.right.sum() / max(given + len(self.truth), 1))

    def _totals(self) -> Float64:
        """Hits, given and true texts of each label: float64[3, k]."""
        k = len(self.names)
        return np.stack(
            [np.bincount(which[which >= 0], minlength=k) for which in self._marks()]
        ).astype(np.float64)

    def _marks(self) -> tuple[Codes, Codes, Codes]:
        """The label of each hit (-1: none), of what was said and of what is true: int64[n]."""
        return np.where(self.said == self.truth, self.said, -1), self.said, self.truth

    def _replicates(self, bootstrap: Bootstrap) -> Float64:
        """Macro F1 of every draw: float64[draws].

        Some labels at a time: counts by cluster are dense, and shops have thousands of categories.
        """
        total: Float64 | None = None
        present: Float64 | None = None
        for start in range(0, len(self.names), _LABELS):
            few = min(_LABELS, len(self.names) - start)
            counts = np.zeros((bootstrap.n_clusters, 3, few))
            for place, which in enumerate(self._marks()):
                rows = np.flatnonzero((which >= start) & (which < start + few))
                cell = bootstrap.cluster[rows] * few + which[rows] - start
                found = np.bincount(cell, minlength=bootstrap.n_clusters * few)
                counts[:, place] = found.reshape(bootstrap.n_clusters, few)
            f1, occurs = _f1(bootstrap.replicate(counts))
            total = f1 if total is None else total + f1
            present = occurs if present is None else present + occurs
        assert total is not None and present is not None
        with np.errstate(invalid="ignore"):
            return np.asarray(total / present, dtype=np.float64)


def _macro_f1(counts: Float64) -> Float64:
    """float64[draws] of float64[draws, 3, k]; labels that a draw lacks do not count in it."""
    total, present = _f1(counts)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / present, dtype=np.float64)


def _f1(counts: Float64) -> tuple[Float64, Float64]:
    """Sums of F1 over the labels that occur, and how many do: float64[draws] of [draws, 3, k]."""
    hits, given, true = counts[:, 0], counts[:, 1], counts[:, 2]
    f1 = 2 * hits / np.maximum(given + true, 1e-12)
    present = true > 0.5
    return (f1 * present).sum(axis=1), present.sum(axis=1).astype(np.float64)


def label_scores(judgement: LabelJudgement) -> dict[str, LabelScores]:
    """Precision, recall and F1 of each label."""
    table = confusion(judgement)
    found = {}
    for at, name in enumerate(judgement.names):
        hits, given, true = int(table[at, at]), int(table[:, at].sum()), int(table[at].sum())
        found[name] = LabelScores(
            hits / given if given else float("nan"),
            hits / true if true else float("nan"),
            2 * hits / (given + true) if true else float("nan"),
            true,
        )
    return found


def confusion(judgement: LabelJudgement) -> npt.NDArray[np.int64]:
    """How often a text of one label (row) was given another (column; the last: none).

    Returns:
        int64[k, k + 1].
    """
    k = len(judgement.names)
    said = np.where(judgement.said < 0, k, judgement.said)
    cell = judgement.truth * (k + 1) + said
    return np.bincount(cell, minlength=k * (k + 1)).reshape(k, k + 1).astype(np.int64)


def squared_errors(said: npt.NDArray[np.floating], truth: npt.NDArray[np.floating]) -> Float64:
    """Of ratings, NaN where none is known: float64[n]; the root of its mean is RMSE."""
    return (said.astype(np.float64) - truth.astype(np.float64)) ** 2
