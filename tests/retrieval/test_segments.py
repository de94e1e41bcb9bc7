from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.retrieval.allowed import Allowed
from raysys.retrieval.segments import Segments, favourites

pairs = st.dictionaries(
    st.tuples(st.integers(0, 5), st.integers(0, 7)), st.integers(0, 9), max_size=30
)


def parts(taken, cut):
    """In two parts, as a table is read."""
    rows = [(user, other, float(amount)) for (user, other), amount in taken.items()]
    for some in (rows[:cut], rows[cut:]):
        users, others, amounts = zip(*some, strict=True) if some else ((), (), ())
        yield np.array(users, np.int64), np.array(others, np.int64), np.array(amounts, float)


@given(pairs, pairs, st.integers(0, 30), st.sets(st.integers(0, 7)))
@settings(max_examples=60, deadline=None)
def test_what_users_of_one_kind_buy(kinds, bought, cut, allowed) -> None:
    found = favourites(parts(kinds, cut), 6)
    for user in range(6):
        mine = {kind: n for (who, kind), n in kinds.items() if who == user and n}
        best = min((kind for kind in mine if mine[kind] == max(mine.values())), default=-1)
        assert found[user] == best
    sums: dict[int, Counter] = defaultdict(Counter)
    for (user, item), amount in bought.items():
        if found[user] >= 0 and amount:
            sums[int(found[user])][item] += amount
    segments = Segments(found, parts(bought, cut), 8, keep=3)
    mask = np.zeros(8, bool)
    mask[list(allowed)] = True
    for user in range(6):
        mine = sums.get(int(found[user]), {})
        expected = sorted(mine, key=lambda item: (-mine[item], item))[:3]
        assert segments.top(user).tolist() == expected
        only = [item for item in expected if item in allowed]
        assert segments.top(user, Allowed(mask)).tolist() == only
    assert len(segments.top(-1)) == 0 and len(segments.top(99)) == 0
