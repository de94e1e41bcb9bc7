"""From exposures and events to a verdict."""

import datetime as dt
import json

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from raysys import schema
from raysys.cli import app
from raysys.errors import UserError
from raysys.experiments.analysis import analyse
from raysys.experiments.planning import Baseline, baseline_of, plan, users_needed
from raysys.experiments.report import write_experiment_report
from raysys.experiments.simulate import arriving
from raysys.experiments.users import read_events, read_exposures, read_user_table, user_table
from raysys.experiments.verdict import verdict
from raysys.stages.experiment import (
    AnalyseOptions,
    PlanOptions,
    check,
    run_analysis,
    run_off_policy,
    run_plan,
)
from raysys.storage import Workspace
from tests.experiments.settings import METRICS, START, arms, home, shop

HOUR = dt.timedelta(hours=1)
HALVES = {"arms": arms(0.5, 0.5), "expected_users": 2000}


def exposures_of(rows):
    """(user, arm, hours after the start, attributes, forced)."""
    told = [
        {
            "request_id": f"r{at}", "experiment": "home_ranking", "arm": arm, "user_id": user,
            "timestamp": START + hours * HOUR, "surface": "home", "bundle": None,
            "propensity": 0.5, "forced": forced, "attributes": list(attributes.items()),
        }
        for at, (user, arm, hours, attributes, forced) in enumerate(rows)
    ]  # fmt: skip
    return pa.Table.from_pylist(told, schema.EXPOSURES)


def events_of(rows):
    """(type, user, hours after the start, price, quantity)."""
    names = ("event_type", "user_id", "timestamp", "price", "quantity")
    told = [(kind, user, START + h * HOUR, *more) for kind, user, h, *more in rows]
    frame = pl.DataFrame(told, schema=names, orient="row")
    return frame.cast(
        {"timestamp": pl.Datetime("ms", "UTC"), "price": pl.Float64, "quantity": pl.Float64}
    )


@pytest.fixture
def files(tmp_path):
    exposures = exposures_of([
        ("a", "champion", 5, {"country": "DE"}, False),
        ("a", "champion", 9, {"country": "AT"}, False),
        ("b", "challenger", 5, {}, False), ("both", "champion", 5, {}, False),
        ("both", "challenger", 6, {}, False), ("me", "challenger", 5, {}, True),
        ("early", "champion", -1, {}, False), ("late", "challenger", 400, {}, False),
    ])  # fmt: skip
    events = events_of([
        ("impression", "a", 5, None, None), ("impression", "a", 6, None, None),
        ("click", "a", 6, None, None), ("click", "a", 4, None, None),  # one before the exposure
        ("impression", "a", 4, None, None), ("impression", "a", -24 * 30, None, None),  # too old
        ("purchase", "a", 7, 10.0, 2.0), ("purchase", "a", 8, 3.0, None),
        ("purchase", "b", 3, 9.0, 1.0),
        ("impression", "b", 200, None, None), ("click", "stranger", 6, None, None),
        ("search", "b", 401, None, None),
    ])  # fmt: skip
    pq.write_table(exposures, tmp_path / "exposures.parquet")
    (tmp_path / "events").mkdir()
    events.write_parquet(tmp_path / "events" / "part.parquet")
    return tmp_path


def table_of(files, **changes):
    settings = shop(home(**HALVES, segments=["country"], **changes))
    experiment = settings.experiments[0]
    metrics = [settings.metric(name) for name in experiment.metrics]
    sources = read_exposures(files / "exposures.parquet"), read_events(files / "events")
    return user_table(experiment, metrics, *sources)


def test_users_are_counted_from_their_first_exposure_on(files):
    found = table_of(files)
    assert (found.crossed, found.forced) == (1, 1)
    assert "20.0% of the users were seen in more than one arm" in found.notes[0]
    rows = {row["user_id"]: row for row in found.rows.to_dicts()}
    assert set(rows) == {"a", "b", "late"}
    a = rows["a"]
    assert (a["arm"], a["segment.country"], rows["b"]["segment.country"]) == (
        "champion", "DE", "unknown",
    )  # fmt: skip
    assert (a["click_rate"], a["click_rate.per"]) == (1, 2)
    assert (a["click_rate.before"], a["click_rate.per_before"]) == (1, 1)
    assert (a["orders"], a["revenue"]) == (1, 23)
    assert (rows["b"]["orders"], rows["b"]["revenue.before"], rows["b"]["searches"]) == (0, 9, 1)
    assert rows["late"]["click_rate.per"] == 0


def test_impressions_that_were_inferred_count_for_nobody(files):
    before = table_of(files).rows
    told = pl.read_parquet(files / "events" / "part.parquet")
    told = told.with_columns(inferred=pl.lit(None, pl.Boolean))
    more = events_of([("impression", "a", 6, None, None)] * 10)
    more = more.with_columns(inferred=pl.lit(value=True))
    pl.concat([told, more]).write_parquet(files / "events" / "part.parquet")
    assert table_of(files).rows.equals(before)


def test_a_window_waits_for_its_end(files):
    found = table_of(files, window_days=2)
    assert found.unfinished == 1  # who came late
    rows = {row["user_id"]: row for row in found.rows.to_dicts()}
    assert rows["b"]["click_rate.per"] == 0  # seen, but after two days
    ended = table_of(files, end=START + 10 * HOUR)
    assert set(ended.rows["user_id"]) == {"a", "b"}
    # events go on after the end, but none of them counts: no window of two days is whole
    cut = table_of(files, end=START + 40 * HOUR, window_days=2)
    assert cut.unfinished == 2 and not len(cut.rows)
    assert table_of(files, end=START + 60 * HOUR, window_days=2).unfinished == 0


def test_strange_arms_and_no_exposures_are_named(files):
    path = files / "exposures.parquet"
    with pytest.raises(UserError, match="no exposure of 'home_ranking'"):
        table_of(files, start=START + 1000 * HOUR)
    settings = shop(home(arms=[*arms(0.5), {"name": "x", "share": 0.5}]))
    with pytest.raises(UserError, match="does not have: challenger"):
        user_table(settings.experiments[0], [], read_exposures(path), read_events(files / "events"))
    with pytest.raises(UserError, match="exposures lack the columns experiment, arm"):
        read_exposures(files / "events" / "part.parquet")


def shoppers(n=4000, lift=0.0, seed=0, harm=0.0):
    """A table of users whose clicks and purchases the treatment moves."""
    rng = np.random.default_rng(seed)
    treated = rng.random(n) < 0.5
    taste = rng.gamma(2, 0.5, n)
    shown, before = 1 + rng.poisson(8 * taste), 1 + rng.poisson(8 * taste)
    rate = 0.1 * (0.5 + taste / 2)
    clicks = rng.binomial(shown, np.minimum(rate * (1 + lift * treated), 1))
    bought = rng.random(n) < 0.2
    return pl.DataFrame({
        "user_id": np.arange(n).astype(str), "arm": np.where(treated, "challenger", "champion"),
        "arrived": [START + int(h) * HOUR for h in np.sort(rng.integers(0, 480, n))],
        "click_rate": clicks.astype(float), "click_rate.per": shown.astype(float),
        "click_rate.before": rng.binomial(before, np.minimum(rate, 1)).astype(float),
        "click_rate.per_before": before.astype(float),
        "orders": bought.astype(float), "revenue": bought * rng.gamma(2, 20, n),
        "searches": rng.poisson(2 * (1 + harm * treated)).astype(float),
        "segment.country": rng.choice(["DE", "AT"], n),
    })  # fmt: skip


def judged(tmp_path, rows, **changes):
    path = tmp_path / "users.parquet"
    rows.write_parquet(path)
    settings = shop(home(**(HALVES | {"segments": ["country"]} | changes)))
    experiment = settings.experiments[0]
    metrics = [settings.metric(name) for name in experiment.metrics]
    return analyse(experiment, settings, read_user_table(path, experiment, metrics))


@pytest.mark.parametrize(
    ("world", "told", "state"),
    [
        ({"lift": 0.3}, "challenger is better: click_rate changes by", "better"),
        ({"lift": -0.3}, "challenger is worse", "worse"),
        ({"lift": 0.3, "harm": 0.3}, "but searches suffers", "better"),
        ({"harm": 0.3}, "Searches suffers: stop it", "open"),
        ({}, "Open: with challenger click_rate changes by", "open"),
        ({"n": 40_000}, "makes no difference that matters", "open"),
    ],
)
def test_the_verdict_says_what_to_do(tmp_path, world, told, state):
    found = judged(tmp_path, shoppers(**world))
    (sentence,) = verdict(found)
    assert told in sentence
    primary = found.of("primary")[0]
    assert primary.state == state
    assert primary.cuped is not None and primary.cuped.variance_cut > 0.02
    assert [c.role for c in found.comparisons] == ["primary", "secondary", "secondary", "guardrail"]


@pytest.mark.parametrize(("buyers", "state"), [(2, "open"), (150, "better")])
def test_a_control_without_anything_has_no_lift(tmp_path, buyers, state):
    rows = shoppers(n=2000)
    treated = (pl.col("arm") == "challenger").cum_sum().is_between(1, buyers)
    rows = rows.with_columns(orders=((pl.col("arm") == "challenger") & treated).cast(pl.Float64))
    found = judged(tmp_path, rows, primary="orders", secondary=[], guardrails=[])
    assert found.of("primary")[0].state == state
    (sentence,) = verdict(found)
    assert "nan" not in sentence and "nothing in the control" in sentence
    assert "both possible" not in sentence


def test_less_can_be_better(tmp_path):
    changes = {"primary": "searches", "guardrails": []}
    found = judged(tmp_path, shoppers(harm=-0.2), **changes)
    assert found.sign == -1 and found.of("primary")[0].state == "better"
    assert "challenger is better: searches changes by -" in verdict(found)[0]
    assert "worse" in verdict(judged(tmp_path, shoppers(harm=0.2), **changes))[0]


def test_a_sample_ratio_mismatch_stops_everything(tmp_path):
    rows = shoppers(lift=0.3)
    lost = (
        (pl.col("arm") == "challenger")
        & (pl.col("orders") == 0)
        & (pl.int_range(pl.len()) % 3 == 0)
    )
    found = judged(tmp_path, rows.filter(~lost))
    (sentence,) = verdict(found)
    assert sentence.startswith("Not to be trusted: arms hold champion")


def test_a_fixed_analysis_is_not_read_early(tmp_path):
    rows = shoppers(lift=0.3)
    early = judged(tmp_path, rows, analysis="fixed", end="2026-03-01")
    assert verdict(early)[0].startswith("Too early: this analysis judges once, on 2026-03-01")
    over = judged(tmp_path, rows, analysis="fixed", end="2026-01-25")
    assert verdict(over)[0].startswith("challenger is better")


@pytest.mark.long
def test_several_arms_are_corrected(tmp_path):
    rows = shoppers(n=6000, lift=0.1)
    third = (pl.col("arm") == "challenger") & (pl.int_range(pl.len()) % 2 == 0)
    rows = rows.with_columns(arm=pl.when(third).then(pl.lit("third")).otherwise("arm"))
    found = judged(tmp_path, rows, arms=arms(0.5, 0.25, 0.25))
    primary = found.of("primary")
    assert [c.arm for c in primary] == ["challenger", "third"]
    raw = sorted(c.absolute.p_value for c in primary)
    assert sorted(c.p_adjusted for c in primary) == pytest.approx(
        [min(1, 2 * raw[0]), min(1, max(2 * raw[0], raw[1]))]
    )
    alone = judged(tmp_path, rows.filter(pl.col("arm") != "third"), arms=arms(0.5, 0.25))
    width = [f.of("primary")[0].relative for f in (found, alone)]
    assert width[0].high - width[0].low > width[1].high - width[1].low


def test_segments_that_differ_are_found(tmp_path):
    rows = shoppers(n=12_000, lift=0.4, seed=3)
    plain = shoppers(n=12_000, lift=0.0, seed=3)
    mixed = pl.concat([
        rows.filter(pl.col("segment.country") == "DE"),
        plain.filter(pl.col("segment.country") == "AT"),
    ])  # fmt: skip
    found = judged(tmp_path, mixed)
    assert found.heterogeneity["country"]["challenger"] < 0.01
    by_value = {segment.value: segment for segment in found.segments}
    assert by_value["DE"].p_adjusted < 0.05 < by_value["AT"].p_adjusted
    same = judged(tmp_path, rows)
    assert same.heterogeneity["country"]["challenger"] > 0.01


def test_bad_user_tables_are_named(tmp_path):
    rows = shoppers(100)
    for frame, told in (
        (rows.drop("click_rate.per"), "users lack the column click_rate.per"),
        (pl.concat([rows, rows[:3]]), "3 rows are of a user that is there already"),
        (rows.with_columns(orders=None), "100 users have no number in orders"),
        (rows.with_columns(orders=pl.lit("x")), "not all numbers"),
        (rows.with_columns(arm=pl.lit("champion")), "fewer than two users in challenger"),
    ):
        with pytest.raises(UserError, match=told):
            judged(tmp_path, frame)


def test_a_users_table_may_tell_moments_without_a_zone_and_nothing_else(tmp_path):
    rows = shoppers(200)
    fixed = {"analysis": "fixed", "end": START + dt.timedelta(days=40)}
    expected = judged(tmp_path, rows, **fixed)
    for column in (
        pl.col("arrived").dt.replace_time_zone(None),
        pl.col("arrived").dt.convert_time_zone("Europe/Berlin"),
    ):
        found = judged(tmp_path, rows.with_columns(column), **fixed)
        assert found.early and found.as_of == expected.as_of
        assert [c.relative for c in found.comparisons] == [c.relative for c in expected.comparisons]
    with pytest.raises(UserError, match="arrived holds String"):
        judged(tmp_path, rows.with_columns(pl.col("arrived").cast(pl.String)), **fixed)


def test_the_report_is_a_page_and_json(tmp_path):
    found = judged(tmp_path, shoppers(lift=0.3))
    write_experiment_report(found, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert verdict(found)[0] in page and page.count("<svg") == 3
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["comparisons"][0]["state"] == "better"
    assert len(content["moments"]) > 10


@pytest.mark.parametrize("analysis", ["fixed", "sequential"])
def test_planned_effects_are_found_with_the_planned_power(analysis):
    more = {"end": "2026-03-01"} if analysis == "fixed" else {}
    experiment = shop(home(**HALVES, minimum_effect=0.2, analysis=analysis, **more)).experiments[0]
    # gamma of shape 1/2: the deviation is √2 of the mean; the lift scales the treatment's too
    needed = users_needed(experiment, 0.2 / (np.sqrt(2) * np.sqrt((1 + 1.2**2) / 2)))
    days = 10
    trials = arriving(1000, days, needed // (2 * days), lift=0.2, seed=8)
    at_end = trials.p_values(analysis, tuned_for=needed, last=True)
    power = float((at_end <= 0.05).mean())
    assert power == pytest.approx(0.8, abs=3 * np.sqrt(0.16 / 1000) + 0.01)


def test_unequal_shares_and_more_arms_cost_users():
    def needed(*shares, **more):
        return users_needed(
            shop(home(**(HALVES | {"arms": arms(*shares)} | more))).experiments[0], 0.1
        )

    fixed = {"analysis": "fixed", "end": "2026-03-01"}
    # z² (1/p + 1/q) over the effect's square
    assert needed(0.5, 0.5, **fixed) == pytest.approx((1.96 + 0.8416) ** 2 * 4 / 0.01, rel=0.01)
    assert needed(0.9, 0.1, **fixed) > 2.5 * needed(0.5, 0.5, **fixed)
    assert needed(0.3, 0.3, 0.3, **fixed) > 1.5 * needed(0.5, 0.5, **fixed)
    assert needed(0.5, 0.5) > needed(0.5, 0.5, **fixed)


@pytest.mark.parametrize("more", [{}, {"analysis": "fixed", "end": "2026-03-01"}])
def test_effects_that_anybody_or_nobody_finds(more):
    experiment = shop(home(**(HALVES | more))).experiments[0]
    assert users_needed(experiment, 20.0) == 10
    with pytest.raises(UserError, match="too small for any shop"):
        users_needed(experiment, 1e-9)


def test_a_plan_counts_days_by_how_users_come():
    experiment = shop(home(**(HALVES | {"arms": arms(0.25, 0.25)}))).experiments[0]
    found = plan(experiment, Baseline(1.0, 1.0, 0.6, (1000.0,) * 7))
    assert found.days == -(-found.users // 500)
    waits = experiment.model_copy(update={"window_days": 6.5})
    assert plan(waits, Baseline(1.0, 1.0, 0.6, (1000.0,) * 7)).days == found.days + 7
    assert found.users == pytest.approx(found.users_without_cuped * 0.64, rel=0.05)
    days, users, lift = found.detectable[0]
    assert (days, users) == (7, 3500) and lift > 0.05
    with pytest.raises(UserError, match="an effect relative to that has no size"):
        plan(experiment, Baseline(0.0, 0.0))


def test_the_commands(files, capsys):
    path = files / "shop.yaml"
    content = {"metrics": METRICS, "experiments": [home(**HALVES)]}
    path.write_text(yaml.safe_dump(content))
    check(path)
    check(path, path)
    assert "nothing changed" in capsys.readouterr().out
    workspace = Workspace(files)
    shoppers(2000, lift=0.3).write_parquet(files / "users.parquet")
    run_analysis(path, workspace, AnalyseOptions(users=files / "users.parquet"))
    folder = files / "experiments" / "home_ranking"
    assert (folder / "report.html").is_file() and (folder / "manifest.json").is_file()
    told = " ".join(capsys.readouterr().out.split())
    assert "challenger is better" in told
    run_plan(path, workspace, PlanOptions(mean=0.1, deviation=0.3, users_per_day=500))
    assert "users are needed" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UserError, match="are of a --mean"):
        run_plan(path, workspace, PlanOptions(deviation=0.3))
    with pytest.raises(UserError, match="says what --events would"):
        run_plan(path, workspace, PlanOptions(mean=0.1, deviation=0.3, events=files / "events"))
    with pytest.raises(UserError, match="give --exposures"):
        run_analysis(path, workspace, AnalyseOptions())
    with pytest.raises(UserError, match="one of --policy"):
        run_off_policy(path, workspace)


def test_a_baseline_is_learnt_from_a_log(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for user in range(120):
        rate = rng.gamma(2, 2)
        for hour in np.cumsum(rng.exponential(24 / rate, 400)):
            if hour > 24 * 50:
                break
            rows.append(("purchase" if rng.random() < 0.1 else "click", f"u{user}", hour, 1.0, 1.0))
    events_of(rows).write_parquet(tmp_path / "events.parquet")
    settings = shop(home(**HALVES, primary="searches", guardrails=[]))
    metric = settings.metric("revenue").model_copy(update={"winsorise": None})
    found = baseline_of(
        settings.experiments[0], metric, read_events(tmp_path / "events.parquet"), days=20
    )
    assert found.mean == pytest.approx(0.1 * 4 * 20, rel=0.2)
    assert found.correlation > 0.5  # tastes last
    assert sum(found.arrivals) <= 120 and found.arrivals[0] > found.arrivals[-1]
    told = [home(**HALVES, primary="orders", secondary=[], guardrails=[])]
    content = {"metrics": METRICS, "experiments": told}
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(content))
    many, few = (
        run_plan(
            tmp_path / "e.yaml",
            Workspace(tmp_path),
            PlanOptions(events=tmp_path / "events.parquet", days=20, users_per_day=daily),
        )
        for daily in (20_000, 200)
    )
    assert many.users == few.users and many.days < few.days
    log = read_events(tmp_path / "events.parquet")
    short = settings.experiments[0].model_copy(update={"window_days": 2.0})
    windowed = baseline_of(short, metric, log, days=20)
    assert windowed.mean == pytest.approx(0.1 * 4 * 2, rel=0.3)
    assert windowed.arrivals == found.arrivals
    never = settings.experiments[0].model_copy(update={"window_days": 21.0})
    with pytest.raises(UserError, match=r"no whole window of 21\.0 days"):
        baseline_of(never, metric, log, days=20)
    with pytest.raises(UserError, match="shorter than 60 days"):
        baseline_of(
            settings.experiments[0], metric, read_events(tmp_path / "events.parquet"), days=60
        )


def test_a_mistake_on_the_command_line_is_a_message(tmp_path):
    content = {"metrics": METRICS, "experiments": [home(arms=arms(0.7, 0.7))]}
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(content))
    done = CliRunner().invoke(app, ["experiment", "check", str(tmp_path / "e.yaml")])
    assert done.exit_code == 2
    assert "shares exceed one" in done.stderr and "Traceback" not in done.stderr
    assert "at least 1 item" not in done.stderr  # of experiments there was one, and it is wrong
    for words in (["experiment", "check"], ["simulate", "--config"]):
        lost = CliRunner().invoke(app, [*words, str(tmp_path / "none.yaml")])
        assert lost.exit_code == 2 and "does not exist" in lost.stderr
    lost = CliRunner().invoke(
        app, ["experiment", "off-policy", str(tmp_path / "none"), "--target", "x"]
    )
    assert lost.exit_code == 2 and "no such file" in lost.stderr
