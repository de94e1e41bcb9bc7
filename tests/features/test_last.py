"""The last distinct things, against their definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.features.kernels import DAY_MS
from raysys.features.last import Last

DAY = int(DAY_MS)

events = st.lists(
    st.tuples(st.integers(-1, 3), st.integers(0, 15), st.integers(-1, 8)), max_size=60
)


def applied(rows, n: int, idle: float | None = None) -> Last:
    last = Last(n, max_idle_days=idle, capacity=1)
    keys, days, values = (np.array([row[at] for row in rows], np.int64) for at in range(3))
    nothing = np.full(len(keys), np.nan)
    last.apply(keys, days * DAY, nothing, np.where(values < 0, np.nan, values.astype(float)))
    return last


@pytest.mark.long
@given(events, st.integers(1, 5), st.sampled_from([None, 4]), st.randoms())
@settings(max_examples=200, deadline=None)
def test_it_holds_the_newest_distinct_things_in_whatever_order_they_came(
    rows, n, idle, random
) -> None:
    shuffled = [*rows, *rows[::3]]  # and some come twice
    random.shuffle(shuffled)
    now = max([0, *(day for _, day, _ in rows)]) + 1
    for last in (applied(rows, n, idle), applied(shuffled, n, idle)):
        held = last.read(last.find(np.arange(4)), now * DAY)
        for key in range(4):
            seen: dict[int, int] = {}
            for other, day, value in rows:
                if other == key and value >= 0:
                    seen[value] = max(day, seen.get(value, 0))
            ordered = sorted(seen, key=lambda value: (seen[value], value), reverse=True)[:n]
            expected = [v for v in ordered if idle is None or now - seen[v] <= idle]
            assert held.values[key, : len(expected)].tolist() == expected
            assert (held.values[key, len(expected) :] == -1).all()
            assert held.counts[key] == len(expected)


def test_idle_keys_go_at_compaction_and_the_newest_stay() -> None:
    last = applied([(0, 0, 1), (1, 5, 2), (2, 6, 3), (3, 7, 4)], 2, 4)
    assert last.compact() == 1
    last.max_records = 2
    assert last.compact() == 1
    assert last.find(np.arange(4)).tolist() == [-1, -1, 0, 1]
    assert last.read(np.array([0, 1, -1]), 7 * DAY).values.tolist() == [[3, -1], [4, -1], [-1, -1]]
