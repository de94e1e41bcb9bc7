"""Who gets what: sticky, in the promised shares, independent, ramped without moving anybody."""

import datetime as dt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from raysys.experiments import assign
from raysys.experiments.assignment import draw, hashes
from tests.experiments.settings import DURING, START, arms, home, one, shop

USERS = [f"u{number}" for number in range(10_000)]


def arm_of(experiment, users=USERS):
    return [None if (arm := draw(experiment, user)) is None else arm.name for user in users]


def test_hashes_never_change():
    assert hashes("home_ranking", "u1") == (5636594842665850547, 14062732619286205034)


def test_shares_are_kept():
    drawn = arm_of(one(arms=arms(0.2, 0.3, 0.4)))
    counts = [drawn.count(name) for name in ("champion", "challenger", "third", None)]
    expected = [len(USERS) * share for share in (0.2, 0.3, 0.4, 0.1)]
    assert stats.chisquare(counts, expected).pvalue > 0.001


def test_experiments_are_independent():
    one_, other = one(arms=arms(0.5, 0.5)), one(name="other", arms=arms(0.5, 0.5))
    table = stats.contingency.crosstab(arm_of(one_), arm_of(other)).count
    assert stats.chi2_contingency(table).pvalue > 0.001
    assert arm_of(one_) != arm_of(other)
    assert arm_of(one_) == arm_of(one(name="third", salt="home_ranking", arms=arms(0.5, 0.5)))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 50), min_size=2, max_size=4),
    st.integers(1, 9),
    st.lists(st.text(min_size=1, max_size=8), min_size=20, max_size=60, unique=True),
)
def test_a_ramp_moves_nobody_who_is_in(parts, tenths, users):
    total = sum(parts) * 10
    small = one(arms=arms(*(f"{part * tenths / total:.9f}" for part in parts)))
    wide = small.model_copy(
        update={
            "arms": tuple(
                arm.model_copy(update={"share": arm.share * 10 / tenths}) for arm in small.arms
            )
        }
    )
    wide.__dict__.pop("bounds", None)
    before, after = arm_of(small, users), arm_of(wide, users)
    assert all(b in (None, a) for b, a in zip(before, after, strict=True))


def test_a_ramp_adds_from_the_unassigned_part():
    before, after = arm_of(one(arms=arms(0.05, 0.1))), arm_of(one(arms=arms(0.3, 0.6)))
    assert all(b in (None, a) for b, a in zip(before, after, strict=True))
    assert sum(b != a for b, a in zip(before, after, strict=True)) > 5_000


def test_experiments_of_a_layer_exclude_each_other():
    layered = [
        home(name=name, arms=arms(0.5, 0.5), layer={"name": "ranking", "from": a, "to": b})
        for name, a, b in (("first", 0, 0.3), ("second", 0.3, 1))
    ]
    experiments = shop(*layered).experiments
    found = [assign(experiments, user, now=DURING) for user in USERS]
    names = [tuple(each) for each in found]
    assert set(names) == {("first",), ("second",)}
    assert np.mean([name == ("first",) for name in names]) == pytest.approx(0.3, abs=0.02)
    # within a slice arms are still drawn evenly: the layer's draw is another
    inside = [each["first"].arm.name for each in found if "first" in each]
    assert inside.count("champion") / len(inside) == pytest.approx(0.5, abs=0.03)


def test_only_the_eligible_at_the_right_place_and_time_are_in():
    experiments = shop(home(arms=arms(0.5, 0.5), eligibility={"country": ["DE"]})).experiments
    german = {"country": "DE"}

    def get(attributes=german, **more):
        return assign(experiments, "u1", attributes, **({"now": DURING} | more))

    assert get()["home_ranking"].propensity == 0.5
    assert not get({"country": "AT"}) and not get({})
    assert get(surface="home") and not get(surface="search")
    assert get(now=START) and not get(now=START - dt.timedelta(milliseconds=1))


def test_testers_get_what_they_ask_for():
    experiment = home(
        arms=arms(0.01, 0.01), eligibility={"country": "DE"}, testers={"me": "challenger"}
    )
    found = assign(shop(experiment).experiments, "me", now=DURING)["home_ranking"]
    assert found.arm.name == "challenger" and found.forced
    assert found.arm.bundle == "challenger"


def test_an_empty_id_is_nobody():
    with pytest.raises(ValueError, match="empty user_id"):
        assign(shop().experiments, "")
