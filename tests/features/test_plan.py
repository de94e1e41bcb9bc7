"""Plans are refused with the path, the value and what is allowed."""

from __future__ import annotations

import copy

import pytest

from raysys.config import find_config, load_settings, parse_settings
from raysys.errors import UserError
from raysys.features.plan import FeaturePlan
from raysys.stages.features_settings import FeaturesSettings
from tests.features import every
from tests.features.shop import PLAN


def refused(change) -> str:
    content = copy.deepcopy(PLAN.model_dump(mode="json"))
    change(content)
    with pytest.raises(UserError) as error:
        parse_settings(FeaturePlan, content, where="plan.yaml")
    return str(error.value)


def test_a_plan_survives_a_round_trip() -> None:
    assert parse_settings(FeaturePlan, PLAN.model_dump(mode="json"), where="") == PLAN


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c["features"][0].update(table="itme"), "'itme'; there are item, user"),
        (lambda c: c["features"][0].update(half_life_days=9), "which has 7, 28"),
        (lambda c: c["features"][0].update(kind="decayd"), "decayed_count"),
        (lambda c: c["features"][1].update(name="item_7d"), "declared twice"),
        (lambda c: c["features"][0].update(name="label"), "examples have a column of that name"),
        (lambda c: c["features"][0].update(name="weight"), "request, item, label, weight,"),
        (lambda c: c["tables"]["user"].update(max_records=9), "'user': candidates and histories"),
        (lambda c: c["tables"]["user_item"].update(max_records=9), "give max_idle_days"),
        (lambda c: c["tables"]["user_category"].update(max_records=9), "of each share"),
        (lambda c: c["features"][2].update(of="later"), "not declared above it"),
        (lambda c: c["tables"].pop("user_category"), "reads table 'user_category'"),
        (lambda c: c["tables"]["item"].update(keys=["item", "user"]), "keyed by [item], not by"),
        (lambda c: c["tables"]["item"].update(half_lives_days=[0]), "greater than 0"),
        (lambda c: c["tables"]["item"].update(halflives=[1]), "unknown key"),
        (lambda c: c["tables"]["item"].update(events=["buy"]), "'purchase'"),
    ],
)
def test_mistakes_are_named(change, expected) -> None:
    assert expected in refused(change)


def refused_of_every(change) -> str:
    content = copy.deepcopy(every.PLAN.model_dump(mode="json"))
    change(content, {feature["name"]: feature for feature in content["features"]})
    with pytest.raises(UserError) as error:
        parse_settings(FeaturePlan, content, where="plan.yaml")
    return str(error.value)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c, f: c["tables"]["few"].update(keys=["user", "user"]), "a key only once"),
        (lambda c, f: c["tables"]["few"].update(keys=["user", "page"]), "'manufacturer'"),
        (
            lambda c, f: c["tables"]["few"].update(keys=["user", "item", "store", "hour"]),
            "at most 3 items",
        ),
        (lambda c, f: c["tables"]["user_item"].update(keys=["item", "user"]), "[user, item]"),
        (lambda c, f: c["tables"]["user_category"].update(keys=["user"]), "not by [user]"),
        (lambda c, f: c.update(examination=[]), "give the plan's `examination`"),
        (lambda c, f: c.update(examination=[1, 0]), "greater than 0"),
        (lambda c, f: c["windows"].update(item=c["windows"]["item_days"]), "names two of"),
        (lambda c, f: c["last"].update(query=c["last"]["user_items"]), "choose another"),
        (lambda c, f: c["windows"]["item_days"].update(spans=[7, 3]), "rising"),
        (lambda c, f: c["windows"]["item_days"].update(spans=[0]), "above 0"),
        (lambda c, f: c["windows"]["shop_weeks"].update(spans=[8]), "multiple of the bucket, 7"),
        (lambda c, f: c["windows"]["user_hours"].update(bucket=5), "neither divide a day"),
        (lambda c, f: c["windows"]["item_days"].update(spans=[5000]), "more than 4096 buckets"),
        (lambda c, f: f["mine_recency"].update(half_life_days=28), "takes no half_life_days"),
        (lambda c, f: f["ctr"].update(over="shown"), "reads table 'shown'; there are clicks_all"),
        (lambda c, f: f["ctr"].update(half_life_days=8), "is not kept by table 'clicks_item'"),
        (lambda c, f: f["ctr"].update(over="shown_all"), "kept by different keys"),
        (lambda c, f: f["ctr"]["prior"].update(mean=None), "prior.mean: needed"),
        (lambda c, f: f["ctr"]["prior"].update(mean=1), "less than 1"),
        (lambda c, f: f["ctr"]["prior"].update(strength=0), "greater than 0"),
        (lambda c, f: f["query_ctr"].update(of=["clicks_item"]), "of names 1 tables, over 4"),
        (lambda c, f: f["user_48h"].update(window="hours"), "reads window 'hours'"),
        (lambda c, f: f["user_48h"].update(span=12), "which has 6, 48 (hours)"),
        (lambda c, f: f["user_48h"].update(kind="window_sum"), "give 'user_hours' a `value`"),
        (
            lambda c, f: f["shop_28d"].update(kind="window_days"),
            "buckets of 168 hours do not tell days apart",
        ),
        (lambda c, f: f["rank"].update(last="items"), "reads last 'items'"),
        (lambda c, f: f["rank"].update(among=4), "among 4, but 'session_items' keeps 3"),
        (lambda c, f: f["rank"].update(column="brand"), "other kinds take none"),
        (lambda c, f: f["like"].update(column=None), "last_share needs a `column`"),
        (
            lambda c, f: f["like"].update(last="user_brands"),
            "remembers each brand, which does not tell its category",
        ),
        (lambda c, f: f["near"].update(vectors="image"), "reads vectors 'image'; there are title"),
        (lambda c, f: f["near"].update(to="user_brands"), "reads last items 'user_brands'"),
        (lambda c, f: f["fits"].update(among=1), "among is for last items"),
        (lambda c, f: f["axis"].update(vectors="image"), "reads vectors 'image'"),
        (lambda c, f: f["price"].update(min_count=2), "price has no labels"),
    ],
)
def test_mistakes_of_every_kind_are_named(change, expected) -> None:
    assert expected in refused_of_every(change)


def test_buckets_know_their_hours_and_states_are_of_three_sections() -> None:
    spec = every.PLAN.windows["user_hours"]
    assert (spec.hours, every.PLAN.windows["shop_weeks"].hours) == (6, 168)
    assert set(every.PLAN.states) == {
        *every.PLAN.tables,
        *every.PLAN.windows,
        *every.PLAN.last,
    }


def test_tables_that_candidates_come_from_are_required() -> None:
    plan = {
        "tables": {"item": {"keys": ["item"]}, "user": {"keys": ["user"]}},
        "features": [{"name": "hour", "kind": "moment", "unit": "hour"}],
    }
    with pytest.raises(UserError, match="'user_item' is required"):
        parse_settings(FeaturePlan, plan, where="plan.yaml")


def test_a_plan_says_which_table_counts_purchases_alone() -> None:
    assert PLAN.bought("user", "item") == "user_item" and PLAN.bought("user", "week") is None
    for preset, known in (("web_shop", "user_item_bought"), ("complete_journey", "user_item")):
        plan = load_settings(FeaturesSettings, find_config(preset, "features")).plan
        assert plan.bought("user", "item") == known, preset
        assert plan.bought("user") is not None, preset
    spec = PLAN.tables["user_item"]
    forgetful = spec.model_copy(update={"max_idle_days": 7.0})
    tables = {**PLAN.tables, "user_item": forgetful, "user_item_ever": spec}
    assert PLAN.model_copy(update={"tables": tables}).bought("user", "item") == "user_item_ever"


def test_a_table_that_counts_what_the_log_lacks_is_told_of() -> None:
    plan = every.PLAN
    assert plan.idle([]) == []  # an ingest that counted no types says nothing of them
    warnings = plan.idle(["click", "impression"])
    seen = {"click", "impression"}
    idle = [name for name, state in plan.states.items() if not {*state.events} & seen]
    assert 0 < len(idle) < len(plan.states)
    assert [warning.split("'")[1] for warning in warnings] == idle
    assert all("it has click, impression" in warning for warning in warnings)
    assert plan.idle(["purchase", "view", "click", "impression"]) == []
