"""Plans are refused with the path, the value and what is allowed."""

from __future__ import annotations

import copy

import pytest

from raysys.config import parse_settings
from raysys.errors import UserError
from raysys.features.plan import FeaturePlan
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


def test_tables_that_candidates_come_from_are_required() -> None:
    plan = {
        "tables": {"item": {"keys": ["item"]}, "user": {"keys": ["user"]}},
        "features": [{"name": "hour", "kind": "moment", "unit": "hour"}],
    }
    with pytest.raises(UserError, match="'user_item' is required"):
        parse_settings(FeaturePlan, plan, where="plan.yaml")
