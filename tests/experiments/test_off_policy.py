"""Values of policies from another policy's log: on a simulator with known truth, and real data."""

import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from raysys.errors import UserError
from raysys.experiments.bandits import Thompson
from raysys.experiments.logged import (
    PolicyColumn,
    logged_rows,
    read_log,
    read_policy,
    read_served,
)
from raysys.experiments.off_policy import (
    LoggedRows,
    OffPolicySettings,
    evaluate_policy,
    warnings,
)
from raysys.experiments.off_policy_report import conclusion, write_off_policy_report
from raysys.stages.experiment import run_off_policy
from raysys.storage import Workspace

DATA = Path(os.environ.get("RAYSYS_DATA") or Path(__file__).parents[3] / "shared" / "data")
QUICK = OffPolicySettings(resamples=200)


def world(seed=0, n=20_000, items=8, places=3):
    """Rates by item, factors by place, a logging and another policy, a log, and the truth."""
    rng = np.random.default_rng(seed)
    rate, factor = rng.uniform(0.05, 0.4, items), np.array([1.0, 0.6, 0.4])[:places]
    logging = rng.dirichlet(np.full(items, 2.0), places)
    other = rng.dirichlet(np.full(items, 1.0), places)
    place = rng.integers(0, places, n)
    drawn = (rng.random(n)[:, None] < logging.cumsum(1)[place]).argmax(1)
    reward = rng.random(n) < rate[drawn] * factor[place]
    log = pl.DataFrame({
        "item_id": drawn, "position": place + 1, "reward": reward.astype(float),
        "propensity": logging[place, drawn], "target": other[place, drawn],
        "user_id": rng.integers(0, n // 3, n),
    })  # fmt: skip
    at, item = np.indices(other.shape)
    policy = pl.DataFrame(
        {"position": at.ravel() + 1, "item_id": item.ravel(), "probability": other.ravel()}
    )
    truth = float((other * rate * factor[:, None]).sum(1).mean())
    return log, policy, truth


def test_every_unbiased_estimate_covers_the_truth():
    """95% intervals, 50 worlds: all estimators but those that admit a bias."""
    covered = {name: [] for name in ("ips", "snips", "dr")}
    normal = []
    for seed in range(50):
        log, policy, truth = world(seed, n=1500)
        found = evaluate_policy(logged_rows(log, policy), [*covered], QUICK)
        for name, hits in covered.items():
            hits.append(found[name].interval.low <= truth <= found[name].interval.high)
        normal.append(found["dr"].normal.low <= truth <= found["dr"].normal.high)
    for hits in (*covered.values(), normal):
        assert np.mean(hits) >= 0.86  # 95% less three standard errors


def test_the_model_calms_and_errs_alone():
    log, policy, truth = world(1)
    found = evaluate_policy(logged_rows(log, policy), settings=QUICK)

    def width(name):
        return found[name].interval.high - found[name].interval.low

    assert width("dr") < width("snips") < width("ips")
    assert found["ips"].mean_weight == pytest.approx(1, abs=0.05)
    assert found["dr"].gain.value == pytest.approx(
        found["dr"].interval.value - log["reward"].mean()
    )
    assert all(abs(found[name].interval.value - truth) < 0.02 for name in ("ips", "snips", "dr"))


def test_the_same_policy_is_worth_what_was_logged():
    log, _, _ = world(2)
    rows = logged_rows(log.with_columns(target="propensity"), PolicyColumn("target"))
    for value in evaluate_policy(rows, settings=QUICK).values():
        assert value.interval.value == pytest.approx(log["reward"].mean())
        assert value.gain.high - value.gain.low < 1e-6
        assert value.effective == pytest.approx(len(log))
    assert warnings(rows) == []


def test_estimates_by_hand():
    rows = LoggedRows(
        reward=np.array([1.0, 0, 1, 0]),
        propensity=np.array([0.5, 0.5, 0.1, 0.9]),
        target=np.array([0.25, 0.75, 1.0, 0.0]),
        cluster=np.arange(4),
        predicted=np.array([0.5, 0.25, 0.5, 0.25]),
        expected=np.full(4, 0.3),
    )
    found = evaluate_policy(rows, settings=OffPolicySettings(clip=2.0, resamples=50))
    assert found["ips"].interval.value == pytest.approx((0.5 + 10) / 4)
    assert found["snips"].interval.value == pytest.approx(10.5 / 12)
    assert found["clipped"].interval.value == pytest.approx((0.5 + 2) / 4)
    assert found["dm"].interval.value == pytest.approx(0.3)
    assert found["dr"].interval.value == pytest.approx(0.3 + (0.25 - 0.375 + 5) / 4)
    assert found["ips"].effective == pytest.approx(144 / (0.25 + 2.25 + 100))
    assert found["ips"].largest == 10


def test_users_are_drawn_with_all_their_rows():
    """Ten copies of each row under one user say no more than one."""
    log, policy, _ = world(3, n=1500)
    log = log.with_columns(user_id=pl.int_range(pl.len()))
    copies = pl.concat([log] * 10)
    one, ten = (
        evaluate_policy(logged_rows(frame, policy), ["snips"], OffPolicySettings())["snips"]
        for frame in (log, copies)
    )
    for kind in ("interval", "normal"):
        a, b = getattr(one, kind), getattr(ten, kind)
        assert b.high - b.low == pytest.approx(a.high - a.low, rel=0.1)


def test_a_log_of_one_user_tells_no_interval(tmp_path):
    log, policy, _ = world(4, n=300)
    rows = logged_rows(log.with_columns(user_id=pl.lit(1)), policy)
    found = evaluate_policy(rows, settings=QUICK)
    said = conclusion(found)
    assert "cannot tell" in said and "no interval" in said and "nan" not in said
    write_off_policy_report("one", rows, found, [], tmp_path)
    assert "nan" not in (tmp_path / "report.html").read_text().lower()
    values = json.loads((tmp_path / "report.json").read_text())["values"]
    assert values["dr"]["interval"]["low"] is None


def test_rows_of_nobody_belong_to_their_requests():
    """As without the column: strangers are not one user."""
    log, policy, _ = world(3, n=1500)
    log = log.drop("user_id").with_columns(request_id=pl.int_range(pl.len()) // 2)
    half = pl.when(pl.int_range(pl.len()) % 4 < 2).then(pl.lit("u")).otherwise(None)
    known = pl.concat_str(half, pl.col("request_id").cast(pl.String))  # null of half of them
    for frame in (log, log.with_columns(user_id=known), log.with_columns(user_id=pl.lit(None))):
        cluster = logged_rows(frame, policy).cluster
        sizes = np.unique(cluster, return_counts=True)[1]
        assert (sizes == 2).all() and len(sizes) == 750


def test_a_ranking_is_judged_by_the_slots_where_it_agrees():
    slots = {"request_id": ["a", "a", "b", "b"], "position": [1, 2, 1, 2]}
    log = pl.DataFrame(
        {**slots, "item_id": list("xyyx"), "reward": [1, 0, 0, 1], "propensity": [0.5] * 4}
    )
    policy = pl.DataFrame({**slots, "item_id": list("xzxy"), "probability": [1.0] * 4})
    rows = logged_rows(log, policy)
    assert rows.target.tolist() == [1, 0, 0, 0]
    assert evaluate_policy(rows, ["ips"], QUICK)["ips"].interval.value == 0.5


def test_what_the_log_never_shows_is_noticed():
    log, policy, _ = world(4)
    halved = policy.with_columns(pl.col("probability") / 2, pl.col("item_id").cast(pl.String))
    strange = halved.with_columns(pl.format("new {}", "item_id").alias("item_id"))
    told = warnings(logged_rows(log, pl.concat([halved, strange])))
    assert "Weights have the mean 0.5" in told[0]
    rare = log.with_columns(target=(pl.int_range(pl.len()) < 20).cast(pl.Float64))
    assert any(
        "hardly ever logged" in each for each in warnings(logged_rows(rare, PolicyColumn("target")))
    )


def test_recorded_answers_and_events_are_a_log(tmp_path, capsys):
    """As a deployment writes them: propensities given the items above, feedback by request."""
    rng = np.random.default_rng(0)
    bandit = Thompson([f"i{n}" for n in range(6)], floor=0.05)
    bandit.update(np.arange(6), np.linspace(0.1, 0.6, 6))
    rate = np.array([0.05, 0.3, 0.1, 0.2, 0.15, 0.4])
    lists, events = [], []
    for number in range(800):
        choice = bandit.choose(3)
        names = [f"i{arm}" for arm in choice.arms]
        user = f"u{number % 300}" if number % 2 else None
        lists.append((f"r{number}", user, f"s{number}", names, choice.propensities.tolist()))
        hit = rng.random(3) < rate[choice.arms]
        events += [("click", f"r{number}", name) for name, h in zip(names, hit, strict=True) if h]
    columns = ("request_id", "user_id", "session_id", "item_ids", "propensities")
    (tmp_path / "date=2026-01-05").mkdir()
    pl.DataFrame(lists, schema=columns, orient="row").write_parquet(
        tmp_path / "date=2026-01-05" / "a.parquet"
    )
    events.append(events[0])  # twice is once
    done = pl.DataFrame(events, schema=("event_type", "request_id", "item_id"), orient="row")
    done.write_parquet(tmp_path / "e.parquet")
    log = read_served(tmp_path / "date=2026-01-05", tmp_path / "e.parquet", "click")
    assert len(log) == 2400 and log["position"].unique().sort().to_list() == [1, 2, 3]
    assert log["reward"].sum() == len(events) - 1
    even = pl.DataFrame({"item_id": [f"i{n}" for n in range(6)], "probability": [1 / 6] * 6})
    first = log.filter(pl.col("position") == 1)  # a first slot has nothing above it
    for value in evaluate_policy(logged_rows(first, even), ["snips", "dr"], QUICK).values():
        assert value.interval.low <= rate.mean() <= value.interval.high
    even.write_parquet(tmp_path / "even.parquet")
    run_off_policy(
        tmp_path / "date=2026-01-05", Workspace(tmp_path),
        policy=tmp_path / "even.parquet", events=tmp_path / "e.parquet",
    )  # fmt: skip
    assert "logged: 0." in capsys.readouterr().out
    assert "dr" in json.loads((tmp_path / "off_policy" / "report.json").read_text())["values"]
    with pytest.raises(UserError, match="no cart answers any of these lists"):
        read_served(tmp_path / "date=2026-01-05", tmp_path / "e.parquet", "cart")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"propensity": 0.0}, "20,000 of 20,000 propensities are not in"),
        ({"propensity": None}, "empty or infinite values in propensity"),
        ({"reward": "yes"}, "not all numbers: reward"),
        ({"position": -1}, "a position below 0"),
    ],
)
def test_bad_logs_are_named(tmp_path, change, told):
    log, policy, _ = world()
    log.with_columns(**{k: pl.lit(v) for k, v in change.items()}).write_parquet(
        tmp_path / "l.parquet"
    )
    with pytest.raises(UserError, match=told):
        evaluate_policy(logged_rows(read_log(tmp_path / "l.parquet"), policy), settings=QUICK)


def test_bad_policies_are_named(tmp_path):
    _, policy, _ = world()
    path = tmp_path / "p.parquet"
    for frame, told in (
        (policy.with_columns(pl.col("probability") * 1.5), "add up to 1.5"),
        (pl.concat([policy, policy]), "rows with the same position, item_id"),
        (policy.drop("item_id"), "no column 'item_id'"),
    ):
        frame.write_parquet(path)
        with pytest.raises(UserError, match=told):
            read_policy(path)


@pytest.fixture(scope="module")
def open_bandit():
    folder = DATA / "bandit"
    if not folder.is_dir():
        pytest.skip(f"no Open Bandit data: set RAYSYS_DATA (looked in {DATA})")
    return {
        name: read_log(folder / f"open_bandit_{name}_all.csv.gz").select(
            "item_id", "position", "reward", "propensity"
        )
        for name in ("random", "bts")
    }


@pytest.mark.parametrize(("logged", "judged"), [("random", "bts"), ("bts", "random")])
def test_open_bandit_one_policy_from_the_others_log(open_bandit, logged, judged):
    counts = open_bandit[judged].group_by("position", "item_id").len()
    total = pl.col("len").sum().over("position")
    policy = counts.select("position", "item_id", probability=pl.col("len") / total)
    if judged == "random":  # its propensities say so: the same for all 80 items
        policy = policy.with_columns(probability=pl.lit(1 / 80))
    rows = logged_rows(open_bandit[logged], policy)
    truth = float(open_bandit[judged]["reward"].mean())
    for name, value in evaluate_policy(rows, settings=QUICK).items():
        if name != "dm":
            assert value.interval.low <= truth <= value.interval.high, name
            width = value.interval.high - value.interval.low
            assert width > 0.3 * truth, name  # some forty clicks cannot say more
    assert "rows have a reward" in warnings(rows)[0]
