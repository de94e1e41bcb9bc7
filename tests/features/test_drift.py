"""Drift: PSI and Kolmogorov–Smirnov by their definitions, and samples that no order changes."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from raysys.errors import UserError
from raysys.features.drift import (
    Sample,
    categorical_features,
    compare,
    drift_of,
    kolmogorov_smirnov,
    population_stability_index,
    sample_rows,
)
from raysys.features.examples import Examples
from tests.features.shop import PLAN
from tests.synthetic import write_examples

shares = hnp.arrays(np.float64, 8, elements=st.floats(0, 1)).filter(lambda p: p.sum() > 0.01)
column = hnp.arrays(
    np.float32,
    st.integers(1, 80),
    elements=st.one_of(st.floats(-1000, 1000, width=32), st.just(np.float32(np.nan))),
)


@given(shares, shares)
def test_psi_is_never_negative_and_the_same_both_ways(p, q) -> None:
    p, q = p / p.sum(), q / q.sum()
    psi = population_stability_index(p, q)
    assert psi >= 0
    assert psi == pytest.approx(population_stability_index(q, p))
    assert population_stability_index(p, p) == 0


def test_psi_by_hand() -> None:
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2])
    by_hand = 0.1 * np.log(0.5 / 0.4) - 0.1 * np.log(0.3 / 0.4)
    assert population_stability_index(p, q) == pytest.approx(by_hand)
    # as relative entropies of both directions add up to it
    assert by_hand == pytest.approx(stats.entropy(p, q) + stats.entropy(q, p))


def test_an_empty_bin_counts_as_half_a_row_and_one_empty_in_both_as_nothing() -> None:
    p, q = np.array([0.5, 0.5, 0.0, 0.0]), np.array([0.5, 0.0, 0.5, 0.0])
    small, large = (population_stability_index(p, q, epsilon) for epsilon in (0.05, 0.0005))
    assert 0 < small < large < np.inf
    assert population_stability_index(p[:3], q[:3], 0.05) == small


@pytest.mark.long
@given(column, column, st.booleans(), st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_drift_is_the_same_in_any_order_of_rows(one, other, categorical, random) -> None:
    if categorical:
        one, other = np.round(one / 400), np.round(other / 400)
    first = drift_of("x", one, other, categorical=categorical)
    mixed, shuffled = one.copy(), other.copy()
    random.shuffle(mixed)
    random.shuffle(shuffled)
    second = drift_of("x", mixed, shuffled, categorical=categorical)
    assert first.psi == second.psi >= 0
    assert first.ks == second.ks
    assert first.p == second.p
    assert first.histogram == second.histogram
    assert sum(first.histogram.reference) == pytest.approx(1)
    assert sum(first.histogram.current) == pytest.approx(1)
    assert drift_of("x", one, one, categorical=categorical).psi == 0


@pytest.mark.long
@given(column, column)
@settings(max_examples=150, deadline=None)
def test_ks_is_scipys(one, other) -> None:
    old, new = (values[~np.isnan(values)].astype(float) for values in (one, other))
    found = drift_of("x", one, other)
    if not len(old) or not len(new):
        assert found.ks is None
        return
    assert found.ks == pytest.approx(stats.ks_2samp(old, new).statistic)
    if len(old) == len(new) == 1:  # scipy's approximation is not defined for so few
        return
    theirs = stats.ks_2samp(old, new, method="asymp")
    assert kolmogorov_smirnov(old, new)[1] == pytest.approx(theirs.pvalue, abs=1e-12)


def test_missing_values_are_a_bin_of_their_own() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=4000).astype(np.float32)
    other = one.copy()
    other[rng.random(4000) < 0.3] = np.nan
    found = drift_of("x", one, other)
    assert found.level == "large"
    assert found.ks < 0.03  # what is there is distributed as before
    assert found.reference.missing == 0
    assert found.current.missing == pytest.approx(0.3, abs=0.03)
    assert found.histogram.labels[-1] == "missing"
    assert found.histogram.current[-1] == pytest.approx(found.current.missing)


@pytest.mark.parametrize(("shift", "level"), [(0, "stable"), (0.4, "moderate"), (1.5, "large")])
def test_levels_follow_the_size_of_the_shift(shift, level) -> None:
    rng = np.random.default_rng(1)
    one, other = rng.normal(size=8000), rng.normal(shift, size=8000)
    found = drift_of("x", one.astype(np.float32), other.astype(np.float32))
    assert found.level == level
    assert found.shift == pytest.approx(shift, abs=0.05)
    assert (found.p > 0.01) == (shift == 0)
    # of two normals of variance 1 the symmetrised divergence is the shift squared; bins lose some
    assert found.psi <= shift**2 + 0.01


def test_chance_alone_is_called_stable_however_few_rows() -> None:
    """A hundred pairs of small samples from one distribution: hardly any is called drift."""
    rng = np.random.default_rng(2)
    small = [drift_of("x", *rng.normal(size=(2, 60)).astype(np.float32)) for _ in range(100)]
    assert np.mean([found.psi > 0.1 for found in small]) > 0.8  # by the usual words: all drift
    assert np.mean([found.level != "stable" for found in small]) < 0.25


def test_codes_are_compared_as_they_are_and_rare_ones_together() -> None:
    rng = np.random.default_rng(3)
    one = rng.choice(200, 5000, p=np.r_[np.full(10, 0.08), np.full(190, 0.2 / 190)])
    other = np.where(one < 3, one + 3, one)
    found = drift_of("x", one.astype(np.float32), other.astype(np.float32), categorical=True)
    assert found.level == "large"
    assert found.ks is None
    assert found.shift is None
    assert found.histogram.labels[-2:] == ("other", "missing")
    assert found.histogram.current[found.histogram.labels.index("0")] == 0
    assert drift_of("x", *[one.astype(np.float32)] * 2, categorical=True).psi == 0


def test_a_value_that_half_of_all_have_is_no_trouble() -> None:
    one = np.r_[np.zeros(600), np.arange(400)].astype(np.float32)
    other = np.r_[np.zeros(300), np.arange(700)].astype(np.float32)
    found = drift_of("x", one, other)
    assert found.histogram.reference[0] == pytest.approx(0.601)
    assert found.level == "large"


def test_text_columns_of_the_catalogue_are_codes() -> None:
    assert categorical_features(PLAN) == {"department"}


def test_compare_orders_by_psi_and_refuses_strangers() -> None:
    rng = np.random.default_rng(4)
    values = rng.normal(size=(500, 2)).astype(np.float32)
    moved = values + np.float32([0, 3])
    found = compare(Sample(("a", "b"), values, 500), Sample(("a", "b"), moved, 500))
    assert [drift.feature for drift in found] == ["b", "a"]
    with pytest.raises(UserError, match="no feature in common"):
        compare(Sample(("a", "b"), values, 500), Sample(("c", "d"), moved, 500))
    with pytest.raises(UserError, match="no request in this period"):
        compare(Sample(("a", "b"), values, 500), Sample(("a", "b"), values[:0], 0))


def test_rows_are_drawn_evenly_and_whatever_their_order(tmp_path) -> None:
    examples, _ = write_examples(tmp_path, n_requests=60, seed=1)
    requests = examples.requests()["request"].to_numpy()
    files = examples.files("examples")
    one = sample_rows(tmp_path, requests, files, rows=len(requests) * 3)
    assert one.names == examples.names
    assert one.requests == len(requests)
    retrieved = np.concatenate(
        [t["request"].filter(t["retrieved"]).to_numpy() for t in map(read, files)]
    )
    assert len(one.values) == np.minimum(np.bincount(retrieved), 3).sum()  # some have fewer
    rng = np.random.default_rng(0)
    for path in files:
        table = read(path)
        pq.write_table(table.take(rng.permutation(len(table))), path)
    two = sample_rows(tmp_path, rng.permutation(requests), files, rows=len(requests) * 3)
    np.testing.assert_array_equal(in_order(one.values), in_order(two.values))
    other = sample_rows(tmp_path, requests, files, rows=len(requests) * 3, seed=1)
    assert not np.array_equal(in_order(one.values), in_order(other.values), equal_nan=True)
    few = sample_rows(tmp_path, requests, files, rows=10)
    assert (few.requests, len(few.values)) == (10, 10)


def test_only_what_was_retrieved_is_sampled(tmp_path) -> None:
    examples, _ = write_examples(tmp_path, n_requests=40, seed=2)
    requests = Examples(tmp_path, examples.folds).requests()["request"].to_numpy()
    everything = sample_rows(tmp_path, requests, examples.files("examples"), rows=10**6)
    assert len(everything.values) == len(examples.batch(retrieved_only=True))


def read(path):
    return pq.read_table(path, partitioning=None)


def in_order(values: np.ndarray) -> np.ndarray:
    return values[np.lexsort(np.nan_to_num(values, nan=-1e9).T)]
