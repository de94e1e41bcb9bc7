"""Means of arms, their differences and relative lifts, with intervals that fit how one looks.

Every metric comes down to one number a user, its influence value: of a mean the user's sum; of a
ratio of sums the delta method's linearisation (Deng, Knoblich and Lu, KDD 2018), which makes the
user, who was drawn, the unit of variance however many events each has.

Two kinds of intervals. `fixed` ones are Welch's (t with Satterthwaite's degrees of freedom): right
for one look. `sequential` ones are asymptotic confidence sequences (Waudby-Smith, Arbour, Sinha,
Kennedy and Ramdas, Annals of Statistics 2024, with the mixture boundary of Robbins): they hold at
all looks together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special, stats
from statsmodels.stats.multitest import multipletests

Float64 = npt.NDArray[np.float64]
Analysis = Literal["sequential", "fixed"]

SRM_ALPHA = 0.001
"""Below this p-value arms are not filled as their shares say, and nothing else can be believed."""

_TUNED_FOR = 5000
"""Users at which sequential intervals are narrowest unless a plan says better."""


@dataclass(frozen=True)
class Sample:
    """What is known of a metric in one arm.

    Attributes:
        n: users.
        mean: of their influence values, adjusted by CUPED where there is a covariate.
        variance: of one user's (adjusted) influence value, with n - 1.
        plain_mean: without adjustment; what relative lifts are relative to.
        plain_variance: without adjustment.
    """

    n: int
    mean: float
    variance: float
    plain_mean: float
    plain_variance: float

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return float(np.sqrt(self.variance / self.n)) if self.n else float("nan")


@dataclass(frozen=True)
class Effect:
    """A difference, or a relative lift, between two arms.

    Attributes:
        value: treatment minus control, or that divided by the control's mean.
        low, high: ends of the interval; NaN where nothing can be said.
        error: standard error.
        p_value: of no effect; of a sequential analysis the always-valid one.
    """

    value: float
    low: float
    high: float
    error: float
    p_value: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Cuped:
    """What the covariate explains (Deng, Xu, Kohavi and Walker, WSDM 2013).

    Attributes:
        theta: by which the covariate is subtracted.
        correlation: of metric and covariate within arms.
    """

    theta: float
    correlation: float

    @property
    def variance_cut(self) -> float:
        """Share of the variance that is gone: the square of the correlation."""
        return self.correlation**2


def influence(numerator: Float64, denominator: Float64 | None = None) -> Float64:
    """A metric's influence values: float64[users], whose mean is the metric.

    Args:
        numerator: float64[users], sums of one arm's users.
        denominator: float64[users] of a ratio metric; None: a mean per user.
    """
    if denominator is None:
        return numerator
    mean = denominator.mean() if len(denominator) else 0.0
    if mean == 0:
        return np.full(len(numerator), np.nan)
    ratio = numerator.mean() / mean
    return np.asarray(ratio + (numerator - ratio * denominator) / mean, np.float64)


def winsorised(values: Float64, quantile: float) -> Float64:
    """Values above a quantile set to it; the quantile is over all arms, which see one limit.

    Where more than that share is zero (few users buy), the quantile of the positive values is
    taken, as the limit would be zero otherwise.
    """
    limit = np.quantile(values, quantile) if len(values) else 0.0
    if limit == 0 and (values > 0).any():
        limit = np.quantile(values[values > 0], quantile)
    return np.minimum(values, limit)


def adjustment(values: Sequence[Float64], covariates: Sequence[Float64]) -> Cuped:
    """CUPED's theta over all arms that have values, from what varies within them."""
    centred = [
        (v - v.mean(), z - z.mean())
        for v, z in zip(values, covariates, strict=True)
        if len(v) and np.isfinite(v).all()
    ]
    both = sum(float(v @ z) for v, z in centred)
    own = sum(float(z @ z) for _, z in centred)
    all_ = sum(float(v @ v) for v, _ in centred)
    if own <= 0 or all_ <= 0:
        return Cuped(0.0, 0.0)
    return Cuped(both / own, float(both / np.sqrt(own * all_)))


def sample(
    values: Float64, covariate: Float64 | None = None, *, theta: float = 0.0, centre: float = 0.0
) -> Sample:
    """Summarise one arm.

    Args:
        values: float64[users], influence values.
        covariate: float64[users], of before the exposure; None: no adjustment.
        theta: see `Cuped`.
        centre: mean of the covariate over all arms.
    """
    n = len(values)
    if n < 2:
        mean = float(values.mean()) if n else float("nan")
        return Sample(n, mean, float("nan"), mean, float("nan"))
    plain_mean, plain_variance = float(values.mean()), float(values.var(ddof=1))
    if covariate is None or theta == 0:
        return Sample(n, plain_mean, plain_variance, plain_mean, plain_variance)
    adjusted = values - theta * (covariate - centre)
    return Sample(
        n, float(adjusted.mean()), float(adjusted.var(ddof=1)), plain_mean, plain_variance
    )


def difference(
    control: Sample,
    treatment: Sample,
    *,
    relative: bool = False,
    alpha: float = 0.05,
    analysis: Analysis = "fixed",
    tuned_for: int = _TUNED_FOR,
) -> Effect:
    """Treatment minus control, or the relative lift by the delta method.

    Args:
        control: adjusted with the same theta and centre as `treatment`.
        treatment: the other arm.
        relative: divided by the control's mean.
        alpha: one minus the interval's coverage.
        analysis: for one look, or for any number of looks.
        tuned_for: users of both arms at which sequential intervals are narrowest; settled before
            the data are seen.
    """
    nothing = float("nan")
    lift = treatment.mean - control.mean
    if not (control.variance + treatment.variance > 0):
        return Effect(lift if not relative else nothing, nothing, nothing, nothing, nothing)
    by_control, by_treatment = control.variance / control.n, treatment.variance / treatment.n
    value, variance = lift, by_control + by_treatment
    if relative:
        base = control.plain_mean
        if base == 0:
            return Effect(nothing, nothing, nothing, nothing, nothing)
        value = lift / base
        variance = by_treatment / base**2 + by_control * treatment.plain_mean**2 / base**4
    error = float(np.sqrt(variance))
    if not error > 0:  # a lift over a control that varies, of an arm where nothing does and is 0
        return Effect(value, nothing, nothing, nothing, nothing)
    if analysis == "sequential":
        n = control.n + treatment.n
        width = sequential_width(n, alpha, tuned_for) * error
        p_value = sequential_p_value(value / error, n, alpha, tuned_for)
        return Effect(value, value - width, value + width, error, p_value)
    freedom = (by_control + by_treatment) ** 2 / (
        by_control**2 / (control.n - 1) + by_treatment**2 / (treatment.n - 1)
    )
    width = float(special.stdtrit(freedom, 1 - alpha / 2)) * error
    p_value = float(2 * special.stdtr(freedom, -abs(value) / error))  # stats.t is 50 times as slow
    return Effect(value, value - width, value + width, error, p_value)


def sequential_width(n: float, alpha: float, tuned_for: float = _TUNED_FOR) -> float:
    """Half the width of a sequential interval in standard errors, after n users.

    Waudby-Smith et al. 2024, theorem 2.2, with rho chosen by their appendix B.2.
    """
    m = n * _rho_squared(alpha, tuned_for)
    return float(np.sqrt(2 * (m + 1) / m * np.log(np.sqrt(m + 1) / alpha)))


def sequential_p_value(
    z: float, n: int, alpha: float = 0.05, tuned_for: float = _TUNED_FOR
) -> float:
    """Always-valid p-value of z standard errors after n users: below alpha as zero is left out."""
    m = n * _rho_squared(alpha, tuned_for)
    log_evidence = m * z * z / (2 * (m + 1)) - 0.5 * np.log(m + 1)
    return float(min(1.0, np.exp(-log_evidence)))


def sample_ratio(counts: Sequence[int], shares: Sequence[float]) -> float:
    """P-value of a chi-square test that arms are filled as their shares say.

    See Fabijan et al., Diagnosing sample ratio mismatch, KDD 2019.
    """
    total = sum(counts)
    if not total:
        return 1.0
    expected = np.asarray(shares, np.float64) / sum(shares) * total
    return float(stats.chisquare(counts, expected).pvalue)


def corrected(p_values: Sequence[float], method: Literal["holm", "fdr_bh"]) -> list[float]:
    """P-values after Holm (family-wise) or Benjamini-Hochberg (false discoveries); NaN stay."""
    found = np.asarray(p_values, np.float64)
    known = ~np.isnan(found)
    if known.sum() > 1:  # one alone needs none, and statsmodels collects garbage each time
        found[known] = multipletests(found[known], method=method)[1]
    return [float(value) for value in found]


def heterogeneity(effects: Sequence[Effect]) -> float:
    """P-value of Cochran's Q: that an effect is the same in all segments; NaN below two."""
    kept = [e for e in effects if e.error > 0]
    if len(kept) < 2:
        return float("nan")
    weight = np.array([1 / e.error**2 for e in kept])
    value = np.array([e.value for e in kept])
    q = float((weight * (value - (weight @ value) / weight.sum()) ** 2).sum())
    return float(stats.chi2.sf(q, len(kept) - 1))


def _rho_squared(alpha: float, tuned_for: float) -> float:
    return float((-2 * np.log(alpha) + np.log(1 - 2 * np.log(alpha))) / tuned_for)
