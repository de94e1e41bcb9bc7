"""Intervals keep what they promise, in simulation; and figures by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from raysys.experiments.simulate import arriving, returning, with_covariate
from raysys.experiments.statistics import (
    Effect,
    adjustment,
    corrected,
    difference,
    heterogeneity,
    influence,
    sample,
    sample_ratio,
    sequential_p_value,
    sequential_width,
    winsorised,
)

ALPHA = 0.05
ERROR = 3 * np.sqrt(ALPHA * (1 - ALPHA) / 1000)  # of a rate over 1,000 experiments


@pytest.fixture(scope="module")
def null():
    """1,000 A/A experiments of 14 days."""
    return arriving(1000, 14, 60, seed=1)


def test_a_thousand_null_experiments_alarm_as_often_as_stated(null):
    rate = np.mean(null.p_values("fixed", tuned_for=1680, last=True) <= ALPHA)
    assert abs(rate - ALPHA) < ERROR


def test_peeking_every_day_alarms_too_often_unless_sequential(null):
    fixed = (null.p_values("fixed", tuned_for=1680) <= ALPHA).any(1).mean()
    sequential = (null.p_values("sequential", tuned_for=1680) <= ALPHA).any(1).mean()
    assert fixed > 0.15
    assert sequential <= ALPHA + ERROR


def test_peeking_is_safe_where_users_come_back_too():
    trials = returning(1000, 14, 60, seed=2)
    rate = (trials.p_values("sequential", tuned_for=1680) <= ALPHA).any(1).mean()
    assert rate <= ALPHA + ERROR


def test_sequential_intervals_end_early_where_there_is_an_effect():
    trials = arriving(200, 14, 400, lift=0.25, seed=3)
    found = trials.p_values("sequential", tuned_for=11_200) <= ALPHA
    assert found.any(1).mean() > 0.95
    assert np.median(found.argmax(1)) < 10


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_cuped_cuts_the_variance_by_the_square_of_the_correlation(correlation):
    values, before, treated = with_covariate(40_000, correlation=correlation, lift=0.01, seed=4)
    arms = [~treated, treated]
    cuped = adjustment([values[a] for a in arms], [before[a] for a in arms])
    plain, adjusted = (
        difference(*[sample(values[a], before[a], theta=theta, centre=before.mean()) for a in arms])
        for theta in (0.0, cuped.theta)
    )
    cut = 1 - (adjusted.error / plain.error) ** 2
    assert cut == pytest.approx(correlation**2, abs=0.02)
    assert cut == pytest.approx(cuped.variance_cut, abs=0.01)
    assert adjusted.low < 0.1 < adjusted.high  # the lift, 1% of 10


def test_welch_is_that_of_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.normal(5, 1, 30), rng.normal(5.5, 3, 50)
    found = difference(sample(a), sample(b))
    other = stats.ttest_ind(b, a, equal_var=False)
    assert found.p_value == pytest.approx(other.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(other.confidence_interval()))


def test_the_delta_method_counts_users_not_events():
    """A click rate whose users differ: a binomial interval would be far too narrow."""
    rng = np.random.default_rng(5)
    estimates, errors = [], []
    for _ in range(400):
        shown = 1 + rng.poisson(20, 300)
        clicks = rng.binomial(shown, rng.beta(0.5, 2, 300))
        found = sample(influence(clicks.astype(float), shown.astype(float)))
        assert found.mean == pytest.approx(clicks.sum() / shown.sum())
        estimates.append(found.mean)
        errors.append(found.error)
    assert np.mean(errors) == pytest.approx(np.std(estimates), rel=0.1)
    binomial = np.sqrt(0.2 * 0.8 / (300 * 21))
    assert np.mean(errors) > 2 * binomial


@given(st.floats(0.001, 0.2), st.integers(2, 10**7), st.integers(100, 10**6))
def test_p_values_and_intervals_agree(alpha, n, tuned_for):
    width = sequential_width(n, alpha, tuned_for)
    assert sequential_p_value(width, n, alpha, tuned_for) == pytest.approx(alpha, rel=1e-6)
    assert width > stats.norm.ppf(1 - alpha / 2)


@pytest.mark.long
def test_corrections_and_checks():
    assert corrected([0.01, 0.04, float("nan"), 0.03], "holm")[:2] == pytest.approx([0.03, 0.06])
    assert corrected([0.01, 0.04, 0.03], "fdr_bh") == pytest.approx([0.03, 0.04, 0.04])
    assert sample_ratio([5000, 5000], [0.1, 0.1]) == 1
    assert sample_ratio([5000, 5400], [0.5, 0.5]) < 0.001

    def effect(value):
        return Effect(value, value - 0.2, value + 0.2, 0.1, 0.5)

    assert heterogeneity([effect(0.1)] * 3) == pytest.approx(1)
    assert heterogeneity([effect(0.0), effect(0.4)]) == pytest.approx(stats.chi2.sf(8, 1))
    assert np.isnan(heterogeneity([effect(0.1)]))


def test_outliers_are_cut_also_where_most_buy_nothing():
    assert winsorised(np.array([0, 1, 2, 3, 100.0]), 0.75).max() == 3
    mostly = np.concatenate([np.zeros(990), np.arange(10.0) + 1])
    assert winsorised(mostly, 0.9).max() == pytest.approx(9.1)


def test_nothing_to_compare_says_nothing():
    zeros = sample(np.zeros(50))
    found = difference(zeros, zeros, relative=True)
    assert np.isnan([found.low, found.high, found.p_value]).all() and not found.clear
    assert np.isnan(influence(np.ones(3), np.zeros(3))).all()


@pytest.mark.parametrize("analysis", ["fixed", "sequential"])
def test_an_arm_in_which_nobody_bought_has_a_lift_without_an_interval(analysis):
    some, none = sample(np.array([0.0, 1, 0, 1])), sample(np.zeros(4))
    found = difference(some, none, relative=True, analysis=analysis)
    assert found.value == -1 and np.isnan([found.low, found.high, found.p_value]).all()
    assert difference(some, none, analysis=analysis).low < -0.5  # the difference has one


def test_an_arm_without_values_leaves_the_others_theirs():
    rng = np.random.default_rng(0)
    before = rng.normal(size=(2, 50))
    after = before + rng.normal(size=(2, 50))
    both = adjustment(list(after), list(before))
    third = adjustment([*after, np.full(9, np.nan)], [*before, np.zeros(9)])
    assert third == both and both.theta > 0.5
