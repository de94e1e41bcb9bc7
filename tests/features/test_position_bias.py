from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.config import parse_settings
from raysys.errors import UserError
from raysys.features.position_bias import (
    PositionBiasSettings,
    Propensities,
    estimate_propensities,
    inverse_propensity_weights,
)
from raysys.features.position_report import write_position_report
from raysys.features.simulate import (
    SimulatedLog,
    SimulationSettings,
    simulate_log,
    simulate_shop,
)

SHOP = SimulationSettings(queries=400, requests=40, positions=6, candidates=12)


def simulated(**how) -> tuple[SimulatedLog, np.ndarray]:
    shop = simulate_shop(SHOP, 1)
    log = simulate_log(shop, SHOP.model_copy(update=how), 1)
    return log, shop.features[log.query, log.item]


def estimate(log: SimulatedLog, features=None, cluster=None, **how) -> Propensities:
    return estimate_propensities(
        *(log.query, log.item, log.position, log.click),
        PositionBiasSettings(**{"resamples": 0, **how}),
        cluster=cluster,
        features=features,
    )


def error(found: Propensities, log: SimulatedLog) -> float:
    """Mean relative error of the propensities."""
    return float(np.abs(found.value / (log.propensity / log.propensity[0]) - 1).mean())


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 1.5])
def test_harvesting_finds_what_the_simulation_put_in(eta):
    log, _ = simulated(eta=eta)
    assert error(estimate(log), log) < 0.1
    assert error(estimate(log, method="adjacent"), log) < 0.2


@pytest.mark.long
@pytest.mark.parametrize("method", ["em", "regression_em"])
def test_expectation_maximisation_comes_near(method):
    log, features = simulated(eta=0.7)
    found = estimate(log, features, method=method, iterations=100)
    assert error(found, log) < 0.15
    # clicks alone, which mix relevance with examination, do not
    rate = found.clicks / found.impressions
    assert np.abs(rate / rate[0] / log.propensity - 1).mean() > 1.5 * error(found, log)


def test_a_cascade_is_met_on_average():
    log, _ = simulated(click_model="cascade")
    assert error(estimate(log), log) < 0.2


@pytest.mark.parametrize("by", ["query", "user"])
def test_intervals_hold_the_truth(by):
    held = []
    for seed in range(12):
        shop = simulate_shop(SHOP, seed)
        log = simulate_log(shop, SHOP.model_copy(update={"requests": 15}), seed)
        user = np.repeat(np.random.default_rng(seed).integers(0, 900, len(log.query) // 6), 6)
        found = estimate(log, cluster=user if by == "user" else None, resamples=200)
        assert (found.low <= found.value).all() and (found.value <= found.high).all()
        held.append((found.low <= log.propensity) & (log.propensity <= found.high))
        assert (found.high - found.low)[1:].min() > 0
    assert np.mean(np.array(held)[:, 1:]) >= 0.85


def by_hand(query, item, position, click, k: int) -> np.ndarray:
    """The all-pairs likelihood, maximised by brute force over a log-linear scale."""
    from scipy.optimize import minimize

    wins = np.zeros((k, k))
    for q, i in {(q, i) for q, i in zip(query, item, strict=True)}:
        mine = (query == q) & (item == i)
        n = np.bincount(position[mine] - 1, minlength=k)
        c = np.bincount(position[mine] - 1, click[mine], k)
        for a in range(k):
            for b in range(k):
                if a != b and n[a] and n[b]:
                    wins[a, b] += c[a] * n[b] / (n[a] + n[b])

    def loss(free):
        s = np.concatenate([[0], free])
        return -(wins * (s[:, None] - np.logaddexp(s[:, None], s[None, :]))).sum()

    return np.exp(np.concatenate([[0], minimize(loss, np.zeros(k - 1), tol=1e-10).x]))


def test_all_pairs_is_the_likelihood_that_brute_force_maximises():
    rng = np.random.default_rng(2)
    n = 4000
    query, item = rng.integers(0, 5, n), rng.integers(0, 6, n)
    position = rng.integers(1, 5, n)
    click = rng.random(n) < 0.7 / position * (0.2 + 0.1 * item)
    found = estimate_propensities(
        query, item, position, click, PositionBiasSettings(resamples=0, iterations=5000)
    )
    np.testing.assert_allclose(found.value, by_hand(query, item, position, click, 4), rtol=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_order_and_names_do_not_matter(seed):
    log, _ = small()
    order = np.random.default_rng(seed).permutation(len(log.query))
    how = PositionBiasSettings(resamples=5)
    one = estimate_propensities(log.query, log.item, log.position, log.click, how)
    two = estimate_propensities(
        *(log.query[order], log.item[order].astype(str), log.position[order]),
        *(log.click[order].astype(np.int8), how),
    )
    np.testing.assert_allclose(one.value, two.value, rtol=1e-9)
    np.testing.assert_allclose(one.low, two.low, rtol=1e-9)
    np.testing.assert_array_equal(one.impressions, two.impressions)


def small() -> tuple[SimulatedLog, np.ndarray]:
    how = SimulationSettings(queries=30, requests=20, positions=4, candidates=8)
    shop = simulate_shop(how, 0)
    return simulate_log(shop, how, 0), shop.grade


def test_what_the_log_cannot_tell_stays_unknown():
    # items 0 and 1 swap between positions 1 and 2, items 2 and 3 between 4 and 5, none between
    query = np.zeros(400, np.int64)
    item = np.tile([0, 1, 2, 3], 100)
    position = np.tile([1, 2, 4, 5, 2, 1, 5, 4], 50)
    click = np.tile([1, 0, 1, 0, 1, 1, 1, 1], 50)
    found = estimate_propensities(query, item, position, click, PositionBiasSettings())
    assert np.isfinite(found.value).tolist() == [True, True, False, False, False]
    assert found.impressions.tolist() == [100, 100, 0, 100, 100]
    np.testing.assert_allclose(found.of(np.array([1, 2, 3, 4, 9])), found.value[[0, 1, 1, 1, 1]])


@pytest.mark.parametrize(
    ("position", "how", "message"),
    [
        ([-1, 0], {}, "no impression has a position"),
        ([1, 2], {"method": "regression_em"}, "needs features"),
        ([1, 2], {}, "both at position 1 and at others"),
    ],
)
def test_logs_that_cannot_answer_are_a_users_error(position, how, message):
    with pytest.raises(UserError, match=message):
        estimate_propensities(
            *(np.zeros(2), np.arange(2), np.array(position), np.ones(2)),
            PositionBiasSettings(**how),
        )


def test_weights_are_inverse_and_clipped():
    found = replace(estimate(small()[0]), value=np.array([1.0, 0.5, 0.04, np.nan]))
    weights = inverse_propensity_weights(np.array([1, 2, 3, 4, 7]), found, clip=10)
    assert weights.tolist() == [1, 2, 10, 10, 10]


def test_weighted_clicks_count_what_would_be_clicked_if_all_were_seen():
    log, _ = simulated()
    shop = simulate_shop(SHOP, 1)
    found = replace(estimate(log), value=log.propensity)
    weight = inverse_propensity_weights(log.position, found, clip=100)
    attraction = 0.1 + 0.9 * shop.gain[log.query, log.item] / 15
    for k in range(1, 7):
        at = log.position == k
        assert (log.click * weight)[at].mean() == pytest.approx(attraction[at].mean(), rel=0.1)


def test_a_simulation_is_what_its_seed_says():
    for model in ("pbm", "cascade"):
        how = SHOP.model_copy(update={"click_model": model})
        shop = simulate_shop(how, 3)
        one, two = simulate_log(shop, how, 3), simulate_log(shop, how, 3)
        assert all(np.array_equal(getattr(one, name), getattr(two, name)) for name in vars(one))
        assert not (one.click & ~one.examined).any()
        assert not np.array_equal(one.click, simulate_log(shop, how, 4).click)
        batch = one.batch(shop)
        assert batch.label.sum() == one.click.sum()
        np.testing.assert_array_equal(batch.column("position"), one.position)
    with pytest.raises(UserError, match="candidates"):
        parse_settings(SimulationSettings, {"candidates": 5, "positions": 6}, where="x")


def test_the_report_draws_every_method(tmp_path: Path):
    log, _ = small()
    every = [estimate(log, method=m, resamples=20) for m in ("all_pairs", "adjacent", "em")]
    write_position_report(every, tmp_path / "bias.html", truth=log.propensity, surface="search")
    page = (tmp_path / "bias.html").read_text()
    assert "<svg" in page and "Position bias of search" in page
    for text in ("all_pairs", "adjacent", "em", "truth", f"{every[0].value[1]:.3f}"):
        assert text in page
