"""What an experiments YAML may say, and what is refused."""

import datetime as dt

import pytest

from raysys.errors import UserError
from raysys.experiments.parts import Condition
from tests.experiments.settings import METRICS, arms, home, one, shop

LAYERED = {"layer": {"name": "ranking", "from": 0.5, "to": 1}}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"arms": arms(0.5, 0.6)}, r"shares exceed one: 0\.5 \+ 0\.6 = 1\.1"),
        ({"arms": arms(0.7, 0.1, 0.1, 0.1000001)}, "shares exceed one"),
        ({"arms": arms(0.5)}, "at least 2"),
        ({"arms": [*arms(0.5), *arms(0.2)]}, "arms: 'champion' is there twice"),
        ({"arms": arms(0.5, 0)}, "greater than 0"),
        ({"primary": "clics"}, "no metric 'clics'; one of: orders, revenue"),
        ({"guardrails": ["click_rate"]}, "'click_rate' is there twice"),
        ({"guardrails": [{"metric": "orders", "tolerance": 0}]}, "greater than 0"),
        ({"testers": {"me": "treatment"}}, "testers.me: no arm 'treatment'"),
        ({"end": "2026-01-01"}, "end is not after start"),
        ({"analysis": "fixed"}, "say when that is"),
        ({"layer": {"name": "ranking", "from": 0.5, "to": 0.5}}, "from 0.5 is not below to 0.5"),
        ({"eligibility": {"country": {}}}, "say any_of, none_of"),
        ({"eligibility": {"country": {"known": False, "any_of": ["DE"]}}}, "no other condition"),
        ({"minimum_effect": 0}, "greater than 0"),
        ({"arm": []}, "unknown key; did you mean 'arms'"),
        ({"name": "a b"}, "should match pattern"),
    ],
)
def test_mistakes_are_named(changes, told):
    with pytest.raises(UserError, match=told):
        one(**changes)


def test_shares_are_exact():
    assert one(arms=arms(0.7, 0.1, 0.1, 0.1)).total == 1  # in floats this exceeds one


@pytest.mark.parametrize(
    ("metric", "told"),
    [
        ({"name": "arm", "events": ["click"]}, "another meaning"),
        ({"name": "orders", "events": ["click"]}, "metrics: 'orders' is there twice"),
        ({"name": "x", "events": ["clck"]}, "'impression', 'view', 'click'"),
        ({"name": "x", "events": ["click"], "value": "any", "winsorise": 0.9}, "no outliers"),
        ({"name": "x", "events": ["click"], "per": {"events": "view", "value": "any"}}, "per: co"),
    ],
)  # fmt: skip
def test_mistakes_in_metrics_are_named(metric, told):
    with pytest.raises(UserError, match=told):
        shop(metrics=[*METRICS, metric])


def test_names_and_salts_come_once():
    with pytest.raises(UserError, match="'home_ranking' is there twice"):
        shop(home(**LAYERED), home())
    with pytest.raises(UserError, match="salts: 'home_ranking' is there twice"):
        shop(home(**LAYERED), home(name="other", salt="home_ranking", surfaces=["search"]))


def test_experiments_of_one_layer_share_no_user_at_one_time():
    first = home(layer={"name": "ranking", "from": 0, "to": 0.6})
    with pytest.raises(UserError, match=r"overlap in layer 'ranking': \[0, 0\.6\)"):
        shop(first, home(name="other", **LAYERED))
    shop(first, home(name="other", layer={"name": "ranking", "from": 0.6}))
    shop(first | {"end": "2026-02-01"}, home(name="other", start="2026-02-01", **LAYERED))


def test_two_experiments_cannot_both_decide_the_same():
    with pytest.raises(UserError, match="both decide bundle"):
        shop(home(), home(name="other"))
    shop(home(), home(name="other", surfaces=["search"]))
    caps = [
        {"name": "few", "share": 0.5, "policy": {"at_most": {"category": 2}}},
        {"name": "many", "share": 0.5, "policy": {"at_most": {"category": 9}}},
    ]
    shop(home(), home(name="other", arms=caps))  # bundles and caps go together
    with pytest.raises(UserError, match=r"both decide policy\.at_most"):
        shop(home(arms=caps), home(name="other", arms=caps, surfaces=[]))


@pytest.mark.parametrize(
    ("condition", "meets", "fails"),
    [
        ("DE", ["DE"], ["AT", None]),
        (["DE", "AT"], ["DE", "AT"], ["CH"]),
        (3, ["3", 3, 3.0], ["4", "three"]),
        (True, [True, "true"], [False, "1"]),
        ({"none_of": ["DE"]}, ["AT"], ["DE", None]),
        ({"at_least": 3, "at_most": 5}, ["3", 5], [2.9, 6, "x", None]),
        ({"known": True}, ["x"], [None]),
        ({"known": False}, [None], ["x"]),
    ],
)
def test_conditions(condition, meets, fails):
    found = Condition.model_validate(condition)
    assert all(found.met(value) for value in meets)
    assert not any(found.met(value) for value in fails)


def test_days_are_utc():
    found = one(start="2026-01-05", end=dt.date(2026, 2, 1))
    assert found.start == dt.datetime(2026, 1, 5, tzinfo=dt.UTC)
    assert found.end is not None and found.end.tzinfo is not None
