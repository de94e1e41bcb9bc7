"""A search: samples, the journal that nothing is lost from, the report, and the real thing."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml

from raysys.features.examples import Examples
from raysys.storage import Manifest, Workspace
from raysys.tuning.report import write_best, write_report
from raysys.tuning.sample import sample_requests
from raysys.tuning.search import COMPLETE, FAILED, STOPPED, Trial, best_of, open_study, trials_of
from raysys.tuning.space import Choice, FloatRange, distributions
from tests.synthetic import write_examples

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


def test_the_journal_keeps_what_ended_and_runs_again_what_was_cut_off(tmp_path):
    from optuna.trial import TrialState

    from raysys.tuning.search import _take_up

    study = open_study(tmp_path, seed=1)
    asked = [study.ask(distributions(SPACE)) for _ in range(3)]
    study.tell(asked[0], 0.25)
    asked[1].report(0.1, 20)
    study.tell(asked[1], state=TrialState.PRUNED)

    again = open_study(tmp_path, seed=1)  # as a new process sees it: trial 2 never ended
    assert [(trial.number, trial.state) for trial in trials_of(again)] == [
        (0, COMPLETE),
        (1, STOPPED),
    ]
    assert trials_of(again)[1].tail == [(20, 0.1)]
    assert _take_up(again, start=None) == 1
    assert again.ask(distributions(SPACE)).params == asked[2].params
    assert len(trials_of(again)) == 2  # the one cut off counts for nothing


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
]


def test_best_settings_are_yaml_that_says_what_they_reached(tmp_path):
    write_best(tmp_path / "best.yaml", "some_learner", {"n_estimators": 50}, TRIALS)
    text = (tmp_path / "best.yaml").read_text()
    assert best_of(TRIALS).number == 2
    assert yaml.safe_load(text) == {
        "some_learner": {"n_estimators": 50, "learning_rate": 0.05, "mode": "slow"}
    }
    assert "0.2400" in text.splitlines()[0]


def test_the_report_shows_every_trial_and_why_one_failed(tmp_path):
    write_report(tmp_path / "report.html", "some_learner", SPACE, TRIALS)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "ValueError: &lt;no&gt;" in page
    assert "from 0.02 to 0.5, logarithmic" in page
    for trial in TRIALS:
        assert trial.state in page


SEARCH = {
    "learner": "lightgbm_ranker",
    "name": "small",
    "settings": {"n_estimators": 150, "early_stopping_rounds": 0, "min_child_samples": 5},
    "space": {
        "learning_rate": {"kind": "float", "low": 0.01, "high": 0.5, "log": True},
        "num_leaves": {"kind": "int", "low": 3, "high": 31},
    },
    "trials": 8,
    "concurrent": 1,
    "early_stopping": {"grace": 0},
    "sample_requests": 100,
    "sample_validation": 60,
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


@pytest.mark.slow
def test_a_search_cut_off_twice_goes_on_without_losing_a_trial(tmp_path):
    workspace = Workspace(tmp_path / "run")
    write_examples(workspace.features)
    figures = {"folds": {"train": [0, 1], "validation": 2, "report": 3}}
    Manifest(stage="features", figures=figures).write(workspace.features)
    config = tmp_path / "search.yaml"
    config.write_text(yaml.safe_dump(SEARCH))
    folder = workspace.tune / "small"

    before: dict[int, float] = {}
    for blow in (signal.SIGINT, signal.SIGKILL):
        running = _tune(workspace.root, config)
        children: list[psutil.Process] = []
        while running.poll() is None and len(_ended(folder)) < len(before) + 2:
            _wait(running, 0.1)
            with contextlib.suppress(psutil.NoSuchProcess):
                children = psutil.Process(running.pid).children(recursive=True)
        assert running.poll() is None, running.stdout.read()
        running.send_signal(blow)
        output, _ = running.communicate(timeout=60)
        assert running.returncode == (130 if blow == signal.SIGINT else -blow), output
        assert "Traceback" not in output
        _, alive = psutil.wait_procs(children, timeout=90)  # Ray's agents notice a kill late
        assert not alive, f"left behind: {alive}"
        assert before.items() <= _ended(folder).items()
        before = _ended(folder)
    assert 4 <= len(before) < 8

    last = _tune(workspace.root, config)
    output, _ = last.communicate(timeout=300)
    assert last.returncode == 0, output
    after = _ended(folder)
    assert len(after) == 8
    assert before.items() <= after.items()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["counts"]["trials"] == 8
    best = yaml.safe_load((folder / "best.yaml").read_text())["lightgbm_ranker"]
    assert manifest["figures"]["ndcg@10"] == max(after.values())
    assert best["num_leaves"] == manifest["figures"]["best"]["num_leaves"]
    assert (folder / "report.html").stat().st_size > 10_000
    assert not (folder / "ray").exists()

    again = _tune(workspace.root, config)  # done: reused without starting Ray
    output, _ = again.communicate(timeout=60)
    assert again.returncode == 0, output
    assert json.loads((folder / "manifest.json").read_text()) == manifest


def _wait(process: subprocess.Popen, seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return
