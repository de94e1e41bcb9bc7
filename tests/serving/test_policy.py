"""Lists place by place: caps, pins, boosts, diversity, and chance with its propensities."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from raysys.catalogue import Catalogue
from raysys.retrieval.search import Search
from raysys.serving.policy import Arrangement, Policy, PolicyArgs
from tests.retrieval.test_search import Hashed
from tests.synthetic import make_catalogue

N = 40


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return make_catalogue(N)


@pytest.fixture(scope="module")
def search(catalogue: Catalogue) -> Search:
    return Search.build(catalogue.texts, Hashed(catalogue.texts))


ITEMS = np.arange(N, dtype=np.int32)[::-1].copy()
SCORES = np.linspace(1, 0, N).astype(np.float32)


@pytest.fixture(scope="module")
def arrange(catalogue: Catalogue, search: Search) -> Any:
    def arranged(
        k: int = 10, seed: int = 0, now: int = 0, query: str | None = None, items=ITEMS, **args
    ):
        policy = Policy(PolicyArgs.model_validate(args), catalogue, search)
        return policy.arrange(items, SCORES, k, now=now, query=query, seed=seed)

    return arranged


def test_without_a_policy_the_best_come_first(arrange: Any) -> None:
    found = arrange(5)
    assert found.shown.tolist() == [0, 1, 2, 3, 4] and (found.propensities == 1).all()
    assert found.steps == {}


def test_what_exceeds_a_cap_comes_after_everything_else(arrange: Any, catalogue: Catalogue) -> None:
    codes = catalogue.codes("category")[0][ITEMS]
    found = arrange(N, at_most={"category": 2})
    kinds = codes[found.shown]
    within = len(set(codes.tolist())) * 2
    assert max(Counter(kinds[:within].tolist()).values()) == 2
    assert sorted(found.shown.tolist()) == list(range(N))
    assert (np.diff(found.shown[:within]) > 0).all() and (np.diff(found.shown[within:]) > 0).all()
    assert any("beyond a cap" in note for notes in found.steps.values() for note in notes)


def test_pins_have_their_place_while_they_count(arrange: Any) -> None:
    def pinned(now: datetime, query: str | None = None, **more: Any) -> Arrangement:
        pin = {"item_id": "i00003", "position": 2, "starts": "2026-11-27", **more}
        unknown = {"item_id": "nobody", "position": 1}
        return arrange(4, now=int(now.timestamp() * 1000), query=query, pinned=[pin, unknown])

    at = int(np.flatnonzero(ITEMS == 3)[0])
    assert pinned(datetime(2026, 11, 26, 23, 59, tzinfo=UTC)).shown.tolist() == [0, 1, 2, 3]
    friday = datetime(2026, 11, 27, tzinfo=UTC)
    assert pinned(friday).shown.tolist() == [0, at, 1, 2]
    assert pinned(friday).steps == {at: ["pinned to position 2"]}
    assert pinned(friday, ends="2026-11-27").shown.tolist() == [0, 1, 2, 3]
    assert pinned(friday, queries=["Oat  MILK"]).shown.tolist() == [0, 1, 2, 3]
    assert pinned(friday, "oat milk ", queries=["Oat  MILK"]).shown.tolist() == [0, at, 1, 2]
    # what waits for a place within the list does not come before it
    best = {"item_id": f"i{ITEMS[0]:05d}", "position": 3}
    assert arrange(4, pinned=[best]).shown.tolist() == [1, 2, 0, 3]
    assert arrange(2, pinned=[best]).shown.tolist() == [0, 1]


def test_boosts_lift_and_bury(arrange: Any, catalogue: Catalogue) -> None:
    last, first = f"i{ITEMS[-1]:05d}", f"i{ITEMS[0]:05d}"
    found = arrange(3, boosted=[{"item_ids": [last], "by": 1.1}, {"item_ids": [first], "by": -2}])
    assert found.shown.tolist() == [N - 1, 1, 2]
    assert found.scores[N - 1] > 1 and found.steps[N - 1] == ["boosted by 1.1 of the span"]
    label = str(catalogue.row(int(ITEMS[5]))["brand"])
    codes, labels = catalogue.codes("brand")
    of_brand = np.flatnonzero(codes[ITEMS] == labels.index(label))
    found = arrange(len(of_brand), boosted=[{"column": "brand", "values": [label], "by": 2}])
    assert found.shown.tolist() == of_brand.tolist()
    assert SCORES[0] == 1  # the scores that came in are another's


def test_diversity_keeps_a_list_from_being_all_alike(arrange: Any, catalogue: Catalogue) -> None:
    codes = np.sort(catalogue.codes("category")[0])
    items = np.argsort(catalogue.codes("category")[0], kind="stable").astype(np.int32)
    kinds = []
    for relevance in (1.0, 0.5):
        diversity = {"relevance": relevance, "by": ["category"]}
        found = arrange(8, items=items, diversity=diversity)
        kinds.append(len(set(codes[found.shown].tolist())))
        assert found.shown[0] == 0 and (found.propensities == 1).all()
    assert kinds[1] > kinds[0]
    by_vectors = arrange(8, diversity={"relevance": 0.3})
    assert by_vectors.shown.tolist() != list(range(8))
    assert any("different" in note for notes in by_vectors.steps.values() for note in notes)


def test_mmr_is_its_definition(catalogue: Catalogue, search: Search, arrange: Any) -> None:
    vectors = search.vectors.vectors[search.vectors.row_of_item[ITEMS]]  # type: ignore[union-attr]
    gain = (SCORES - SCORES.min()) / (SCORES.max() - SCORES.min())
    for relevance in (0.8, 0.5, 0.2):
        chosen: list[int] = []
        while len(chosen) < 12:
            left = [at for at in range(N) if at not in chosen]
            like = {
                at: max((float(vectors[at] @ vectors[c]) for c in chosen), default=0) for at in left
            }
            chosen.append(
                max(left, key=lambda at: relevance * gain[at] - (1 - relevance) * like[at])
            )
        found = arrange(12, diversity={"relevance": relevance})
        assert found.shown.tolist() == chosen


EXPLORE = {"share": 0.4, "depth": 5, "from_position": 2}


@pytest.mark.parametrize("temperature", [None, 0.7])
def test_propensities_are_what_happens(
    catalogue: Catalogue, search: Search, temperature: float | None
) -> None:
    """Drawn 2,000 times, each list comes as often as the product of its propensities says."""
    args = {"exploration": {**EXPLORE, "temperature": temperature}, "at_most": {"category": 2}}
    policy = Policy(PolicyArgs.model_validate(args), catalogue, search)
    drawn: Counter[tuple[int, ...]] = Counter()
    said: dict[tuple[int, ...], float] = {}
    for seed in range(2000):
        found = policy.arrange(ITEMS, SCORES, 3, seed=seed)
        key = tuple(found.shown.tolist())
        drawn[key] += 1
        said[key] = float(found.propensities.prod())
        assert key[0] == 0 and found.propensities[0] == 1
    assert sum(said.values()) == pytest.approx(1, abs=0.02)
    for key, p in said.items():
        assert abs(drawn[key] / 2000 - p) < 5 * np.sqrt(p * (1 - p) / 2000) + 1e-3
    assert len(said) > 10


def test_the_same_seed_gives_the_same_list(arrange: Any) -> None:
    lists = [arrange(8, seed=seed, exploration={"share": 1.0}).shown.tolist() for seed in range(5)]
    assert lists[3] == arrange(8, seed=3, exploration={"share": 1.0}).shown.tolist()
    assert len({tuple(found) for found in lists}) == 5


@given(
    k=st.integers(0, 50),
    seed=st.integers(0, 2**64 - 1),
    share=st.none() | st.floats(0.01, 1),
    relevance=st.none() | st.floats(0, 1),
    cap=st.none() | st.integers(1, 4),
    pins=st.lists(st.tuples(st.integers(0, N - 1), st.integers(1, 12)), max_size=4),
)
@settings(max_examples=40, deadline=None)
def test_any_policy_gives_distinct_items_up_to_k(
    catalogue, search, k, seed, share, relevance, cap, pins
) -> None:
    args: dict[str, Any] = {
        "pinned": [{"item_id": f"i{item:05d}", "position": place} for item, place in pins],
        "at_most": {} if cap is None else {"category": cap, "brand": cap},
        "exploration": None if share is None else {"share": share},
        "diversity": None if relevance is None else {"relevance": relevance},
    }
    policy = Policy(PolicyArgs.model_validate(args), catalogue, search)
    found = policy.arrange(ITEMS, SCORES, k, seed=seed)
    assert len(found.shown) == min(k, N) == len(set(found.shown.tolist()))
    assert ((found.propensities > 0) & (found.propensities <= 1)).all()
    places: dict[int, int] = {}
    for item, place in pins:
        places.setdefault(place, item)
    seen: set[int] = set()
    for place, item in sorted(places.items()):
        if place <= len(found.shown) and list(places.values()).count(item) == 1:
            assert ITEMS[found.shown[place - 1]] == item
        seen.add(item)
    nothing = policy.arrange(ITEMS[:0], SCORES[:0], k, seed=seed)
    assert len(nothing.shown) == 0


@pytest.mark.parametrize(
    "args",
    [
        {"boosted": [{"by": 1}]},
        {"boosted": [{"by": 1, "item_ids": ["a"], "column": "brand"}]},
        {"boosted": [{"by": 1, "column": "brand"}]},
        {"boosted": [{"by": 99, "item_ids": ["a"]}]},
        {"pinned": [{"item_id": "a", "position": 0}]},
        {"pinned": [{"item_id": "a", "position": 1, "starts": "soon"}]},
        {"diversity": {"relevance": 2}},
        {"diversity": {"by": []}},
        {"exploration": {"share": 0}},
        {"exploration": {"share": 0.1, "depth": 1}},
        {"exploration": {}},
    ],
)
def test_what_cannot_be_is_refused(args: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PolicyArgs.model_validate(args)
