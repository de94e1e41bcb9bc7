"""`raysys train`: what it writes, publishes, refuses, and does not do twice."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.torch import load_file, save_file

from raysys.catalogue import Catalogue
from raysys.config import PRESETS, load_settings, parse_settings
from raysys.ensemble import BaseScores, Ensemble, EnsembleSettings
from raysys.ensemble.folds import base_score
from raysys.errors import UserError
from raysys.features.batch import Batch
from raysys.features.drift import drift_of
from raysys.features.examples import Examples
from raysys.learners import LEARNERS, make_learner
from raysys.learners.baselines import ColumnModel, Popular
from raysys.monitoring.reference import Reference
from raysys.registry import Registry
from raysys.stages import train, train_fits
from raysys.stages.named_files import named_files
from raysys.stages.stacking import groups_of
from raysys.stages.train_settings import TrainSettings, chosen_reranker, chosen_settings
from raysys.stages.unseen import require_served
from raysys.storage import Manifest, Workspace, read_manifest
from raysys.tuning.settings import DataSettings
from tests.serving.shop import cross_encoder
from tests.stages.workspace import write_features
from tests.synthetic import write_examples

BASELINES = {"popular": {}, "repeat_purchase": {}, "co_occurrence": {}}
GROUPS = ("user", "query", "session")
QUICK = {"methods": ["stack_standard", "average_standard"]}


def settings(**content: object) -> TrainSettings:
    content = {"learners": BASELINES, "out_of_fold": 2, "ensemble": QUICK, **content}
    return parse_settings(TrainSettings, content, where="test")


@pytest.fixture(scope="module")
def without_ray() -> object:
    """Baselines need no Ray: the stage runs as it is, in this process alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "ray_session", contextlib.nullcontext)
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, without_ray: object) -> Workspace:
    workspace = write_features(tmp_path_factory.mktemp("workspace"))
    train.run(settings(), workspace)
    return workspace


@pytest.mark.long
def test_a_challenger_leaves_the_champion_alone(trained: Workspace, tmp_path: Path) -> None:
    copy = Workspace(tmp_path / "copy")
    shutil.copytree(trained.root, copy.root)
    registry = Registry(copy.registry)
    champion = registry.resolve("champion")
    train.run(settings(publish_as="challenger"), copy)  # fitted already: only the name is new
    assert registry.resolve("challenger") == champion
    train.run(settings(publish_as="challenger", seed=5, name="other"), copy)
    assert registry.resolve("challenger") != champion == registry.resolve("champion")
    with pytest.raises(UserError, match="publish_as"):
        settings(publish_as="../champion")


def test_it_writes_scores_models_and_figures(trained: Workspace) -> None:
    manifest = read_manifest(trained.train)
    assert manifest.counts["learners"] == 3
    assert set(manifest.figures["seconds"]) == set(BASELINES)
    ndcg10 = manifest.figures["ndcg10"]
    assert {"full", "popularity", *BASELINES} == set(ndcg10) - {"no_transformer"}
    assert all(0 < value < 1 for value in ndcg10.values())
    table = pq.read_table(trained.train / "base_scores" / "fold=2.parquet", partitioning=None)
    assert table.column_names == ["request", "item", "label", *BASELINES]
    for name in BASELINES:
        for fold in (1, 2):
            assert any((trained.train / "models" / name / f"fold={fold}").iterdir())
    assert not (trained.train / "scratch").exists()


def test_the_bundle_says_how_the_validation_fold_was_distributed(trained: Workspace) -> None:
    """Bins and counts are those of the rows that the served models have not seen."""
    reference = Reference.load(Registry(trained.registry).path("champion"))
    assert reference is not None
    batch = Examples(trained.features, (2,)).batch()  # its requests are small: all rows are drawn
    assert (reference.requests, reference.rows) == (batch.n_requests, len(batch))
    assert reference.people == len(np.unique(batch.user))
    features = {each.name: each for each in reference.variables if each.kind == "feature"}
    scores = {each.name: each for each in reference.variables if each.kind == "score"}
    assert tuple(features) == batch.names and set(scores) == {*BASELINES, "ensemble"}
    for name, each in features.items():
        column = batch.column(name)
        assert each.counts[-1] == np.isnan(column).sum()
        drift = drift_of(name, column, column, categorical=each.cut.categorical)
        counts = np.array(each.counts)
        assert drift.histogram.labels == each.cut.labels
        assert drift.histogram.reference == pytest.approx(counts / counts.sum())
    assert batch.label is not None
    assert reference.labels["positive_rows"] == pytest.approx(float((batch.label > 0).mean()), 1e-4)
    assert reference.surface == "recommend" and reference.items == 200


def test_the_champion_is_whole_and_serves_the_last_models(trained: Workspace) -> None:
    """Scores of the bundle on validation are the out-of-fold scores the ensemble was fitted on."""
    registry = Registry(trained.registry)
    bundle = registry.load("champion")
    assert bundle.id == read_manifest(trained.train).figures["bundle"]
    assert bundle.families == dict.fromkeys(BASELINES, "baseline")
    assert bundle.manifest.data["features"] == read_manifest(trained.features).fingerprint
    examples = Examples(trained.features, (2,))
    scores = BaseScores.read(trained.train / "base_scores", examples)
    batch = examples.batch()
    for name, model in bundle.learners.items():
        assert np.array_equal(base_score(name, model, batch), scores.base[name])
    ours = Ensemble.load(trained.train / "ensemble.json")
    expected = ours.score(scores.base, scores.offsets)
    assert np.array_equal(bundle.ensemble.score(scores.base, scores.offsets).score, expected.score)
    assert bundle.search is not None


@pytest.mark.long
def test_only_the_served_models_are_fitted_unless_more_scores_are_wanted(
    tmp_path: Path, without_ray: object, trained: Workspace
) -> None:
    workspace = write_features(tmp_path)
    manifest = train.run(settings(out_of_fold=1), workspace)
    assert [path.name for path in (workspace.train / "base_scores").iterdir()] == ["fold=2.parquet"]
    assert [path.name for path in (workspace.train / "models" / "popular").iterdir()] == ["fold=2"]
    # the ensemble is fitted on the validation fold in either case
    assert manifest.figures["weights"] == read_manifest(trained.train).figures["weights"]


@pytest.mark.long
def test_the_ensemble_is_refitted_without_fitting_learners(
    tmp_path: Path, without_ray: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same models in a new bundle; members come and go; the outcome is that of a whole run."""
    workspace = write_features(tmp_path, n_requests=120)
    first = train.run(settings(out_of_fold=1), workspace)
    scores = (workspace.train / "base_scores" / "fold=2.parquet").read_bytes()
    monkeypatch.setattr(train_fits, "fit_forward", None)  # whoever fits a learner fails
    fewer = train.run(settings(ensemble_only=True, without=["co_occurrence"]), workspace)
    assert (workspace.train / "base_scores" / "fold=2.parquet").read_bytes() == scores
    registry = Registry(workspace.registry)
    bundle = registry.load("champion")
    assert bundle.id == fewer.figures["bundle"] != first.figures["bundle"]
    assert list(bundle.learners) == ["popular", "repeat_purchase"]
    assert fewer.figures["left_out"] == ["co_occurrence"]
    assert fewer.figures["latency_ms"].keys() == bundle.learners.keys()
    old = registry.load(first.figures["bundle"])
    batch = Examples(workspace.features, (2,)).batch()
    for name, model in bundle.learners.items():
        assert np.array_equal(model.score(batch), old.learners[name].score(batch))
    again = train.run(settings(ensemble_only=True), workspace)  # it comes back
    assert again.figures["ndcg10"] == first.figures["ndcg10"]
    assert again.figures["weights"] == first.figures["weights"]
    assert train.run(settings(ensemble_only=True), workspace).created == again.created
    with pytest.raises(UserError, match="no base scores of lightgbm_ranker"):
        train.run(
            settings(ensemble_only=True, learners={**BASELINES, "lightgbm_ranker": {}}), workspace
        )
    assert (workspace.train / "models" / "co_occurrence").is_dir()


@pytest.mark.long
def test_a_second_stage_is_part_of_the_bundle(tmp_path: Path, without_ray: object) -> None:
    workspace = write_features(tmp_path / "shop", n_requests=120)
    catalogue = Catalogue.load(workspace.features / "catalogue.parquet")
    cross_encoder(tmp_path / "fitted", catalogue)  # as `raysys text fit` leaves one
    reranker = {"settings": {"fitted": str(tmp_path / "fitted")}, "top": 7}
    told = settings(learners={"popular": {}, "repeat_purchase": {}}, reranker=reranker)
    for changed in (told, told.model_copy(update={"ensemble_only": True})):
        manifest = train.run(changed, workspace, force=True)
        part = Registry(workspace.registry).load("champion").reranking
        assert part is not None and (part.name, part.top) == ("cross_encoder_ranker", 7)
        assert part.weight == 0.5  # no request of this log has a query to weigh it by
        assert len(part.model.pairs_of([("milk", np.arange(5, dtype=np.int32))])[0]) == 5
        assert manifest.figures["reranker"] == {}


@pytest.mark.long
def test_files_that_learners_read_are_part_of_what_is_done(
    tmp_path: Path, without_ray: object
) -> None:
    workspace = write_features(tmp_path / "shop", n_requests=120)
    catalogue = Catalogue.load(workspace.features / "catalogue.parquet")
    fitted = tmp_path / "fitted"
    cross_encoder(fitted, catalogue)
    reranker = {"settings": {"fitted": str(fitted)}, "top": 7}
    told = settings(learners={"popular": {}, "repeat_purchase": {}}, reranker=reranker)
    first = train.run(told, workspace)
    assert {f"{fitted}/{name}" for name in ("head.safetensors", "encoder/model.safetensors")} < set(
        first.inputs
    )
    assert train.run(told, workspace).created == first.created
    head = load_file(fitted / "head.safetensors")
    save_file({name: each + 1 for name, each in head.items()}, fitted / "head.safetensors")
    second = train.run(told, workspace)
    assert second.inputs != first.inputs and second.figures["bundle"] != first.figures["bundle"]
    known = train.run(told.model_copy(update={"ensemble_only": True}), workspace)
    assert known.inputs == second.inputs
    (tmp_path / "judged.csv").write_text("query,text,grade")
    named = {"ranker": {"judgements": str(tmp_path / "judged.csv"), "text": ("title",), "top": 3}}
    before = named_files(named)
    assert list(before) == [str(tmp_path / "judged.csv")]
    (tmp_path / "judged.csv").write_text("query,text,grade,weight")
    assert named_files(named) != before


@pytest.mark.parametrize("file", ["words.txt", "wordnet/data.noun"])
def test_a_thesaurus_that_is_edited_is_another(tmp_path: Path, file: str) -> None:
    (tmp_path / "wordnet").mkdir()
    path = tmp_path / file
    path.write_text("sofa, couch")
    source = str(path if path.suffix == ".txt" else path.parent)
    named = {"methods": [{"kind": "synonym_replacement", "thesaurus": ("wordnet", source)}]}
    before = named_files(named)
    assert [Path(each).name for each in before] == [path.name]
    path.write_text("sofa, divan")
    assert named_files(named).keys() == before.keys() and named_files(named) != before


def test_an_ensemble_needs_base_scores_of_these_features(
    tmp_path: Path, trained: Workspace
) -> None:
    workspace = write_features(tmp_path, n_requests=80, seed=1)
    with pytest.raises(UserError, match="raysys train"):
        train.run(settings(ensemble_only=True), workspace)
    shutil.copytree(trained.train, workspace.train)
    with pytest.raises(UserError, match="other features"):
        train.run(settings(ensemble_only=True), workspace)


class _Numb(ColumnModel):
    """Says nothing that can be used."""

    value: ClassVar[float] = np.nan

    def score(self, batch: Batch) -> np.ndarray:
        return np.full(len(batch), self.value, np.float32)


@pytest.mark.parametrize(("value", "reason"), [(np.nan, "not finite"), (7.0, "tell the cand")])
def test_a_member_that_says_nothing_is_left_out(
    tmp_path: Path,
    without_ray: object,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    value: float,
    reason: str,
) -> None:
    workspace = write_features(tmp_path, n_requests=80)
    monkeypatch.setattr(_Numb, "value", value)
    monkeypatch.setattr(Popular, "fit", lambda self, examples, context: _Numb("price", 0.0))
    with caplog.at_level("WARNING", logger="raysys"):
        manifest = train.run(settings(out_of_fold=1), workspace)
    assert reason in manifest.figures["dropped"]["popular"]
    assert any("popular has no say" in record.getMessage() for record in caplog.records)
    assert "popular" not in Registry(workspace.registry).load("champion").learners
    with pytest.raises(UserError, match="no learner gave scores"):
        train.run(settings(learners={"popular": {}}), workspace)


def _rewrite(workspace: Workspace, fold: int, **columns: float) -> None:
    for path in (workspace.features / "examples" / f"fold={fold}").glob("*.parquet"):
        table = pq.read_table(path, partitioning=None)
        for name, value in columns.items():
            column = pa.array(np.full(len(table), value, np.float32))
            table = table.set_column(table.column_names.index(name), name, column)
        pq.write_table(table, path)


def test_nothing_to_learn_from_is_said(tmp_path: Path, without_ray: object) -> None:
    workspace = write_features(tmp_path, n_requests=80)
    _rewrite(workspace, 2, label=0.0)
    with pytest.raises(UserError, match="no retrieved candidate of fold 2 is relevant"):
        train.run(settings(), workspace)
    for fold in (0, 1):
        _rewrite(workspace, fold, weight=0.0)
    with pytest.raises(UserError, match="fold 0, 1 weighs 0"):
        train.run(settings(), workspace)


def test_groups_are_those_that_requests_tell_of(tmp_path: Path) -> None:
    examples, _ = write_examples(tmp_path, n_requests=80, n_items=60)
    last = examples.with_folds(2)
    asked = {by: parse_settings(EnsembleSettings, {"block_by": by}, where="") for by in GROUPS}
    assert groups_of(last, EnsembleSettings()) is None
    users = last.requests()["user"].to_numpy()
    np.testing.assert_array_equal(groups_of(last, asked["user"]), users)
    for by in ("query", "session"):
        with pytest.raises(UserError, match=f"no request of fold 2 has a {by}"):
            groups_of(last, asked[by])
    n = 0
    for path in last.files("requests"):
        table = pq.read_table(path, partitioning=None)
        rows = range(n, n + table.num_rows)
        n += table.num_rows
        query = pa.array([None if i % 4 == 0 else f"q{i % 3}" for i in rows], pa.string())
        session = pa.array([None if i % 5 == 0 else 900 - i // 2 for i in rows], pa.int32())
        for name, column in (("query", query), ("session", session)):
            table = table.set_column(table.column_names.index(name), name, column)
        pq.write_table(table, path)
    by_query, by_session = (groups_of(last, asked[by]) for by in ("query", "session"))
    assert by_query is not None and by_session is not None
    for i in range(n):
        assert (by_query[i] < 0) == (i % 4 == 0) and (by_session[i] < 0) == (i % 5 == 0)
        for j in range(i):
            if i % 4 and j % 4:
                assert (by_query[i] == by_query[j]) == (i % 3 == j % 3)
            if i % 5 and j % 5:
                assert (by_session[i] == by_session[j]) == (i // 2 == j // 2)
    for path in last.files("requests"):
        pq.write_table(pq.read_table(path, partitioning=None).drop(["session"]), path)
    with pytest.raises(UserError, match="earlier version"):
        groups_of(last, asked["session"])


def test_groups_that_are_not_there_are_said_before_any_fit(
    tmp_path: Path, without_ray: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = write_features(tmp_path, n_requests=80)
    monkeypatch.setattr(train, "fit_members", lambda *_: pytest.fail("it was fitted"))
    with pytest.raises(UserError, match="no request of fold 2 has a query"):
        train.run(settings(ensemble={**QUICK, "block_by": "query"}), workspace)


def test_members_that_do_not_pay_are_dropped(tmp_path: Path, without_ray: object) -> None:
    """Whoever adds too little for its time goes, but no fallback loses its last member."""
    workspace = write_features(tmp_path, n_requests=120)
    dear = settings(out_of_fold=1, ensemble={**QUICK, "keep": {"ndcg_per_ms": 1e9}})
    manifest = train.run(dear, workspace)
    assert len(manifest.figures["dropped"]) == 2
    assert len(Registry(workspace.registry).load("champion").learners) == 1
    assert all("millisecond" in reason for reason in manifest.figures["dropped"].values())
    found = manifest.figures["subsets"]
    assert any(len(each["members"]) == 3 for each in found)
    best = [each for each in found if each["best"]]
    assert max(each["ndcg"] for each in found) == best[-1]["ndcg"]


def test_what_a_fit_may_use_is_written_as_null_or_a_number() -> None:
    here = settings().resources.here()
    assert (here.workers, here.cpus_per_worker, here.gpus_per_worker) == (1, 1.0, 0.0)
    named = settings(resources={"workers": 2, "cpus_per_worker": 3}).resources.here()
    assert (named.workers, named.cpus_per_worker) == (2, 3)


def test_the_report_period_is_never_touched(
    tmp_path: Path, without_ray: object, trained: Workspace
) -> None:
    """Without its files the outcome is the same."""
    workspace = write_features(tmp_path)
    for kind in ("examples", "requests"):
        for path in (workspace.features / kind / "fold=3").glob("*.parquet"):
            path.unlink()
    manifest = train.run(settings(), workspace)
    assert manifest.figures["ndcg10"] == read_manifest(trained.train).figures["ndcg10"]


def test_a_second_run_reuses_the_first(trained: Workspace) -> None:
    before = read_manifest(trained.train).created
    assert train.run(settings(), trained).created == before


@pytest.mark.long
def test_a_lost_bundle_is_made_again(tmp_path: Path, without_ray: object) -> None:
    workspace = write_features(tmp_path, n_requests=80)
    first = train.run(settings(), workspace)
    Registry(workspace.registry).path("champion").rename(tmp_path / "gone")
    again = train.run(settings(), workspace)
    assert again.figures["bundle"] == first.figures["bundle"]  # the same causes, the same bytes
    Registry(workspace.registry).verify("champion")


@pytest.mark.long
def test_a_failure_leaves_the_earlier_run(
    tmp_path: Path, without_ray: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = write_features(tmp_path, n_requests=80)
    train.run(settings(), workspace)
    before = (workspace.train / "manifest.json").read_text()
    (workspace.features / "state" / "pickle.pkl").write_text("no")
    with pytest.raises(UserError, match=r"pickle\.pkl"):
        train.run(settings(seed=1), workspace)
    assert (workspace.train / "manifest.json").read_text() == before


def test_features_come_first(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="raysys features"):
        train.run(settings(), Workspace(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"learners": {}}, "learners"),
        ({"learners": {"popular": {}}, "seeed": 1}, "seed"),
        ({"learners": {"popular": {}}, "tuned": {"lightgbm_ranker": "x.yaml"}}, "not among"),
        ({"learners": {"popular": {}}, "ensemble": {"methods": ["magic"]}}, "stack_both"),
        ({"learners": {"popular": {}}, "resources": {"workers": 0}}, "resources.workers"),
    ],
)
def test_settings_that_cannot_work_are_named(content: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_settings(TrainSettings, content, where="train.yaml")


def test_a_learners_settings_are_checked_before_anything_runs(trained: Workspace) -> None:
    with pytest.raises(UserError, match="popularity"):
        train.run(settings(learners={"popularity": {}}), trained)
    with pytest.raises(UserError, match=r"learners\.popular"):
        train.run(settings(learners={"popular": {"no_such_thing": 1}}), trained)


def test_tuned_settings_are_taken(trained: Workspace, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    found = workspace.tune / "lightgbm_ranker" / "best.yaml"
    found.parent.mkdir(parents=True)
    found.write_text(yaml.safe_dump({"lightgbm_ranker": {"n_estimators": 7}}))
    learners = {"lightgbm_ranker": {"n_estimators": 5, "seed": 3}}
    chosen = train.chosen_settings(settings(learners=learners), workspace)
    assert chosen == {"lightgbm_ranker": {"n_estimators": 7, "seed": 3}}
    plain = settings(learners=learners, use_tuned=False)
    assert train.chosen_settings(plain, workspace) == learners
    named = settings(learners=learners, use_tuned=False, tuned={"lightgbm_ranker": str(found)})
    assert train.chosen_settings(named, workspace) == chosen
    assert train.chosen_rows(named, workspace) == {}
    with found.open("a") as more:
        more.write("data: {negatives: 9}\n")
    (rows,) = train.chosen_rows(named, workspace).values()
    assert (rows.negatives, rows.window_days) == (9, None)
    assert train.chosen_rows(plain, workspace) == {}
    found.write_text("xgboost_ranker: {}")
    with pytest.raises(UserError, match="no settings of lightgbm_ranker"):
        train.chosen_settings(named, workspace)
    with pytest.raises(UserError, match="no such file"):
        train.chosen_settings(
            settings(learners=learners, tuned={"lightgbm_ranker": "none.yaml"}), workspace
        )


def test_the_preset_names_every_learner_that_suits_baskets() -> None:
    preset = load_settings(TrainSettings, PRESETS / "complete_journey" / "train.yaml")
    # what is in one basket has one moment: there is no next item to learn
    assert set(preset.learners) == set(LEARNERS) - {"next_item", "cross_encoder_ranker"}


@pytest.mark.slow
def test_more_cpus_than_there_are_is_a_users_error(tmp_path: Path) -> None:
    workspace = write_features(tmp_path, n_requests=80)
    with pytest.raises(UserError, match="a fit wants 999 CPU"):
        train.run(settings(resources={"cpus_per_worker": 999}), workspace)


@pytest.mark.slow
def test_trees_through_ray(tmp_path: Path) -> None:
    workspace = write_features(tmp_path, n_requests=400)
    trees = {"lightgbm_ranker": {"n_estimators": 30}, "xgboost_ranker": {"n_estimators": 30}}
    manifest = train.run(settings(learners={**BASELINES, **trees}), workspace)
    ndcg10 = manifest.figures["ndcg10"]
    assert ndcg10["full"] >= max(ndcg10[name] for name in BASELINES)
    ensemble = json.loads((workspace.train / "ensemble.json").read_text())
    assert ensemble["folds"] == [2]
    bundle = Registry(workspace.registry).load("champion")
    assert bundle.families["xgboost_ranker"] == "tree"


def _found_for_the_reranker(workspace: Workspace, content: dict[str, object]) -> Path:
    found = workspace.tune / "cross_encoder_ranker" / "best.yaml"
    found.parent.mkdir(parents=True, exist_ok=True)
    found.write_text(yaml.safe_dump(content))
    return found


def test_what_a_search_found_goes_over_the_second_stage(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    own = {"negatives": 3, "training": {"warm_up": 0.2}}
    told = settings(learners={"popular": {}}, reranker={"settings": own, "top": 9})
    assert chosen_reranker(settings(learners={"popular": {}}), workspace) is None
    reranker, rows = chosen_reranker(told, workspace) or pytest.fail("none")
    assert (reranker, rows) == (told.reranker, DataSettings())
    best = {"negatives": 15, "training": {"learning_rate": 0.0002}}
    found = _found_for_the_reranker(
        workspace, {"cross_encoder_ranker": best, "data": {"window_days": 9}}
    )
    reranker, rows = chosen_reranker(told, workspace) or pytest.fail("none")
    assert reranker.settings == {
        "negatives": 15, "training": {"warm_up": 0.2, "learning_rate": 0.0002}
    }  # fmt: skip
    assert reranker.top == 9 and rows.window_days == 9
    plain = told.model_copy(update={"use_tuned": False})
    assert chosen_reranker(plain, workspace) == (told.reranker, DataSettings())
    content = told.model_dump(exclude={"use_tuned", "tuned"})
    named = settings(**content, use_tuned=False, tuned={"cross_encoder_ranker": str(found)})
    assert chosen_reranker(named, workspace) == (reranker, rows)
    with pytest.raises(UserError, match="not among the learners"):
        settings(learners={"popular": {}}, tuned={"cross_encoder_ranker": str(found)})


@pytest.mark.long
def test_the_second_stage_is_fitted_as_a_search_found_it(
    tmp_path: Path, without_ray: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = write_features(tmp_path / "shop", n_requests=120)
    catalogue = Catalogue.load(workspace.features / "catalogue.parquet")
    cross_encoder(tmp_path / "fitted", catalogue)
    fits: list[tuple[dict[str, object], int]] = []
    fit = train.fit_reranker

    def watched(told, examples, *rest):  # type: ignore[no-untyped-def]
        fits.append((told.settings, -1 if examples is None else examples.negatives))
        return fit(told, examples, *rest)

    monkeypatch.setattr(train, "fit_reranker", watched)
    told = settings(learners={"popular": {}, "repeat_purchase": {}}, reranker={})
    best = {"fitted": str(tmp_path / "fitted")}
    found = _found_for_the_reranker(
        workspace, {"cross_encoder_ranker": best, "data": {"negatives": 4}}
    )
    first = train.run(told, workspace)
    assert fits == [(best, 4)]
    assert train.run(told, workspace).created == first.created and len(fits) == 1
    found.unlink()
    again = told.model_copy(update={"ensemble_only": True})
    second = train.run(again, workspace)
    assert fits[1:] == [(best, -1)], "the model of the run before, which that search chose"
    assert second.settings["chosen_reranker"] == first.settings["chosen_reranker"]


def test_what_a_search_found_leaves_the_other_settings_within_a_setting(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    found = workspace.tune / "two_tower" / "best.yaml"
    found.parent.mkdir(parents=True)
    found.write_text("two_tower: {steps: 60, head: {width: 64}}\n")
    own = {"steps": 30, "head": {"epochs": 12, "exclude": ["position"], "width": 32}}
    chosen = chosen_settings(settings(learners={"two_tower": own}), workspace)
    assert chosen["two_tower"] == {
        "steps": 60, "head": {"epochs": 12, "exclude": ["position"], "width": 64}
    }  # fmt: skip


def test_no_model_may_score_by_the_position_that_the_log_shows() -> None:
    plan = [
        {"name": "price", "kind": "static", "column": "price"},
        {"name": "position", "kind": "shown_position"},
    ]
    features = Manifest("features", settings={"plan": {"features": plan}})
    require_served({"a": ("price",)}, features)
    with pytest.raises(UserError, match="b scores by position") as caught:
        require_served({"a": ("price",), "b": ("price", "position")}, features)
    assert "exclude: [position]" in str(caught.value.mend)


@pytest.mark.parametrize(
    ("name", "refused", "taken"),
    [
        ("lightgbm_ranker", {}, {"exclude": ["position"]}),
        ("xgboost_ranker", {}, {"unbiased": True, "candidates": 0}),
        ("two_tower", {}, {"head": {"exclude": ["position"]}}),
        ("two_tower", {}, {"head": None}),
    ],
)
def test_what_a_learner_reads_is_known_before_it_is_fitted(
    name: str, refused: dict[str, Any], taken: dict[str, Any]
) -> None:
    names = ("price", "position")
    assert "position" in make_learner(name, refused).reads(names)
    assert "position" not in make_learner(name, taken).reads(names)
    if taken.get("head", True):
        with pytest.raises(UserError, match="positoin"):
            make_learner(name, {"head": {"exclude": ["positoin"]}} if "head" in taken else
                         {"exclude": ["positoin"]}).reads(names)  # fmt: skip
