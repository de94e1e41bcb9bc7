"""Filters are heeded while sources look: a list is full whenever enough items pass."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.retrieval.allowed import Allowed, first_of
from raysys.retrieval.covisitation import CoVisitation
from raysys.retrieval.popular import Popular
from raysys.retrieval.search import Search
from raysys.retrieval.vector import VectorIndex
from tests.retrieval.test_search import Hashed


@given(
    st.permutations(range(30)),
    st.sets(st.integers(0, 29)),
    st.lists(st.integers(0, 29), max_size=6),
    st.integers(0, 12),
)
def test_first_of_walks_until_it_has_enough(order, allowed, taken, n) -> None:
    mask = np.zeros(30, bool)
    mask[list(allowed)] = True
    ours = first_of(np.array(order, np.int32), n, Allowed(mask), np.array(taken, np.int32))
    assert ours.tolist() == [i for i in order if i in allowed and i not in taken][:n]


def test_rows_are_those_of_allowed_items_and_stay_after_a_few_less() -> None:
    row_of_item = np.array([0, 1, 1, 2], np.int32)
    allowed = Allowed(np.array([False, True, False, True]))
    assert allowed.rows(row_of_item).tolist() == [False, True, True]
    fewer = allowed.without([3])
    assert fewer.items.tolist() == [False, True, False, False] and fewer.count == 1
    assert fewer.rows(row_of_item) is allowed.rows(row_of_item)
    assert allowed.items[3]


def test_the_whole_set_s_rows_do_not_depend_on_who_asked_first() -> None:
    """A user who bought an item must not take its text from everybody's search."""
    row_of_item = np.array([0, 1, 1, 2], np.int32)
    allowed = Allowed(np.array([False, True, False, True]))
    assert allowed.without([3]).without([1]).rows(row_of_item).tolist() == [False, True, True]
    assert allowed.rows(row_of_item).tolist() == [False, True, True]


def test_neighbours_and_what_sells_look_on_past_what_is_not_allowed() -> None:
    near = CoVisitation(
        np.array([[1, 2, 3, 4]] + [[-1] * 4] * 4, np.int32),
        np.array([[0.9, 0.8, 0.7, 0.6]] + [[0.0] * 4] * 4, np.float32),
    )
    allowed = Allowed(np.array([True, False, False, True, True]))
    seeds = np.array([0], np.int32)
    assert near.near(seeds, 2, allowed)[0].tolist() == [3, 4]
    popular = Popular(np.array([5.0, 9, 7, 3, 1]), np.array([0, 0, 0, 1, 0], np.int32))
    assert popular.top(2, allowed).tolist() == [0, 3]
    assert popular.in_categories(np.array([0], np.int32), 9, allowed).tolist() == [0, 4]


@pytest.mark.parametrize("share", [0.9, 0.3, 0.02])
@pytest.mark.parametrize("exact_up_to", [10_000, 100])
def test_vectors_are_found_among_the_allowed_however_few(share: float, exact_up_to: int) -> None:
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(3000, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = VectorIndex.build(vectors, exact_up_to=exact_up_to)
    rows = rng.random(3000) < share
    found = index.find(vectors[5], 20, rows)
    scores = np.where(rows, vectors @ vectors[5], -2)
    best = np.sort(scores)[::-1][:20]
    assert len(found) == 20 and rows[found.rows].all()
    assert np.isclose(found.scores, best, atol=1e-5).mean() > 0.9  # a graph may miss one


def test_nothing_is_allowed() -> None:
    vectors = np.eye(4, dtype=np.float32)
    none = np.zeros(4, bool)
    assert len(VectorIndex.build(vectors).find(vectors[0], 3, none)) == 0
    assert len(VectorIndex.build(vectors, exact_up_to=1).find(vectors[0], 3, none)) == 0


TEXTS = [f"milk number {number}" for number in range(900)]


@given(st.sets(st.integers(0, 899), min_size=1, max_size=40), st.integers(1, 30))
@settings(max_examples=15, deadline=None)
def test_a_search_is_full_whenever_enough_match_and_pass(items: set[int], k: int) -> None:
    """More texts match than a search looks at: the filter must not come after that cut."""
    mask = np.zeros(900, bool)
    mask[list(items)] = True
    for search in (_words_only, _both):
        found = search.find("milk", k, Allowed(mask))
        assert len(found) == min(k, len(items)) and mask[found.items].all()


def test_what_is_like_an_item_is_found_three_ways() -> None:
    texts = ["red shoe", "red shoes", "red boot", "blue hat", "green scarf"]
    search = Search.build(texts, Hashed(texts))
    near = np.array([4], np.int32)
    found = search.similar(0, texts[0], near, 5)
    assert 0 not in found.items and found.items[0] == 1
    of = dict(zip(found.items.tolist(), found.sources.tolist(), strict=True))
    assert of[1] & 3 == 3 and of[4] & 4
    only = Allowed(np.array([True, False, True, False, True]))
    assert set(search.similar(0, texts[0], near, 5, only).items.tolist()) == {2, 4}
    assert set(Search.build(texts).similar(0, texts[0], near, 5).items.tolist()) == {1, 2, 4}


_words_only = Search.build(TEXTS)
_both = Search.build(TEXTS, Hashed(TEXTS))
