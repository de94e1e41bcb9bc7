"""Search spaces: what YAML may say, and what a learner refuses before the first trial."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter

from raysys.config import Settings, parse_settings
from raysys.errors import UserError
from raysys.tuning.space import Space, check_space, distributions, starting_point


class Model(Settings):
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


@given(st.integers(1, 1000), st.integers(0, 1000), st.booleans())
def test_every_proposal_lies_in_its_range(low, width, log):
    import optuna

    parameter = {"kind": "int", "low": low, "high": low + width, "log": log}
    found = distributions(TypeAdapter(Space).validate_python({"n": parameter}))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    value = study.ask(found).params["n"]
    assert low <= value <= low + width
