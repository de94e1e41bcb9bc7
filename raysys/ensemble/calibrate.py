"""From an ensemble score to a probability: an isotonic curve, kept as a few knots.

Zadrozny and Elkan, "Transforming classifier scores into accurate multiclass probability
estimates", KDD 2002. Scores are binned by quantile first: millions of rows need no more, and the
curve is smooth enough to be read. Between knots it is linear, beyond them flat.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Calibration:
    """A curve that never falls.

    Attributes:
        score: float64[knots], strictly rising.
        probability: float64[knots] in (0, 1), never falling.
    """

    score: npt.NDArray[np.float64]
    probability: npt.NDArray[np.float64]

    def __call__(self, scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Probabilities of being relevant: float32[n]."""
        return np.interp(scores, self.score, self.probability).astype(np.float32)

    def to_dict(self) -> dict[str, list[float]]:
        """The knots, as JSON can say them."""
        return {"score": self.score.tolist(), "probability": self.probability.tolist()}

    @classmethod
    def from_dict(cls, content: dict[str, list[float]]) -> Calibration:
        """Read what `to_dict` gave."""
        return cls(np.asarray(content["score"]), np.asarray(content["probability"]))


def fit_calibration(
    scores: npt.NDArray[np.float32], label: npt.NDArray[np.float32], *, bins: int = 200
) -> Calibration:
    """The curve that fits the labels best among those that never fall.

    Args:
        scores: float32[n], out of fold.
        label: float32[n], above 0 where relevant.
        bins: quantile bins of the scores, hence the most knots there can be.

    Raises:
        ValueError: there are no scores.
    """
    from scipy.optimize import isotonic_regression

    if len(scores) == 0:
        raise ValueError("no scores to calibrate on")
    order = np.argsort(scores, kind="stable")
    value, relevant = scores[order].astype(np.float64), (label[order] > 0).astype(np.float64)
    # The top of the list is where probabilities matter: bins there are ten times as fine.
    fine = max(1, bins // 2)
    shares = np.concatenate([np.linspace(0, 0.95, bins - fine + 1), np.linspace(0.95, 1, fine + 1)])
    edges = np.unique(np.quantile(value, shares, method="lower"))
    cell = np.searchsorted(edges, value, side="right") - 1
    count = np.bincount(cell, minlength=len(edges)).astype(np.float64)
    filled = count > 0
    mean_score = np.bincount(cell, weights=value, minlength=len(edges))[filled] / count[filled]
    hits = np.bincount(cell, weights=relevant, minlength=len(edges))[filled]
    rate = (hits + relevant.mean()) / (count[filled] + 1.0)  # never 0 or 1: log loss stays finite
    fitted = isotonic_regression(rate, weights=count[filled]).x
    return _thin(mean_score, np.clip(fitted, 1e-7, 1 - 1e-7))


def _thin(score: npt.NDArray[np.float64], probability: npt.NDArray[np.float64]) -> Calibration:
    """Without the inner knots of level stretches, which say nothing."""
    rises = np.diff(probability) > 0
    kept = np.ones(len(score), dtype=bool)
    kept[1:-1] = rises[1:] | rises[:-1]
    return Calibration(score[kept], probability[kept])
