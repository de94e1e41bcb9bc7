"""How many users, and how many days, an experiment needs.

Power of Welch's test through statsmodels (fixed analysis); for sequential ones the users at which
the interval at the end leaves out zero with the wanted probability, which is an upper bound: they
may do so earlier.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from scipy import optimize, stats
from statsmodels.stats.power import TTestIndPower

from raysys.errors import UserError
from raysys.experiments.analysis import limited, samples_of
from raysys.experiments.definition import Experiment
from raysys.experiments.parts import Metric
from raysys.experiments.statistics import sequential_width
from raysys.experiments.users import user_table

_LEAST, _MOST = 10, 1e12  # users
_WEEKS = (1, 2, 3, 4, 6, 8)


@dataclass(frozen=True)
class Baseline:
    """What is known of a metric before the experiment.

    Attributes:
        mean: of a user.
        deviation: standard deviation between users.
        correlation: of the metric with its covariate; 0: none.
        arrivals: users that come new on each day of an experiment: float[days]; after them the
            mean of the last seven goes on.
    """

    mean: float
    deviation: float
    correlation: float = 0.0
    arrivals: tuple[float, ...] = ()

    @property
    def adjusted_deviation(self) -> float:
        """What is left after CUPED."""
        return self.deviation * float(np.sqrt(1 - self.correlation**2))

    def users_after(self, days: int) -> float:
        """Eligible users that have come after so many days."""
        known = list(self.arrivals[:days])
        tail = float(np.mean(self.arrivals[-7:])) if self.arrivals else 0.0
        return float(sum(known)) + tail * (days - len(known))


@dataclass(frozen=True)
class Plan:
    """What an experiment needs.

    Attributes:
        users: in all arms together, to find the minimum effect with the wanted power.
        by_arm: of these.
        days: until they have come and the window of the last is over; None: more than three years,
            or not known how fast they come.
        users_without_cuped: for comparison.
        detectable: (days, users, smallest relative lift that is found with the wanted power).
    """

    users: int
    by_arm: dict[str, int]
    days: int | None
    users_without_cuped: int
    detectable: list[tuple[int, int, float]]


def plan(experiment: Experiment, baseline: Baseline) -> Plan:
    """Users and days for the experiment's minimum effect, alpha, power, shares and analysis.

    Raises:
        UserError: the metric is always zero, or always the same.
    """
    if not (baseline.mean > 0 and baseline.deviation > 0):
        raise UserError(
            f"mean {baseline.mean:g} and deviation {baseline.deviation:g} of "
            f"{experiment.primary!r}: an effect relative to that has no size",
            where=experiment.name,
            mend="choose a primary metric that users have and that differs between them",
        )
    lift = experiment.minimum_effect * baseline.mean
    plain = replace(baseline, correlation=0.0)
    needed = users_needed(experiment, lift / baseline.adjusted_deviation)
    total = experiment.total
    days = None
    if baseline.arrivals and any(baseline.arrivals):
        reach = float(total) * _slice(experiment)
        days = next((d for d in range(1, 1096) if baseline.users_after(d) * reach >= needed), None)
        if days is not None:
            days += int(np.ceil(experiment.window_days or 0))
        detectable = [
            (7 * weeks, int(users), detected(experiment, users, baseline))
            for weeks in _WEEKS
            if (users := baseline.users_after(7 * weeks) * reach) >= 10
        ]
    else:
        detectable = []
    return Plan(
        users=needed,
        by_arm={
            a.name: int(np.ceil(needed * float(a.share) / float(total))) for a in experiment.arms
        },
        days=days,
        users_without_cuped=users_needed(experiment, lift / plain.adjusted_deviation),
        detectable=detectable,
    )


def users_needed(experiment: Experiment, effect: float) -> int:
    """Users in all arms to find an effect, given in standard deviations of a user; at least 10.

    The treatment with the smallest share decides.

    Raises:
        UserError: more users than there are people would be needed.
    """
    shares = np.array([float(arm.share) for arm in experiment.arms]) / float(experiment.total)
    control, treatment = shares[0], shares[1:].min()
    alpha = experiment.alpha / (len(shares) - 1)
    reach = float(stats.norm.ppf(experiment.power))

    def lacks(log_n: float) -> float:
        # the interval is tuned for the very number that is looked for
        n = float(np.exp(log_n))
        return _seen(n, control, treatment, alpha, reach) - abs(effect)

    least, most = float(np.log(_LEAST)), float(np.log(_MOST))
    # near enough to Welch's test, too, to say whether it can be solved at all
    if lacks(least) <= 0:
        return _LEAST
    if lacks(most) >= 0:
        raise UserError(
            f"an effect of {abs(effect):.2g} standard deviations is too small for any shop to find",
            where=f"experiments.{experiment.name}.minimum_effect",
            mend="ask for a larger one, or measure something that varies less",
        )
    if experiment.analysis == "fixed":
        pair = TTestIndPower().solve_power(
            effect_size=abs(effect), alpha=alpha, power=experiment.power, ratio=treatment / control
        )
        return max(_LEAST, int(np.ceil(float(np.atleast_1d(pair)[0]) / control)))
    return int(np.ceil(np.exp(optimize.brentq(lacks, least, most))))


def detected(experiment: Experiment, users: float, baseline: Baseline) -> float:
    """The relative lift that so many users in all arms find with the wanted power."""
    shares = np.array([float(arm.share) for arm in experiment.arms]) / float(experiment.total)
    control, treatment = shares[0], shares[1:].min()
    alpha = experiment.alpha / (len(shares) - 1)
    reach = float(stats.norm.ppf(experiment.power))
    if experiment.analysis == "sequential":
        size = _seen(users, control, treatment, alpha, reach)
    else:
        error = np.sqrt(1 / (users * control) + 1 / (users * treatment))
        size = (float(stats.norm.ppf(1 - alpha / 2)) + reach) * error
    return float(size * baseline.adjusted_deviation / baseline.mean)


def _seen(n: float, control: float, treatment: float, alpha: float, reach: float) -> float:
    """Effect in standard deviations that n users in all arms find sequentially."""
    pair = n * (control + treatment)
    error = np.sqrt(1 / (n * control) + 1 / (n * treatment))
    return float((sequential_width(pair, alpha, pair) + reach) * error)


def _slice(experiment: Experiment) -> float:
    if experiment.layer is None:
        return 1.0
    return float(experiment.layer.to - experiment.layer.from_)


def baseline_of(
    experiment: Experiment, metric: Metric, events: pl.LazyFrame, *, days: int = 28
) -> Baseline:
    """What the last days of a log say of a metric, as if everybody had been exposed then.

    A user comes with the first event of these days; the metric counts from there on, over the
    window of the experiment (of those whose window is over), its covariate before. Eligibility is
    not looked at: the log does not know it, so scale the arrivals if it is narrow.

    Raises:
        UserError: the log is shorter than the days, or these than the window.
    """
    ends = events.select(pl.col("timestamp").min().alias("a"), pl.col("timestamp").max().alias("b"))
    oldest, newest = ends.collect().row(0)
    begin = None if newest is None else newest - dt.timedelta(days=days)
    if begin is None or begin < oldest:
        raise UserError(
            f"the log is shorter than {days} days", mend="give --days that it has, and some before"
        )
    names = [arm.name for arm in experiment.arms]
    watched = experiment.model_copy(update={"start": begin, "end": None, "segments": ()})
    seen = (
        events.filter(pl.col("timestamp") >= begin)
        .select(
            pl.lit(experiment.name).alias("experiment"), pl.lit(names[0]).alias("arm"),
            "user_id", "timestamp", pl.lit(False).alias("forced"),
        pl.lit(None, pl.Map(pl.String, pl.String)).alias("attributes"),
        )
    )  # fmt: skip
    table = user_table(watched, [metric], seen, events)
    if not len(table.rows):
        raise UserError(
            f"the last {days} days hold no whole window of {watched.window_days} days",
            mend="give more --days",
        )
    frame = limited(metric, table.rows)
    (everybody,), cuped = samples_of(metric, frame, [np.ones(len(frame), bool)])
    came = seen.group_by("user_id").agg(pl.col("timestamp").min()).collect()
    day = ((came["timestamp"] - begin).dt.total_days()).to_numpy()
    arrivals = np.bincount(np.clip(day, 0, days - 1), minlength=days)
    return Baseline(
        mean=everybody.plain_mean,
        deviation=float(np.sqrt(everybody.plain_variance)),
        correlation=0.0 if cuped is None else cuped.correlation,
        arrivals=tuple(float(count) for count in arrivals),
    )


def sentence(experiment: Experiment, found: Plan) -> str:
    """The plan in words."""
    told = (
        f"To find a lift of {experiment.minimum_effect:.1%} of {experiment.primary} in "
        f"{experiment.power:.0%} of cases, at {experiment.alpha:.0%} false alarms "
        f"({experiment.analysis} analysis), {found.users:,} users are needed"
    )
    if found.days is not None:
        return f"{told}: {found.days} day{'s' * (found.days != 1)}."
    return f"{told}."
