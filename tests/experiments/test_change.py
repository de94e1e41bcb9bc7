"""What may change while an experiment runs."""

import datetime as dt

import pytest

from raysys.errors import UserError
from raysys.experiments.change import check_change
from tests.experiments.settings import DURING, METRICS, START, arms, home, shop

BEFORE = START - dt.timedelta(days=1)


def check(old, new, now=DURING, **more):
    return check_change(
        shop(old), shop(*([new] if isinstance(new, dict) else new), **more), now=now
    )


@pytest.mark.parametrize(
    ("changes", "told", "mend"),
    [
        ({"arms": arms(0.1, 0.3)}, "challenger 0.1 → 0.3", "up to champion 0.5, challenger 0.5"),
        ({"arms": arms(0.05, 0.05)}, "shares shrink", "set its end"),
        ({"arms": arms(0.1, 0.1, 0.1)}, "arms are added", "begin a new one"),
        ({"arms": arms(0.1, 0.1, policy={"x": 1})}, "something else", "begin a new one"),
        ({"salt": "again"}, "salt changes", "begin a new one"),
        ({"surfaces": []}, "surfaces changes", "begin a new one"),
        ({"eligibility": {"country": "DE"}}, "eligibility changes", "begin a new one"),
        ({"layer": {"name": "ranking"}}, "another layer", "begin a new one"),
        ({"primary": "orders", "secondary": []}, "primary changes", "add a secondary metric"),
        ({"minimum_effect": 0.01}, "minimum_effect changes", "settled before"),
        ({"guardrails": []}, "dropped or loosened: searches", "keep them"),
    ],
)  # fmt: skip
def test_what_would_spoil_a_running_experiment_is_refused(changes, told, mend):
    with pytest.raises(UserError) as caught:
        check(home(), home(**changes))
    assert told in caught.value.what
    assert mend in caught.value.mend
    assert check(home(), home(**changes), now=BEFORE)  # not begun: free


def test_what_is_harmless_is_told():
    assert check(home(), home()) == []
    assert check(home(), home(arms=arms(0.5, 0.5))) == ["home_ranking: arms"]
    assert check(home(), home(testers={"me": "challenger"})) == ["home_ranking: testers"]
    assert check(home(), home(end="2026-03-01")) == ["home_ranking: end"]
    added = [home(), home(name="other", surfaces=["search"])]
    assert check(home(), added) == ["other: new"]


def test_a_slice_may_only_grow():
    def sliced(a, b):
        return home(layer={"name": "ranking", "from": a, "to": b})

    assert check(sliced(0.2, 0.4), sliced(0, 0.5))
    with pytest.raises(UserError, match="loses users"):
        check(sliced(0.2, 0.4), sliced(0.3, 0.5))


def test_a_fixed_analysis_keeps_its_end():
    fixed = home(analysis="fixed", end="2026-02-01")
    with pytest.raises(UserError, match="judges once"):
        check(fixed, fixed | {"end": "2026-03-01"})


def test_an_experiment_that_is_over_stays_over_and_one_that_runs_stays():
    over = home(end="2026-01-10")
    with pytest.raises(UserError, match="cannot be resumed"):
        check(over, home(end="2026-03-01"))
    other = home(name="other")
    with pytest.raises(UserError, match="runs and is removed"):
        check(home(), other)
    assert check(over, other) == ["home_ranking: removed", "other: new"]


def test_a_metric_in_use_keeps_its_meaning():
    metrics = [*METRICS[:2], {**METRICS[2], "events": ["click", "cart"]}, METRICS[3]]
    changed = shop(home(secondary=["orders"]), metrics=metrics)
    with pytest.raises(UserError, match="click_rate is defined otherwise"):
        check_change(shop(home(secondary=["orders", "revenue"])), changed, now=DURING)
    alone = shop(home(), metrics=metrics)  # and nothing else changes
    with pytest.raises(UserError, match="click_rate is defined otherwise"):
        check_change(shop(home()), alone, now=DURING)
    told = check_change(shop(home()), alone, now=BEFORE)
    assert told == ["home_ranking: metric click_rate"]
