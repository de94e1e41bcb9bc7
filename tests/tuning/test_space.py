"""Search spaces: what YAML may say, and what a learner refuses before the first trial."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter

from raysys.config import Settings, parse_settings
from raysys.errors import UserError
from raysys.tuning.space import (
    Space,
    check_space,
    distributions,
    grid,
    merged,
    of_namespace,
    starting_point,
    told,
)


class Inner(Settings):
    width: int = Field(8, ge=1)
    depth: int = 2


class Model(Settings):
    inner: Inner = Inner()
    columns: tuple[str, ...] = ("a",)
    rate: float = Field(0.1, gt=0, le=1)
    leaves: int = Field(31, ge=2)
    mode: str = "fast"


class Holder(Settings):
    space: Space


def space(**parameters: object) -> Space:
    return parse_settings(Holder, {"space": parameters}, where="test.yaml").space


def test_kinds_become_optuna_distributions():
    found = distributions(
        space(
            rate={"kind": "float", "low": 0.01, "high": 0.5, "log": True},
            leaves={"kind": "int", "low": 4, "high": 64, "step": 4},
            mode={"kind": "choice", "choices": ["fast", "slow"]},
        )
    )
    assert (found["rate"].low, found["rate"].high, found["rate"].log) == (0.01, 0.5, True)
    assert (found["leaves"].low, found["leaves"].high, found["leaves"].step) == (4, 64, 4)
    assert found["mode"].choices == ("fast", "slow")


@pytest.mark.parametrize(
    ("parameter", "problem"),
    [
        ({"kind": "float", "low": 1, "high": 0}, "above high"),
        ({"kind": "float", "low": 0, "high": 1, "log": True}, "above 0"),
        ({"kind": "int", "low": 1, "high": 9, "log": True, "step": 2}, "exclude each other"),
        ({"kind": "choice", "choices": []}, "at least 1 item"),
        ({"kind": "uniform", "low": 0, "high": 1}, "'float', 'int', 'choice'"),
        ({"kind": "float", "low": 0, "hihg": 1}, "did you mean 'high'"),
        ({"kind": "int", "low": 1.5, "high": 4}, "1.5"),
    ],
)
def test_impossible_ranges_are_refused(parameter, problem):
    with pytest.raises(UserError, match=problem):
        space(rate=parameter)


def test_a_bound_that_the_learner_refuses_is_found_before_any_trial():
    wide = space(rate={"kind": "float", "low": 0.1, "high": 3})
    with pytest.raises(UserError, match=r"t\.yaml: space.*rate: 3.0"):
        check_space(wide, {}, Model, where="t.yaml")


def test_a_setting_that_the_learner_lacks_is_named_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'leaves'"):
        check_space(space(leafs={"kind": "int", "low": 2, "high": 9}), {}, Model, where="t.yaml")


def test_a_setting_cannot_be_fixed_and_searched():
    with pytest.raises(UserError, match="both fixed and searched"):
        check_space(
            space(leaves={"kind": "int", "low": 2, "high": 9}), {"leaves": 4}, Model, where="t"
        )


def test_the_learners_own_settings_are_the_first_trial_if_they_lie_inside():
    wide = space(rate={"kind": "float", "low": 0.01, "high": 0.5})
    assert starting_point(wide, Model()) == {"rate": 0.1}
    assert starting_point(wide, Model(rate=0.9)) is None
    assert starting_point(space(mode={"kind": "choice", "choices": ["slow"]}), Model()) is None


def test_settings_within_settings_and_lists_are_searched_by_their_names():
    wide = space(
        **{
            "inner.width": {"kind": "int", "low": 1, "high": 16},
            "columns": {"kind": "choice", "choices": [["a"], ["a", "b"]]},
        }
    )
    start = check_space(wide, {"inner": {"depth": 3}}, Model, where="t")
    point = starting_point(wide, start)
    assert point["inner.width"] == 8
    assert point["columns"] in distributions(wide)["columns"].choices
    assert merged({"inner": {"depth": 3}}, point) == {
        "inner": {"depth": 3, "width": 8},
        "columns": ["a"],
    }
    with pytest.raises(UserError, match="did you mean 'width'"):
        check_space(space(**{"inner.widht": {"kind": "int", "low": 1, "high": 2}}), {}, Model,
                    where="t")  # fmt: skip
    with pytest.raises(UserError, match="both fixed and searched"):
        check_space(wide, {"inner": {"width": 3}}, Model, where="t")


def test_what_settings_hold_as_they_were_written_is_searched_by_its_names():
    class Loose(Settings):
        inner: dict[str, Any] = {}

    number = {"kind": "int", "low": 1, "high": 9}
    wide = space(**{"inner.a": number, "inner.b.c": number})
    assert starting_point(wide, Loose(inner={"a": 3, "b": {"c": 4}})) == {
        "inner.a": 3,
        "inner.b.c": 4,
    }
    assert starting_point(wide, Loose(inner={"a": 3})) is None


def test_augmentation_is_switched_by_a_choice_of_methods():
    from raysys.learners.two_tower_settings import TwoTowerSettings

    methods = [[], [{"kind": "crop"}], [{"kind": "mask", "strength": 0.5}, {"kind": "reorder"}]]
    wide = space(**{"augmentation.methods": {"kind": "choice", "choices": methods}})
    start = check_space(wide, {}, TwoTowerSettings, where="t")
    assert starting_point(wide, start) == {"augmentation.methods": "list []"}
    values = distributions(wide)["augmentation.methods"].choices
    assert [merged({}, {"augmentation.methods": v})["augmentation"]["methods"] for v in values] == (
        methods
    )
    assert [told(value) for value in values] == ["none", "crop", "mask + reorder"]
    wrong = space(**{"augmentation.methods": {"kind": "choice", "choices": [[{"kind": "cut"}]]}})
    with pytest.raises(UserError, match="augmentation"):
        check_space(wrong, {}, TwoTowerSettings, where="t")


def test_names_of_a_namespace_have_a_dot_and_a_learner_may_have_a_setting_of_that_name():
    values = {"features": 1, "features.history": 2, "data.negatives": 3, "rate": 4}
    assert of_namespace(values, "") == {"features": 1, "rate": 4}
    assert of_namespace(values, "features") == {"history": 2}
    assert of_namespace(values, "data") == {"negatives": 3}


def test_a_grid_has_ends_steps_and_choices():
    points = list(
        grid(
            space(
                rate={"kind": "float", "low": 0.01, "high": 1, "log": True},
                leaves={"kind": "int", "low": 2, "high": 8, "step": 3},
                mode={"kind": "choice", "choices": ["fast", None]},
            ),
            points=3,
            seed=1,
        )
    )
    assert len(points) == 18
    assert sorted({round(point["rate"], 6) for point in points}) == [0.01, 0.1, 1.0]
    assert {point["leaves"] for point in points} == {2, 5, 8}
    assert {point["mode"] for point in points} == {"fast", None}


@given(st.integers(1, 1000), st.integers(0, 1000), st.booleans())
def test_every_proposal_lies_in_its_range(low, width, log):
    import optuna

    parameter = {"kind": "int", "low": low, "high": low + width, "log": log}
    found = distributions(TypeAdapter(Space).validate_python({"n": parameter}))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    value = study.ask(found).params["n"]
    assert low <= value <= low + width
