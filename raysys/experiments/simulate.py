"""Experiments with a known truth, many at once: what checks the statistics, and what teaches them.

A user's value is gamma distributed with a user-specific mean (so a covariate measured before
correlates with it), or an event count that grows for as long as the experiment runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raysys.experiments.statistics import Analysis, Float64, Sample, difference


@dataclass(frozen=True)
class Trials:
    """Many experiments of two arms, as they stood at the end of every day.

    Attributes:
        n: int64[trials, days, 2], users so far.
        mean, variance: float64[trials, days, 2], of a user's value so far.
    """

    n: npt.NDArray[np.int64]
    mean: Float64
    variance: Float64

    def sample(self, trial: int, day: int, arm: int) -> Sample:
        """One arm of one trial at the end of one day."""
        mean, variance = float(self.mean[trial, day, arm]), float(self.variance[trial, day, arm])
        return Sample(int(self.n[trial, day, arm]), mean, variance, mean, variance)

    def p_values(self, analysis: Analysis, *, tuned_for: int, last: bool = False) -> Float64:
        """P-values: float64[trials, days], or float64[trials, 1] of the last day only."""
        trials, days, _ = self.n.shape
        looks = range(days - 1, days) if last else range(days)
        found = np.empty((trials, len(looks)))
        for trial in range(trials):
            for at, day in enumerate(looks):
                pair = self.sample(trial, day, 0), self.sample(trial, day, 1)
                effect = difference(*pair, analysis=analysis, tuned_for=tuned_for)
                found[trial, at] = effect.p_value
        return found


def arriving(
    trials: int, days: int, users: int, *, lift: float = 0.0, mean: float = 1.0, seed: int = 0
) -> Trials:
    """New users every day, each with one skewed value (gamma of shape 1/2, variance 2 mean²).

    Args:
        trials: experiments.
        days: of each.
        users: that come to each arm a day.
        lift: relative, of the second arm.
        mean: of the first arm.
        seed: of everything.
    """
    rng = np.random.default_rng(seed)
    value = rng.gamma(0.5, 2 * mean, (trials, days, 2, users)).astype(np.float32)
    value[:, :, 1] *= 1 + lift
    sums = value.sum(-1, dtype=np.float64).cumsum(1)
    squares = np.square(value).sum(-1, dtype=np.float64).cumsum(1)
    n = np.broadcast_to(np.arange(1, days + 1)[None, :, None] * users, sums.shape)
    return Trials(n, sums / n, (squares - sums**2 / n) / (n - 1))


def returning(trials: int, days: int, users: int, *, lift: float = 0.0, seed: int = 0) -> Trials:
    """The same users come back: counts of events that grow by the day (gamma-Poisson).

    All users of an arm are there from the first day, the case that is farthest from the
    theory of sequential intervals, which thinks of users that come one after the other.
    """
    rng = np.random.default_rng(seed)
    rate = rng.gamma(1.0, 0.2, (trials, 2, users))
    rate[:, 1] *= 1 + lift
    total = np.zeros_like(rate)
    mean, variance = np.empty((trials, days, 2)), np.empty((trials, days, 2))
    for day in range(days):
        total += rng.poisson(rate)
        mean[:, day], variance[:, day] = total.mean(-1), total.var(-1, ddof=1)
    return Trials(np.full(mean.shape, users, np.int64), mean, variance)


def with_covariate(
    users: int, *, correlation: float, lift: float = 0.0, seed: int = 0
) -> tuple[Float64, Float64, npt.NDArray[np.bool_]]:
    """Values, covariates of before, and who is treated: float64[users] twice, bool[users].

    Values are normal with mean 10 and deviation 3 in the control; the lift is added to everybody
    treated.
    """
    rng = np.random.default_rng(seed)
    before, own = rng.standard_normal((2, users))
    value = 10 + 3 * (correlation * before + np.sqrt(1 - correlation**2) * own)
    treated = rng.random(users) < 0.5
    return value + 10 * lift * treated, before, treated
