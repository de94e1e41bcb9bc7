"""Decayed state: against the definition, in columns or one by one, saved or not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.features.kernels import DAY_MS
from raysys.features.table import Table

HALF_LIVES = np.array([1.0, 7.0])

events = st.lists(
    st.tuples(
        st.integers(-1, 40),  # key; -1 is skipped
        st.integers(0, 60 * int(DAY_MS)),  # time
        st.floats(0.1, 5),  # weight
        st.one_of(st.floats(0.5, 90), st.just(float("nan"))),  # value
    ),
    max_size=120,
)


def arrays(rows: list[tuple[int, int, float, float]]) -> tuple[np.ndarray, ...]:
    rows = sorted(rows, key=lambda row: row[1])
    types = (np.int64, np.int64, np.float64, np.float64)
    return tuple(np.array([row[at] for row in rows], dtype=kind) for at, kind in enumerate(types))


def state(table: Table, until: int) -> list[np.ndarray]:
    stats = table.read(table.find(np.arange(41)), until)
    return [stats.counts, stats.means, stats.moments, stats.recency, stats.age, stats.interval]


@given(events, st.integers(1, 7))
@settings(max_examples=150, deadline=None)
def test_columns_and_single_events_agree_to_the_last_bit(rows, chunk) -> None:
    keys, times, weights, values = arrays(rows)
    replayed, live = Table(HALF_LIVES, capacity=4), Table(HALF_LIVES, capacity=4)
    replayed.apply(keys, times, weights, values)
    for at in range(0, len(keys), chunk):
        part = slice(at, at + chunk)
        live.apply(keys[part], times[part], weights[part], values[part])
    until = 61 * int(DAY_MS)
    for ours, theirs in zip(state(replayed, until), state(live, until), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@given(events)
@settings(max_examples=60, deadline=None)
def test_counts_are_the_sum_of_halved_weights(rows) -> None:
    keys, times, weights, values = arrays(rows)
    table = Table(HALF_LIVES)
    table.apply(keys, times, weights, values)
    until = 61 * int(DAY_MS)
    counts = table.read(table.find(np.arange(41)), until).counts
    for key in range(41):
        mine = keys == key
        for row, half_life in enumerate(HALF_LIVES):
            decay = 0.5 ** ((until - times[mine]) / (half_life * DAY_MS))
            assert counts[row, key] == pytest.approx((weights[mine] * decay).sum(), rel=1e-9)


@given(events)
@settings(max_examples=60, deadline=None)
def test_saved_and_loaded_counts_on_as_if_it_had_not_stopped(rows) -> None:
    keys, times, weights, values = arrays(rows)
    half = len(keys) // 2
    first = Table(HALF_LIVES, fan=8)
    first.apply(keys[:half], times[:half], weights[:half], values[:half])
    second = Table.from_arrays(first.arrays())
    for table in (first, second):
        table.apply(keys[half:], times[half:], weights[half:], values[half:])
    until = 61 * int(DAY_MS)
    for ours, theirs in zip(state(first, until), state(second, until), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for owner in range(6):
        np.testing.assert_array_equal(first.members(owner), second.members(owner))


def test_members_lists_the_keys_of_one_owner() -> None:
    table = Table(HALF_LIVES, fan=10, capacity=2)
    keys = np.array([31, 12, 35, 31, 20, 39], dtype=np.int64)
    ones = np.ones(len(keys))
    table.apply(keys, np.arange(len(keys)), ones, ones)
    assert table.second(table.members(3)).tolist() == [9, 5, 1]
    assert table.members(7).tolist() == []
    assert table.members(-1).tolist() == []


def test_interval_counts_moments_not_lines() -> None:
    table = Table(HALF_LIVES)
    day = int(DAY_MS)
    times = np.array([0, 0, 0, 4 * day, 10 * day], dtype=np.int64)
    table.apply(np.zeros(5, dtype=np.int64), times, np.ones(5), np.ones(5))
    stats = table.read(np.array([0]), 12 * day)
    assert stats.moments[0] == 3
    assert stats.interval[0] == 5
    assert stats.recency[0] == 2
    assert stats.age[0] == 12


replayed = st.lists(
    st.tuples(
        st.integers(-1, 12),
        st.integers(0, 30),  # few moments, so that most are shared
        st.floats(0.1, 5),
        st.one_of(st.floats(0.5, 90), st.just(float("nan"))),
        st.booleans(),  # counts
        st.booleans(),  # reads
    ),
    max_size=80,
)


@pytest.mark.long
@given(replayed, st.integers(1, 31), st.sampled_from([1, 4]))
@settings(max_examples=150, deadline=None)
def test_replay_is_read_then_apply_one_moment_at_a_time(rows, calls, fan) -> None:
    rows = sorted(rows, key=lambda row: row[1])
    keys, times, weights, values = arrays([row[:4] for row in rows])
    times = times * int(DAY_MS) // 3
    counts, reads = (np.array([row[at] for row in rows], dtype=bool) for at in (4, 5))
    ours, theirs = (Table(HALF_LIVES, fan=fan, capacity=1) for _ in range(2))
    expected, found = [], []
    for time in np.unique(times):
        now = times == time
        stats = theirs.read(theirs.find(keys[now & reads]), int(time))
        expected.append(np.vstack([stats.counts, stats.means, [stats.moments, stats.recency]]))
        expected[-1] = np.vstack([expected[-1], [stats.age, stats.interval]])
        counted = now & counts
        theirs.apply(keys[counted], times[counted], weights[counted], values[counted])
    for part in np.array_split(np.unique(times), calls):  # several calls, no moment in two of them
        now = np.isin(times, part)
        stats = ours.replay(
            *(column[now] for column in (keys, times, weights, values)), counts[now], reads[now]
        )
        found.append(np.vstack([stats.counts, stats.means, [stats.moments, stats.recency]]))
        found[-1] = np.vstack([found[-1], [stats.age, stats.interval]])
    if expected:
        np.testing.assert_array_equal(np.hstack(found), np.hstack(expected))
    until = 61 * int(DAY_MS)
    for mine, other in zip(state(ours, until), state(theirs, until), strict=True):
        np.testing.assert_array_equal(mine, other)
    for first in range(4):
        np.testing.assert_array_equal(ours.members(first), theirs.members(first))


def test_replay_refuses_what_would_let_a_moment_see_itself() -> None:
    one, yes = np.ones(2), np.ones(2, dtype=bool)
    keys = np.zeros(2, dtype=np.int64)
    table = Table(HALF_LIVES)
    table.replay(keys, np.array([5, 6]), one, one, yes, yes)
    for times in ([6, 7], [9, 8], [3, 9]):
        with pytest.raises(ValueError, match="no moment cut"):
            table.replay(keys, np.array(times), one, one, yes, yes)


@given(events, st.floats(0.5, 20), st.sets(st.integers(0, 120)))
@settings(max_examples=80, deadline=None)
def test_an_idle_key_starts_anew(rows, idle, moments) -> None:
    """A table that forgets says what one says that is only given what it remembers."""
    keys, times, weights, values = arrays(rows)
    forgetful = Table(HALF_LIVES, fan=8, capacity=4, max_idle_days=idle)
    for at in range(len(keys)):
        part = slice(at, at + 1)
        forgetful.apply(keys[part], times[part], weights[part], values[part])
        if at in moments:
            forgetful.compact()
    until = int(times.max(initial=0)) + 1
    remembered = np.zeros(len(keys), bool)
    for key in range(41):
        mine = np.flatnonzero(keys == key)
        after = np.append(times[mine][1:], until)
        gaps = after - times[mine] > int(idle * DAY_MS)
        start = np.flatnonzero(gaps).max(initial=-1) + 1
        remembered[mine[start:]] = True
    plain = Table(HALF_LIVES, fan=8)
    plain.apply(*(column[remembered] for column in (keys, times, weights, values)))
    for ours, theirs in zip(state(forgetful, until), state(plain, until), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for owner in range(6):
        ours, theirs = forgetful.members(owner, until), plain.members(owner, until)
        np.testing.assert_array_equal(forgetful.second(ours), plain.second(theirs))


def test_the_most_idle_records_make_way() -> None:
    table = Table(HALF_LIVES, fan=10, max_records=3)
    keys = np.array([31, 12, 35, 20, 31], dtype=np.int64)
    table.apply(keys, np.array([0, 1, 2, 2, 3]), np.ones(5), np.ones(5))
    before = state(table, 9)
    assert table.compact() == 1
    assert table.find(keys).tolist() == [0, -1, 1, 2, 0]
    for ours, theirs in zip(state(table, 9), before, strict=True):
        known = [key for key in range(41) if key != 12]
        np.testing.assert_array_equal(ours[..., known], theirs[..., known])
    assert table.second(table.members(3)).tolist() == [5, 1]
    assert table.members(1).tolist() == []
    assert table.compact() == 0


def test_an_event_that_would_have_aged_out_is_not_counted() -> None:
    day = int(DAY_MS)
    table = Table(HALF_LIVES, max_idle_days=2)
    for moment in (10 * day, 7 * day, 9 * day):
        table.apply(np.zeros(1, np.int64), np.array([moment]), np.ones(1), np.ones(1))
    assert len(table) == 1
    assert table.read(np.array([0]), 10 * day).age[0] == 1


def test_a_restored_table_still_knows_what_comes_too_late() -> None:
    day = int(DAY_MS)
    first = Table(HALF_LIVES, max_idle_days=2)
    first.apply(np.array([1]), np.array([10 * day]), np.ones(1), np.ones(1))
    second = Table.from_arrays(first.arrays())
    for table in (first, second):
        table.apply(np.array([2, 3]), np.array([7 * day, 9 * day]), np.ones(2), np.ones(2))
        assert table.find(np.array([1, 2, 3])).tolist() == [0, -1, 1]
