"""Judgements out of clicks: what is divided by what, and that position bias goes out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from raysys import schema
from raysys.datasets.splits import SplitSettings
from raysys.errors import UserError
from raysys.features.position_bias import Propensities
from raysys.text.behaviour import (
    BehaviourSettings,
    _sides,
    pairs_by_time,
    pairs_from_behaviour,
)
from tests.synthetic import make_catalogue

CATALOGUE = make_catalogue(30)
PLAIN = BehaviourSettings(debias=False, negatives=0)


def event(kind: str, item: int, request: str | None, **more: Any) -> dict[str, Any]:
    row = {"event_type": kind, "item_id": f"i{item:05d}", "request_id": request, "user_id": "u"}
    return {"event_id": "", "timestamp": 0, "inferred": False, **row, **more}


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=schema.EVENTS)


def known(*values: float) -> Propensities:
    array, none = np.array(values), np.full(len(values), np.nan)
    seen = np.ones(len(values), np.int64)
    return Propensities("all_pairs", array, none, none, seen, seen)


def by_item(pairs: pa.Table) -> dict[str, dict[str, Any]]:
    return {row["item_id"]: row for row in pairs.to_pylist()}


def test_a_grade_is_gain_by_examination_with_a_prior() -> None:
    """By hand: item 0 twice at position 1 (clicked once), item 1 twice at 2 (carted once)."""
    rows = [
        event("impression", item, request, query=" Oat  MILK", position=item + 1)
        for request in ("a", "b")
        for item in (0, 1)
    ]
    rows += [event("click", 0, "a"), event("click", 1, "b"), event("cart", 1, "b")]
    settings = BehaviourSettings(negatives=0, prior=2.0)
    found = by_item(
        pairs_from_behaviour(table(*rows), CATALOGUE, settings, propensities=known(1.0, 0.25))
    )
    mean = (1 + 2) / (2 + 0.5)
    assert found["i00000"]["grade"] == pytest.approx((1 + 2 * mean) / (2 + 2))
    assert found["i00001"]["grade"] == pytest.approx((2 + 2 * mean) / (0.5 + 2))
    assert found["i00000"]["weight"] == pytest.approx(2 / 4)
    assert found["i00001"]["weight"] == pytest.approx(0.5 / 2.5)
    assert {row["query"] for row in found.values()} == {"Oat MILK"}
    assert found["i00000"]["text"] == CATALOGUE.texts[0]


def test_debiasing_finds_the_order_that_positions_hide() -> None:
    """Item 1 is better, but nearly always stands second, where few look."""
    rng = np.random.default_rng(1)
    rows = []
    for number in range(3000):
        order = (1, 0) if rng.random() < 0.15 else (0, 1)
        for place, item in enumerate(order):
            rows.append(event("impression", item, f"r{number}", query="milk", position=place + 1))
            if rng.random() < (1.0, 0.3)[place] * (0.4, 0.6)[item]:
                rows.append(event("click", item, f"r{number}"))
    events = table(*rows)
    naive = by_item(pairs_from_behaviour(events, CATALOGUE, PLAIN))
    fair = by_item(pairs_from_behaviour(events, CATALOGUE, BehaviourSettings(negatives=0)))
    assert naive["i00001"]["grade"] < naive["i00000"]["grade"]
    assert fair["i00000"]["grade"] == pytest.approx(0.4, abs=0.05)
    assert fair["i00001"]["grade"] == pytest.approx(0.6, abs=0.08)


def test_a_log_where_nothing_moved_says_so() -> None:
    rows = [event("impression", 0, "a", query="q", position=1), event("click", 0, "a")]
    with pytest.raises(UserError, match="position bias cannot be estimated") as caught:
        pairs_from_behaviour(table(*rows), CATALOGUE)
    assert "debias: false" in caught.value.mend


def test_inferred_impressions_and_strangers_do_not_count() -> None:
    rows = [
        event("impression", 0, "a", query="q"),
        event("impression", 1, "a", query="q", inferred=True),
        event("impression", 999, "a", query="q"),
        event("impression", 2, None, query="q"),
        event("impression", 3, "a"),
        event("impression", 4, "a", query="  "),
    ]
    assert list(by_item(pairs_from_behaviour(table(*rows), CATALOGUE, PLAIN))) == ["i00000"]


def test_clicks_alone_teach_against_drawn_items() -> None:
    rows = [event("click", 0, None, query="q")] * 3 + [event("purchase", 1, None, query="q")]
    pairs = pairs_from_behaviour(table(*rows), CATALOGUE, BehaviourSettings(prior=1, negatives=5))
    found = by_item(pairs)
    assert len(found) == pairs.num_rows == 7
    assert found["i00000"]["grade"] == pytest.approx(3 / 4)
    assert found["i00001"]["grade"] == pytest.approx(3 / 2)
    drawn = [row for item, row in found.items() if item not in ("i00000", "i00001")]
    assert {(row["grade"], row["weight"]) for row in drawn} == {(0.0, 0.5)}


def test_a_query_keeps_the_spelling_that_most_have() -> None:
    typed = ["Sony TV"] * 3 + ["sony tv"] * 2 + [" Sony  tv "] + ["USB", "usb"]
    rows = [event("click", at % 2, None, query=text) for at, text in enumerate(typed)]
    found = pairs_from_behaviour(table(*rows), CATALOGUE, BehaviourSettings(negatives=0))
    assert set(found["query"].to_pylist()) == {"Sony TV", "USB"}
    assert found.num_rows == 4  # of each query two items
    lower = [event("click", at % 2, None, query=text.lower()) for at, text in enumerate(typed)]
    same = pairs_from_behaviour(table(*lower), CATALOGUE, BehaviourSettings(negatives=0))
    for name in ("item_id", "grade", "weight"):
        assert sorted(found[name].to_pylist()) == sorted(same[name].to_pylist())
    split = SplitSettings(validation=0.3, test=0.3)
    assert _sides(["Sony TV"], split).popitem()[1] == _sides(["sony tv"], split).popitem()[1]


def test_a_cased_tokenizer_reads_queries_as_they_will_be_asked() -> None:
    typed = ["Milk"] * 2 + ["milk"]
    rows = [event("click", at % 2, None, query=text) for at, text in enumerate(typed)]
    found = pairs_from_behaviour(table(*rows), CATALOGUE, BehaviourSettings(negatives=0))
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "Milk": 1}, unk_token="[UNK]"))
    learned = {tuple(tokenizer.encode(text).ids) for text in found["query"].to_pylist()}
    assert learned == {tuple(tokenizer.encode("Milk").ids)} == {(1,)}


def test_what_comes_out() -> None:
    rows = [
        event("impression", item, f"r{query}-{time}", query=f"query {query}", timestamp=time)
        for time in range(4)
        for query in range(400)
        for item in (query % 7, 20)
    ]
    rows += [
        event("click", query % 7, f"r{query}-{time}", timestamp=time)
        for time in range(4)
        for query in range(400)
    ]
    settings = BehaviourSettings(debias=False)
    whole = pairs_from_behaviour(table(*rows), CATALOGUE, settings)
    assert whole.schema == schema.LABELLED_PAIRS and set(whole["split"].to_pylist()) == {"train"}
    assert whole.equals(pairs_from_behaviour(table(*rows[::-1]), CATALOGUE, settings))
    assert len({(row["query"], row["item_id"]) for row in whole.to_pylist()}) == 400 * 6
    split = SplitSettings(validation=0.25, test=0.25)
    pairs = pairs_by_time(table(*rows), CATALOGUE, settings, split)
    assert pairs.schema == schema.LABELLED_PAIRS
    assert pairs.equals(pairs_by_time(table(*rows[::-1]), CATALOGUE, settings, split))
    splits: dict[str, set[str]] = {}
    for row in pairs.to_pylist():
        splits.setdefault(row["query"], set()).add(row["split"])
    assert len(splits) == 400 and all(len(each) == 1 for each in splits.values())
    shares = [sum(each == {name} for each in splits.values()) / 400
              for name in ("train", "validation", "test")]  # fmt: skip
    np.testing.assert_allclose(shares, [0.5, 0.25, 0.25], atol=0.06)
    # train saw a clicked pair twice, the others once: 2 / (2 + 5), 1 / (1 + 5)
    weights = {(row["split"], round(row["weight"], 3)) for row in pairs.to_pylist()}
    assert {("train", 0.286), ("validation", 0.167), ("test", 0.167)} < weights


def test_nothing_to_learn_from() -> None:
    with pytest.raises(UserError, match="no event has a query"):
        pairs_from_behaviour(table(event("click", 0, "a")), CATALOGUE)
