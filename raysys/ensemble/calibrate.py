"""From an ensemble score to a probability: an isotonic curve or a logistic one.

Isotonic: Zadrozny and Elkan, "Transforming classifier scores into accurate multiclass probability
estimates", KDD 2002. Scores are binned by quantile first: millions of rows need no more, and the
curve is smooth enough to be read. Between knots it is linear, beyond them flat.

Platt: "Probabilistic outputs for support vector machines", 1999; two numbers, so it needs few
relevant rows and goes on rising beyond what was seen. Which of the two fits is a question for rows
that neither was fitted on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
CalibrationMethod = Literal["isotonic", "platt"]


class Calibration(Protocol):
    """From scores to probabilities that never fall as the score rises."""

    def __call__(self, scores: Float32) -> Float32:
        """Probabilities of being relevant: float32[n] in (0, 1)."""

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can say it; `kind` names the method."""


@dataclass(frozen=True)
class Isotonic:
    """A curve that never falls.

    Attributes:
        score: float64[knots], strictly rising.
        probability: float64[knots] in (0, 1), never falling.
    """

    score: npt.NDArray[np.float64]
    probability: npt.NDArray[np.float64]

    def __call__(self, scores: Float32) -> Float32:
        """Probabilities of being relevant: float32[n]."""
        return np.interp(scores, self.score, self.probability).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """The knots, as JSON can say them."""
        knots = {"score": self.score.tolist(), "probability": self.probability.tolist()}
        return {"kind": "isotonic", **knots}


@dataclass(frozen=True)
class Platt:
    """A logistic curve.

    Attributes:
        slope: not negative, per unit of score.
        offset: log odds at score 0.
    """

    slope: float
    offset: float

    def __call__(self, scores: Float32) -> Float32:
        """Probabilities of being relevant: float32[n]."""
        from scipy.special import expit

        found = expit(self.slope * scores.astype(np.float64) + self.offset)
        return np.clip(found, 1e-7, 1 - 1e-7).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Both numbers, as JSON can say them."""
        return {"kind": "platt", "slope": self.slope, "offset": self.offset}


def read_calibration(content: dict[str, Any]) -> Calibration:
    """Read what `to_dict` of a calibration gave.

    Raises:
        ValueError: no such method.
    """
    kind = content.get("kind", "isotonic")  # bundles of earlier versions know no other
    if kind == "isotonic":
        return Isotonic(np.asarray(content["score"]), np.asarray(content["probability"]))
    if kind == "platt":
        return Platt(float(content["slope"]), float(content["offset"]))
    raise ValueError(f"no calibration {kind!r}")


@dataclass(frozen=True)
class Choice:
    """A calibration, and what each method lost on rows it was not fitted on.

    Attributes:
        calibration: of the winner, fitted on all rows.
        method: its name.
        log_loss: mean over held-out rows in nats, by method; empty if there was no choice.
    """

    calibration: Calibration
    method: CalibrationMethod
    log_loss: dict[str, float]


def choose_calibration(
    scores: Float32,
    label: Float32,
    parts: Sequence[tuple[Int64, Int64]],
    methods: Sequence[CalibrationMethod] = ("isotonic", "platt"),
    *,
    bins: int = 200,
) -> Choice:
    """The method with the lowest held-out log loss; of equals the first.

    Args:
        scores: float32[n], out of fold.
        label: float32[n], above 0 where relevant.
        parts: rows to fit on and rows to judge by; none: the first method is taken.
        methods: that compete.
        bins: of the isotonic curve.

    Raises:
        ValueError: there are no scores.
    """
    loss: dict[str, float] = {}
    if len(methods) > 1:
        for method in methods:
            losses = [
                log_loss(
                    fit_calibration(scores[a], label[a], method, bins=bins)(scores[b]), label[b]
                )
                for a, b in parts
                if len(a) and len(b)
            ]
            if losses:
                loss[method] = float(np.concatenate(losses).mean())
    best = min(methods, key=lambda method: loss.get(method, 0.0))
    return Choice(fit_calibration(scores, label, best, bins=bins), best, loss)


def log_loss(probability: Float32, label: Float32) -> npt.NDArray[np.float64]:
    """Negative log likelihood of every row, in nats: float64[n]."""
    p = np.clip(probability.astype(np.float64), 1e-15, 1 - 1e-15)
    return -np.where(label > 0, np.log(p), np.log1p(-p))


def fit_calibration(
    scores: Float32, label: Float32, method: CalibrationMethod = "isotonic", *, bins: int = 200
) -> Calibration:
    """A calibration of one method; see `fit_isotonic` and `fit_platt`."""
    if method == "platt":
        return fit_platt(scores, label)
    return fit_isotonic(scores, label, bins=bins)


def fit_platt(scores: Float32, label: Float32) -> Platt:
    """The logistic curve of greatest likelihood, on smoothed targets.

    Lin, Lin and Weng, "A note on Platt's probabilistic outputs for support vector machines",
    2007. A slope below 0 is taken as 0: more must never mean less.

    Args:
        scores: float32[n], out of fold.
        label: float32[n], above 0 where relevant.

    Raises:
        ValueError: there are no scores.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    if len(scores) == 0:
        raise ValueError("no scores to calibrate on")
    relevant = label > 0
    good, bad = float(relevant.sum()), float((~relevant).sum())
    high, low = (good + 1) / (good + 2), 1 / (bad + 2)
    target = np.where(relevant, high, low)
    middle = float(scores.mean(dtype=np.float64))
    spread = float(scores.std(dtype=np.float64)) or 1.0
    x = (scores.astype(np.float64) - middle) / spread

    def loss(theta: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        z = theta[0] * x + theta[1]
        value = np.logaddexp(0, z) - target * z
        excess = expit(z) - target
        return float(value.mean()), np.array([(excess * x).mean(), excess.mean()])

    start = np.array([1.0, np.log((good + 1) / (bad + 1))])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None), (None, None)]).x
    slope = float(found[0]) / spread
    return Platt(slope, float(found[1]) - slope * middle)


def fit_isotonic(scores: Float32, label: Float32, *, bins: int = 200) -> Isotonic:
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


def _thin(score: npt.NDArray[np.float64], probability: npt.NDArray[np.float64]) -> Isotonic:
    """Without the inner knots of level stretches, which say nothing."""
    rises = np.diff(probability) > 0
    kept = np.ones(len(score), dtype=bool)
    kept[1:-1] = rises[1:] | rises[:-1]
    return Isotonic(score[kept], probability[kept])
