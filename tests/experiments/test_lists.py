"""Experiments that mix arms within users: interleaving and bandits, by what came of each list."""

from __future__ import annotations

import datetime as dt
import html
import itertools
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.errors import UserError
from raysys.experiments import Experiment
from raysys.experiments.allocation import Allocation, allocate, even
from raysys.experiments.arm_values import found_so_far, value_arms
from raysys.experiments.drafting import BOTH, team_draft
from raysys.experiments.interleaving import judge_interleaved
from raysys.experiments.lists_report import judge_lists, write_lists_report
from tests.experiments.settings import START, arms, one, shop

LISTS = {"primary": "clicks", "secondary": [], "guardrails": []}
CLICKS = {"name": "clicks", "events": ["click"], "value": "any"}
METRICS = [CLICKS, {"name": "revenue", "events": ["purchase"], "value": "revenue"}]
NOW = int((START + dt.timedelta(days=30)).timestamp() * 1000)


def mixed(**changes: Any) -> tuple[Experiment, Any]:
    from tests.experiments.settings import home

    settings = shop(home(**{**LISTS, **changes}), metrics=METRICS)
    return settings.experiments[0], settings.metric("clicks")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"interleave": True, "arms": arms(0.1, 0.1, 0.1)}, "3 arms, and a list is drafted"),
        ({"interleave": True, "arms": arms(0.1, 0.2)}, "give all arms the same share"),
        ({"bandit": "thompson", "arms": arms(0.1, 0.2)}, "the bandit weighs the arms"),
        ({"interleave": True, "bandit": "thompson"}, "one of them"),
        ({"bandit": {"floor": 0.4}, "arms": arms(0.1, 0.1, 0.1)}, r"floor 0\.4 of each arm"),
        ({"bandit": {"context": ["known"]}}, "only `kind: linucb` reads"),
        ({"bandit": "linucb", "segments": ["known"]}, "judged by its primary"),
        ({"interleave": True, "guardrails": ["revenue"]}, "judged by its primary"),
        ({"interleave": True, "primary": "revenue"}, "no count of events"),
    ],
)
def test_what_makes_no_sense_is_named(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        mixed(**changes)


def test_a_bandit_needs_no_effect_and_two_interleavings_exclude_each_other() -> None:
    from tests.experiments.settings import home

    content = {**home(**LISTS, bandit="thompson")}
    del content["minimum_effect"]
    assert shop(content, metrics=METRICS).experiments[0].bandit is not None
    both = [home(**LISTS, interleave=True, name=name) for name in ("one", "two")]
    for each in both:
        each["arms"] = [{"name": "a", "share": 0.1}, {"name": "b", "share": 0.1}]
    with pytest.raises(UserError, match="both decide which lists are drafted"):
        shop(*both, metrics=METRICS)


def exposure(n: int, arm: str, user: str, p: float = 0.5, **more: Any) -> dict[str, Any]:
    return {
        "request_id": f"r{n}", "experiment": "home_ranking", "arm": arm, "user_id": user,
        "timestamp": START + dt.timedelta(minutes=n), "propensity": p, "forced": False,
        "attributes": [], "item_ids": None, "teams": None, **more,
    }  # fmt: skip


def frames(
    shown: list[dict[str, Any]], clicks: list[tuple[str, str]]
) -> tuple[pl.LazyFrame, pl.LazyFrame]:
    kinds = {
        "timestamp": pl.Datetime("ms", "UTC"), "attributes": pl.Map(pl.String, pl.String),
        "item_ids": pl.List(pl.String), "teams": pl.List(pl.Int8),
    }  # fmt: skip
    told = [
        {**row, "attributes": [{"key": k, "value": v} for k, v in dict(row["attributes"]).items()]}
        for row in shown
    ]
    exposures = pl.LazyFrame(told, schema_overrides=kinds)
    rows = [{"event_type": "click", "request_id": r, "item_id": i} for r, i in clicks]
    schema = {"event_type": pl.String, "request_id": pl.String, "item_id": pl.String}
    return exposures, pl.LazyFrame(rows, schema=schema)


def drafted_lists(likes: float, lists: int = 400) -> tuple[pl.LazyFrame, pl.LazyFrame]:
    """Lists of two rankings without a common item; a click is of the second's with `likes`."""
    rng = np.random.default_rng(5)
    shown, clicks = [], []
    for n in range(lists):
        first, second = [f"a{m}" for m in range(5)], [f"b{m}" for m in range(5)]
        items, teams = team_draft(first, second, 4, salt="t", request_id=f"r{n}")
        user = f"u{n // 2}"
        more = {"item_ids": items, "teams": teams.tolist()}
        shown.append(exposure(n, BOTH, user, 0.2, **more))
        wanted = int(rng.random() < likes)
        clicks.append((f"r{n}", items[int(np.flatnonzero(teams == wanted)[0])]))
    return frames(shown, clicks)


def test_the_arm_that_is_clicked_more_is_preferred() -> None:
    experiment, metric = mixed(interleave=True)
    found = judge_interleaved(experiment, metric, *drafted_lists(0.7))
    assert found.low > 0 and found.lists == found.requests == 400 and found.users == 200
    assert found.sentence.startswith("challenger is preferred")
    assert found.lead == pytest.approx(0.4, abs=0.1)
    other = judge_interleaved(experiment, metric, *drafted_lists(0.5))
    assert other.low < 0 < other.high and "Neither" in other.sentence
    few = judge_interleaved(experiment, metric, *drafted_lists(0.5, lists=8))
    assert -1 <= few.low < few.lead < few.high <= 1


@pytest.mark.parametrize("analysis", ["fixed", "sequential"])
def test_users_who_all_say_the_same_are_believed_once_they_are_many(analysis: str) -> None:
    more = {"analysis": analysis, "end": "2026-12-01"}
    experiment, metric = mixed(interleave=True, **more)
    few = judge_interleaved(experiment, metric, *drafted_lists(1.0, lists=6))
    assert few.lead == 1 and few.low < 0 and few.p_value > 0.05
    many = judge_interleaved(experiment, metric, *drafted_lists(1.0, lists=100))
    assert 0.5 < many.low < many.lead == many.high == 1 and many.p_value < 1e-6
    other = judge_interleaved(experiment, metric, *drafted_lists(0.0, lists=100))
    assert (other.low, other.high) == (-1.0, -many.low)


def test_testers_and_lists_of_one_arm_do_not_count() -> None:
    experiment, metric = mixed(interleave=True)
    shown, clicks = drafted_lists(0.7, lists=40)
    rows = shown.collect()
    alone = rows.head(1).with_columns(
        request_id=pl.lit("alone"), arm=pl.lit("champion"),
        item_ids=pl.lit(None, pl.List(pl.String)), teams=pl.lit(None, pl.List(pl.Int8)),
    )  # fmt: skip
    tester = rows.head(1).with_columns(request_id=pl.lit("tester"), forced=pl.lit(True))
    more = pl.concat([rows, alone, tester, rows.head(3)]).lazy()  # and some are there twice
    plain, beside = (judge_interleaved(experiment, metric, each, clicks) for each in (shown, more))
    assert plain == beside
    with pytest.raises(UserError, match="was drafted between"):
        judge_interleaved(experiment, metric, alone.lazy(), clicks)


def simulated(
    experiment: Experiment, metric: Any, rates: dict[str, float], seed: int, steps: int = 8
) -> tuple[pl.LazyFrame, pl.LazyFrame, Allocation]:
    """A bandit that looks `steps` times at 100 lists of 50 users."""
    rng = np.random.default_rng(seed)
    parts: list[pl.DataFrame] = []
    clicks: list[tuple[str, str]] = []
    weights = even(experiment)
    for step in range(steps):
        shown = []
        for m in range(100):
            n, user = step * 100 + m, f"u{m % 50}"
            known = {"known": "true" if m % 2 else "false"}
            drawn = weights.draw(experiment, user, known)
            arm = drawn.arm.name
            shown.append(exposure(n, arm, user, drawn.propensity, attributes=known))
            if rng.random() < rates.get(f"{arm} {known['known']}", rates.get(arm, 0.0)):
                clicks.append((f"r{n}", "i"))
        exposures, answers = frames(shown, clicks)
        parts.append(exposures.collect())
        every = pl.concat(parts).lazy()
        weights = allocate(experiment, metric, every, answers, NOW, step + 1)
    return every, answers, weights


def test_thompson_moves_users_to_what_earns_and_keeps_its_floor() -> None:
    experiment, metric = mixed(bandit={"kind": "thompson", "floor": 0.1})
    exposures, answers, weights = simulated(
        experiment, metric, {"champion": 0.1, "challenger": 0.4}, seed=3
    )
    assert weights.otherwise == pytest.approx((0.1, 0.9), abs=0.01)
    assert sum(weights.lists) == 800 and 0 < sum(weights.rewards) < 400
    assert weights == allocate(experiment, metric, exposures, answers, NOW, 8)  # of all so far
    values = value_arms(experiment, metric, exposures, answers)
    assert [each.arm for each in values] == ["champion", "challenger"]
    assert values[0].low < 0.1 < values[0].high and values[1].low < 0.4 < values[1].high
    assert found_so_far(values).startswith("challenger earns most: ")


def test_linucb_tells_contexts_apart() -> None:
    experiment, metric = mixed(bandit={"kind": "linucb", "context": ["known"], "floor": 0.1})
    rates = {
        "champion true": 0.5, "champion false": 0.05,
        "challenger true": 0.05, "challenger false": 0.5,
    }  # fmt: skip
    *_, weights = simulated(experiment, metric, rates, seed=4)
    assert weights.weights({"known": True}) == pytest.approx((0.9, 0.1))
    assert weights.weights({"known": "false"}) == pytest.approx((0.1, 0.9))
    assert sum(weights.weights({"known": "never seen"})) == pytest.approx(1)


@pytest.mark.long
def test_values_cover_the_truth_whatever_the_bandit_drew() -> None:
    experiment, metric = mixed(bandit="thompson")
    held = []
    for seed in range(30):
        exposures, answers, _ = simulated(
            experiment, metric, {"champion": 0.2, "challenger": 0.3}, seed=seed, steps=4
        )
        for each, truth in zip(
            value_arms(experiment, metric, exposures, answers), (0.2, 0.3), strict=True
        ):
            held.append(each.low <= truth <= each.high)
    assert np.mean(held) > 0.88  # 95% are meant; of 60, and few lists of an arm that lost


def test_a_few_users_with_most_lists_do_not_decide() -> None:
    """Of equal rankings, where one user's taste would be the pooled lead and its own error."""
    experiment, metric = mixed(interleave=True, analysis="fixed", end="2026-12-01")
    rng, found = np.random.default_rng(1), []
    for run in range(60):
        shown, clicks, n = [], [], 0
        for user in range(30):
            taste = rng.beta(0.3, 0.3)
            for _ in range(min(100, int(1 + rng.pareto(1.0)))):
                items, teams = team_draft(
                    ["a", "b"], ["c", "d"], 4, salt=str(run), request_id=f"r{n}"
                )
                more = {"item_ids": items, "teams": teams.tolist()}
                shown.append(exposure(n, BOTH, f"u{user}", 0.2, **more))
                wanted = int(rng.random() < taste)
                clicks.append((f"r{n}", items[int(np.flatnonzero(teams == wanted)[0])]))
                n += 1
        judged = judge_interleaved(experiment, metric, *frames(shown, clicks))
        found.append(judged.low > 0 or judged.high < 0)
    assert np.mean(found) < 0.15  # 5% are meant, of 60


def test_an_arm_without_a_reward_is_not_sure_to_earn_nothing() -> None:
    experiment, metric = mixed(bandit="thompson")
    shown = [exposure(n, "champion", f"u{n}", 0.95) for n in range(100)]
    shown += [exposure(100 + n, "challenger", f"v{n}", 0.05) for n in range(3)]
    clicks = [(f"r{n}", "i") for n in range(5)]
    values = value_arms(experiment, metric, *frames(shown, clicks))
    assert values[1].value == 0 and values[1].low == 0 and values[1].high > 0.5
    assert "so far" in found_so_far(values)
    everything = value_arms(
        experiment, metric, *frames(shown[100:], [("r100", "i"), ("r101", "i"), ("r102", "i")])
    )
    assert everything[1].high == 1 and everything[1].low < 0.5


def test_values_that_a_context_lacks_are_not_those_of_nobody() -> None:
    experiment, metric = mixed(bandit={"kind": "linucb", "context": ["country"], "floor": 0.05})
    shown, clicks = [], []
    for n in range(400):
        arm, country = ("champion", "challenger")[n % 2], ("de", "")[n // 2 % 2]
        told = {"country": country} if country else {}
        shown.append(exposure(n, arm, f"u{n}", attributes=told))
        if (arm == "champion") == (country == "de") and n % 3:
            clicks.append((f"r{n}", "i"))
    weights = allocate(experiment, metric, *frames(shown, clicks), NOW, 1)
    assert weights.weights({"country": "de"})[0] == pytest.approx(0.95)
    assert weights.weights({})[1] == pytest.approx(0.95)
    assert weights.weights({"country": "fr"}) == weights.otherwise != weights.weights({})


def test_a_long_name_and_many_steps_draw_as_well() -> None:
    experiment, _ = mixed(bandit="thompson", name="n" * 60)
    weights = Allocation(10**9, 0, (), (0.5, 0.5), {}, (0, 0), (0, 0))
    assert weights.draw(experiment, "anna", {}).arm.name in ("champion", "challenger")


def test_exposures_of_two_versions_are_read_together(tmp_path) -> None:
    from raysys.experiments.users import read_exposures

    new, old = drafted_lists(0.5, lists=4)[0].collect(), drafted_lists(0.5, lists=2)[0].collect()
    for number, frame in enumerate((new, old.drop("item_ids", "teams"))):
        frame.write_parquet(tmp_path / f"{number}.parquet")
    found = read_exposures(tmp_path).collect()
    assert len(found) == 6 and found["teams"].null_count() == 2


def test_exposures_that_name_no_list_are_refused(tmp_path) -> None:
    experiment, metric = mixed(bandit="thompson")
    exposures, answers = frames([exposure(0, "champion", "u1")], [])
    with pytest.raises(UserError, match="lack the column propensity"):
        value_arms(experiment, metric, exposures.drop("propensity"), answers)


def test_lists_that_are_not_settled_do_not_count() -> None:
    experiment, metric = mixed(bandit={"kind": "thompson", "settle_minutes": 30})
    exposures, answers = frames([exposure(n, "champion", f"u{n}") for n in range(100)], [])
    at = int((START + dt.timedelta(minutes=79.5)).timestamp() * 1000)
    assert allocate(experiment, metric, exposures, answers, at, 1).lists == (50, 0)


@given(st.integers(1, 1000), st.floats(0.05, 0.95))
def test_a_user_keeps_the_arm_until_the_next_look(step: int, first: float) -> None:
    experiment, _ = mixed(bandit="thompson")
    weights = Allocation(step, 0, (), (first, 1 - first), {}, (0, 0), (0, 0))
    for user in ("anna", "ben"):
        drawn = [weights.draw(experiment, user, {}) for _ in range(3)]
        assert len({each.arm.name for each in drawn}) == 1
        place = [arm.name for arm in experiment.arms].index(drawn[0].arm.name)
        assert drawn[0].propensity == (first, 1 - first)[place]


def test_draws_follow_the_weights_and_looks_are_independent() -> None:
    experiment, _ = mixed(bandit="thompson")
    users = [f"u{n}" for n in range(4000)]
    drawn = []
    for step in (1, 2):
        weights = Allocation(step, 0, (), (0.3, 0.7), {}, (0, 0), (0, 0))
        drawn.append([weights.draw(experiment, u, {}).arm.name == "champion" for u in users])
        assert np.mean(drawn[-1]) == pytest.approx(0.3, abs=0.03)
    assert np.mean(np.array(drawn[0]) & np.array(drawn[1])) == pytest.approx(0.09, abs=0.02)


@pytest.mark.parametrize("kind", ["interleave", "bandit"])
def test_the_report_says_it_and_shows_it(kind: str, tmp_path) -> None:
    if kind == "interleave":
        experiment, metric = mixed(interleave=True)
        found = judge_lists(experiment, metric, *drafted_lists(0.7))
    else:
        experiment, metric = mixed(bandit="thompson")
        exposures, answers, _ = simulated(
            experiment, metric, {"champion": 0.1, "challenger": 0.4}, seed=3
        )
        spread = exposures.with_columns(
            timestamp=START + pl.duration(hours=pl.int_range(pl.len()) // 10)
        ).with_columns(pl.col("timestamp").cast(pl.Datetime("ms", "UTC")))
        found = judge_lists(experiment, metric, spread, answers)
    write_lists_report(found, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert found.sentence in html.unescape(page) and "How it was judged" in page
    assert page.count("<svg") == (1 if kind == "interleave" else 2)


def test_what_a_bandit_found_is_said_with_care() -> None:
    experiment, metric = mixed(bandit="thompson")
    shown = [exposure(n, ("champion", "challenger")[n % 2], f"u{n}") for n in range(40)]
    clicks = [(f"r{n}", "i") for n in range(0, 12)]
    values = value_arms(experiment, metric, *frames(shown, clicks))
    assert "so far" in found_so_far(values)
    alone = value_arms(experiment, metric, *frames(shown[:1], []))
    assert np.isnan(alone[0].low) and np.isnan(alone[1].value)
    with pytest.raises(UserError, match="no list of 'home_ranking'"):
        value_arms(experiment, metric, *frames([{**shown[0], "experiment": "x"}], []))


def test_what_runs_does_not_become_another_kind() -> None:
    from raysys.experiments.change import check_change
    from tests.experiments.settings import DURING, home

    plain = shop(home(**LISTS), metrics=METRICS)
    for changes in ({"interleave": True}, {"bandit": "thompson"}):
        other = shop(home(**LISTS, **changes), metrics=METRICS)
        for before, after in itertools.permutations((plain, other)):
            with pytest.raises(UserError, match="changes"):
                check_change(before, after, now=DURING)


def test_one_of_the_kinds_is_by_lists() -> None:
    assert not one().by_lists
    assert mixed(interleave=True)[0].by_lists and mixed(bandit="linucb")[0].by_lists
