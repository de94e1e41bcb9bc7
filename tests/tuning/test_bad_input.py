"""Searches of which something fails: that alone is lost, and the user reads why."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys.ensemble import BaseScores
from raysys.errors import UserError
from raysys.features.examples import Share
from raysys.learners import make_learner
from raysys.learners.protocol import Context
from raysys.tuning import runner
from raysys.tuning.ensemble import EnsembleObjective
from raysys.tuning.metrics import REPORTED
from raysys.tuning.objective import Job, LearnerObjective, Rows
from raysys.tuning.report import Found, write_report
from raysys.tuning.schedulers import JOB
from raysys.tuning.search import _note, search
from raysys.tuning.study import COMPLETE, ERROR, FAILED, best_of
from tests.synthetic import write_examples
from tests.tuning import toy


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    examples, catalogue = write_examples(tmp_path_factory.mktemp("shop"), 80, 60)
    return examples, catalogue


def steep(job: Job) -> dict[str, float]:
    """Settings that do not work, and others that do."""
    if job.values["leaves"] > 12:
        raise ValueError("too many <leaves>")
    return toy.hill(job)


@pytest.mark.long
def test_others_go_on_when_trials_fail_and_the_report_says_why(tmp_path):
    made = toy.plan(tmp_path, trials=12, searcher="random", seed=3)
    trials = toy.drive(made, 12, steep)
    states = [trial.state for trial in trials]
    assert states.count(COMPLETE) >= 2 and states.count(FAILED) >= 2
    assert states.count(COMPLETE) + states.count(FAILED) == 12
    assert FAILED in states[: states.index(COMPLETE) + 2], "some failed before others went on"
    assert best_of(trials, made.settings.objective).values["leaves"] <= 12
    assert search(None, made) == trials  # type: ignore[arg-type]  # it ends well
    assert f"{states.count(FAILED)} failed" in _note(trials, 0, made.settings)
    write_report(tmp_path / "report.html", Found(made.settings, trials))
    assert "too many &lt;leaves&gt;" in (tmp_path / "report.html").read_text()


def test_a_search_whose_every_trial_fails_ends_with_the_reason(tmp_path):
    leaves = {"kind": "int", "low": 20, "high": 30}
    made = toy.plan(tmp_path, trials=2, seed=3, space={**toy.SPACE, "leaves": leaves})
    toy.drive(made, 2, steep)
    with pytest.raises(UserError, match=r"none of 2 trials.*failed with: too many <leaves>"):
        search(None, made)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (UserError("no such model", where="model"), "UserError: no such model"),
        (RuntimeError("a tree broke"), "RuntimeError: a tree broke"),
        (float("nan"), "ValueError: ndcg@10 is nan"),
    ],
    ids=["user", "bug", "nan"],
)
def test_a_trial_that_fails_reports_its_reason_and_raises_nothing(monkeypatch, raised, said):
    told = []
    monkeypatch.setattr(runner.tune, "report", told.append)

    def objective(job, tell):
        assert job == Job(4, {"rate": 0.1})
        if isinstance(raised, Exception):
            raise raised
        return {"ndcg@10": raised}

    runner._trial({"rate": 0.1, JOB: {"number": 4}}, objective, "ndcg@10")
    (only,) = told
    assert only[ERROR] == said


def test_a_window_in_which_nothing_was_wanted_fails_its_trial_alone(shop, tmp_path):
    examples, catalogue = shop
    for path in examples.with_folds(1).files("examples"):
        table = pq.read_table(path, partitioning=None)
        place = tmp_path / path.relative_to(examples.root)
        place.parent.mkdir(parents=True, exist_ok=True)
        nothing = pa.array(np.zeros(len(table)), pa.float32())
        pq.write_table(table.set_column(table.column_names.index("label"), "label", nothing), place)
    for path in (*examples.files("requests"), *examples.with_folds(0).files("examples")):
        place = tmp_path / path.relative_to(examples.root)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes())
    fitted = replace(examples.with_folds(0, 1), root=tmp_path)
    rows = Rows(fitted, examples.with_folds(2).batch())
    made = LearnerObjective("lightgbm_ranker", {"n_estimators": 3}, rows, catalogue, tmp_path)
    with pytest.raises(UserError, match="no positive label"):
        made(Job(0, {"data.window_days": 20}), print)
    assert made(Job(1, {"data.window_days": 60}), print)["ndcg@10"] > 0


@pytest.mark.parametrize("learner", ["lightgbm_ranker", "next_item"])
def test_no_rows_at_all_are_no_positives(shop, tmp_path, learner):
    examples, catalogue = shop
    pq.write_table(pa.table({"request": [0], "share": [0]}), tmp_path / "shares.parquet")
    nothing = replace(
        examples.with_folds(0, 1), share=Share(tmp_path / "shares.parquet", 1, inside=True)
    )
    for told in (None, lambda step, score: None):
        with pytest.raises(UserError, match="no positive label"):
            make_learner(learner, {}).fit_local(nothing, Context(catalogue, tmp_path), told)


@pytest.mark.long
def test_an_ensemble_is_searched_without_the_member_that_train_dropped(shop, tmp_path):
    """Base scores keep its column; the ensemble that is searched has no such member."""
    judged = shop[0].with_folds(2).batch()
    rng = np.random.default_rng(1)
    base = {
        name: (judged.label * skill + rng.normal(size=len(judged))).astype(np.float32)
        for name, skill in (("good", 2.0), ("fair", 1.0), ("lost", 0.0))
    }
    base["lost"][3] = np.nan
    families = {"good": "tree", "fair": "transformer"}
    scores = BaseScores.of(judged, 2, base)
    told = EnsembleObjective(scores, families, {"blocks": 2}, tmp_path)
    found = told(Job(0, {"methods": 'list ["average_standard"]'}), print)
    assert set(found) == set(REPORTED) and all(np.isfinite(each) for each in found.values())
