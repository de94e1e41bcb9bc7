"""Windows against their definition: whole buckets, exact within."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.features.windows import HOUR_MS, Window

DAY = 24 * HOUR_MS

events = st.lists(
    st.tuples(
        st.integers(-1, 5),  # key; -1 is skipped
        st.integers(-3 * DAY, 12 * DAY),  # time, before 1970 too
        st.sampled_from([0.0, 1.0, 2.0]),  # weight
        st.one_of(st.just(float("nan")), st.integers(-5, 5)),  # value
    ),
    max_size=60,
)


def arrays(rows) -> tuple[np.ndarray, ...]:
    types = (np.int64, np.int64, np.float64, np.float64)
    return tuple(np.array([row[at] for row in rows], dtype=kind) for at, kind in enumerate(types))


@given(
    events, st.sampled_from([(1, [1, 5]), (6, [2, 7]), (24, [1, 3, 8])]), st.integers(0, 4 * DAY)
)
@settings(max_examples=200, deadline=None)
def test_windows_hold_what_happened_in_their_buckets(rows, shape, later) -> None:
    hours, spans = shape
    width = hours * HOUR_MS
    keys, times, weights, values = arrays(rows)
    window = Window(width, spans, valued=True, capacity=2)
    window.apply(keys, times, weights, values)
    now = max([0, *times.tolist()]) + later
    found = window.read(window.find(np.arange(7)), now)
    for row, span in enumerate(spans):
        first = (now // width - span + 1) * width
        for key in range(7):
            mine = (keys == key) & (times >= first)
            valued = mine & ~np.isnan(values)
            assert found.counts[row, key] == weights[mine].sum()
            assert found.sums[row, key] == (weights[valued] * values[valued]).sum()
            assert found.days[row, key] == len(set((times[mine] // DAY).tolist()))
            low, high = found.lows[row, key], found.highs[row, key]
            if valued.any():
                assert (low, high) == (values[valued].min(), values[valued].max())
            else:
                assert np.isnan(low) and np.isnan(high)
            if weights[valued].sum() > 0:
                mean = (weights[valued] * values[valued]).sum() / weights[valued].sum()
                assert found.means[row, key] == pytest.approx(mean)
            else:
                assert np.isnan(found.means[row, key])


def test_a_window_without_values_keeps_counts_only() -> None:
    window = Window(DAY, [2])
    key, moment = np.zeros(1, np.int64), np.zeros(1, np.int64)
    window.apply(key, moment, np.ones(1), np.array([3.0]))
    found = window.read(window.find(key), DAY)
    assert (found.counts[0, 0], found.days[0, 0]) == (1, 1)
    assert np.isnan(found.cells[1:5]).all()
    assert window.data["cells"].shape[2] == 1


def test_an_empty_ring_goes_at_compaction() -> None:
    window = Window(DAY, [2])
    ones = np.ones(3)
    window.apply(np.array([4, 5, 6]), np.array([0, DAY, 2 * DAY]), ones, ones)
    window = Window.from_arrays(window.arrays())  # which knows what day it is
    assert window.compact() == 1  # the day of key 4 is out of every window
    assert window.find(np.array([4, 5, 6])).tolist() == [-1, 0, 1]
    assert window.compact() == 0


def test_an_event_that_no_window_reaches_is_not_counted() -> None:
    window = Window(DAY, [2])
    one = np.ones(1)
    for moment in (0, 9 * DAY, 7 * DAY, 8 * DAY):  # the last two come late, the last in time
        window.apply(np.zeros(1, np.int64), np.array([moment]), one, one)
    assert window.read(np.zeros(1, np.int64), 9 * DAY).counts[0, 0] == 2
