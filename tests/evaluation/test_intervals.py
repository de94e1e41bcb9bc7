"""Bootstrap intervals: they cover the truth, widen with clusters, and pair what they compare."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from raysys.evaluation.intervals import Bootstrap, signed
from raysys.evaluation.metrics import quantile_bins, reliability


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(2, 1, 2000)
    found = Bootstrap(np.arange(2000), resamples=2000).mean(values)
    error = values.std() / np.sqrt(2000)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        user = np.repeat(np.arange(60), 5)
        values = rng.normal(size=60)[user] + rng.normal(size=300)
        found = Bootstrap(user, resamples=300, seed=trial).mean(values)
        covered += found.low <= 0 <= found.high
    assert 0.90 <= covered / 200 <= 0.985


def test_users_with_several_requests_widen_the_interval() -> None:
    rng = np.random.default_rng(2)
    user = np.repeat(np.arange(100), 10)
    values = rng.normal(size=100)[user]  # a user's requests say the same ten times
    by_user = Bootstrap(user).mean(values)
    by_request = Bootstrap(np.arange(1000)).mean(values)
    assert by_user.high - by_user.low > 2 * (by_request.high - by_request.low)


def test_strangers_are_not_one_user() -> None:
    assert Bootstrap(np.array([-1, -1, 4, 4, -2])).n_clusters == 4


def test_differences_are_paired() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=500)
    bootstrap = Bootstrap(np.arange(500))
    better = bootstrap.difference(values + 0.01, values)
    assert better.low == pytest.approx(0.01, abs=1e-5)
    assert better.high == pytest.approx(0.01, abs=1e-5)
    swapped = bootstrap.difference(values, values + 0.01)
    assert swapped.value == pytest.approx(-better.value)


def test_requests_without_a_value_are_left_out() -> None:
    values = np.array([1.0, np.nan, 3.0, np.nan])
    found = Bootstrap(np.arange(4)).mean(values)
    assert found.value == 2
    assert 1 <= found.low <= found.high <= 3
    nothing = Bootstrap(np.arange(4)).mean(np.full(4, np.nan))
    assert np.isnan([nothing.value, nothing.low, nothing.high]).all()
    assert nothing.to_dict() == {"value": None, "low": None, "high": None}


def test_the_seed_decides() -> None:
    values = np.random.default_rng(4).normal(size=50)
    first, again, other = (Bootstrap(np.arange(50), seed=s).mean(values) for s in (0, 0, 1))
    assert first == again
    assert first != other


def test_metrics_over_rows_equal_drawing_the_rows() -> None:
    """Sufficient statistics by cluster give what recomputing on drawn rows gives."""
    rng = np.random.default_rng(5)
    request = np.repeat(np.arange(80), 20)
    user = np.arange(80) // 2
    p = rng.beta(1, 4, 1600).astype(np.float32)
    label = (rng.random(1600) < p).astype(np.float32)
    bootstrap = Bootstrap(user, resamples=60)
    cell = quantile_bins(p, 400)
    found = bootstrap.auc(cell, label, request, roc_auc_score(label, p))
    drawn_auc, drawn_mean = [], []
    for weights in bootstrap._weights.astype(int):
        rows = np.concatenate(
            [np.flatnonzero(user[request] == u).repeat(w) for u, w in enumerate(weights) if w]
        )
        drawn_auc.append(roc_auc_score(label[rows], p[rows]))
        drawn_mean.append(p[rows].mean())
    low, high = np.quantile(drawn_auc, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=2e-3)
    assert found.high == pytest.approx(high, abs=2e-3)
    rows_mean = bootstrap.row_mean(p.astype(np.float64), request)
    low, high = np.quantile(drawn_mean, [0.025, 0.975])
    assert (rows_mean.low, rows_mean.high) == (pytest.approx(low), pytest.approx(high))


def test_calibration_error_is_that_of_the_curve() -> None:
    rng = np.random.default_rng(6)
    p = rng.random(3000).astype(np.float32)
    label = (rng.random(3000) < p**2).astype(np.float32)
    cell = quantile_bins(p, 10)
    found = Bootstrap(np.arange(300)).calibration_error(cell, p, label, np.arange(3000) // 10)
    assert found.value == pytest.approx(reliability(cell, p, label).error, rel=1e-4)
    assert found.low <= found.value <= found.high


def test_of_one_user_there_is_no_interval() -> None:
    values = np.array([0.1, 0.9, 0.4])
    alone = Bootstrap(np.zeros(3, dtype=np.int64), resamples=50)
    for found in (alone.mean(values), alone.difference(values, values - 0.1)):
        assert np.isfinite(found.value) and not found.known
        assert found.to_dict()["low"] is None and found.to_dict()["high"] is None
    assert Bootstrap(np.array([0, 0, 1]), resamples=50).mean(values).known
    assert (signed(0.0123), signed(float("nan"))) == ("+0.0123", "–")
