"""Benchmark figures in the docs come from the results, and results keep their one format."""

from __future__ import annotations

import collections
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from benchmarks import by_hand_polars, text_queries
from benchmarks.__main__ import listing
from benchmarks._autogluon_next_item import learned, table_of
from benchmarks.aims import reached, summary, told
from benchmarks.events_at_scale import WORDS, _Block, base_year, make_log, one_date, write_settings
from benchmarks.measure import differences, fingerprint_events, measured
from benchmarks.page import PAGE, PLOT, README, page, plot, readme, scale
from benchmarks.result import RESULTS, Figure, command
from benchmarks.text_data import divided
from benchmarks.text_results import merge_text_results, over_seeds
from raysys.config import load_settings
from raysys.ensemble.next_item import PLAIN, Candidates
from raysys.schema import LABELLED_TEXTS
from raysys.stages.features_settings import FeaturesSettings
from raysys.stages.ingest import IngestSettings

RESULT_FILES = sorted([*RESULTS.glob("*.json"), *RESULTS.glob("*/*.json")])


def test_the_page_is_what_the_results_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m benchmarks.page`"
    assert README.read_text(encoding="utf-8") == readme(), "run `python -m benchmarks.page`"
    assert PLOT.is_file() == (RESULTS / "ingest.json").is_file(), "run `python -m benchmarks.page`"


def test_aims_are_judged_where_their_words_can_be_read() -> None:
    def judged(value: float, aim: str, low: float | None = None) -> bool | None:
        return reached({"value": value, "low": low, "aim": aim})

    assert judged(0.85, "≥ 0.85") and judged(0.0049, "<= .005") and judged(1, "1")
    assert judged(2, "0") is False and judged(299_999, "≥ 300,000") is False
    assert judged(0.93, "at least .930") and judged(0.46, "at most .450") is False
    assert judged(11_000, "≥ 10,000 on two cores") and judged(0, "> 0") is False
    assert judged(0.2, "interval above zero", low=0.1)
    assert judged(0.2, "interval above zero", low=-0.1) is False
    assert judged(0.2, "> 0", low=0.1) and judged(0.2, "> 0", low=-0.1) is False
    for words in ("0.95", "about 1", "> baseline", "thousands", "< 1 across replicas", ""):
        assert judged(0.5, words) is None, words


def test_the_page_begins_with_the_aims_that_were_missed() -> None:
    figures = [
        {"name": "share", "value": 0.5, "low": None, "aim": "≥ 0.85"},
        {"name": "rate", "value": 20_000, "low": None, "aim": "≥ 10,000"},
    ]
    lines = summary([("tried", {"figures": figures}), ("other", {"figures": []})])
    assert "| [tried](#tried) | 1 of 2 | `share`: 0.5 (aim: ≥ 0.85) |" in lines
    assert lines[-1].endswith("judge: [other](#other).")
    missed = {"name": "gain", "value": 0.2, "low": -0.1, "aim": "> 0"}
    assert "`gain`: 0.2, from -0.1 (aim: > 0)" in "".join(summary([("a", {"figures": [missed]})]))
    text = page()
    assert text.index("## In short") < text.index("| figure | value |")
    assert [told(value) for value in (1_234_567.8, 999.96, 3.893e-05)] == [
        "1,234,568", "1000", "3.893e-05",
    ]  # fmt: skip


@pytest.mark.parametrize("path", RESULT_FILES, ids=lambda path: path.stem)
def test_results_keep_their_format(path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content.keys() == {"command", "commit", "date", "machine", "seconds", "figures"}
    assert content["machine"].keys() == {"cpu", "cores", "memory_gb", "gpu"}
    names = [figure["name"] for figure in content["figures"]]
    assert len(names) == len(set(names)) > 0
    for figure in content["figures"]:
        assert figure.keys() == {"name", "value", "low", "high", "unit", "aim", "reference"}
        assert figure["low"] is None or figure["low"] <= figure["value"] <= figure["high"]


def part(name: str, *figures: str, cpu: str = "one", seconds: float = 1.5) -> dict:
    told = {"value": 1.0, "low": None, "high": None, "unit": "", "aim": "", "reference": ""}
    return {
        "command": f"python -m benchmarks.{name}", "commit": "abc", "date": "2026-01-01",
        "machine": {"cpu": cpu, "cores": 2, "memory_gb": 1.0, "gpu": None}, "seconds": seconds,
        "figures": [{"name": figure, **told} for figure in figures],
    }  # fmt: skip


def test_no_folder_of_a_machine_is_in_a_result() -> None:
    given = ["--registry", "/home/me/registry", "--out=/var/x", "/etc/y", "--rate", "14"]
    told = command(["/srv/benchmarks/serving.py", "kills", *given])
    assert told == (
        "python -m benchmarks.serving kills --registry REGISTRY --out=OUT OUT --rate 14"
    )
    for path in RESULTS.glob("**/*.json"):
        said = json.loads(path.read_text())["command"]
        assert not any(Path(word.partition("=")[2] or word).is_absolute() for word in said.split())


def test_text_results_are_the_parts_together(tmp_path) -> None:
    def put(name: str, content: dict) -> None:
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / "text" / f"{name}.json").write_text(json.dumps(content))

    put("b", part("b", "y"))
    put("a", part("a", "x", "w", seconds=2))
    for _ in range(2):  # nothing is counted twice
        merged = json.loads(merge_text_results(tmp_path).read_text())
        assert merged["command"] == "python -m benchmarks.a && python -m benchmarks.b"
        assert [figure["name"] for figure in merged["figures"]] == ["x", "w", "y"]
        assert merged["seconds"] == 3.5 and merged["commit"] == "abc"
    put("a", part("a", "z"))
    merged = json.loads(merge_text_results(tmp_path).read_text())
    assert [figure["name"] for figure in merged["figures"]] == ["z", "y"]
    put("a", part("a", "y"))
    with pytest.raises(ValueError, match="more than one part has y"):
        merge_text_results(tmp_path)
    put("a", part("a", "x", cpu="other"))
    merged = json.loads(merge_text_results(tmp_path).read_text())
    assert merged["machine"]["cpu"] == "other: a; one: b"


def test_seeds_become_one_figure_each() -> None:
    runs = [
        [Figure("f1", value, "F1", value - 0.1, value + 0.1, "> 0", "ours"), Figure("s", at, "s")]
        for at, value in enumerate((0.4, 0.6, 0.8))
    ]
    f1, seconds = over_seeds(runs)
    assert (f1.value, f1.low, f1.high) == pytest.approx((0.6, 0.3, 0.9))
    assert f1.aim == "> 0" and f1.reference.startswith("ours; mean of 3 splits and seeds")
    assert (seconds.value, seconds.low, seconds.high) == (1, 0, 2)
    assert over_seeds(runs[:1]) == runs[0]
    with pytest.raises(ValueError, match="figures of their own"):
        over_seeds([runs[0], runs[1][::-1]])


def test_the_listing_knows_scripts_of_either_kind(tmp_path) -> None:
    for name, line in (
        ("one", "from benchmarks.result import Figure, write_result"),
        ("two", "from benchmarks.text_results import write_text_result"),
        ("four", "from benchmarks.parts import write_rankings_result"),
        ("none", "from benchmarks.result import Figure"),
    ):
        (tmp_path / f"{name}.py").write_text(f'"""What {name} is.\n\nA minute.\n"""\n{line}\n')
    (tmp_path / "results" / "text").mkdir(parents=True)
    for name in ("two-a", "two-b", "twofold"):
        (tmp_path / "results" / "text" / f"{name}.json").write_text(json.dumps(part(name, "x")))
    assert listing(tmp_path) == [
        ("four", "What four is.", "A minute."),
        ("one", "What one is.", "A minute."),
        ("two", "What two is.", "3 s on 2 cores of one"),
    ]


def test_autogluon_learns_the_right_candidate_and_some_others() -> None:
    """Of cases whose item nobody proposed nothing is learned."""
    label = np.array([0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1], dtype=np.float32)
    n = len(label)
    shares = np.arange(2 * n, dtype=np.float32).reshape(2, n)
    plain = np.zeros((n, len(PLAIN)), dtype=np.float32)
    offsets = np.array([0, 5, 8, 11])
    found = Candidates(np.arange(n, dtype=np.int32), offsets, shares, shares + 1, plain, label)
    rows = learned(found, np.array([7, 7, 9]), 2, 0)
    assert {1, 10} < set(rows.tolist())
    assert [int(((rows >= a) & (rows < b)).sum()) for a, b in ((0, 5), (5, 8), (8, 11))] == [
        3,
        0,
        3,
    ]
    table = table_of(found, ["one", "two"])
    assert table.columns[:6] == [
        "share_one", "share_two", "lead_one", "lead_two", "rank_one", "rank_two",
    ]  # fmt: skip
    assert table["share_two"].to_list() == shares[1].tolist()
    assert table["lead_one"].to_list()[5:8] == [-2, -1, 0]


def test_texts_are_divided_by_whole_groups_and_alike_in_labels() -> None:
    rng = np.random.default_rng(0)
    group = rng.integers(0, 400, 3000)
    rows = pl.DataFrame({
        "text_id": [str(at) for at in range(3000)],
        "text": [f"text {at}" for at in range(3000)],
        "label": np.where(group % 10 == 0, "rare", "common"),
        "group": group.astype(str),
    })  # fmt: skip
    tables = divided(rows, 1)
    assert sum(map(len, tables.values())) == 3000
    seen = [set(table["group"].to_pylist()) for table in tables.values()]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    for share, (name, table) in zip((0.8, 0.1, 0.1), tables.items(), strict=True):
        assert len(table) / 3000 == pytest.approx(share, abs=0.03)
        rare = table["label"].to_pylist().count("rare") / len(table)
        assert rare == pytest.approx((rows["label"] == "rare").mean(), abs=0.04)
        assert table.schema == LABELLED_TEXTS and set(table["split"].to_pylist()) == {name}
    assert divided(rows, 1)["test"].equals(tables["test"])
    assert not divided(rows, 2)["test"].equals(tables["test"])


def at_scale(**values: float) -> list[dict]:
    return [{"name": name, "value": value, "reference": ""} for name, value in values.items()]


@pytest.mark.long
def test_the_log_at_scale_is_a_table_and_a_plot(tmp_path) -> None:
    figures = at_scale(
        events_per_s_10m=312_345.6, seconds_10m=32.2, peak_gb_10m=3.21, ratio_polars_10m=0.912,
        polars_seconds_10m=29.4, polars_peak_gb_10m=2.9,
        events_per_s_1m=90_000.0, seconds_1m=11.1, peak_gb_1m=1.5, polars_peak_gb_1m=16.0,
    )  # fmt: skip
    figures[-1]["reference"] = "ran out of memory at 16 GB"
    rows = [line for line in scale(figures) if line.startswith("| 1")]
    assert rows == [
        "| 1m | 90,000 | 11.1 | 1.5 | ran out of memory at 16 GB | 16 | – |",
        "| 10m | 312,346 | 32.2 | 3.21 | 29.4 | 2.9 | 0.912 |",
    ]
    plot(figures, tmp_path / "one.svg")
    plot(figures, tmp_path / "two.svg")
    drawn = (tmp_path / "one.svg").read_text()
    assert drawn == (tmp_path / "two.svg").read_text()
    assert all(text in drawn for text in ("raysys", "one polars program", "10 M"))


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """A small log of `events_at_scale`: its folder and facts."""
    return make_log("20k", tmp_path_factory.mktemp("logs"))


def raw(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "events" / "**" / "*.parquet", hive_partitioning=False)


@pytest.mark.long
def test_a_log_holds_the_dirt_it_says(log) -> None:
    folder, facts = log
    rows = raw(folder)
    first = rows.filter(pl.col("event_id").is_first_distinct())
    found = {
        "in_the_future": int((first["time"].dt.year() > 2100).sum()),
        "negative_price": int((first["price"] < 0).sum()),
        "refund": int(((first["quantity"] <= 0) & (first["what"] == "buy")).sum()),
        "quantity_not_positive": int(((first["quantity"] <= 0) & (first["what"] != "buy")).sum()),
        "unknown_event_type": int((~first["what"].is_in(WORDS)).sum()),
        "missing_value": first["user"].null_count(),
        "duplicate": rows.height - first.height,
    }
    assert found == facts.dirt and all(found.values())
    assert facts.rows == rows.height == facts.clean + sum(found.values())
    assert rows.unique().height == first.height  # what comes twice is equal in every column
    funnel = first["what"].value_counts().rows()
    steps = dict(funnel)
    assert steps["view"] > steps["click"] and steps["view"] > steps["cart"]


@pytest.mark.long
def test_a_log_lies_by_date_and_comes_again(log, tmp_path) -> None:
    folder, facts = log
    for path in sorted((folder / "events").glob("*/*.parquet"))[::30]:
        times = pl.read_parquet(path, hive_partitioning=False)["time"]
        dates = times.filter(times.dt.year() < 2100).dt.date().cast(pl.String).unique().to_list()
        assert dates == [path.parent.name.removeprefix("date=")]
    again, told = make_log("20k", tmp_path)
    assert told == facts
    for path in folder.rglob("*.parquet"):
        assert path.read_bytes() == (again / path.relative_to(folder)).read_bytes()


@pytest.mark.long
def test_copies_have_users_and_weeks_of_their_own() -> None:
    year = base_year().head(30_000)
    blocks = [_Block(year, copy) for copy in range(3)]
    days = [one_date(blocks, day)[0] for day in range(40)]
    rows = pl.concat(days).with_columns(copy=pl.col("user").str.split("-").list.last())
    rows = rows.filter(pl.col("time").dt.year() < 2100)
    begin = rows.drop_nulls("user").group_by("copy").agg(pl.col("time").min()).sort("copy")
    shifts = begin["time"].diff().dt.total_days().to_list()
    assert begin["copy"].to_list() == ["0", "1", "2"] and shifts[1:] == [7, 7]


@pytest.mark.long
def test_by_hand_equals_a_plain_loop(log, tmp_path) -> None:
    folder, facts = log
    by_hand_polars.run(folder, tmp_path, 0.5)
    written = pl.read_parquet(tmp_path / "events" / "**" / "*.parquet", hive_partitioning=False)
    assert written.height == facts.clean
    rows = sorted(
        raw(folder)
        .filter(
            pl.col("user").is_not_null()
            & pl.col("what").is_in(WORDS)
            & (pl.col("time").dt.year() < 2100)
            & (pl.col("price") >= 0)
            & (pl.col("quantity").fill_null(1) > 0)
        )
        .unique()
        .with_columns(pl.col("time").dt.epoch("ms"))
        .select("time", "event_id", "user", "item", "price", "what")
        .rows()
    )
    sessions, last = {}, {}
    for time, event_id, user, *_ in rows:
        begun = last[user][1] if user in last and time - last[user][0] <= 1_800_000 else time
        last[user] = (time, begun)
        sessions[event_id] = f"{user}@{begun}"
    assert dict(written.select("event_id", "session_id").rows()) == sessions

    category = dict(pl.read_parquet(folder / "items.parquet").select("item", "category").rows())
    examples = pl.read_parquet(tmp_path / "examples.parquet")
    expected, state = plain_loop(rows, category, sessions)
    every, mine = pl.DataFrame(expected), ["request_id", "item_id"]
    chosen = every.join(examples, on=mine, how="semi")
    moments = examples["request_id"].unique()
    assert 0.4 < len(moments) / every["request_id"].n_unique() < 0.6
    whole = every.filter(pl.col("request_id").is_in(moments.implode()))
    assert whole.height == chosen.height == examples.height  # moments are drawn, not rows
    assert set(every.columns) == {*mine, "label", *by_hand_features()}
    differences(chosen, examples, mine, tolerance=1e-5)
    assert 0.1 < examples["label"].mean() < 0.9
    for table, kept in state.items():
        kept_by_hand = pl.read_parquet(tmp_path / "state" / f"{table}.parquet")
        columns = kept_by_hand.drop("key").sort("first", "last", "count_7d", "sum_28d")
        plain = pl.DataFrame(list(kept.values())).sort("first", "last", "count_7d", "sum_28d")
        assert columns.height == plain.height
        for name in plain.columns:
            np.testing.assert_allclose(columns[name], plain[name], rtol=1e-9)


@pytest.mark.skipif(
    "examples" not in FeaturesSettings.model_fields, reason="examples come from retrieval only"
)
def test_settings_of_the_benchmark_load(log, tmp_path) -> None:
    ingest, features = write_settings(log[0], tmp_path)
    assert load_settings(IngestSettings, ingest).sessions.gap_minutes == 30
    plan = load_settings(FeaturesSettings, features).plan
    assert set(plan.names) == set(by_hand_features())


def test_differences_tell_the_worst_row() -> None:
    mine = pl.DataFrame({"key": [1, 2, 3], "value": [1.0, 2.0, None], "more": [0.0, 0.0, 0.0]})
    theirs = pl.DataFrame({"key": [3, 2, 1], "value": [float("nan"), 2.0001, 1.0]})
    assert differences(mine, theirs, ["key"])["value"] == pytest.approx(5e-5, rel=1e-3)
    with pytest.raises(ValueError, match=r"value differs by 5e-05: .*'key': 2"):
        differences(mine, theirs, ["key"], tolerance=1e-5)
    with pytest.raises(ValueError, match=r"value differs by inf: .*'key': 3"):
        differences(mine, theirs.with_columns(pl.col("value").fill_nan(0.0)), ["key"])
    with pytest.raises(ValueError, match="3 and 2 rows have 2 in common"):
        differences(mine, theirs.head(2), ["key"])
    with pytest.raises(ValueError, match="more than once"):
        differences(mine, pl.concat([theirs, theirs]), ["key"])


def test_events_have_one_fingerprint_whatever_their_order(log, tmp_path) -> None:
    rows = raw(log[0]).head(500).filter(pl.col("event_id").is_first_distinct())
    rows = rows.select(
        "event_id",
        user_id=pl.col("user").fill_null("nobody"),
        event_type="what",
        timestamp="time",
        session_id=pl.format("s{}", pl.int_range(pl.len()) // 3),
    )
    for name, frame in (
        ("one", rows),
        ("other", rows.reverse()),
        ("moved", rows.with_columns(session_id=pl.col("session_id").shift(1).fill_null("s0"))),
    ):
        (tmp_path / name).mkdir()
        frame.head(200).write_parquet(tmp_path / name / "a.parquet")
        frame.slice(200).write_parquet(tmp_path / name / "b.parquet")
    one, other, moved = (fingerprint_events(tmp_path / n) for n in ("one", "other", "moved"))
    assert one == other and one["rows"] == rows.height
    assert one["in_sessions"] != moved["in_sessions"] and one["events"] == moved["events"]


@pytest.mark.long
def test_a_command_is_measured_and_stopped_at_its_cap() -> None:
    hungry = "x = bytearray(300 << 20); import time; time.sleep(0.6); sum(range(10**6)); print(7)"
    taken = measured([sys.executable, "-c", hungry], every=0.05)
    assert taken.outcome == "done" and taken.output == "7\n"
    assert taken.peak > 300 << 20 and taken.driver_peak > 300 << 20 and taken.cpu_seconds > 0
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hungry!r}])"
    child = measured([sys.executable, "-c", nested], every=0.05)
    assert child.peak > 300 << 20 > child.driver_peak
    lasting = nested.replace("sleep(0.6)", "sleep(60)")  # however late a busy machine looks
    stopped = measured([sys.executable, "-c", lasting], every=0.05, cap=200 << 20)
    assert stopped.outcome == "ran out of memory"
    failed = measured([sys.executable, "-c", "raise SystemExit('no')"])
    assert failed.outcome == "failed"
    with pytest.raises(RuntimeError, match=r"failed after .*\n.*no"):
        failed.demand()


def by_hand_features() -> list[str]:
    return [
        f"{table}_{what}"
        for table in ("item", "user", "user_item", "user_category", "category")
        for what in ("count_7d", "count_28d", "price_7d", "price_28d", "moments", "recency")
    ]


def plain_loop(rows, category, sessions):
    """Features of everything viewed and the state at the end, one event after the other."""
    state = {t: {} for t in ("item", "user", "user_item", "user_category", "category")}
    bought = collections.defaultdict(list)
    for time, event_id, user, item, _, what in rows:
        if what == "buy":
            bought[sessions[event_id], user, item].append(time)
    examples = {}
    for time, together in itertools.groupby(rows, key=lambda row: row[0]):
        together = list(together)
        for _, event_id, user, item, _, what in together:
            if what == "view":
                later = bought[sessions[event_id], user, item]
                label = float(any(time <= moment <= time + 3_600_000 for moment in later))
                told = {"request_id": f"{user}@{time}", "item_id": item, "label": label}
                for table, key in plain_keys(user, item, category):
                    kept = state[table].get(key)
                    told |= {f"{table}_{what}": v for what, v in plain_read(kept, time).items()}
                examples[user, time, item] = told
        for _, _, user, item, price, _ in together:
            for table, key in plain_keys(user, item, category):
                if key is None:
                    continue
                kept = state[table].setdefault(
                    key, {"moments": 0, "first": time, "last": time, **dict.fromkeys(SUMS, 0.0)}
                )
                if kept["moments"] == 0 or time > kept["last"]:
                    kept["moments"] += 1
                for days in (7, 28):
                    fade = 0.5 ** ((time - kept["last"]) / (days * 86_400_000))
                    kept[f"count_{days}d"] = kept[f"count_{days}d"] * fade + 1
                    kept[f"sum_{days}d"] = kept[f"sum_{days}d"] * fade + price
                kept["last"] = time
    return list(examples.values()), state


SUMS = ("count_7d", "sum_7d", "count_28d", "sum_28d")


def plain_keys(user, item, category):
    kind = category[item]
    pair = None if kind is None else (user, kind)
    return [
        *(("item", item), ("user", user), ("user_item", (user, item))),
        *(("user_category", pair), ("category", kind)),
    ]


def plain_read(kept, time):
    nan = float("nan")
    if kept is None:
        prices = {"price_7d": nan, "price_28d": nan}
        return {"count_7d": 0.0, "count_28d": 0.0, **prices, "moments": 0.0, "recency": nan}
    told = {"moments": float(kept["moments"]), "recency": (time - kept["last"]) / 86_400_000}
    for days in (7, 28):
        fade = 0.5 ** ((time - kept["last"]) / (days * 86_400_000))
        told[f"count_{days}d"] = kept[f"count_{days}d"] * fade
        told[f"price_{days}d"] = kept[f"sum_{days}d"] / kept[f"count_{days}d"]
    return told


def test_a_gain_is_the_mean_over_seeds_of_what_queries_gain() -> None:
    grade = [3.0, 2.0, 1.0] * 20
    truth = pl.DataFrame(
        {
            "query": [f"q{at // 3}" for at in range(60)],
            "item_id": [str(at) for at in range(60)],
            "text": [f"text {at}" for at in range(60)],
            "grade": grade,
            "weight": 1.0,
            "split": "test",
        }
    )
    right, wrong = (pa.table({"grade": np.array(way) * np.array(grade)}) for way in (1.0, -1.0))
    judge = text_queries.judge_of(truth)
    once = text_queries.gain_figures("x", judge, [(right, wrong)], ("one", "other"))
    assert [each.name for each in once] == ["x_ndcg10", "x_ndcg10_without", "x_gain"]
    assert once[0].value == pytest.approx(1.0) and once[2].value > 0.3
    assert once[2].value == pytest.approx(once[0].value - once[1].value)
    runs = [(right, wrong), (wrong, right)]
    twice = text_queries.gain_figures("x", judge, runs, ("one", "other"))
    assert twice[2].value == pytest.approx(0.0)
    assert twice[0].value == pytest.approx((once[0].value + once[1].value) / 2)
