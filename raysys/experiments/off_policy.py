"""What a policy would have earned on a log that another policy made.

Rows are shown items with their reward, the propensity with which the logging policy chose them and
the probability with which the new one would have. Estimators:

- `ips`: inverse propensity weights (Horvitz and Thompson 1952); unbiased, noisy.
- `snips`: weights normalised (Swaminathan and Joachims, NIPS 2015); a little biased, calmer.
- `clipped`: weights cut at a limit (Ionides 2008); biased towards the logged, calmer.
- `dm`: a model of the reward alone (direct method); as biased as the model, so it has no interval.
- `dr`: the model corrected by weighted residuals (Dudík, Langford and Li, ICML 2011): unbiased if
  either is right.

Lists are judged position by position: a row a slot, with the slot's own propensity. That takes the
reward of a slot to depend on its item, its position and its context, not on its neighbours (the
item-position assumption, Li et al., KDD 2018); whole lists would need their joint propensity,
whose weights explode.

Intervals: percentiles of a bootstrap that draws clusters (users, or requests) with all their rows,
or normal ones with the clusters' variance. With few rewards both are wide; `effective` says how
many rows the weights are worth (Kish), and `warnings` when that is too few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from raysys.errors import UserError
from raysys.evaluation.intervals import Bootstrap, Interval

Float64 = npt.NDArray[np.float64]
Estimator = Literal["ips", "snips", "clipped", "dm", "dr"]
ESTIMATORS: tuple[Estimator, ...] = ("ips", "snips", "clipped", "dm", "dr")

FEW_REWARDS = 100
"""Below so many rows with a reward (as weighed) intervals are rough."""
_FEW_ROWS = 0.05  # effective rows over rows
_MOST_CLUSTERS = 20_000


@dataclass(frozen=True)
class LoggedRows:
    """Slots that were shown.

    Attributes:
        reward: float64[n].
        propensity: float64[n], of the shown item in its slot under the logging policy, in (0, 1].
        target: float64[n], of the same item under the policy that is judged, in [0, 1].
        cluster: int[n], the user or request that a row belongs to.
        predicted: float64[n], the modelled reward of the shown item; None: no model.
        expected: float64[n], the modelled reward of the judged policy in this slot: the mean of
            the model over its items; None: no model.
    """

    reward: Float64
    propensity: Float64
    target: Float64
    cluster: npt.NDArray[np.integer]
    predicted: Float64 | None = None
    expected: Float64 | None = None

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def weight(self) -> Float64:
        """Importance weights: float64[n]."""
        return np.asarray(self.target / self.propensity, np.float64)


@dataclass(frozen=True)
class PolicyValue:
    """What a policy is worth.

    Attributes:
        estimator: which.
        interval: mean reward of a row, with its interval.
        normal: the same by the clusters' variance.
        logged: mean reward under the logging policy, with its interval.
        gain: of the judged policy over the logged one, paired.
        rows: shown slots.
        effective: rows that the weights are worth, (Σw)²/Σw² (Kish 1965).
        mean_weight: 1 if propensities and probabilities are right and the log covers the policy.
        largest: the heaviest weight.
    """

    estimator: Estimator
    interval: Interval
    normal: Interval
    logged: Interval
    gain: Interval
    rows: int
    effective: float
    mean_weight: float
    largest: float


@dataclass(frozen=True)
class OffPolicySettings:
    """How values are estimated.

    Attributes:
        clip: limit of the weights of `clipped`; None: the square root of the rows.
        resamples: of the bootstrap.
        confidence: of the intervals.
        seed: of the draws.
    """

    clip: float | None = None
    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 0


def evaluate_policy(
    rows: LoggedRows,
    estimators: Sequence[Estimator] | None = None,
    settings: OffPolicySettings | None = None,
) -> dict[Estimator, PolicyValue]:
    """Estimate the value of a policy from a log.

    Args:
        rows: the log, and what the policy would do.
        estimators: None: all that the rows allow (`dm` and `dr` need a model).
        settings: how.

    Raises:
        UserError: no rows, propensities outside (0, 1], probabilities outside [0, 1], or a model
            is missing that an estimator needs.
    """
    how = settings or OffPolicySettings()
    check_rows(rows)
    modelled = rows.predicted is not None and rows.expected is not None
    wanted = estimators or [e for e in ESTIMATORS if modelled or e not in ("dm", "dr")]
    draws = Bootstrap(
        coarser(rows.cluster), resamples=how.resamples, seed=how.seed, confidence=how.confidence
    )
    ones = np.ones(len(rows))
    weight = rows.weight
    effective = float(weight.sum() ** 2 / np.square(weight).sum()) if weight.any() else 0.0
    logged = _ratio(draws, rows.reward, ones)
    found: dict[Estimator, PolicyValue] = {}
    for name in wanted:
        top, bottom = _parts(name, rows, weight, how)
        interval = _ratio(draws, top, bottom)
        gain = _gain(draws, top, bottom, rows.reward)
        normal = _normal(draws, top, bottom, how.confidence)
        if name == "dm":  # what the draws say of it leaves out the model's own error
            interval, gain, normal = (_without_ends(each) for each in (interval, gain, normal))
        found[name] = PolicyValue(
            name, interval, normal, logged, gain, len(rows), effective,
            float(weight.mean()), float(weight.max()),
        )  # fmt: skip
    return found


def warnings(rows: LoggedRows) -> list[str]:
    """What makes values of this log hard to believe, in words."""
    weight = rows.weight
    effective = float(weight.sum() ** 2 / np.square(weight).sum()) if weight.any() else 0.0
    told = []
    rewarded = int((rows.reward != 0).sum())
    if rewarded < FEW_REWARDS:
        told.append(
            f"Only {rewarded} of {len(rows):,} rows have a reward: intervals are wide, and rough "
            "at their ends."
        )
    if effective < _FEW_ROWS * len(rows):
        told.append(
            f"The weights are worth {effective:,.0f} of {len(rows):,} rows: the policy does what "
            "was hardly ever logged. Prefer snips or dr, or log with more exploration."
        )
    error = float(weight.std() / np.sqrt(len(weight)))
    if abs(weight.mean() - 1) > max(4 * error, 0.01):
        told.append(
            f"Weights have the mean {weight.mean():.3f}, not 1: the policy shows items that the "
            "log never does, or propensities are wrong."
        )
    return told


def coarser(cluster: npt.NDArray[np.integer]) -> npt.NDArray[np.int64]:
    """Clusters put together until a bootstrap of them fits into memory: int64[n].

    Sets of independent clusters are independent clusters.
    """
    return np.unique(cluster, return_inverse=True)[1].astype(np.int64) % _MOST_CLUSTERS


def check_rows(rows: LoggedRows) -> None:
    """Refuse what is no log.

    Raises:
        UserError: see `evaluate_policy`.
    """
    if not len(rows):
        raise UserError("no rows to judge a policy on")
    for name, values in vars(rows).items():
        if values is not None and (len(values) != len(rows) or not np.isfinite(values).all()):
            raise UserError(f"{name}: a finite number is needed in each of {len(rows):,} rows")
    bad = int(((rows.propensity <= 0) | (rows.propensity > 1)).sum())
    if bad:
        raise UserError(
            f"{bad:,} of {len(rows):,} propensities are not in (0, 1]",
            mend="log the probability with which each shown item was chosen for its slot",
        )
    bad = int(((rows.target < 0) | (rows.target > 1)).sum())
    if bad:
        raise UserError(f"{bad:,} probabilities of the judged policy are not in [0, 1]")


def _without_ends(interval: Interval) -> Interval:
    return Interval(interval.value, float("nan"), float("nan"))


def _parts(
    name: Estimator, rows: LoggedRows, weight: Float64, how: OffPolicySettings
) -> tuple[Float64, Float64]:
    """The estimate is a ratio of two sums over rows."""
    ones = np.ones(len(rows))
    if name == "ips":
        return weight * rows.reward, ones
    if name == "snips":
        return weight * rows.reward, weight
    if name == "clipped":
        limit = float(np.sqrt(len(rows))) if how.clip is None else how.clip
        return np.minimum(weight, limit) * rows.reward, ones
    if rows.predicted is None or rows.expected is None:
        raise UserError(f"{name} needs a model of the reward: give predicted and expected")
    if name == "dm":
        return rows.expected, ones
    return rows.expected + weight * (rows.reward - rows.predicted), ones


def _ratio(draws: Bootstrap, top: Float64, bottom: Float64) -> Interval:
    sums = np.stack([draws.sums(top), draws.sums(bottom)], axis=1)
    totals = draws.replicate(sums)
    value = top.sum() / bottom.sum() if bottom.sum() else float("nan")
    with np.errstate(invalid="ignore", divide="ignore"):
        return draws.interval(float(value), totals[:, 0] / totals[:, 1])


def _gain(draws: Bootstrap, top: Float64, bottom: Float64, reward: Float64) -> Interval:
    columns = (top, bottom, reward, np.ones(len(reward)))
    totals = draws.replicate(np.stack([draws.sums(each) for each in columns], axis=1))
    value = top.sum() / bottom.sum() - reward.mean() if bottom.sum() else float("nan")
    with np.errstate(invalid="ignore", divide="ignore"):
        replicates = totals[:, 0] / totals[:, 1] - totals[:, 2] / totals[:, 3]
    return draws.interval(float(value), replicates)


def _normal(draws: Bootstrap, top: Float64, bottom: Float64, confidence: float) -> Interval:
    """By the delta method over clusters."""
    whole = bottom.sum()
    if not whole or draws.n_clusters < 2:
        return Interval(float("nan"), float("nan"), float("nan"))
    value = float(top.sum() / whole)
    residual = draws.sums(top - value * bottom)
    n = draws.n_clusters
    error = float(np.sqrt(n / (n - 1) * np.square(residual).sum()) / whole)
    reach = float(stats.norm.ppf(0.5 + confidence / 2)) * error
    return Interval(value, value - reach, value + reach)
