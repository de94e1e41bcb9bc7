"""`raysys train` with out-of-fold scores by user: stored, and an ensemble of them alone."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from raysys.ensemble import BaseScores, Ensemble
from raysys.ensemble.out_of_fold import GROUPS
from raysys.errors import UserError
from raysys.features.examples import Examples
from raysys.learners.protocol import Resources
from raysys.registry import Registry
from raysys.stages import train, train_fits
from raysys.stages.train_settings import OutOfFold
from raysys.stages.tune import TuneSettings, _objectives
from raysys.storage import Workspace, read_manifest
from raysys.tuning.objective import Job
from tests.stages.test_train import BASELINES, QUICK, settings
from tests.stages.workspace import write_features

BY_USER = {"by": "user", "folds": 3}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = write_features(tmp_path_factory.mktemp("workspace"), n_requests=160)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "ray_session", contextlib.nullcontext)
        train.run(settings(out_of_fold=BY_USER), workspace)
    return workspace


@pytest.mark.long
def test_training_rows_are_scored_by_models_that_saw_other_users(trained: Workspace) -> None:
    place = trained.train / "base_scores"
    names = {path.name for path in place.iterdir()}
    assert names == {"fold=0.parquet", "fold=1.parquet", "fold=2.parquet", GROUPS}
    models = {path.name for path in (trained.train / "models" / "popular").iterdir()}
    assert models == {"user=0", "user=1", "user=2", "fold=2"}
    groups = pq.read_table(place / GROUPS).to_pandas()
    assert (groups.groupby("user")["share"].nunique() == 1).all()
    examples = Examples(trained.features, (0, 1))
    users = dict(examples.requests().select(["request", "user"]).to_pandas().to_numpy().tolist())
    assert dict(zip(groups["request"], groups["user"], strict=True)) == users
    # the ensemble is fitted on these, and judged by the fold of time that it has not seen
    ensemble = Ensemble.load(trained.train / "ensemble.json")
    assert ensemble.folds == (0, 1)
    validation = read_manifest(trained.train).figures["validation_ndcg10"]
    assert set(validation) == {"full", *BASELINES} and all(0 < v < 1 for v in validation.values())
    bundle = Registry(trained.registry).load("champion")
    last = Examples(trained.features, (2,))
    scores = BaseScores.read(place, last)
    for name, model in bundle.learners.items():
        assert np.array_equal(model.score(last.batch()), scores.base[name])


@pytest.mark.long
def test_the_ensemble_by_user_is_refitted_without_fitting_learners(
    trained: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_fits, "fit_forward", None)  # whoever fits a learner fails
    before = read_manifest(trained.train)
    stored = (trained.train / "base_scores" / "fold=0.parquet").read_bytes()
    alone = train.run(settings(out_of_fold=BY_USER, ensemble_only=True), trained)
    assert alone.figures["weights"] == before.figures["weights"]
    assert alone.figures["ndcg10"] == before.figures["ndcg10"]
    assert (trained.train / "base_scores" / "fold=0.parquet").read_bytes() == stored
    by_time = train.run(settings(out_of_fold=1, ensemble_only=True), trained)
    assert "validation_ndcg10" not in by_time.figures  # that is what it is fitted on
    again = train.run(settings(out_of_fold=BY_USER, ensemble_only=True), trained)
    assert again.figures["weights"] == before.figures["weights"]
    with pytest.raises(UserError, match="no base scores by session: those that are there are by u"):
        train.run(settings(out_of_fold={"by": "session"}, ensemble_only=True), trained, force=True)


@pytest.mark.long
def test_a_search_of_the_ensemble_reads_the_scores_that_it_is_fitted_on(trained: Workspace) -> None:
    content = {
        "learner": "ensemble",
        "scheduler": "none",
        "settings": {"block_by": "user", **QUICK},
    }
    rounds = {"rounds": {"kind": "int", "low": 1, "high": 9}}
    asked = TuneSettings.model_validate({**content, "space": rounds})
    upstream, folder = read_manifest(trained.features), trained.tune / "ensemble"
    objective = _objectives(asked, trained, upstream, folder, Resources())("search")
    train_rows = Examples(trained.features, (0, 1)).requests()["request"].to_pylist()
    assert objective.scores.request.tolist() == train_rows
    assert 0 < objective(Job(0, {"rounds": 3}), print)["ndcg@10"] < 1


@pytest.mark.long
def test_a_killed_run_by_user_takes_its_models_up_again(
    trained: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "ray_session", contextlib.nullcontext)
    workspace = write_features(tmp_path, n_requests=160)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "base_scores", _killed)  # after the fits
        train.run(settings(out_of_fold=BY_USER), workspace)
    monkeypatch.setattr(train_fits, "fit_forward", None)  # whoever fits a learner fails
    train.run(settings(out_of_fold=BY_USER), workspace)
    for fold in (0, 1, 2):
        name = f"fold={fold}.parquet"
        one, other = (
            pq.read_table(each.train / "base_scores" / name, partitioning=None)
            for each in (trained, workspace)
        )
        assert one.equals(other)


def _killed(*_: object) -> None:
    raise KeyboardInterrupt


def test_what_cannot_be_is_said_before_any_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "ray_session", contextlib.nullcontext)
    monkeypatch.setattr(train, "fit_members", lambda *_: pytest.fail("it was fitted"))
    workspace = write_features(tmp_path, n_requests=80)
    with pytest.raises(UserError, match="no request of fold 0, 1 has a query") as raised:
        train.run(settings(out_of_fold={"by": "query"}), workspace)
    assert raised.value.where == "out_of_fold.by"
    with pytest.raises(UserError, match="groups cannot be cut into 5000 folds"):
        train.run(settings(out_of_fold={"by": "user", "folds": 5000}), workspace)
    with pytest.raises(UserError, match="nothing to fit on"):
        settings(out_of_fold={"by": "user", "folds": 1})
    with pytest.raises(UserError, match="purge_hours"):
        settings(out_of_fold={"by": "user", "purge_hours": 1})
    for told, path in (
        (0, "out_of_fold.folds: 0:"),
        ({"by": "usr"}, "out_of_fold.by: 'usr':"),
        ({"fold": 2}, "out_of_fold.fold: unknown key; did you mean 'folds'?"),
        (True, "out_of_fold: True:"),
    ):
        with pytest.raises(UserError) as raised:
            settings(out_of_fold=told)
        assert path in str(raised.value) and "\n  " not in raised.value.what, told


@pytest.mark.long
def test_a_bare_number_is_by_time_and_stays_one_in_the_manifest(
    trained: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settings(out_of_fold=2).out_of_fold == OutOfFold(by="time", folds=2, purge_hours=0)
    assert settings(out_of_fold=2).model_dump(mode="json")["out_of_fold"] == 2
    monkeypatch.setattr(train, "ray_session", contextlib.nullcontext)
    one, other = (write_features(tmp_path / name, n_requests=80) for name in ("one", "other"))
    plain = train.run(settings(out_of_fold=2), one)
    same = train.run(settings(out_of_fold={"folds": 2}), other)
    assert plain.figures["weights"] == same.figures["weights"]
    assert not (one.train / "base_scores" / GROUPS).exists()
    # as long as the windows of labels: those of orders are settled when they happen
    none = train.run(settings(out_of_fold={"folds": 2, "purge_hours": None}), other)
    assert none.figures["weights"] == same.figures["weights"]
