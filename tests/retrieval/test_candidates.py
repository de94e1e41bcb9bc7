"""Co-visitation, popularity and the merge of several sources."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.retrieval.baskets import Baskets, BasketWriter, distinct_pairs
from raysys.retrieval.covisitation import CoVisitation
from raysys.retrieval.merge import merge
from raysys.retrieval.popular import Popular

baskets = st.lists(st.lists(st.integers(0, 7), max_size=6), max_size=30)


def fit(orders: list[list[int]], **settings) -> CoVisitation:
    order = np.repeat(np.arange(len(orders)), [len(items) for items in orders])
    items = np.array([item for items in orders for item in items], dtype=np.int32)
    return CoVisitation.fit(order, items, 8, **settings)


@given(baskets)
@settings(max_examples=80, deadline=None)
def test_neighbours_are_shrunk_cosines_of_orders(orders) -> None:
    found = fit(orders, min_count=1, shrinkage=2.0, k=8)
    sets = [set(items) for items in orders]
    for i in range(8):
        expected = {}
        for j in range(8):
            both = sum(i in items and j in items for items in sets)
            if i != j and both:
                n_i, n_j = (sum(x in items for items in sets) for x in (i, j))
                expected[j] = both / np.sqrt(n_i * n_j) * both / (both + 2.0)
        kept = found.neighbours[i] >= 0
        ours = dict(zip(found.neighbours[i][kept].tolist(), found.scores[i][kept], strict=True))
        assert ours.keys() == expected.keys()
        np.testing.assert_allclose([ours[j] for j in expected], list(expected.values()), rtol=1e-5)
        assert (np.diff(found.scores[i][kept]) <= 0).all()


@given(baskets, st.lists(st.integers(0, 7), max_size=4, unique=True))
@settings(max_examples=60, deadline=None)
def test_near_and_score_agree(orders, seeds) -> None:
    found = fit(orders, min_count=1, k=8)
    seeds = np.array(seeds, dtype=np.int32)
    items, scores = found.near(seeds, 8)
    assert not set(items) & set(seeds)
    np.testing.assert_allclose(found.score(seeds, items), scores, rtol=1e-5)
    assert (np.diff(scores) <= 1e-7).all()


@given(
    baskets,
    st.lists(st.lists(st.integers(0, 7), max_size=4, unique=True), min_size=1, max_size=5),
    st.permutations(range(8)),
    st.integers(1, 8),
)
@settings(max_examples=60, deadline=None)
def test_offers_are_what_is_near_then_what_sells(orders, seeds, sold, limit) -> None:
    found = fit(orders, min_count=1, k=8)
    fill = np.array(sold, dtype=np.int32)
    ends = np.cumsum([len(mine) for mine in seeds]).astype(np.int64)
    flat = np.array([item for mine in seeds for item in mine], dtype=np.int32)
    out = np.full((len(seeds), limit), -1, dtype=np.int32)
    asked = np.arange(0, len(seeds), 2)
    found.offer_requests(flat, ends, asked, fill, out)
    for request, mine in enumerate(seeds):
        if request % 2:
            assert (out[request] == -1).all()
            continue
        near = found.near(np.array(mine, dtype=np.int32), limit)[0].tolist()
        wanted = near + [item for item in sold if item not in near and item not in mine]
        assert out[request][out[request] >= 0].tolist() == wanted[:limit]


def test_rare_items_have_no_neighbours(tmp_path) -> None:
    found = fit([[0, 1], [0, 1], [0, 2]], min_count=2)
    assert (found.neighbours[2] == -1).all()
    assert found.neighbours[0][0] == 1
    found.save(tmp_path / "near.safetensors")
    loaded = CoVisitation.load(tmp_path / "near.safetensors")
    np.testing.assert_array_equal(loaded.neighbours, found.neighbours)
    np.testing.assert_array_equal(loaded.scores, found.scores)


def test_popular_over_all_and_by_category() -> None:
    popularity = np.array([0, 5, 3, 9, 1, 2], dtype=np.float64)
    category = np.array([0, 0, 1, 1, 0, -1], dtype=np.int32)
    popular = Popular(popularity, category)
    assert popular.top(3).tolist() == [3, 1, 2]
    assert popular.in_categories(np.array([0, 1], dtype=np.int32), 4).tolist() == [1, 3, 4, 2]
    assert popular.in_categories(np.array([], dtype=np.int32), 4).tolist() == []


lists = st.lists(st.lists(st.integers(0, 30), unique=True, max_size=12), min_size=1, max_size=8)


@given(lists, st.integers(1, 40))
def test_merge_interleaves_and_remembers_who_proposed(sources, limit) -> None:
    proposals = {f"s{at}": np.array(items, dtype=np.int32) for at, items in enumerate(sources)}
    merged = merge(proposals, limit)
    everything = {item for items in sources for item in items}
    assert len(merged.items) == min(limit, len(everything))
    assert len(set(merged.items.tolist())) == len(merged.items)
    for at, item in enumerate(merged.items.tolist()):
        expected = [name for name, items in proposals.items() if item in items]
        assert merged.sources_of(at) == expected
    best_rank = {i: min(s.index(i) for s in sources if i in s) for i in everything}
    ranks = [best_rank[item] for item in merged.items.tolist()]
    assert ranks == sorted(ranks)


bought = st.lists(
    st.tuples(st.integers(0, 8), st.integers(-1, 9), st.integers(0, 2)), min_size=1, max_size=80
)


@given(bought, st.integers(1, 9), st.integers(1, 3), st.integers(1, 5), st.integers(2, 6))
@settings(max_examples=60, deadline=None)
def test_baskets_on_disk_give_the_neighbours_of_their_epoch(
    tmp_path_factory, rows, cut, min_count, k, max_order
) -> None:
    """Written in two calls, read by epoch: as if fitted in memory on what was there by then."""
    orders, items, epochs = (np.array(column) for column in zip(*rows, strict=True))
    items, epochs = items.astype(np.int32), (200 * epochs).astype(np.uint16)
    folder = tmp_path_factory.mktemp("baskets")
    writer = BasketWriter(folder, 10)
    for part in (orders < cut, orders >= cut):
        writer.add(orders[part], items[part], epochs[part])
    writer.close()
    how = {"k": k, "min_count": min_count, "max_order": max_order}
    for epoch in (0, 200, 400):
        known = epochs <= epoch
        ours = CoVisitation.fit_baskets(Baskets.load(folder), epoch, **how)
        theirs = CoVisitation.fit(orders[known], items[known], 10, **how)
        np.testing.assert_array_equal(ours.neighbours, theirs.neighbours)
        np.testing.assert_array_equal(ours.scores, theirs.scores)
        _against_definition(theirs, orders[known], items[known], **how)


@pytest.mark.parametrize("far", [0, 1 << 52, -(1 << 20)])
def test_pairs_of_orders_are_the_same_whatever_the_orders_are_called(far) -> None:
    """Numbers that fit side by side into 64 bits, some that do not, and some below 0."""
    rng = np.random.default_rng(3)
    orders, items = rng.integers(0, 90, 800), rng.integers(-1, 5000, 800).astype(np.int32)
    items[::2] = rng.integers(0, 4, 400)  # some come again in their order
    epochs = rng.integers(0, 300, 800).astype(np.uint16)
    first: dict[tuple[int, int], int] = {}
    for order, item, epoch in zip(orders.tolist(), items.tolist(), epochs.tolist(), strict=True):
        if item >= 0:
            first[order, item] = min(epoch, first.get((order, item), epoch))
    ends, found, came = distinct_pairs(orders + far, items, epochs)
    assert [*zip(found.tolist(), came.tolist(), strict=True)] == [
        (item, first[order, item]) for order, item in sorted(first)
    ]
    of = sorted(order for order, _ in first)
    assert ends.tolist() == [n + 1 for n in range(len(of)) if of[n : n + 2] != [of[n]] * 2]
    assert (ends.dtype, found.dtype, came.dtype) == (np.int64, np.int32, np.uint16)


def _against_definition(fitted, orders, items, k, min_count, max_order) -> None:
    """Cosines by sets: what the kernel counts, without its order of doing so."""
    sets = {o: {int(i) for i in items[orders == o] if i >= 0} for o in set(orders.tolist())}
    count = {i: sum(i in basket for basket in sets.values()) for i in range(10)}
    often = {i for i in count if count[i] >= min_count}
    kept = [sorted(basket & often)[:max_order] for basket in sets.values()]
    for i in often:
        both = {j: sum(i in b and j in b for b in kept) for j in often - {i}}
        score = {
            j: np.float32(n / np.sqrt(count[i] * count[j]) * n / (n + 5.0))
            for j, n in both.items()
            if n
        }
        best = sorted(score, key=lambda j: (-score[j], j))[:k]
        assert fitted.neighbours[i][: len(best)].tolist() == best
        np.testing.assert_allclose(fitted.scores[i][: len(best)], [score[j] for j in best], 1e-6)
        assert (fitted.neighbours[i][len(best) :] == -1).all()


def test_saved_popularity_offers_the_same(tmp_path) -> None:
    rng = np.random.default_rng(0)
    category = rng.integers(-1, 4, 60).astype(np.int32)
    popular = Popular(rng.integers(0, 9, 60).astype(float), category, per_category=5, keep=9)
    popular.save(tmp_path / "popular.safetensors")
    again = Popular.load(tmp_path / "popular.safetensors")
    assert again.top(20).tolist() == popular.top(20).tolist()
    wanted = np.array([2, 0, -1, 3], dtype=np.int32)
    for limit in (1, 4, 30):
        ours, theirs = (p.in_categories(wanted, limit).tolist() for p in (popular, again))
        assert ours == theirs
    assert category[popular.in_categories(wanted, 3)].tolist() == [2, 0, 3]
