"""A search: samples, the journal that nothing is lost from, the report, and the real thing."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from raysys.catalogue import Catalogue
from raysys.errors import UserError
from raysys.features.examples import Examples
from raysys.storage import Manifest, Workspace
from raysys.tuning.objective import Job, LearnerObjective, Rows
from raysys.tuning.plots import importance
from raysys.tuning.report import Found, write_best, write_report
from raysys.tuning.runner import JournalSearch
from raysys.tuning.sample import sample_requests
from raysys.tuning.search import search
from raysys.tuning.settings import TuneSettings, WarmStart
from raysys.tuning.space import Choice, FloatRange, IntRange, distributions
from raysys.tuning.study import (
    COMPLETE,
    FAILED,
    INFEASIBLE,
    STOPPED,
    Trial,
    best_of,
    open_study,
    take_up,
    trials_of,
)
from raysys.tuning.warm import warm_points
from tests.processes import family
from tests.synthetic import write_examples
from tests.tuning import toy

SPACE = {
    "learning_rate": FloatRange(low=0.02, high=0.5, log=True),
    "mode": Choice(choices=("fast", "slow", None)),
}


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Examples:
    examples, _ = write_examples(tmp_path_factory.mktemp("shop") / "features")
    return examples


def test_a_sample_keeps_whole_requests_spread_over_all_folds(shop, tmp_path):
    some = sample_requests(shop.with_folds(0, 1), 40, tmp_path / "some")
    full, few = shop.with_folds(0, 1).batch(), some.batch()
    assert abs(few.n_requests - 40) <= 2
    assert {path.parent.name for path in some.files("requests")} == {"fold=0", "fold=1"}
    assert few.names == full.names
    where = {int(request): at for at, request in enumerate(full.request)}
    same = full.take_requests(np.array([where[int(request)] for request in few.request]))
    np.testing.assert_array_equal(few.features, same.features)
    np.testing.assert_array_equal(few.item, same.item)
    np.testing.assert_array_equal(few.n_relevant, same.n_relevant)


def test_a_sample_larger_than_the_data_is_the_data(shop, tmp_path):
    assert sample_requests(shop, 10**9, tmp_path / "none") is shop
    assert not (tmp_path / "none").exists()


def test_the_journal_keeps_what_ended_and_hands_out_again_what_was_cut_off(tmp_path):
    from optuna.trial import TrialState

    study = open_study(tmp_path, seed=1)
    asked = [study.ask(distributions(SPACE)) for _ in range(3)]
    asked.append(study.ask())  # killed while it was proposed
    study.tell(asked[0], 0.25)
    asked[1].report(0.1, 20)
    study.tell(asked[1], state=TrialState.PRUNED)
    asked[2].report(0.3, 20)

    again = open_study(tmp_path, seed=1)  # as a new process sees it: trials 2 and 3 never ended
    assert [(trial.number, trial.state) for trial in trials_of(again)] == [
        (0, COMPLETE),
        (1, STOPPED),
    ]
    assert trials_of(again)[1].tail == [(20, 0.1)]
    taken = take_up(again, SPACE)
    assert [(t.number, t.params, t.intermediate_values) for t in taken] == [
        (2, asked[2].params, {20: 0.3})
    ]
    assert len(trials_of(again)) == 2  # the one that never began counts for nothing


def test_a_queued_trial_that_was_killed_while_it_was_proposed_is_queued_again(tmp_path):
    study = open_study(tmp_path, seed=1)
    point = {"learning_rate": 0.25, "mode": None}
    study.enqueue_trial(point, user_attrs={"steps": 7})
    study.enqueue_trial(point, user_attrs={"slot": 1})  # of a population
    killed = [study.ask(), study.ask()]
    again = open_study(tmp_path, seed=1)
    assert take_up(again, SPACE) == []
    asked = again.ask(distributions(SPACE))
    assert asked.number == len(killed) and asked.params == point
    assert asked.user_attrs == {"steps": 7}
    assert not any(trial.state.name == "WAITING" for trial in again.trials)


def test_a_trial_that_was_cut_off_goes_on_under_its_number(tmp_path):
    first = JournalSearch(toy.plan(tmp_path, retries=0))
    cut = first.suggest("cut")
    again = JournalSearch(toy.plan(tmp_path))
    assert again.suggest("one") == cut
    assert again.suggest("two")["trial"]["number"] == 1


def test_a_search_of_which_every_trial_failed_starts_anew(tmp_path):
    from optuna.trial import TrialState

    from raysys.stages.tune import _go_on_or_start_anew

    _go_on_or_start_anew(tmp_path / "search", "the same causes", force=False)
    for state in (TrialState.FAIL, TrialState.COMPLETE):
        study = open_study(tmp_path / "search", seed=1)
        trial = study.ask(distributions(SPACE))
        trial.set_user_attr("error", "OSError: no space left")
        study.tell(trial, 0.2 if state is TrialState.COMPLETE else None, state=state)
        _go_on_or_start_anew(tmp_path / "search", "the same causes", force=False)
        kept = trials_of(open_study(tmp_path / "search", seed=1))
        assert len(kept) == (0 if state is TrialState.FAIL else 1)


@pytest.mark.parametrize("ended", [FAILED, INFEASIBLE])
def test_a_trial_that_was_cut_off_is_not_lost_for_others_that_were_of_no_use(tmp_path, ended):
    from raysys.stages.tune import _go_on_or_start_anew

    folder = tmp_path / "search"
    _go_on_or_start_anew(folder, "the same causes", force=False)
    _ended_as(ended, folder)
    open_study(folder, seed=1).ask(distributions(SPACE))  # killed in its midst
    checkpoint = folder / "scratch" / "search" / "trial-1" / "step-000000020"
    checkpoint.mkdir(parents=True)
    _go_on_or_start_anew(folder, "the same causes", force=False)
    assert checkpoint.is_dir()
    assert [trial.state for trial in trials_of(open_study(folder, seed=1))] == [ended]
    assert [trial.number for trial in take_up(open_study(folder, seed=1), SPACE)] == [1]


def test_trials_that_broke_a_constraint_are_kept_as_the_same_search_would_find_the_same(tmp_path):
    from raysys.stages.tune import _go_on_or_start_anew

    folder = tmp_path / "search"
    _go_on_or_start_anew(folder, "the same causes", force=False)
    states = [INFEASIBLE, FAILED]
    for state in states:
        _ended_as(state, folder)
        _go_on_or_start_anew(folder, "the same causes", force=False)
    assert [trial.state for trial in trials_of(open_study(folder, seed=1))] == states
    _go_on_or_start_anew(folder, "other causes", force=False)
    assert trials_of(open_study(folder, seed=1)) == []


def _ended_as(state: str, folder: Path) -> None:
    """One more trial in the journal of a search."""
    from optuna.trial import TrialState

    study = open_study(folder, seed=1)
    trial = study.ask(distributions(SPACE))
    if state == FAILED:
        trial.set_user_attr("error", "OSError: no space left")
        study.tell(trial, state=TrialState.FAIL)
        return
    trial.set_user_attr("metrics", json.dumps({"size_mb": 9.0}))
    trial.set_constraint("size_mb", 4.0)
    study.tell(trial, 0.3)


@pytest.mark.parametrize(
    ("constraints", "running", "problem"),
    [
        ({}, False, "none of 1 trials could be completed.*run again, it starts anew"),
        ({}, True, "none of 1 trials could be completed.*run again, it goes on with what was"),
        ({"size_mb": 5}, False, "keeps to the constraints.*more trials"),
    ],
    ids=["failed", "failed and cut off", "infeasible"],
)
def test_a_search_that_found_nothing_says_what_running_it_again_does(
    tmp_path, constraints, running, problem
):
    _ended_as(INFEASIBLE if constraints else FAILED, tmp_path)
    if running:
        open_study(tmp_path, seed=1).ask(distributions(SPACE))
    with pytest.raises(UserError) as caught:
        search(None, toy.plan(tmp_path, trials=1, constraints=constraints))
    assert re.search(problem, str(caught.value), re.DOTALL)


def test_a_search_watched_on_a_terminal_can_be_saved_by_tune():
    from ray import cloudpickle
    from rich.console import Console

    from raysys.progress import listening, task
    from raysys.terminal import RichListener
    from raysys.tuning.runner import _Progress

    with RichListener(Console(force_terminal=True)) as display, listening(display), task("t") as t:
        with pytest.raises(TypeError):  # why it matters
            cloudpickle.dumps(t)
        assert cloudpickle.loads(cloudpickle.dumps(_Progress(t))) is not None


TRIALS = [
    Trial(0, {"learning_rate": 0.1, "mode": "fast"}, COMPLETE, 0.21, [(20, 0.2)], 1.0),
    Trial(1, {"learning_rate": 0.3, "mode": None}, STOPPED, None, [(20, 0.1), (40, 0.11)], 0.5),
    Trial(2, {"learning_rate": 0.05, "mode": "slow"}, COMPLETE, 0.24, [(20, 0.2)], 2.0),
    Trial(3, {"learning_rate": 0.4, "mode": "slow"}, FAILED, None, [], 0.0, "ValueError: <no>"),
    Trial(4, {"learning_rate": 0.2, "mode": "slow"}, INFEASIBLE, 0.3, [], 1.0, "size_mb is 9",
          {"size_mb": 9.0, "latency_ms": 2.5}),
]  # fmt: skip


def found(**settings) -> Found:
    space = {name: parameter.model_dump() for name, parameter in SPACE.items()}
    content = {"learner": "lightgbm_ranker", "settings": {"n_estimators": 50}, "space": space}
    return Found(TuneSettings.model_validate(content | settings), TRIALS)


def test_best_settings_are_yaml_that_says_what_they_reached(tmp_path):
    write_best(tmp_path / "best.yaml", found())
    text = (tmp_path / "best.yaml").read_text()
    assert best_of(TRIALS).number == 2, "not the one that broke a constraint"
    assert yaml.safe_load(text) == {
        "lightgbm_ranker": {"n_estimators": 50, "learning_rate": 0.05, "mode": "slow"}
    }
    assert "0.2400" in text.splitlines()[0]


def test_best_settings_hold_the_datas_and_what_was_nested(tmp_path):
    values = {"head.width": 8, "data.negatives": 10, "methods": 'list ["a", "b"]'}
    best = replace(TRIALS[2], values=values, steps=120)
    outcome = replace(found(settings={"head": {"dropout": 0.5}}), full=[best])
    write_best(tmp_path / "best.yaml", outcome)
    assert yaml.safe_load((tmp_path / "best.yaml").read_text()) == {
        "lightgbm_ranker": {
            "head": {"dropout": 0.5, "width": 8},
            "methods": ["a", "b"],
            "n_estimators": 120,
        },
        "data": {"negatives": 10},
    }


def test_the_report_shows_every_trial_and_why_one_failed(tmp_path):
    more = [replace(TRIALS[2], number=at, score=0.2 + at / 100) for at in range(5, 11)]
    outcome = found(constraints={"size_mb": 5})
    outcome.trials = [*TRIALS, *more]
    outcome.random = [replace(TRIALS[0], number=0, score=0.2)]
    outcome.full = [replace(TRIALS[2], number=0, score=0.26)]
    write_report(tmp_path / "report.html", outcome)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 5  # course, parallel, what matters, settings, fits
    assert "ValueError: &lt;no&gt;" in page and "size_mb is 9" in page
    assert "from 0.02 to 0.5, logarithmic" in page
    for trial in outcome.trials:
        assert trial.state in page
    for fact in ("0.2600", "best at random, same cost", "core-seconds", "0.3000"):
        assert fact in page


def test_what_matters_is_what_moves_the_score():
    rng = np.random.default_rng(3)
    space = {"big": FloatRange(low=0, high=1), "idle": FloatRange(low=0, high=1)}
    trials = []
    for number in range(40):
        big, idle = rng.random(2).tolist()
        trials.append(Trial(number, {"big": big, "idle": idle}, COMPLETE, big**2))
    shares = importance(space, trials, seed=1)
    assert shares["big"] > 0.9 and sum(shares.values()) == pytest.approx(1)
    assert importance(space, trials[:5], seed=1) == {}
    assert importance(space, [replace(t, score=0.5) for t in trials], seed=1) == {}


def test_warm_points_are_the_best_of_earlier_searches_within_the_space(tmp_path, caplog):
    space = toy.plan(tmp_path).space
    trials = toy.drive(toy.plan(tmp_path / "earlier"), 6)
    ranked = sorted(trials, key=lambda trial: -trial.score)
    start = {"rate": 0.5, "leaves": 9}
    (tmp_path / "best.yaml").write_text("lightgbm_ranker: {rate: 0.25, other: 3}\n")
    (tmp_path / "far.yaml").write_text("lightgbm_ranker: {rate: 7}\n")
    files = tuple(str(tmp_path / name) for name in ("best.yaml", "far.yaml", "earlier"))
    points = warm_points(WarmStart(files=files, best=2), "lightgbm_ranker", space, start)
    assert points == [{"rate": 0.25, "leaves": 9}, ranked[0].values, ranked[1].values]
    assert "far.yaml lies outside the space" in caplog.text
    listed = {
        "methods": Choice(choices=[["crop"], []]),
        "data.negatives": Choice(choices=[15, 0]),
        "features.history": IntRange(low=1, high=30),
    }
    (tmp_path / "best.yaml").write_text(
        "lightgbm_ranker: {methods: [crop]}\ndata: {negatives: 0}\nfeatures: {history: 12}\n"
    )
    own = {"methods": "list []", "data.negatives": 15, "features.history": 24}
    warm = WarmStart(files=(str(tmp_path / "best.yaml"),))
    (point,) = warm_points(warm, "lightgbm_ranker", listed, own)
    assert point == {"methods": 'list ["crop"]', "data.negatives": 0, "features.history": 12}
    for name, problem in (("none.yaml", "no such file"), ("best.yaml", "no settings of two_tower")):
        warm = WarmStart(files=(str(tmp_path / name),))
        with pytest.raises(UserError, match=problem):
            warm_points(warm, "two_tower", space, start)


SEARCH = {
    "learner": "lightgbm_ranker",
    "name": "small",
    "settings": {"n_estimators": 160, "early_stopping_rounds": 0, "min_child_samples": 5},
    "space": {
        "learning_rate": {"kind": "float", "low": 0.01, "high": 0.5, "log": True},
        "num_leaves": {"kind": "int", "low": 7, "high": 31},
        "data.negatives": {"kind": "choice", "choices": [15, 0]},
    },
    "trials": 5,
    "concurrent": 1,
    "scheduler": "none",
    "checkpoint_steps": 10,
    "proxy": {"requests": 100, "validation_requests": 60},
    "logging": ["tensorboard", "mlflow"],
}


def _tune(workspace: Path, config: Path) -> subprocess.Popen:
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.Popen(
        # a relative workspace: trials run in folders of their own and must find it all the same
        [sys.executable, "-m", "raysys", "tune", "-c", str(config), "-w", workspace.name],
        cwd=workspace.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _ended(folder: Path) -> dict[int, float]:
    if not (folder / "trials.log").exists():
        return {}
    return {trial.number: trial.score for trial in trials_of(open_study(folder, seed=17))}


def _in_midst(folder: Path, number: int) -> bool:
    """Whether a trial runs and has some trees in a checkpoint; those before it ended then."""
    return any((folder / "scratch" / "search").glob(f"trial-{number}/step-*"))


@pytest.mark.slow
def test_a_search_whose_driver_and_worker_are_killed_loses_nothing(tmp_path):
    workspace = Workspace(tmp_path / "run")
    write_examples(workspace.features)
    figures = {"folds": {"train": [0, 1], "validation": 2, "report": 3}}
    Manifest(stage="features", figures=figures).write(workspace.features)
    config = tmp_path / "search.yaml"
    config.write_text(yaml.safe_dump(SEARCH))
    folder = workspace.tune / "small"

    before: dict[int, float] = {}
    for done, blow in ((1, signal.SIGINT), (2, signal.SIGKILL)):
        running = _tune(workspace.root, config)
        children: list[psutil.Process] = []
        while running.poll() is None and not _in_midst(folder, done):
            _wait(running, 0.1)
            with contextlib.suppress(psutil.NoSuchProcess):
                children = family(running.pid)
        assert running.poll() is None, running.stdout.read()
        running.send_signal(blow)
        output, _ = running.communicate(timeout=60)
        assert running.returncode == (130 if blow == signal.SIGINT else -blow), output
        assert "Traceback" not in output
        _, alive = psutil.wait_procs(children, timeout=90)
        assert not alive, f"left behind: {alive}"
        assert before.items() <= _ended(folder).items()
        before = _ended(folder)
        assert len(before) == done

    last = _tune(workspace.root, config)
    while last.poll() is None and not _in_midst(folder, 3):
        _wait(last, 0.1)
    workers = [
        process
        for process in psutil.Process(last.pid).children(recursive=True)
        if any("ImplicitFunc" in part or "_trial" in part for part in process.cmdline()[:1])
    ]
    assert workers, "a worker to kill"
    for process in workers:
        process.kill()
    output, _ = last.communicate(timeout=300)
    assert last.returncode == 0, output
    after = _ended(folder)
    assert list(after) == [0, 1, 2, 3, 4], "killed trials went on under their numbers"
    assert before.items() <= after.items()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["counts"] == {"trials": 5, "stopped": 0, "failed": 0, "infeasible": 0}
    best = yaml.safe_load((folder / "best.yaml").read_text())["lightgbm_ranker"]
    assert manifest["figures"]["ndcg@10"] == max(after.values())
    assert best["num_leaves"] == manifest["figures"]["best"]["num_leaves"]
    assert (folder / "report.html").stat().st_size > 10_000
    assert not (folder / "ray").exists() and not (folder / "scratch").exists()

    # trials 1, 2 and 3 were killed in their midst: what they would have been had they not
    whole = LearnerObjective(
        learner="lightgbm_ranker",
        fixed=SEARCH["settings"],
        rows=Rows(Examples(folder / "fitted", (0, 1)), Examples(folder / "judged", (2,)).batch()),
        catalogue=Catalogue.load(workspace.features / "catalogue.parquet"),
        folder=tmp_path / "whole",
        seed=17,
        every=10,
    )
    for trial in trials_of(open_study(folder))[1:4]:
        metrics = whole(Job(trial.number, trial.values), print)
        assert metrics["ndcg@10"] == after[trial.number]

    runs = sorted(path.name for path in (folder / "tensorboard" / "search").iterdir())
    assert runs == [f"trial-{number:04d}" for number in range(5)]
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    logged = mlflow.search_runs(experiment_names=["small"], output_format="list")
    assert max(after.values()) in {run.data.metrics.get("ndcg_at_10") for run in logged}

    again = _tune(workspace.root, config)  # done: reused without starting Ray
    output, _ = again.communicate(timeout=60)
    assert again.returncode == 0, output
    assert json.loads((folder / "manifest.json").read_text()) == manifest


def _wait(process: subprocess.Popen, seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


@pytest.mark.slow
def test_a_trial_whose_node_is_killed_goes_on_from_its_checkpoint_on_another(tmp_path):
    from tests.tuning.killed_node import HELD

    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "tests.tuning.killed_node", str(tmp_path)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["states"] == [COMPLETE, COMPLETE]
    assert outcome["scores"] == outcome["undisturbed"], "as if nobody had been killed"
    spared, lost = outcome["told"]
    steps = [step for step, _ in spared]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > HELD + 1
    again = [step for step, _ in lost]
    assert again == [*range(1, HELD + 1), *range(HELD, len(again))], "only one epoch was lost"
    homes = [home for _, home in lost]
    assert homes[0] != spared[0][1], "each had a node of its own"
    assert set(homes[:HELD]) == {homes[0]} and set(homes[HELD:]) == {spared[0][1]}
