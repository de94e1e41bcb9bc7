"""What the log of a bandit says of each of its arms.

Any arm is valued on the whole log by the probability with which each list's arm was drawn
(Swaminathan and Joachims, The self-normalized estimator for counterfactual learning, NIPS 2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import special

from raysys.errors import UserError
from raysys.experiments.definition import Experiment
from raysys.experiments.lists import with_rewards
from raysys.experiments.parts import Metric
from raysys.experiments.statistics import influence, sample

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ArmValue:
    """What an arm would earn if every list was its.

    Attributes:
        arm: its name.
        lists: that were its.
        share: the probability that it has now.
        value: rewarded lists of all lists, self-normalised.
        low, high: the interval of it, users being the unit; NaN where fewer than two users saw it.
    """

    arm: str
    lists: int
    share: float
    value: float
    low: float
    high: float


def value_arms(
    experiment: Experiment, metric: Metric, exposures: pl.LazyFrame, answers: pl.LazyFrame
) -> list[ArmValue]:
    """The value of each arm, from the log of the bandit.

    `share` is that of the newest list of the arm; see `Allocation` for what is drawn by now.

    Raises:
        UserError: no list of the experiment.
    """
    lists = with_rewards(experiment, metric, exposures, answers).sort("timestamp").collect()
    if not len(lists):
        raise UserError(
            f"no list of {experiment.name!r} between its start and its end",
            mend="was it served yet? `raysys experiment check` says whom it is for",
        )
    return [_value(arm.name, experiment.alpha, lists) for arm in experiment.arms]


def found_so_far(values: Sequence[ArmValue]) -> str:
    """What a bandit has found, in a sentence."""
    known = [each for each in values if np.isfinite(each.value)]
    if not known:
        return "Nothing to say yet: no list was shown."
    best = max(known, key=lambda each: each.value)
    others = [each for each in known if each is not best]
    earns = f"{best.value:.2%} of its lists (between {best.low:.2%} and {best.high:.2%})"
    apart = all(best.low > each.high for each in others) and np.isfinite(best.low)
    if others and apart:
        return f"{best.arm} earns most: {earns}, above all others' intervals."
    return f"{best.arm} earns most so far: {earns}, which others' intervals reach."


def _value(arm: str, alpha: float, lists: pl.DataFrame) -> ArmValue:
    mine = lists["arm"] == arm
    weight = mine.to_numpy() / lists["propensity"].to_numpy()
    users = lists["user_id"].rank("dense").to_numpy().astype(np.int64) - 1
    rewards = weight * lists["reward"].to_numpy()
    earned = np.bincount(users, weights=rewards).astype(np.float64)
    counted = np.bincount(users, weights=weight).astype(np.float64)
    newest = lists.filter(mine)["propensity"]
    share = float(newest[-1]) if len(newest) else float("nan")
    if not counted.sum() > 0:
        return ArmValue(arm, 0, share, float("nan"), float("nan"), float("nan"))
    found = sample(influence(earned, counted))
    low, high = _interval(found.mean, found.error, counted, alpha)
    return ArmValue(arm, int(mine.sum()), share, found.mean, low, high)


def _interval(value: float, error: float, counted: Float64, alpha: float) -> tuple[float, float]:
    """The wider of two, at either end: of the spread between users, and of a share of so many.

    The first alone would be certain where nobody was rewarded yet, or everybody (Clopper and
    Pearson, 1934, on the users that the weights are worth).
    """
    n = int((counted > 0).sum())
    if n < 2:
        return float("nan"), float("nan")
    half = float(special.stdtrit(n - 1, 1 - alpha / 2)) * error
    worth = float(counted.sum() ** 2 / (counted**2).sum())
    hits = value * worth
    low = float(special.betaincinv(hits, worth - hits + 1, alpha / 2)) if hits > 0 else 0.0
    high = 1.0
    if hits < worth:
        high = float(special.betaincinv(hits + 1, worth - hits, 1 - alpha / 2))
    return max(0.0, min(low, value - half)), min(1.0, max(high, value + half))
