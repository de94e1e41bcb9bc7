"""A neighbourhood that goes on with new orders is the one fitted on all of them."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.retrieval.advance import advance, known_pairs
from raysys.retrieval.covisitation import CoVisitation

N_ITEMS = 12
Events = list[tuple[int, int]]
ORDERS = st.lists(st.tuples(st.integers(0, 14), st.integers(-1, N_ITEMS - 1)), max_size=80)


def split(events: Events, first: int) -> tuple[np.ndarray, np.ndarray]:
    orders = np.array([first + order for order, _ in events], dtype=np.int64)
    return orders, np.array([item for _, item in events], dtype=np.int32)


def count(orders: np.ndarray, items: np.ndarray) -> np.ndarray:
    pairs = {(o, i) for o, i in zip(orders.tolist(), items.tolist(), strict=True) if i >= 0}
    return np.bincount([i for _, i in pairs], minlength=N_ITEMS).astype(np.int64)


@settings(max_examples=60)
@given(old=ORDERS, new=ORDERS, shrinkage=st.sampled_from([0.0, 1.0, 5.0]))
def test_nothing_is_lost_while_all_pairs_are_kept(
    old: Events, new: Events, shrinkage: float
) -> None:
    told = {"k": N_ITEMS, "min_count": 1, "shrinkage": shrinkage}
    first, second = split(old, 0), split(new, 100)
    near = CoVisitation.fit(*first, N_ITEMS, **told)
    went_on, total = advance(near, count(*first), *second, **told)
    together = [np.concatenate(both) for both in zip(first, second, strict=True)]
    whole = CoVisitation.fit(*together, N_ITEMS, **told)
    assert np.array_equal(total, count(*together))
    assert np.array_equal(went_on.neighbours, whole.neighbours)
    assert np.array_equal(went_on.scores, whole.scores)


def test_what_one_item_keeps_of_a_pair_both_know() -> None:
    """With one neighbour kept, the hub keeps one pair; those of the others are taken from them."""
    orders = np.repeat(np.arange(9), 2)
    items = np.array([0, 1] * 4 + [0, 2] * 3 + [0, 3] * 2, dtype=np.int32)
    near = CoVisitation.fit(orders, items, N_ITEMS, k=1, min_count=1, shrinkage=5.0)
    pairs = known_pairs(near, count(orders, items), 5.0)
    assert pairs.partner[: pairs.ends[0]].tolist() == [1, 2, 3]
    assert pairs.together[: pairs.ends[0]].tolist() == [4, 3, 2]


def test_only_what_nobody_kept_starts_anew() -> None:
    rng = np.random.default_rng(0)
    orders = np.repeat(np.arange(4000), 4)
    items = np.minimum(rng.geometric(0.02, len(orders)) - 1, 299).astype(np.int32)
    old = orders < 3600
    told = {"k": 30, "min_count": 4, "shrinkage": 5.0}
    near = CoVisitation.fit(orders[old], items[old], 300, **told)
    seen = {(o, i) for o, i in zip(orders[old].tolist(), items[old].tolist(), strict=True)}
    counted = np.bincount([i for _, i in seen], minlength=300).astype(np.int64)
    went_on, _ = advance(near, counted, orders[~old], items[~old], **told)
    whole = CoVisitation.fit(orders, items, 300, **told)
    both = [
        len(np.intersect1d(a[a >= 0], b[b >= 0])) / max(1, (b >= 0).sum())
        for a, b in zip(went_on.neighbours, whole.neighbours, strict=True)
    ]
    stale = [
        len(np.intersect1d(a[a >= 0], b[b >= 0])) / max(1, (b >= 0).sum())
        for a, b in zip(near.neighbours, whole.neighbours, strict=True)
    ]
    busy = (whole.neighbours >= 0).any(axis=1)
    assert np.mean(np.array(both)[busy]) > max(0.85, np.mean(np.array(stale)[busy]))
