"""Rank correlation against SciPy, overlap of errors by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import spearmanr

from raysys.ensemble import Judgements
from raysys.evaluation.diversity import error_overlap, rank_correlation


def test_rank_correlation_is_the_mean_of_spearmans() -> None:
    rng = np.random.default_rng(0)
    sizes = [5, 1, 30, 12]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    a = rng.integers(0, 6, offsets[-1]).astype(np.float32)  # with ties
    b = (a + rng.normal(size=len(a)) * 3).astype(np.float32)
    flat = np.ones(len(a), np.float32)
    found = rank_correlation({"a": a, "b": b, "flat": flat}, offsets)
    wanted = [spearmanr(a[s:e], b[s:e]).statistic for s, e in pairwise(offsets) if e - s > 1]
    assert found[0, 1] == found[1, 0] == pytest.approx(np.mean(wanted), abs=1e-5)
    assert found[0, 0] == pytest.approx(1, abs=1e-5)
    assert np.isnan(found[2]).all()  # it has no order to compare


def test_errors_overlap_where_both_miss() -> None:
    label = np.array([1, 1, 1, 0, 0], np.float32)
    judgements = Judgements(
        np.arange(5, dtype=np.int32), label, np.array([0, 5]), np.array([3], np.int32)
    )
    a = np.array([5, 1, 0, 4, 3], np.float32)  # finds the first, misses the other two
    b = np.array([0, 5, 1, 4, 3], np.float32)  # finds the second
    found = error_overlap(judgements, {"a": a, "b": b}, k=2)
    assert found[0, 1] == pytest.approx(1 / 3)  # the third of three that either misses
    assert np.diag(found).tolist() == [1, 1]
    assert np.isnan(error_overlap(judgements, {"a": a}, k=5)).all()  # nobody misses any
