"""Probabilities that hold, and from when on a label is given: both chosen on validation texts.

A network's probabilities are divided by one temperature (Guo et al., "On calibration of modern
neural networks", ICML 2017), which leaves the order of labels as it was. Then each label gets the
least probability at which it is given; below it the answer is a level higher or none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from raysys.config import Settings
from raysys.learners.text_labels import Codes, LabelSet

Float64 = npt.NDArray[np.float64]

BINS = 15
NEVER = float("inf")
MOST_WEIGHED = 64  # labels; above, one weight each would be fitted on too few texts


class ThresholdSettings(Settings):
    """From when on a label is given.

    Attributes:
        choose: `f1`: weights and thresholds that make macro F1 largest; `precision`: the least
            thresholds at which each label is right that often; `none`: always the likeliest label.
        precision: share of given labels that must be right, for `precision`.
        least: validation texts that must stand behind a threshold.
    """

    choose: Literal["f1", "precision", "none"] = "f1"
    precision: float = Field(0.95, gt=0, lt=1)
    least: int = Field(10, ge=1)


@dataclass(frozen=True)
class TextCalibration:
    """From logits to probabilities and from these to a label.

    Attributes:
        temperature: what logits are divided by.
        weights: float64[labels], what probabilities are multiplied by before the largest wins.
        thresholds: of each level of the hierarchy, from the top, float64[nodes]: the least
            probability at which a node is given. The last are those of the labels.
        error_before: expected calibration error on the validation texts as the model was;
            error_after: at the temperature, which was fitted on the same texts.
    """

    temperature: float
    weights: Float64
    thresholds: tuple[Float64, ...]
    error_before: float
    error_after: float

    def probabilities(self, logits: npt.NDArray[Any]) -> Float64:
        """float64[n, labels] of logits of that shape; rows sum to one."""
        return softmax(logits.astype(np.float64) / self.temperature)

    def given(self, probabilities: Float64, labels: LabelSet) -> tuple[list[str | None], Float64]:
        """Which label or node each row gets (None: none), and its probability: float64[n].

        Where none is given it is that of the label which came nearest.
        """
        if not len(probabilities):
            return [], np.zeros(0)
        rows = np.arange(len(probabilities))
        best = (probabilities * self.weights).argmax(axis=1)
        value = probabilities[rows, best]
        names: list[str | None] = [labels.names[at] for at in best]
        open_ = value < self.thresholds[-1][best]
        for at in np.flatnonzero(open_):
            names[at] = None
        for level, cut in zip(labels.levels[-2::-1], self.thresholds[-2::-1], strict=True):
            if not open_.any():
                break
            share = level.marginal(probabilities)
            node = share.argmax(axis=1)
            enough = open_ & (share[rows, node] >= cut[node])
            for at in np.flatnonzero(enough):
                names[at] = level.nodes[node[at]]
            value = np.where(enough, share[rows, node], value)
            open_ &= ~enough
        return names, value

    def to_dict(self) -> dict[str, Any]:
        """As JSON can say it; null: never given."""
        return {
            "temperature": self.temperature,
            "weights": self.weights.tolist(),
            "thresholds": [
                [None if value == NEVER else value for value in level.tolist()]
                for level in self.thresholds
            ],
            "error_before": self.error_before,
            "error_after": self.error_after,
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> TextCalibration:
        """Read what `to_dict` gave."""
        thresholds = tuple(
            np.array([NEVER if value is None else value for value in level], dtype=np.float64)
            for level in content["thresholds"]
        )
        return cls(
            content["temperature"],
            np.array(content["weights"], dtype=np.float64),
            thresholds,
            content["error_before"],
            content["error_after"],
        )

    @classmethod
    def none(cls, labels: LabelSet) -> TextCalibration:
        """Leaves probabilities as they are and always gives the likeliest label."""
        above = [np.full(len(level.nodes), NEVER) for level in labels.levels[:-1]]
        return cls(1.0, np.ones(len(labels)), (*above, np.zeros(len(labels))), 0.0, 0.0)

    @classmethod
    def fit(
        cls,
        logits: npt.NDArray[Any],
        codes: Codes,
        labels: LabelSet,
        settings: ThresholdSettings,
        *,
        warm: bool = True,
    ) -> TextCalibration:
        """On validation texts.

        Args:
            logits: [n, labels]; or logarithms of probabilities that hold already.
            codes: int64[n], their labels; -1: unknown, left out.
            labels: what the columns stand for.
            settings: of the thresholds.
            warm: whether to fit a temperature; else it is 1.
        """
        known = codes >= 0
        logits, codes = logits[known].astype(np.float64), codes[known]
        if not len(codes):
            return cls.none(labels)
        temperature = fit_temperature(logits, codes) if warm else 1.0
        probabilities = softmax(logits / temperature)
        weights = np.ones(len(labels))
        if settings.choose == "f1" and len(labels) <= MOST_WEIGHED:
            weights = _f1_weights(probabilities, codes)
        thresholds = [np.full(len(level.nodes), NEVER) for level in labels.levels]
        if settings.choose == "precision":
            thresholds = _precise(probabilities, codes, labels, settings)
        elif settings.choose == "f1":
            thresholds[-1] = _f1_thresholds(probabilities, weights, codes, settings.least)
        else:
            thresholds[-1] = np.zeros(len(labels))
        return cls(
            temperature,
            weights,
            tuple(thresholds),
            calibration_error(softmax(logits), codes),
            calibration_error(probabilities, codes),
        )


def softmax(logits: npt.NDArray[Any]) -> Float64:
    """Over the last axis, in double precision."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    powers = np.exp(shifted)
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), dtype=np.float64)


def fit_temperature(logits: npt.NDArray[Any], codes: Codes) -> float:
    """What logits [n, k] are to be divided by, so that the labels int64[n] are likeliest.

    Its logarithm has a standard normal prior, which only few texts feel: where every label is
    right, a sharper model would always be likelier.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        top = scaled.max(axis=1)
        total = top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))
        likelihood = (total - scaled[np.arange(len(codes)), codes]).sum()
        return float(likelihood + log_temperature**2 / 2)

    limit = np.log(100)
    found = minimize_scalar(loss, bounds=(-limit, limit), method="bounded")
    return float(np.exp(found.x))


def calibration_error(probabilities: Float64, codes: Codes, bins: int = BINS) -> float:
    """Expected calibration error of the likeliest label (Naeini et al., AAAI 2015).

    Rows fall into `bins` equal bins of their highest probability; the mean gap between that
    probability and how often it is right, weighted by rows. In [0, 1].
    """
    if not len(codes):
        return 0.0
    best = probabilities.argmax(axis=1)
    value = probabilities[np.arange(len(codes)), best]
    cell = np.minimum((value * bins).astype(np.int64), bins - 1)
    gap = np.bincount(cell, weights=value - (best == codes), minlength=bins)
    return float(np.abs(gap).sum() / len(codes))


def _f1_weights(probabilities: Float64, codes: Codes) -> Float64:
    """Weights that make macro F1 of the weighted likeliest label largest, one label at a time."""
    k = probabilities.shape[1]
    weights = np.ones(k)
    grid = np.exp(np.linspace(np.log(0.25), np.log(8), 31))
    seen = np.bincount(codes, minlength=k)
    best = _macro_f1(probabilities.argmax(axis=1), codes, seen)
    for _ in range(3):
        before = best
        for label in np.argsort(seen, kind="stable"):
            others = probabilities * weights
            others[:, label] = -1.0
            rival, height = others.argmax(axis=1), others.max(axis=1)
            for weight in grid:
                chosen = np.where(probabilities[:, label] * weight > height, label, rival)
                value = _macro_f1(chosen, codes, seen)
                if value > best + 1e-9:
                    best, weights[label] = value, weight
        if best <= before:
            break
    return weights


def _macro_f1(chosen: Codes, codes: Codes, seen: Codes) -> float:
    """Mean F1 of the labels that occur."""
    k = len(seen)
    hits = np.bincount(codes[chosen == codes], minlength=k)
    return float(
        (2 * hits / np.maximum(np.bincount(chosen, minlength=k) + seen, 1))[seen > 0].mean()
    )


def _f1_thresholds(probabilities: Float64, weights: Float64, codes: Codes, least: int) -> Float64:
    """Of each label the threshold with the largest F1: given more rarely it is right more often."""
    k = probabilities.shape[1]
    best = (probabilities * weights).argmax(axis=1)
    value = probabilities[np.arange(len(codes)), best]
    seen = np.bincount(codes, minlength=k)
    found = np.zeros(k)
    for label in range(k):
        mine = np.flatnonzero(best == label)
        if len(mine) < least or not seen[label]:
            continue
        order = mine[np.argsort(-value[mine], kind="stable")]
        given = np.arange(1, len(order) + 1)
        f1 = 2 * np.cumsum(codes[order] == label) / (given + seen[label])
        usable = _ends(value[order]) & (given >= least)
        top = int(np.where(usable, f1, -1.0).argmax())
        if top < len(order) - 1 and f1[top] > f1[-1]:
            found[label] = value[order[top]]
    return found


def _precise(
    probabilities: Float64, codes: Codes, labels: LabelSet, settings: ThresholdSettings
) -> list[Float64]:
    """Of each node the least threshold at which the stated precision is reached; else never.

    A level is judged on the texts that the levels below it leave open.
    """
    found = []
    open_ = np.arange(len(codes))
    for level in labels.levels[::-1]:
        share, truth = level.marginal(probabilities[open_]), level.of_label[codes[open_]]
        best = share.argmax(axis=1)
        value = share[np.arange(len(open_)), best]
        cut = np.full(len(level.nodes), NEVER)
        for node in range(len(cut)):
            mine = np.flatnonzero(best == node)
            order = mine[np.argsort(-value[mine], kind="stable")]
            given = np.arange(1, len(order) + 1)
            enough = np.cumsum(truth[order] == node) >= settings.precision * given
            enough &= (given >= settings.least) & _ends(value[order])
            if enough.any():
                cut[node] = value[order[np.flatnonzero(enough)[-1]]]
        found.append(cut)
        open_ = open_[value < cut[best]]
    return found[::-1]


def _ends(falling: Float64) -> npt.NDArray[np.bool_]:
    """Where a run of equal values ends: a threshold cannot divide it."""
    return np.append(falling[1:] < falling[:-1], True) if len(falling) else np.zeros(0, bool)
