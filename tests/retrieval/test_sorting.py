from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from raysys.retrieval.sorting import ascending, largest

few = st.sampled_from([-np.inf, -1.5, -0.0, 0.0, 2.0, np.inf])


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int32])
def test_places_are_those_of_a_stable_sort(kind: type) -> None:
    rng = np.random.default_rng(0)
    for n in [*range(20), 31, 32, 33, 500, 1000]:
        for most in (3, 10_000):
            values = rng.integers(-most, most, n).astype(kind)
            np.testing.assert_array_equal(ascending(values), np.argsort(values, kind="stable"))


@given(arrays.arrays(np.float32, st.integers(0, 40), elements=few | st.just(np.nan)))
def test_nan_comes_last(values: np.ndarray) -> None:
    np.testing.assert_array_equal(ascending(values), np.argsort(values, kind="stable"))


@given(arrays.arrays(np.float32, st.integers(1, 60), elements=few), st.data())
def test_the_largest_are_those_of_a_sort(values: np.ndarray, data: st.DataObject) -> None:
    before = values.copy()
    k = data.draw(st.integers(1, len(values)))
    assert largest(values, k) == np.sort(values)[len(values) - k]
    np.testing.assert_array_equal(values, before)
