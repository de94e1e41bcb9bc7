"""The best that came of a row: what the definition says, in time that grows with the rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.features.log import EventColumns
from raysys.features.numbered import LogSlice
from raysys.features.shown import _best_later, label_in_session
from raysys.schema import EVENT_TYPES

GAINS = np.array([0, 0.1, 1, 2, 3, 7, 0, 0.3], np.float32)[: len(EVENT_TYPES)]


def slice_of(user, item, session, kind, time) -> LogSlice:
    """Rows of a slice, in time order."""
    n = len(time)
    unknown = np.full(n, np.nan)
    columns = EventColumns(
        user=np.array(user, np.int32),
        item=np.array(item, np.int32),
        kind=np.array(kind, np.int8),
        time=np.array(time, np.int64),
        quantity=unknown,
        price=unknown,
        store=np.full(n, -1, np.int32),
        order=np.zeros(n, np.int64),
        session=np.array(session, np.int32),
    )
    nothing = np.full(n, -1, np.int32)
    return LogSlice(0, columns, nothing, np.zeros(n, np.int64), np.full(n, np.nan, np.float32))


def straightforward(rows: LogSlice, window: int, known: np.ndarray | None) -> np.ndarray:
    """Each row beside each later one, as the definition has it."""
    e = rows.events
    out = GAINS[e.kind].copy()
    for row in range(len(out)):
        until = e.time[row] + window
        if known is not None:
            until = min(until, known[row])
        for later in range(row + 1, len(out)):
            alike = (e.user[row], e.item[row], e.session[row]) == (
                *(e.user[later], e.item[later], e.session[later]),
            )
            if alike and e.time[later] <= until:
                out[row] = max(out[row], GAINS[e.kind[later]])
    return out


happened = st.tuples(
    st.integers(0, 1), st.integers(-1, 1), st.integers(0, 1),
    st.integers(0, len(EVENT_TYPES) - 1), st.integers(0, 30), st.none() | st.integers(0, 40),
)  # fmt: skip


@pytest.mark.long
@settings(max_examples=300, deadline=None)
@given(st.lists(happened, max_size=60), st.integers(0, 20))
def test_any_log_is_labelled_as_the_definition_says(happenings, window) -> None:
    happenings.sort(key=lambda one: one[4])
    columns = list(zip(*happenings, strict=True)) or [()] * 6
    rows = slice_of(*columns[:5])
    known = np.array([2**40 if k is None else k for k in columns[5]], np.int64)
    for last in (None, known):
        labels = label_in_session(rows, GAINS, window, last)
        assert labels.dtype == np.float32
        assert labels.tobytes() == straightforward(rows, window, last).tobytes()


class Counted(np.ndarray):
    """Lets each of its values be read so often at most, on average."""

    left: int

    def __getitem__(self, at):
        self.left -= 1
        assert self.left >= 0, "more looks than rows and gains explain"
        return super().__getitem__(at)


@pytest.mark.parametrize("kinds", [["click"], ["view", "click", "cart", "click", "purchase"]])
def test_a_robot_that_clicks_one_item_on_and_on_costs_as_much_a_row_as_anybody(kinds) -> None:
    n = 3000
    kind = [EVENT_TYPES.index(kinds[i % len(kinds)]) for i in range(n)]
    time = np.arange(n, dtype=np.int64).view(Counted)
    time.left = n * (1 + len(set(kinds)))  # one look that ends a list, one for each gain of it
    same = np.zeros(n, np.int32)
    gain = GAINS[kind]
    out = _best_later.py_func(same, same, same, time, gain, np.full(n, n, np.int64))
    best_from_here = np.maximum.accumulate(gain[::-1])[::-1]
    assert out.tobytes() == best_from_here.tobytes()
