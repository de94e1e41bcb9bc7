"""Folds by time and by group, and what is purged: properties that hold whatever the rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from raysys.ensemble.splits import clear_of, cross_folds, folds_by_group, folds_by_time

moments = arrays(np.int64, st.integers(1, 60), elements=st.integers(0, 40))
groups = arrays(np.int64, st.integers(1, 60), elements=st.integers(-1, 12))


@given(moments, st.integers(1, 8))
def test_folds_by_time_follow_each_other(moment: np.ndarray, folds: int) -> None:
    fold = folds_by_time(moment, folds)
    present = np.unique(fold)
    assert np.array_equal(present, np.arange(len(present)))  # none is empty
    assert len(present) <= folds
    for number in present[1:]:
        assert moment[fold == number - 1].max() < moment[fold == number].min()


@given(st.integers(1, 200), st.integers(1, 8))
def test_folds_by_time_have_one_size_where_moments_differ(n: int, folds: int) -> None:
    sizes = np.bincount(folds_by_time(np.random.default_rng(n).permutation(n), folds))
    assert sizes.sum() == n and sizes.max() - sizes.min() <= 1


@given(groups, st.integers(1, 5), st.integers(0, 3))
def test_no_group_is_in_two_folds(group: np.ndarray, folds: int, seed: int) -> None:
    known = np.unique(group[group >= 0])
    count = len(known) + int((group < 0).sum())
    if folds > count:
        with pytest.raises(ValueError, match="groups"):
            folds_by_group(group, folds, seed)
        return
    fold = folds_by_group(group, folds, seed)
    for name in known:
        assert len(np.unique(fold[group == name])) == 1
    sizes = np.bincount(fold, minlength=folds)
    largest = max(int((group == name).sum()) for name in known) if len(known) else 1
    assert sizes.min() >= 1 and sizes.max() - sizes.min() <= max(largest, 1)
    assert np.array_equal(fold, folds_by_group(group, folds, seed))


@given(moments, st.integers(1, 6), st.integers(0, 9), st.integers(0, 5))
def test_no_fitted_label_overlaps_with_a_scored_one(
    moment: np.ndarray, folds: int, window: int, embargo: int
) -> None:
    """Against the definition, pair by pair; and nothing is dropped without need."""
    end = moment + window
    for scored_fold in range(folds):
        scored = folds_by_time(moment, folds) == scored_fold
        kept = clear_of(scored, moment, end, embargo)
        for row in range(len(moment)):
            meets = any(
                moment[row] <= end[other] + embargo and moment[other] <= end[row]
                for other in np.flatnonzero(scored)
            )
            assert kept[row] == (not scored[row] and not meets)


@given(moments, st.integers(2, 5), st.integers(0, 9))
def test_every_row_is_scored_once(moment: np.ndarray, folds: int, window: int) -> None:
    fold = folds_by_time(moment, folds)
    parts = list(cross_folds(fold, moment, window))
    assert np.array_equal(np.sort(np.concatenate([s for _, s in parts])), np.arange(len(moment)))
    for fitted, scored in parts:
        assert not set(fitted) & set(scored)
        if not window:
            assert len(fitted) + len(scored) == len(moment)


def test_a_label_is_not_settled_before_its_row() -> None:
    with pytest.raises(ValueError, match="settled"):
        clear_of(np.array([True]), np.array([3]), np.array([2]))


def test_there_are_no_zero_folds() -> None:
    with pytest.raises(ValueError, match="0 folds"):
        folds_by_time(np.array([1]), 0)
