from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from raysys.retrieval.fuse import Hits, best, fuse, fuse_items, top


def ranking(*pairs: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    items = np.array([item for item, _ in pairs], np.int32)
    return items, np.array([rank for _, rank in pairs], np.int32)


def test_fuse_sums_reciprocal_ranks_of_the_paper() -> None:
    fused = fuse([ranking((7, 1), (8, 2)), ranking((8, 1), (9, 2))])
    assert fused.rows.tolist() == [8, 7, 9]
    np.testing.assert_allclose(fused.scores, [1 / 62 + 1 / 61, 1 / 61, 1 / 62], rtol=1e-6)


def test_fuse_of_nothing_is_nothing() -> None:
    assert len(fuse([])) == 0
    assert len(fuse([ranking(), ranking()])) == 0


def test_equal_scores_share_the_better_rank() -> None:
    hits = Hits(np.arange(5, dtype=np.int32), np.array([3, 2, 2, 2, 1], np.float32))
    assert hits.ranks.tolist() == [1, 2, 2, 2, 5]
    assert Hits.none().ranks.tolist() == []


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=60),
    st.integers(1, 70),
)
def test_best_is_a_stable_sort_cut_off(values: list[int], limit: int) -> None:
    rows = np.arange(len(values), dtype=np.int32)
    found = best(rows, np.array(values, np.float32), limit)
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:limit]
    assert found.rows.tolist() == expected
    assert found.scores.tolist() == [values[i] for i in expected]


@given(st.lists(st.lists(st.integers(0, 30), unique=True, max_size=15), min_size=1, max_size=4))
def test_fused_order_ignores_the_order_of_rankings(lists: list[list[int]]) -> None:
    rankings = [ranking(*((item, at + 1) for at, item in enumerate(items))) for items in lists]
    forward, backward = fuse(rankings), fuse(rankings[::-1])
    assert set(forward.rows.tolist()) == {item for items in lists for item in items}
    np.testing.assert_allclose(
        forward.scores[np.argsort(forward.rows)],
        backward.scores[np.argsort(backward.rows)],
        rtol=1e-6,
    )
    assert (np.diff(forward.scores) <= 0).all()


rankings_of = st.lists(
    st.lists(st.integers(0, 19), unique=True, max_size=12), min_size=1, max_size=4
)


@given(rankings_of, st.integers(1, 25), st.booleans())
def test_items_fused_by_a_table_are_those_fused_by_sorting(lists, limit, with_prior) -> None:
    rankings = [
        (np.array(items, np.int32), np.arange(1, len(items) + 1, dtype=np.int32)) for items in lists
    ]
    prior = np.arange(20, dtype=np.float32)[::-1] % 3 if with_prior else None
    hits, held = fuse_items(rankings, 20)
    for item, bits in zip(hits.rows.tolist(), held.tolist(), strict=True):
        assert [item in items for items in lists] == [
            bool(bits >> at & 1) for at in range(len(lists))
        ]
    expected = fuse(rankings)
    wanted = np.zeros(len(expected)) if prior is None else prior[expected.rows]
    order = np.lexsort((expected.rows, -wanted, -expected.scores))[:limit]
    places = top(hits, limit, prior)
    assert hits.rows[places].tolist() == expected.rows[order].tolist()
    assert hits.scores[places].tolist() == expected.scores[order].tolist()
