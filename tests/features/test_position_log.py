"""Position bias of a log by the stage: near what a simulation planted, and read by the plan."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from raysys.config import parse_settings
from raysys.errors import UserError
from raysys.features import position_log
from raysys.features.labels import LabelSettings
from raysys.features.numbering import number_log
from raysys.features.position_bias import PositionBiasSettings
from raysys.features.position_log import estimate_curve, shown_and_clicked
from raysys.features.simulate import SimulatedLog, SimulationSettings, simulate_log, simulate_shop
from raysys.ingest.spread import InProcess
from raysys.stages import features
from raysys.stages.features import run
from raysys.stages.features_settings import FeaturesSettings
from raysys.storage import Manifest
from tests.features import every
from tests.features.every import DAY, HOUR, N_ITEMS
from tests.features.logs import workspace, write_events

DAYS, POSITIONS = 40, 4
VALIDATION = (DAYS - 10) * DAY

PLAN = {
    "examination": "position_bias.json",
    "tables": {
        "item": {"keys": ["item"], "half_lives_days": [7]},
        "user": {"keys": ["user"], "half_lives_days": [7]},
        "user_item": {"keys": ["user", "item"], "half_lives_days": [7]},
        "clicks": every.counts(["item"], ["click"]),
        "looked_at": every.counts(["item"], ["impression"], weight="examination"),
    },
    "features": [
        {"name": "looks", "kind": "decayed_count", "table": "looked_at", "half_life_days": 7},
        {"name": "coec", "kind": "rate", "of": "clicks", "over": "looked_at",
         "half_life_days": 7, "prior": {"strength": 4, "mean": 0.1}},
    ],
}  # fmt: skip


def settings(**more) -> FeaturesSettings:
    content = {
        **{"train_days": 20, "train_folds": 2, "validation_days": 5, "report_days": 5},
        **{"labels": {"click": 1}, "parts": 2, "position_bias": {"resamples": 50}, "plan": PLAN},
        "examples": {"from": "log", "events": ["impression"], "share": 0.1},
    }
    return parse_settings(FeaturesSettings, {**content, **more}, where="features")


def simulated(queries: int = 30) -> SimulatedLog:
    how = SimulationSettings(
        queries=queries, requests=4500 / queries, candidates=N_ITEMS, positions=POSITIONS, eta=0.8
    )
    return simulate_log(simulate_shop(how, 2), how, 2)


def rows_of(log: SimulatedLog) -> list[dict]:
    """As shown, evenly over the days; half of the clicks name their answer, some are purchases."""
    rng = np.random.default_rng(3)
    count = len(log.query) // POSITIONS
    times = np.linspace(0, DAYS * DAY - HOUR, count).astype(np.int64)
    users, named = rng.integers(0, 300, count), rng.random(count) < 0.5
    rows = []
    for at in range(len(log.query)):
        asked = at // POSITIONS
        row = {
            "user_id": f"u{users[asked]:03d}",
            "item_id": f"i{log.item[at]:03d}",
            "session_id": f"s{asked}",
            "query": f"q{log.query[at]:03d}",
            "request_id": f"r{asked}" if named[asked] else None,
            "inferred": False,
        }
        shown = {"event_type": "impression", "position": int(log.position[at])}
        rows.append({**row, **shown, "timestamp": int(times[asked])})
        if log.click[at]:
            kind = "purchase" if at % 5 == 0 else "click"
            moment = int(times[asked]) + 30_000 + int(log.position[at])
            rows.append({**row, "event_type": kind, "timestamp": moment})
    rows.append({**rows[0], "event_type": "view", "position": None, "timestamp": DAYS * DAY - 1})
    rows.sort(key=lambda row: row["timestamp"])
    return [{**row, "event_id": f"e{at:06d}"} for at, row in enumerate(rows)]


LOG = simulated()
ROWS = rows_of(LOG)


def made(root: Path, rows: list[dict], **more) -> tuple[dict, Manifest]:
    """The file that the stage writes, and its manifest."""
    manifest = run(settings(**more), workspace(root, rows), spread=InProcess())
    return json.loads((root / "position_bias.json").read_text()), manifest


def examples(root: Path) -> pl.DataFrame:
    paths = sorted((root / "features" / "examples").rglob("*.parquet"))
    return pl.concat([pl.read_parquet(path, hive_partitioning=False) for path in paths])


@pytest.mark.long
@pytest.mark.parametrize("method", ["all_pairs", "adjacent", "em"])
def test_the_stage_finds_what_the_simulation_planted(tmp_path, method):
    bias = {"method": method, "resamples": 50, "iterations": 100}
    curve, manifest = made(tmp_path, ROWS, position_bias=bias)
    found, truth = np.array(curve["examination"]), LOG.propensity / LOG.propensity[0]
    assert found[0] == 1.0
    assert np.abs(found / truth - 1).mean() < 0.2
    # the clicks at each position say something else: what stands first is better, too
    rate = np.array([at["clicks"] / at["impressions"] for at in curve["positions"]])
    assert np.abs(rate / rate[0] / truth - 1).mean() > np.abs(found / truth - 1).mean()
    assert manifest.figures["position_bias"] == curve
    assert curve["method"] == method
    assert curve["until"] == "1970-01-31T00:00:00.000"
    assert all(at["low"] <= at["propensity"] <= at["high"] for at in curve["positions"])
    assert "Propensity by position" in (tmp_path / "features/position_bias.html").read_text()


def test_impressions_without_a_query_are_one_surface(tmp_path):
    log = simulated(queries=1)
    curve, _ = made(tmp_path, [{**row, "query": None} for row in rows_of(log)])
    truth = log.propensity / log.propensity[0]
    assert np.abs(np.array(curve["examination"]) / truth - 1).mean() < 0.2


@pytest.mark.long
def test_the_plan_reads_what_was_just_estimated(tmp_path):
    curve, _ = made(tmp_path / "a", ROWS)
    for name, examination in (("b", curve["examination"]), ("c", [1.0])):
        more = {"position_bias": None, "plan": {**PLAN, "examination": examination}}
        shop = workspace(tmp_path / name, ROWS)
        manifest = run(settings(**more), shop, spread=InProcess())
        assert "position_bias" not in manifest.figures
        assert not (tmp_path / name / "position_bias.json").exists()
    corrected, same, plain = (examples(tmp_path / name) for name in "abc")
    assert len(corrected) > 500
    assert corrected.equals(same)
    late = corrected["looks"] > 1
    assert (corrected["looks"] < plain["looks"]).filter(late).mean() > 0.9
    assert (corrected["coec"] > plain["coec"]).filter(late & (corrected["coec"] > 0.1)).mean() > 0.5


@pytest.mark.long
def test_nothing_after_the_train_period_changes_it_and_no_way_of_cutting(tmp_path):
    before, _ = made(tmp_path / "a", ROWS)
    late = [  # users and queries that sort before all others, upside down, never clicked
        {**row, "user_id": "a" + row["user_id"], "query": "a" + row["query"],
         "position": row.get("position") and POSITIONS + 1 - row["position"],
         "event_type": row["event_type"].replace("click", "view").replace("purchase", "view")}
        if row["timestamp"] >= VALIDATION else row
        for row in ROWS
    ]  # fmt: skip
    after, _ = made(tmp_path / "b", late, parts=5)
    assert after == before
    early = [
        {**row, "event_type": "view"}
        if row["event_type"] == "click" and row["timestamp"] < DAY
        else row
        for row in ROWS
    ]
    assert made(tmp_path / "c", early)[0] != before


@pytest.mark.long
def test_what_a_killed_run_had_read_is_not_read_again(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    shop = workspace(tmp_path / "a", ROWS)
    with monkeypatch.context() as patch:
        patch.setattr(features, "write_curve", killed)
        with pytest.raises(KeyboardInterrupt):
            run(settings(), shop, spread=InProcess())
    assert not (shop.root / "position_bias.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr(position_log, "shown_and_clicked", killed)
        run(settings(), shop, spread=InProcess())
    made(tmp_path / "b", ROWS)
    one, other = (tmp_path / name / "position_bias.json" for name in "ab")
    assert one.read_bytes() == other.read_bytes()


def test_a_run_that_failed_at_its_very_end_goes_on(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    shop = workspace(tmp_path, ROWS)
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            run(settings(), shop, spread=InProcess())
    manifest = run(settings(), shop, spread=InProcess())
    assert (shop.features / "position_bias.html").is_file()
    again = run(settings(), shop, spread=InProcess())  # the curve it wrote makes it no other
    assert again.created == manifest.created


SHOWN = [row for row in ROWS if row["event_type"] != "impression" or row["position"] <= 2]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda row: {"position": None}, "impressions before 1970-01-31.*, 0 have a position"),
        (lambda row: {"position": row.get("position") and 2}, "1 positions"),
        (lambda row: {"inferred": True, "sampling_probability": 1.0}
         if row["event_type"] == "impression" else {}, "of 0 logged impressions"),
        (lambda row: {} if row["event_type"] == "impression" else {"event_type": "view"},
         "2 positions, 0 clicks"),
        (lambda row: {"position": row.get("position") and 1 + int(row["item_id"][1:]) % 2},
         "no item was shown both at position 1 and at others"),
        (lambda row: {"timestamp": max(row["timestamp"], VALIDATION)}, "of 0 logged impressions"),
    ],
)  # fmt: skip
def test_too_little_to_estimate_from_is_said(tmp_path, change, expected):
    rows = [{**row, **change(row)} for row in SHOWN[:2000] + SHOWN[-1:]]
    with pytest.raises(UserError, match=expected) as caught:
        made(tmp_path, rows)
    assert caught.value.where == "features: position_bias"
    assert caught.value.mend
    assert not (tmp_path / "position_bias.json").exists()


def test_regression_em_is_refused_and_a_plan_without_its_file_is_told(tmp_path):
    with pytest.raises(UserError, match="regression_em needs features"):
        settings(position_bias={"method": "regression_em"})
    with pytest.raises(UserError, match=r"no file .*position_bias\.json") as caught:
        run(settings(position_bias=None), workspace(tmp_path, ROWS), spread=InProcess())
    assert "`position_bias`" in caught.value.mend


def counted(folder: Path, events: list[tuple], **labels) -> tuple[list[tuple], int]:
    """(user, item, type, hour, more) of a log of 100 hours, up to hour 50: position and click."""
    rows = [
        {"event_id": f"e{at}", "user_id": user, "item_id": item, "event_type": kind,
         "timestamp": int(hour * HOUR), "session_id": "s", "inferred": False, **more}
        for at, (user, item, kind, hour, more) in enumerate(sorted(events, key=lambda e: e[3]))
    ]  # fmt: skip
    write_events(folder / "events", rows)
    log = number_log(
        folder / "events", every.catalogue(), ["session_id"], folder / "log", InProcess()
    )
    found, impressions = shown_and_clicked(log, LabelSettings(**labels), 50 * HOUR)
    return sorted(found.select("position", "click").rows()), impressions


def test_a_click_or_more_of_a_logged_impression_before_the_end_counts(tmp_path):
    at = [{"position": position} for position in range(1, 9)]
    guess = {"inferred": True, "sampling_probability": 0.5}
    found = counted(
        tmp_path,
        [
            ("a", "i001", "impression", 1, at[0]), ("a", "i001", "click", 1.5, {}),
            ("a", "i002", "impression", 1, at[1]), ("a", "i002", "view", 1.5, {}),
            ("a", "i003", "impression", 1, at[2]), ("a", "i003", "purchase", 40, {}),
            ("a", "i004", "impression", 1, at[3]), ("a", "i004", "click", 2.5, {}),  # too late
            ("b", "i001", "impression", 2, {}), ("b", "i001", "click", 2.5, {}),  # no position
            # a guess takes no credit from what was seen
            ("b", "i002", "impression", 2, at[4]), ("b", "i002", "impression", 2.5, guess),
            ("b", "i002", "click", 2.5, {}),
            ("b", "i003", "impression", 48, at[5]), ("b", "i003", "purchase", 50, {}),  # after
            ("b", "i004", "impression", 49.5, at[6]), ("b", "i004", "click", 49.6, {}),  # unsettled
            ("b", "i005", "impression", 60, at[7]),
        ],
    )  # fmt: skip
    clicked = [(1, True), (2, False), (3, True), (4, False), (5, True), (6, False)]
    assert found == (clicked, 7)


@pytest.mark.parametrize(
    ("labels", "clicks"),
    [
        ({}, [False, True]),
        ({"touch": "first"}, [True, False]),
        ({"touch": "all"}, [False, True]),  # it was clicked at one position
        ({"windows_hours": {"click": 0.1}}, [False, False]),
    ],
)
def test_labels_say_which_impression_was_clicked(tmp_path, labels, clicks):
    shown = [("a", "i001", "impression", 1 + at / 4, {"position": 1 + at}) for at in range(2)]
    found, _ = counted(tmp_path, [*shown, ("a", "i001", "click", 1.5, {})], **labels)
    assert found == list(zip([1, 2], clicks, strict=True))


def test_a_curve_that_falls_to_nothing_is_refused():
    # the item was never clicked at position 2: nothing can be divided by that
    shown = pl.DataFrame(
        {"query": [-1] * 4, "item": [1] * 4, "position": [1, 1, 2, 2], "user": [0, 1, 0, 1],
         "click": [True, False, False, False]},
        schema=position_log._SHOWN,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"never clicked at others .*4 have a position"):
        estimate_curve(shown, PositionBiasSettings(), 0, 4)
    clicked = shown.with_columns(click=pl.col("user") == 0)
    found = estimate_curve(clicked, PositionBiasSettings(), 0, 4)
    assert found.value.tolist() == [1.0, 1.0]
