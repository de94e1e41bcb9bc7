"""The figures that GrowthBook computes too are the same here."""

import json
from pathlib import Path

import numpy as np
import pytest
from gbstats.bayesian.main import gaussian_ab_test
from gbstats.gbstats import check_srm

from raysys.experiments.statistics import (
    adjustment,
    difference,
    influence,
    sample,
    sample_ratio,
)
from tests.experiments.growthbook_figures import ALPHA, TUNED_FOR, users

FIGURES = json.loads((Path(__file__).parent / "growthbook.json").read_text())


def samples(arms, metric, theta):
    if metric == "clicks_per_impression":
        return [sample(influence(arm["clicks"], arm["impressions"])) for arm in arms]
    if metric == "revenue_cuped":
        return [sample(arm["revenue"], arm["before"], theta=theta) for arm in arms]
    return [sample(arm[metric]) for arm in arms]


@pytest.mark.parametrize("seed", range(5))
def test_effects_are_those_of_growthbook(seed):
    arms = list(users(seed).values())
    figures = [each for each in FIGURES["effects"] if each["seed"] == seed]
    assert len(figures) == 16
    for each in figures:
        found = difference(
            *samples(arms, each["metric"], each["theta"]),
            relative=each["kind"] == "relative",
            alpha=ALPHA,
            analysis=each["analysis"],
            tuned_for=TUNED_FOR,
        )
        # gbstats divides a proportion's variance by n, not n - 1
        close = 2e-3 if each["metric"] == "bought" else 1e-9
        told = [found.value, found.low, found.high]
        scale = each["high"] - each["low"]
        assert np.allclose(told, [each["value"], each["low"], each["high"]], atol=close * scale)
        assert found.p_value == pytest.approx(each["p_value"], rel=5 * close, abs=1e-9)
    theta = adjustment([arm["revenue"] for arm in arms], [arm["before"] for arm in arms]).theta
    # theirs is over both arms at once, ours within arms: the same but for the lift
    assert theta == pytest.approx(figures[0]["theta"], rel=0.02)


def test_the_sample_ratio_is_that_of_growthbook():
    for each in FIGURES["sample_ratios"]:
        found = sample_ratio(each["counts"], each["shares"])
        assert found == pytest.approx(each["p_value"], rel=1e-9)
        assert found == pytest.approx(check_srm(each["counts"], each["shares"]), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_lift_is_that_of_the_installed_gbstats(seed):
    """Its interval is on the logarithm of the ratio: the same to second order."""
    control, treatment = (arm["revenue"] for arm in users(seed).values())
    theirs = gaussian_ab_test(
        control.mean(), control.std(ddof=1), len(control),
        treatment.mean(), treatment.std(ddof=1), len(treatment),
    )  # fmt: skip
    ours = difference(sample(control), sample(treatment), relative=True)
    assert ours.value == pytest.approx(theirs["expected"], abs=1e-4)
    width = ours.high - ours.low
    assert np.allclose([ours.low, ours.high], theirs["ci"], atol=0.04 * width)
    assert theirs["chance_to_win"] == pytest.approx(1 - ours.p_value / 2, abs=0.01)
