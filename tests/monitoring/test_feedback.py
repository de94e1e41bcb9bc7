"""What came of lists: joined by request and item, by position, against before."""

from __future__ import annotations

import datetime as dt
import resource
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from raysys.errors import UserError
from raysys.eventlog.entries import NewEntry
from raysys.eventlog.local import LocalLog
from raysys.eventlog.rolled import Rolled, roll
from raysys.eventlog.settings import LogSettings
from raysys.monitoring.feedback import Feedback, feedback, outcome_changes, slots_of
from raysys.monitoring.rates import outcomes_of, rate_of
from raysys.monitoring.reference import Outcomes
from raysys.monitoring.served import EVENTS, Lists, follow_log, read_events, read_lists
from raysys.monitoring.settings import Thresholds

NOW = 1_790_000_000_000
HOUR = 3_600_000


def lists(n: int, *, seed: int = 0, at: int = NOW - HOUR, k: int = 5) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "request_id": [f"r{seed}-{number}" for number in range(n)],
            "at": [at] * n,
            "surface": ["search" if number % 2 else "recommend" for number in range(n)],
            "place": ["home"] * n,
            "query": ["Red shoes " if number % 2 else None for number in range(n)],
            "bundle": ["b"] * n,
            "arm": ["champion"] * n,
            "who": [f"u {number % 40}" for number in range(n)],
            "item_ids": [[f"i{i}" for i in rng.permutation(50)[:k]] for _ in range(n)],
            "took_ms": rng.exponential(10, n),
        }
    )


def clicks(rows: pl.DataFrame, share: float, seed: int = 1, **more: Any) -> pl.DataFrame:
    """Impressions of all, clicks at the top of some."""
    rng = np.random.default_rng(seed)
    told = []
    for row in rows.to_dicts():
        for item in row["item_ids"]:
            told.append(("impression", row["request_id"], item, row["at"] + 1000))
        if row["item_ids"] and rng.random() < share:
            told += [("click", row["request_id"], row["item_ids"][0], row["at"] + 2000)] * 2
    return pl.DataFrame(told, schema=EVENTS, orient="row")


def test_a_slot_counts_once_and_only_by_its_own_request_and_item() -> None:
    rows = lists(4)
    first = rows["item_ids"][0][0]
    events = pl.DataFrame(
        [
            ("click", "r0-0", first, NOW),
            ("click", "r0-0", first, NOW),  # twice
            ("click", "r0-1", "i-not-shown", NOW),
            ("purchase", "r0-2", None, NOW),  # no item
            ("click", "elsewhere", first, NOW),
        ],
        schema=EVENTS,
        orient="row",
    )
    slots = slots_of(rows, events)
    assert len(slots) == 20 and slots["click"].sum() == 1 and slots["purchase"].sum() == 0
    assert slots.filter("click")["position"].to_list() == [1]
    late = slots_of(rows, events, within_ms=1000)
    assert late["click"].sum() == 0


def test_figures_by_surface_position_and_query() -> None:
    rows = lists(400)
    empty = rows.with_columns(
        item_ids=pl.when(pl.col("request_id") == "r0-1")
        .then(pl.lit([], pl.List(pl.String)))
        .otherwise("item_ids"),
        query=pl.when(pl.col("request_id") == "r0-1").then(pl.lit("zzz")).otherwise("query"),
    )
    found = feedback(Lists(empty, 4000), clicks(empty, 0.3), (NOW - 24 * HOUR, NOW), NOW, items=100)
    by = {each.surface: each for each in found.surfaces}
    assert by["search"].lists == 200 and by["search"].empty == 1 and by["search"].slots == 995
    assert by["search"].seen == 995 and by["search"].coverage == 0.5
    assert by["recommend"].rates["click"].value == pytest.approx(0.06, abs=0.02)
    top = {each.surface: each for each in found.positions if each.position == 1}
    assert top["recommend"].clicks.value == pytest.approx(0.3, abs=0.1)
    assert all(each.clicks.done == 0 for each in found.positions if each.position > 1)
    assert found.queries_empty == 1 and [each.query for each in found.empty] == ["zzz"]
    assert [each.query for each in found.slow][-1] in ("zzz", "red shoes")
    assert {each.query: each.lists for each in found.slow}["red shoes"] == 199
    assert "400 of 4,000 lists" in found.notes[0]
    assert not found.changes and "nothing yet" in found.sentence
    assert Feedback.from_dict(found.to_dict()) == found
    few = feedback(Lists(empty, 400), clicks(empty, 0.3), (0, NOW), NOW, least_people=2)
    assert not few.empty and [each.query for each in few.slow] == ["red shoes"]


def test_outcomes_are_told_against_the_training_or_the_window_before() -> None:
    now, before = lists(2000, seed=1), lists(2000, seed=2, at=NOW - 30 * HOUR)
    limits = Thresholds()
    trained = {"recommend": Outcomes(1000, 5000, {"click": 500}, {"click": 0.004})}
    events = pl.concat([clicks(now, 0.2), clicks(before, 0.5, seed=3)])
    found = outcome_changes(slots_of(now, events), trained, slots_of(before, events), limits)
    by = {(each.surface, each.outcome): each for each in found}
    assert by.keys() == {("recommend", "click"), ("search", "click")}
    of_log, of_window = by["recommend", "click"], by["search", "click"]
    assert (of_log.against, of_log.of, of_log.before) == ("training", "seen", 0.1)
    assert of_log.change == pytest.approx(-0.6, abs=0.06) and of_log.over
    assert of_window.against == "window before" and of_window.over
    assert of_window.change == pytest.approx(-0.6, abs=0.06)
    same = pl.concat([clicks(now, 0.5), clicks(before, 0.5, seed=3)])
    calm = outcome_changes(slots_of(now, same), trained, slots_of(before, same), limits)
    assert not any(each.over for each in calm)
    few = outcome_changes(slots_of(now.head(50), events), trained, None, limits)
    assert few == ()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(3, 9)), min_size=2, max_size=30))
@settings(max_examples=60, deadline=None)
def test_intervals_are_wilsons_where_people_do_not_resemble_themselves(people) -> None:
    done, slots = (np.array(each, np.float64) for each in zip(*people, strict=True))
    rate = rate_of(done, slots)
    low, high = proportion_confint(done.sum(), slots.sum(), method="wilson")
    assert rate.low <= low + 1e-9 and rate.high >= high - 1e-9  # never narrower than that
    assert 0 <= rate.low <= rate.value <= rate.high <= 1
    alone = rate_of(np.repeat([1.0, 0.0], [3, 7]), np.ones(10))
    expected = proportion_confint(3, 10, method="wilson")
    assert (alone.low, alone.high) == pytest.approx(expected, abs=0.02)


def test_an_interval_knows_that_people_come_back() -> None:
    """By simulation: people with tastes of their own, the interval holds the truth as it says."""
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(400):
        tastes = rng.beta(1, 9, 60)
        slots = np.full(60, 30.0)
        rate = rate_of(rng.binomial(30, tastes).astype(np.float64), slots)
        held += rate.low <= 0.1 <= rate.high
    assert 0.91 <= held / 400 <= 0.98


def test_a_log_that_names_answers_gives_the_reference_its_outcomes() -> None:
    rows = lists(300)
    events = clicks(rows, 0.4).with_columns(
        timestamp=pl.from_epoch("received", time_unit="ms"),
        user_id=pl.col("request_id"),
        query=pl.when(pl.col("request_id").str.ends_with("1")).then(pl.lit("q")),
    )
    late = events.filter(pl.col("event_type") == "click").with_columns(
        event_type=pl.lit("purchase"),
        timestamp=pl.col("timestamp") + dt.timedelta(hours=3),
    )
    found = outcomes_of(pl.concat([events, late]).lazy(), "recommend")
    assert found.keys() == {"recommend", "search"}
    assert sum(each.lists for each in found.values()) == 300
    assert found["recommend"].seen == 5 * found["recommend"].lists
    assert 0.05 < found["recommend"].done["click"] / found["recommend"].seen < 0.11
    assert found["recommend"].done["purchase"] == 0  # hours later
    assert outcomes_of(events.lazy().with_columns(request_id=pl.lit(None, pl.String)), "x") == {}


def write_lists(folder: Path, rows: pl.DataFrame) -> None:
    """As a deployment records them, the columns that are read."""
    table = rows.select(
        "request_id", pl.from_epoch("at", time_unit="ms").dt.replace_time_zone("UTC").alias(
            "timestamp"), "surface", "place", user_id=pl.col("who").str.slice(2),
        session_id=pl.lit(None, pl.String), query="query", bundle="bundle", arm="arm",
        item_ids="item_ids", took_ms=pl.col("took_ms").cast(pl.Float32),
    ).to_arrow()  # fmt: skip
    day = table["timestamp"][0].as_py().date()
    path = folder / f"date={day}" / f"{rows['at'].min()}-{rows['at'].max()}-r-1.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def test_lists_are_read_within_their_time_and_bound(tmp_path: Path) -> None:
    old, new = lists(500, seed=1, at=NOW - 9 * HOUR), lists(500, seed=2)
    for each in (old, new):
        write_lists(tmp_path, each)
    both = read_lists(tmp_path, 0, NOW, 10_000)
    assert both.total == 1000 and both.rows["who"][0].startswith("u ")
    recent = read_lists(tmp_path, NOW - 2 * HOUR, NOW, 10_000)
    assert set(recent.rows["request_id"]) == set(new["request_id"])
    drawn = read_lists(tmp_path, 0, NOW, 200)
    assert 120 < len(drawn.rows) < 290 and drawn.total == 1000
    again = read_lists(tmp_path, 0, NOW, 200)
    assert drawn.rows.equals(again.rows)
    for number in range(30):  # many files: some are read, and stand for all
        write_lists(tmp_path, lists(50, seed=9 + number, at=NOW - 2 * HOUR + number))
    some = read_lists(tmp_path, NOW - 2 * HOUR, NOW - HOUR, 20)
    assert 0 < len(some.rows) <= 60 and some.total == 1500
    assert read_lists(tmp_path, NOW, NOW + 1, 10).rows.is_empty()
    with pytest.raises(UserError, match="no folder"):
        read_lists(tmp_path / "none", 0, NOW, 10)


def test_many_files_are_read_with_few_open(tmp_path: Path) -> None:
    for number in range(60):
        write_lists(tmp_path, lists(5, seed=number, at=NOW - HOUR + number))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    there = len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (there + 20, hard))
    try:
        assert len(read_lists(tmp_path, 0, NOW, 10_000).rows) == 300
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(list(Path("/proc/self/fd").iterdir())) <= there + 2


def test_events_come_from_the_rolled_files_and_the_log_alike(tmp_path: Path) -> None:
    log, rolled = LocalLog(tmp_path, LogSettings(segment_mb=1)), Rolled(tmp_path)
    try:

        def entry(number: int, request: str | None) -> NewEntry:
            body: dict[str, Any] = {
                "event_id": f"e{number}", "event_type": "click", "user_id": "u", "item_id": "i",
                "timestamp": NOW, **({"request_id": request} if request else {}),
            }  # fmt: skip
            return NewEntry(f"e{number}", NOW, "event", body)

        log.append([entry(1, "r1"), entry(2, None)])
        roll(log, rolled)
        log.append([entry(3, "r3"), entry(4, None)])
        asked = pl.Series(["r1", "r3", "r9"])
        found = follow_log(log, rolled)(0, asked)
        assert sorted(found["request_id"]) == ["r1", "r3"]
        assert found.schema == EVENTS
        assert follow_log(log, rolled)(0, pl.Series(["r3"]))["request_id"].to_list() == ["r3"]
        assert follow_log(log, rolled)(2**45, asked).is_empty()
        assert read_events(rolled.events)(0, asked)["request_id"].to_list() == ["r1"]
    finally:
        log.close()
    with pytest.raises(UserError, match="no Parquet"):
        read_events(tmp_path / "nothing")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "bad.parquet")
    with pytest.raises(UserError, match="lack the column"):
        read_events(tmp_path / "bad.parquet")(0, pl.Series(["r"]))
