"""Who proposes, who is stopped, and when a search ends."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.errors import UserError
from raysys.learners.protocol import Resources
from raysys.tuning.population import changed, check_population, drawn
from raysys.tuning.samplers import RungSampler, known_values
from raysys.tuning.schedulers import STEP, TAIL, Patient
from raysys.tuning.search import _queue, random_search, refit_full
from raysys.tuning.settings import Pbt, TuneSettings
from raysys.tuning.space import Choice, FloatRange, IntRange, distributions
from raysys.tuning.study import COMPLETE, FAILED, INFEASIBLE, best_of, open_study
from tests.tuning.toy import SPACE, drive, hill, plan


def test_tpe_learns_where_to_look_and_random_does_not(tmp_path):
    late = {
        name: np.mean([t.score for t in drive(plan(tmp_path / name, searcher=name), 30)[15:]])
        for name in ("tpe", "random")
    }
    assert late["tpe"] > 1.2 * late["random"]


def test_the_same_seed_proposes_the_same_and_a_restart_something_else(tmp_path):
    first, same = (drive(plan(tmp_path / name), 12) for name in ("a", "b"))
    assert [trial.values for trial in first] == [trial.values for trial in same]
    drive(plan(tmp_path / "c"), 5)
    cut = drive(plan(tmp_path / "c"), 7)
    assert len({tuple(trial.values.values()) for trial in cut}) == 12


def test_a_grid_is_tried_once_however_often_the_search_is_cut_off(tmp_path):
    made = plan(tmp_path, searcher={"kind": "grid", "points": 3}, trials=50)
    _queue(open_study(tmp_path), made, None, ())
    drive(made, 4)
    trials = drive(made, 50)
    rates, leaves = (0.01, 0.1, 1.0), (2, 17, 32)
    found = [(round(trial.values["rate"], 9), trial.values["leaves"]) for trial in trials]
    assert sorted(found) == sorted(itertools.product(rates, leaves))


def test_a_point_of_a_grid_that_was_killed_while_it_was_proposed_is_tried(tmp_path):
    for trials in (4, 9):
        made = plan(tmp_path, searcher={"kind": "grid", "points": 3}, trials=trials)
        _queue(open_study(tmp_path), made, None, ())
        drive(made, 2)
        open_study(tmp_path).ask()  # killed before it had values
        _queue(open_study(tmp_path), made, None, ())
        found = drive(made, 20)
        assert len(found) == len({str(trial.values) for trial in found}) == trials


def test_a_grid_goes_on_where_more_trials_are_asked_for(tmp_path):
    for trials in (4, 9):
        made = plan(tmp_path, searcher={"kind": "grid", "points": 3}, trials=trials)
        _queue(open_study(tmp_path), made, None, ())
        found = drive(made, 20)
        assert len(found) == len({str(trial.values) for trial in found}) == trials


@pytest.mark.parametrize(
    "content",
    [
        {"searcher": {"kind": "grid", "points": 3}},
        {"scheduler": {"kind": "pbt", "population": 3}, "trials": 9},
    ],
)
def test_what_begins_by_itself_takes_no_warm_start(tmp_path, content):
    with pytest.raises(ValueError, match="warm_start: a grid and a population begin"):
        plan(tmp_path, warm_start={"files": ["best.yaml"]}, **content)


def _ended(study, rate, tail, value=None):
    study.add_trial(
        optuna.trial.create_trial(
            params={"rate": rate, "leaves": 5},
            distributions=distributions(plan_space()),
            intermediate_values=tail,
            value=value,
            state=optuna.trial.TrialState.COMPLETE if value else optuna.trial.TrialState.PRUNED,
        )
    )


def plan_space():
    return TuneSettings.model_validate({"learner": "x", "space": SPACE}).space


def test_bohb_learns_from_the_highest_rung_that_enough_trials_reached():
    study = optuna.create_study(direction="maximize")
    sampler = RungSampler(seed=1, startup=3, grace=10, reduction=3, random_share=0.0)
    for rate in (0.1, 0.2):
        _ended(study, rate, {10: rate})
    assert sampler.model(study) is None
    _ended(study, 0.3, {11: 0.3, 33: 0.9})
    assert [trial.value for trial in sampler.model(study).trials] == [0.1, 0.2, 0.3]
    for rate in (0.4, 0.5):
        _ended(study, rate, {10: rate, 30: rate + 0.1, 40: rate})
    assert [trial.value for trial in sampler.model(study).trials] == [0.9, 0.5, 0.6]
    for rate in (0.6, 0.7, 0.8):
        _ended(study, rate, {10: rate}, value=1 - rate)
    values = [trial.value for trial in sampler.model(study).trials]
    np.testing.assert_allclose(values, [0.4, 0.3, 0.2])


def test_bohb_finds_the_hill(tmp_path):
    scheduler = {"kind": "hyperband", "grace": 5}
    made = plan(tmp_path, searcher={"kind": "bohb", "random_share": 0.1}, scheduler=scheduler)
    assert best_of(drive(made, 30)).score > 0.9


def _reported(scheduler, number, step, value):
    trial = SimpleNamespace(trial_id=str(number), config={"trial": {"number": number}})
    if trial.trial_id not in scheduler._trial_info:
        scheduler.on_trial_add(None, trial)
    return scheduler.on_trial_result(None, trial, {STEP: step, TAIL: value})


def test_asha_spares_the_first_and_knows_what_earlier_runs_reached():
    fresh = Patient(grace=10, reduction=3)
    assert [_reported(fresh, at, 10, 0.5 - at / 10) for at in range(3)] == ["CONTINUE"] * 3
    assert _reported(fresh, 3, 10, 0.1) == "STOP"

    study = optuna.create_study(direction="maximize")
    for rate in (0.7, 0.8, 0.9):
        _ended(study, rate, {10: rate})
    again = Patient(10, 3, known=known_values(study.get_trials()))
    assert _reported(again, 3, 10, 0.1) == "STOP"
    assert _reported(again, 4, 10, 0.95) == "CONTINUE"


def test_trials_of_hyperband_are_drawn_into_brackets_by_their_numbers():
    band = Patient(grace=10, reduction=3, brackets=3, seed=5)
    graces = [min(rung for rung, _ in band._bracket(number)._rungs) for number in range(300)]
    count = [graces.count(grace) for grace in (10, 30, 90)]
    assert sum(count) == 300 and count[0] > count[1] > count[2] > 0
    assert graces == [
        min(rung for rung, _ in Patient(10, 3, 3, 5)._bracket(at)._rungs) for at in range(300)
    ]


def test_trials_that_ended_stand_in_the_brackets_of_their_numbers():
    study = optuna.create_study(direction="maximize")
    known = {}
    for number in range(40):
        if number % 3 == 1:
            study.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.FAIL))
        else:
            known[number] = number / 100
            _ended(study, 0.5, {10: number / 100, 100: number / 100})
    band = Patient(10, 3, brackets=3, seed=5, known=known_values(study.get_trials()))
    for bracket in band._brackets:
        mine = sorted(score for at, score in known.items() if band._bracket(at) is bracket)
        for _, recorded in bracket._rungs[-1:]:
            assert sorted(recorded.values()) == mine
    assert sum(len(bracket._rungs[-1][1]) for bracket in band._brackets) == len(known)


PBT = {"kind": "pbt", "population": 4, "interval": 10}


def test_a_population_goes_on_from_its_strong_members(tmp_path):
    made = plan(tmp_path, scheduler=PBT, trials=24)
    drive(made, 9)  # cut off in the midst
    trials = drive(made, 99)
    assert len(trials) == 24
    by_number = {trial.number: trial for trial in trials}
    for trial in trials:
        parent = by_number.get(trial.parent)
        assert trial.steps == (parent.steps if parent else 0) + 10
    slots = {step: [trial for trial in trials if trial.steps == step] for step in range(10, 61, 10)}
    assert {step: len(each) for step, each in slots.items()} == dict.fromkeys(slots, 4)
    taken = [t for t in trials if t.parent is not None]
    moved = [t for t in taken if t.values != by_number[t.parent].values]
    assert 0 < len(moved) < len(taken)
    for trial in moved:
        peers = [t.score for t in trials if t.steps == trial.steps - 10]
        assert by_number[trial.parent].score == max(peers)
    first, last = (np.mean([t.score for t in slots[step]]) for step in (10, 60))
    assert last > first


def test_members_that_fail_are_bred_anew(tmp_path):
    def failing(job):
        if job.values["leaves"] > 12:
            raise ValueError("too many leaves")
        return hill(job)

    trials = drive(plan(tmp_path, scheduler=PBT, trials=40), 40, failing)
    assert any(trial.state == FAILED for trial in trials)
    assert max(trial.steps for trial in trials if trial.state == COMPLETE) > 40


def test_what_cannot_change_midway_is_refused():
    changeable = frozenset({"rate"})
    check_population(["rate"], changeable, "some_learner", "n_estimators")
    with pytest.raises(UserError, match=r"'max_bin' cannot change while some_learner"):
        check_population(["rate", "max_bin"], changeable, "some_learner", "n_estimators")
    with pytest.raises(UserError, match="cannot go on from a checkpoint"):
        check_population(["rate"], frozenset(), "popular", "")


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(
        st.builds(
            lambda low, width, log: FloatRange(low=low, high=low + width, log=log),
            st.floats(0.001, 10), st.floats(0, 100), st.booleans(),
        ),
        st.builds(
            lambda low, width, step: IntRange(low=low, high=low + width, step=step),
            st.integers(1, 50), st.integers(0, 100), st.integers(1, 9),
        ),
        st.builds(
            lambda low, width, step: FloatRange(low=low, high=low + width, step=step),
            st.integers(-3, 3), st.integers(0, 9), st.sampled_from([0.1, 0.25, 0.35, 2.0]),
        ),
        st.just(Choice(choices=("a", None, (1, 2)))),
    ),
    st.integers(0, 1000),
)  # fmt: skip
def test_what_is_drawn_and_changed_lies_in_the_space(parameter, seed):
    rng = np.random.default_rng(seed)
    value = drawn(parameter, rng)
    with warnings.catch_warnings():  # a range that is no multiple of its step
        warnings.simplefilter("ignore")
        found = parameter.distribution()
    for _ in range(4):
        assert found._contains(found.to_internal_repr(value))
        value = changed(parameter, value, Pbt(), rng)


def test_constraints_keep_a_trial_from_being_the_best_and_teach_the_searcher(tmp_path):
    trials = drive(plan(tmp_path, constraints={"latency_ms": 1.0}), 30)
    broken = [trial for trial in trials if trial.state == INFEASIBLE]
    assert broken and all(trial.values["leaves"] > 10 for trial in broken)
    assert best_of(trials).values["leaves"] <= 10
    assert max(trial.score for trial in broken) > best_of(trials).score
    assert broken[0].error == f"latency_ms is {broken[0].metrics['latency_ms']:.4g}"
    late = [trial.state for trial in trials[15:]]
    assert late.count(INFEASIBLE) < len(late) / 2


def test_a_cost_can_be_the_objective(tmp_path):
    goal = {"metric": "latency_ms", "direction": "min"}
    trials = drive(plan(tmp_path, objective=goal), 20)
    assert best_of(trials, plan(tmp_path, objective=goal).settings.objective).score < 1.0


@pytest.mark.parametrize(
    "limits", [{"core_hours": 5 / 3600}, {"plateau": {"trials": 4, "epsilon": 2.0}}]
)
def test_a_budget_that_is_spent_ends_the_search(tmp_path, limits):
    assert len(drive(plan(tmp_path, **limits), 12)) == 5
    assert len(drive(plan(tmp_path, **limits), 12)) == 5, "and it does not go on when run again"


@pytest.mark.parametrize(("gpus", "trials"), [(0.5, 8), (1.0, 4), (0.0, 12)])
def test_hours_of_gpus_are_those_that_trials_held(tmp_path, gpus, trials):
    """A share of one counts as that share; where there is none nothing is spent."""
    limits = {"gpu_hours": 4 / 3600, "resources": {"gpus": gpus}}
    made = replace(plan(tmp_path, **limits), resources=Resources(1, 3.0, gpus))
    assert len(drive(made, 12)) == trials
    if trials < 12:
        assert len(drive(made, 12)) == trials, "and it does not go on when run again"
        more = replace(
            plan(tmp_path, **(limits | {"gpu_hours": 6 / 3600})), resources=Resources(1, 3.0, gpus)
        )
        assert len(drive(more, 12)) == trials * 6 // 4, "but with more hours it does"


def test_a_trial_that_always_fails_keeps_nobody_from_going_on(tmp_path):
    def failing(job):
        if job.values["rate"] > 0.2:
            raise ValueError("diverged")
        return hill(job)

    trials = drive(plan(tmp_path), 15, failing)
    assert {trial.state for trial in trials} == {COMPLETE, FAILED}
    assert {trial.error for trial in trials} == {"", "diverged"}
    assert best_of(trials).values["rate"] <= 0.2


def test_the_best_are_refitted_with_the_learners_own(tmp_path, monkeypatch):
    from raysys.tuning import runner

    asked = []

    def run(objective, made, left, progress):
        asked.append((made.study, left))
        drive(made, left)

    monkeypatch.setattr(runner, "run", run)
    made = plan(tmp_path, full={"best": 2}, trials=8)
    own = {"rate": 0.5, "leaves": 3}
    trials = drive(made, 8)
    full = refit_full(None, made, trials, own)
    ranked = sorted(trials, key=lambda trial: -trial.score)
    assert [trial.values for trial in full] == [ranked[0].values, ranked[1].values, own]
    assert refit_full(None, made, trials, own) == full
    assert asked == [("full", 3)]
    better = {"rate": 0.1, "leaves": 20}
    study = open_study(tmp_path)
    study.enqueue_trial(better)
    more = refit_full(None, made, drive(made, 1), own)  # the search went on
    assert [trial.values for trial in more] == [*(trial.values for trial in full), better]
    assert asked == [("full", 3), ("full", 1)]
    trials = drive(made, 0)
    study = open_study(tmp_path)
    study.enqueue_trial({"rate": 0.11, "leaves": 20})
    trials = drive(made, 1)
    monkeypatch.setattr(
        runner, "run", lambda *_: open_study(tmp_path, name="full").ask()
    )  # killed while it is proposed
    refit_full(None, made, trials, own)
    monkeypatch.setattr(runner, "run", run)
    last = refit_full(None, made, trials, own)
    chosen = [trial.values for trial in sorted(trials, key=lambda trial: -trial.score)[:2]]
    assert {"rate": 0.11, "leaves": 20} in chosen and all(
        [trial.values for trial in last].count(values) == 1 for values in chosen
    )

    random = random_search(None, made, trials, own)
    assert random[0].values == own
    assert sum(t.seconds for t in random) == pytest.approx(sum(t.seconds for t in trials))
    assert random_search(None, made, trials, own) == random
