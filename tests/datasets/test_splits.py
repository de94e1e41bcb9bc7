"""Splits without a leak: nothing that belongs together is ever on two sides."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.config import parse_settings
from raysys.datasets.labelled import DRAFT, QUARANTINE, Labelled
from raysys.datasets.splits import SPLITS, SplitSettings, distinct, divide, sampled
from raysys.errors import UserError


def rows(n: int = 200, **columns: Any) -> Labelled:
    content = {
        "text_id": [f"t{at}" for at in range(n)],
        "text": [f"text {at}" for at in range(n)],
        "label": ["a" if at % 4 else "b" for at in range(n)],
        "weight": [1.0] * n,
        "source": ["s"] * n,
        "row": list(range(1, n + 1)),
        **columns,
    }
    frame = pl.DataFrame({**{name: [None] * n for name in DRAFT}, **content}, schema=DRAFT)
    return Labelled(frame, pl.DataFrame(schema=QUARANTINE), n)


def shares(frame: pl.DataFrame) -> dict[str, float]:
    return {name: float((frame["split"] == name).mean()) for name in SPLITS}  # type: ignore[arg-type]


def split(**content: Any) -> SplitSettings:
    return parse_settings(SplitSettings, content, where="test")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 60), st.booleans())
def test_no_text_or_group_is_on_two_sides(
    seed: int, n_groups: int, n_texts: int, by_label: bool
) -> None:
    rng = np.random.default_rng(seed)
    n = 120
    texts = [f"Text  {at}" if rng.random() < 0.5 else f"text {at} " for at in
             rng.integers(0, n_texts, n)]  # fmt: skip
    groups = [None if rng.random() < 0.3 else f"g{at}" for at in rng.integers(0, n_groups, n)]
    data = rows(n, text=texts, group=groups)
    settings_ = split(by="stratified" if by_label else "random", seed=seed)
    try:
        divided = divide(data, settings_, "classify")
    except UserError:
        return  # too few things that belong together to fill three sides: said, not leaked
    sides: dict[str, set[str]] = defaultdict(set)
    for row in divided.rows.iter_rows(named=True):
        sides["t " + " ".join(row["text"].lower().split())].add(row["split"])
        if row["group"]:
            sides["g " + row["group"]].add(row["split"])
    assert all(len(found) == 1 for found in sides.values())
    assert divided.rows.height + divided.aside.height == n


def test_shares_hold_for_each_label() -> None:
    divided = divide(rows(2000), split(validation=0.2, test=0.1), "classify")
    assert divided.by == "stratified"
    for _, frame in divided.rows.group_by("label"):
        assert shares(frame) == pytest.approx(
            {"train": 0.7, "validation": 0.2, "test": 0.1}, abs=0.005
        )


def test_the_order_of_rows_does_not_matter_and_the_seed_does() -> None:
    data = rows(300)
    turned = Labelled(data.rows.reverse(), data.aside, data.read)
    first, second = (
        dict(divide(each, split(), "classify").rows.select("text_id", "split").iter_rows())
        for each in (data, turned)
    )
    assert first == second
    other = divide(data, split(seed=1), "classify").rows.select("text_id", "split").iter_rows()
    assert first != dict(other)


def test_rare_labels_stay_in_train_and_that_is_said() -> None:
    labels = ["a"] * 100 + ["b"] * 100 + ["once"]
    for seed in range(20):
        divided = divide(rows(201, label=labels), split(seed=seed), "classify")
        once = divided.rows.filter(pl.col("label") == "once")
        assert once["split"].to_list() == ["train"]
        assert "1 labels have one example" in divided.notes[0] and "once" in divided.notes[0]


def test_rare_labels_reach_every_side_over_the_seeds() -> None:
    """With three texts a label gets one or none of a side: which one must be drawn."""
    labels = ["a"] * 100 + ["b"] * 97 + ["rare"] * 3
    seen = set()
    for seed in range(40):
        divided = divide(rows(200, label=labels), split(seed=seed), "classify")
        seen |= set(divided.rows.filter(pl.col("label") == "rare")["split"])
    assert seen == set(SPLITS)


def test_by_time_the_newest_are_the_test() -> None:
    rng = np.random.default_rng(0)
    moments = rng.permutation(500)
    divided = divide(rows(500, time=moments), split(by="time"), "classify").rows
    latest = {name: divided.filter(pl.col("split") == name)["time"] for name in SPLITS}
    assert latest["train"].max() < latest["validation"].min()  # type: ignore[operator]
    assert latest["validation"].max() < latest["test"].min()  # type: ignore[operator]
    assert shares(divided)["test"] == pytest.approx(0.15, abs=0.01)


def test_queries_are_whole_whatever_their_case() -> None:
    queries = [("Angle  Bracket" if at % 2 else "angle bracket") if at < 30 else f"q{at % 20}"
               for at in range(200)]  # fmt: skip
    data = rows(200, query=queries, grade=[1.0] * 200, label=[None] * 200)
    divided = divide(data, split(), "relevance").rows
    plain = divided.with_columns(pl.col("query").str.to_lowercase().str.replace_all(" +", " "))
    assert (plain.group_by("query").agg(pl.col("split").n_unique())["split"] == 1).all()


def test_a_given_split_is_kept_and_what_it_leaks_goes_aside() -> None:
    told = ["train"] * 100 + ["dev"] * 50 + ["test"] * 50
    texts = [f"text {at}" for at in range(200)]
    texts[0] = texts[150].upper()  # train repeats what the test has
    texts[1] = texts[110]
    divided = divide(rows(200, split=told, text=texts), split(), "classify")
    assert divided.by == "given"
    counts = dict(divided.rows["split"].value_counts().iter_rows())
    assert counts == {"train": 98, "validation": 50, "test": 50}
    assert sorted(divided.aside["reason"]) == ["also_in_test", "also_in_validation"]


def test_what_is_not_given_is_drawn_from_train() -> None:
    divided = divide(rows(400, split=["train"] * 300 + ["final"] * 100),
                     split(names={"final": "test"}), "classify")  # fmt: skip
    counts = dict(divided.rows["split"].value_counts().iter_rows())
    assert counts["test"] == 100 and counts["validation"] == pytest.approx(45, abs=1)
    with pytest.raises(UserError, match="'final'"):
        divide(rows(4, split=["train", "final", "train", "train"]), split(), "classify")


def test_labels_that_train_lacks_go_aside() -> None:
    told = ["train"] * 100 + ["validation"] * 50 + ["test"] * 50
    labels = ["a", "b"] * 100
    labels[120], labels[170] = "new", "newer"
    divided = divide(rows(200, split=told, label=labels), split(), "classify")
    assert divided.aside["reason"].to_list() == ["label_not_in_train"] * 2
    assert "new, newer" in divided.notes[0]


@pytest.mark.parametrize(
    ("columns", "content", "said"),
    [
        ({"label": ["a"] * 20}, {}, "nothing to tell apart"),
        ({"group": ["g"] * 20}, {}, "nothing is left for"),
        ({}, {"by": "time"}, "which column is the time"),
    ],
)
def test_what_cannot_be_divided_is_said(
    columns: dict[str, Any], content: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        divide(rows(20, **columns), split(**content), "classify")


def test_repeated_rows_count_once_and_samples_keep_order() -> None:
    data = rows(100, text=[f"t{at % 30}" for at in range(100)], label=["a", "b"] * 50)
    once = distinct(data.rows, "classify")
    assert once.height == once.select("text", "label").n_unique() == 30
    some = sampled(data.rows, 20, seed=3)
    assert some.height == 20 and some["row"].is_sorted()
    assert some.equals(sampled(data.rows, 20, seed=3))
    assert not some.equals(sampled(data.rows, 20, seed=4))


@pytest.mark.parametrize("by", ["stratified", "time", "given"])
def test_texts_without_a_label_are_in_train_or_nowhere(by: str) -> None:
    """Those that belong to what is judged, or are newer than what is learned from, go aside."""
    n = 240
    labels = [None if at % 3 == 0 else "a" if at % 2 else "b" for at in range(n)]
    groups = [f"g{at // 6}" for at in range(n)]
    told = [("train", "validation", "test")[at // 6 % 3] for at in range(n)]
    more = {"given": {"split": told}, "time": {"time": list(range(n))}}.get(by, {})
    data = rows(n, label=labels, group=groups, **more)
    divided = divide(data, split(by=by), "classify")
    unlabelled = divided.rows.filter(pl.col("label").is_null())
    assert set(unlabelled["split"]) == {"train"} and unlabelled.height > 20
    judged = divided.rows.filter(pl.col("split") != "train")
    assert judged["label"].null_count() == 0
    assert not set(unlabelled["group"]) & set(judged["group"])
    assert divided.rows.height + divided.aside.height == n
    alone = rows(n, label=labels, group=groups, **more)
    alone.rows = alone.rows.filter(pl.col("label").is_not_null())
    without = divide(alone, split(by=by), "classify").rows
    assert divided.rows.filter(pl.col("label").is_not_null()).equals(without)
    assert divided.notes[-1] == f"{unlabelled.height:,} texts of train have no label"
