"""`raysys tune` before its first trial: what cannot work is said at once."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from raysys.errors import UserError
from raysys.features.examples import Examples
from raysys.ingest.spread import InProcess
from raysys.stages import features, train, tune
from raysys.stages.tune import TuneSettings, _causes, _clear, _objectives, check
from raysys.stages.tune_rows import FeatureRuns
from raysys.storage import Manifest, Workspace, read_manifest
from raysys.tuning.objective import Job, LearnerObjective, Rows
from raysys.tuning.schedulers import JOB
from raysys.tuning.settings import Proxy, WarmStart
from raysys.tuning.space import distributions, inside
from raysys.tuning.study import open_study
from raysys.tuning.warm import warm_points
from tests.features import logs, test_columns
from tests.stages.workspace import write_features
from tests.synthetic import write_examples
from tests.tuning import toy

SPACE = {"learning_rate": {"kind": "float", "low": 0.01, "high": 0.3}}
INT = {"kind": "int", "low": 1, "high": 9}


def settings(**more: object) -> TuneSettings:
    return TuneSettings.model_validate({"learner": "lightgbm_ranker", "space": SPACE, **more})


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"space": {"learning_rat": SPACE["learning_rate"]}}, "did you mean 'learning_rate'"),
        ({"space": {"data.negative": INT}}, "did you mean 'negatives'"),
        ({"space": {"dat.negatives": INT}}, "dat: unknown key"),
        ({"learner": "next_item", "space": {"settings.layer": INT}},
         "settings: layer: unknown key; did you mean 'layers'"),
        ({"learner": "next_item", "settings": {"learner": "item_knn"},
          "space": {"settings.layers": INT}}, r"settings: layers: unknown key.*allowed: backward"),
        ({"learner": "ensemble", "scheduler": "none", "space": {"round": INT}},
         "did you mean 'rounds'"),
        ({"space": {"data.negatives": {"kind": "int", "low": -2, "high": 4}}}, "-2"),
        ({"objective": {"metric": "ndcg"}}, "no trial reports 'ndcg'"),
        ({"constraints": {"latency": 1}}, "no cost is called"),
        ({"scheduler": "pbt", "space": {"early_stopping_rounds": INT}}, "cannot change while"),
        ({"learner": "popular", "space": {"column": {"kind": "choice", "choices": ["a"]}},
          "proxy": {"steps": 0.5}}, "has no steps"),
        ({"learner": "ensemble", "space": {"rounds": INT}}, "scheduler: none"),
        ({"learner": "next_item", "settings": {"learner": "item_knn"},
          "space": {"history": INT}, "proxy": {"steps": 0.5}}, "has no steps"),
        ({"learner": "ensemble", "space": {"data.negatives": INT}}, "no settings of data"),
        ({"learner": "ensemble", "scheduler": "none",
          "space": {"block_by": {"kind": "choice", "choices": ["time", "user"]}}},
         "figures of different blocks"),
        ({"learner": "lightgbm"}, "no learner 'lightgbm'"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_is_read(more, problem):
    with pytest.raises(UserError, match=problem):
        check(settings(**more), {})


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"scheduler": "pbt", "trials": 7}, "multiple of its population"),
        ({"scheduler": "pbt", "trials": 6, "searcher": "random"}, "leave the searcher out"),
        ({"searcher": "bohb", "scheduler": "none"}, "hyperband or asha"),
        ({"objective": {"metric": "size_mb", "direction": "min"}}, "choose none"),
        ({"searcher": "annealing"}, "'tpe', 'random', 'grid', 'bohb'"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(more, problem):
    with pytest.raises(ValueError, match=problem):
        settings(**more)


@pytest.mark.parametrize("learner", ["next_item", "cross_encoder_ranker"])
def test_transformers_have_epochs_to_take_fewer_of(learner):
    check(settings(learner=learner, space={"history": INT}, proxy={"steps": 0.5}), {})


def test_neighbours_are_searched_as_learners_of_the_next_item():
    told = {"learner": "next_item", "settings": {"learner": "session_knn"}}
    check(settings(**told, space={"settings.neighbours": INT}), {})
    with pytest.raises(UserError, match="neighbour"):
        check(settings(**told, space={"settings.neighbour": INT}), {})
    with pytest.raises(UserError, match="no learner 'session_knn'"):
        check(settings(learner="session_knn", space={"neighbours": INT}), {})


def test_a_search_starts_from_the_learners_own_settings_and_all_the_data():
    space = {
        **SPACE,
        "data.negatives": {"kind": "choice", "choices": [5, 0]},
        "data.window_days": {"kind": "choice", "choices": [30, None]},
    }
    assert check(settings(space=space), {}) == {
        "learning_rate": 0.08,
        "data.negatives": 0,
        "data.window_days": None,
    }


def test_a_search_of_the_next_item_starts_from_the_settings_of_the_learner_within(tmp_path):
    rate = SPACE["learning_rate"]
    space = {"settings.layers": INT, "settings.dropout": rate, "settings.learning_rate": rate}
    given = {"learner": "next_item", "settings": {"settings": {"width": 32}}}
    asked = settings(**given, space={**space, "settings.learning_rate": rate | {"low": 0.001}})
    own = check(asked, {})
    assert own == {"settings.layers": 2, "settings.dropout": 0.2, "settings.learning_rate": 0.002}
    assert inside(asked.space, own)
    (tmp_path / "best.yaml").write_text("next_item: {settings: {layers: 3}}\n")
    warm = WarmStart(files=(str(tmp_path / "best.yaml"),))
    assert warm_points(warm, "next_item", asked.space, own) == [{**own, "settings.layers": 3}]


@pytest.mark.parametrize(("items", "negatives"), [(4000, 0), (4001, 2000)])
def test_negatives_of_the_next_item_are_tried_first_as_the_catalogue_says(items, negatives):
    choices = {"kind": "choice", "choices": [0, 500, 2000]}
    methods = {"kind": "choice", "choices": [[], [{"kind": "crop"}]]}
    space = {"settings.negatives": choices, "settings.augmentation.methods": methods}
    asked = settings(learner="next_item", space=space)
    own = check(asked, {}, items)
    assert own == {"settings.negatives": negatives, "settings.augmentation.methods": "list []"}
    assert inside(asked.space, own)
    assert not inside(asked.space, check(asked, {})), "nobody knows the catalogue"
    told = settings(learner="next_item", space=space, settings={"settings": {"negatives": 500}})
    with pytest.raises(UserError, match="negatives"):  # it is set, and searched
        check(told, {}, items)


def test_how_many_items_there_are_is_read_of_the_catalogue(workspace):
    assert tune._items(workspace) == 60
    assert tune._items(Workspace(workspace.root / "none")) is None


def test_a_search_of_the_ranker_starts_without_copies():
    methods = {"kind": "choice", "choices": [[], [{"kind": "word_swap"}]]}
    space = {"augmentation.methods": methods, "augments": {"kind": "choice",
             "choices": ["text", "query"]}}  # fmt: skip
    asked = settings(learner="cross_encoder_ranker", space=space)
    own = check(asked, {})
    assert own == {"augmentation.methods": "list []", "augments": "query"}
    assert inside(asked.space, own)
    methods["choices"].append([{"kind": "crop"}])
    with pytest.raises(UserError, match="crop: pairs of texts have no history"):
        check(settings(learner="cross_encoder_ranker", space=space), {})


def test_budgets_are_no_causes_but_what_scores_depend_on_are():
    def causes(**more: object) -> str:
        return _causes(settings(**more), Manifest(stage="tune"))

    same = {"trials": 5, "minutes": 1, "full": {"best": 1}, "plateau": {"trials": 3}}
    assert causes(**same, compare_random=True, logging=["mlflow"]) == causes()
    for more in ({"seed": 1}, {"proxy": {"steps": 0.5}}, {"constraints": {"size_mb": 1}}):
        assert causes(**more) != causes()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    found = Workspace(tmp_path / "run")
    write_examples(found.features, 80, 60)
    figures = {"folds": {"train": [0, 1], "validation": 2, "report": 3}}
    Manifest(stage="features", figures=figures).write(found.features)
    return found


def _made(workspace: Workspace, asked: TuneSettings, study: str = "search") -> LearnerObjective:
    upstream = read_manifest(workspace.features)
    folder = workspace.tune / "x"
    made = _objectives(asked, workspace, upstream, folder, None)(study)  # type: ignore[arg-type]
    assert isinstance(made, LearnerObjective)
    return made


def test_a_validation_fold_without_anything_wanted_is_said(workspace):
    for path in Examples(workspace.features, (2,)).files("examples"):
        table = pq.read_table(path, partitioning=None)
        at = table.column_names.index("label")
        zeros = pc.multiply(table["weight"], 0.0)
        pq.write_table(table.set_column(at, "label", pc.cast(zeros, "float32")), path)
    with pytest.raises(UserError, match="no retrieved candidate of fold 2 is relevant"):
        _made(workspace, settings())


def test_a_sample_without_anything_wanted_is_said_with_what_to_raise(workspace):
    """The rows of the workspace teach; those that the proxy drew of them do not."""
    last = Examples(workspace.features, (2,))
    requests = last.requests()["request"].to_numpy()
    drawn = requests[np.linspace(0, len(requests) - 1, 10).round().astype(int)]
    for path in last.files("examples"):
        table = pq.read_table(path, partitioning=None)
        kept = ~np.isin(table["request"].to_numpy(), drawn)
        label = pa.array(np.where(kept, table["label"].to_numpy(), 0), pa.float32())
        table = table.set_column(table.column_names.index("label"), "label", label)
        pq.write_table(table, path)
    _made(workspace, settings())
    with pytest.raises(UserError, match="no retrieved candidate of fold 2") as raised:
        _made(workspace, settings(proxy={"validation_requests": 10}))
    assert "raise proxy.validation_requests" in str(raised.value.mend)


@pytest.mark.parametrize(("fold", "named"), [(2, "2"), (0, "0, 1")], ids=["validation", "train"])
def test_rows_that_weigh_nothing_are_said_before_any_trial(workspace, fold, named):
    for path in Examples(workspace.features, (2,) if fold == 2 else (0, 1)).files("examples"):
        table = pq.read_table(path, partitioning=None)
        at = table.column_names.index("weight")
        zeros = pc.cast(pc.multiply(table["weight"], 0.0), "float32")
        pq.write_table(table.set_column(at, "weight", zeros), path)
    with pytest.raises(UserError, match=f"every relevant candidate of fold {named} weighs 0"):
        _made(workspace, settings())
    ensemble = {"learner": "ensemble", "space": {"rounds": INT}, "scheduler": "none"}
    if fold == 2:
        with pytest.raises(UserError, match="every relevant candidate of fold 2 weighs 0"):
            _made(workspace, TuneSettings.model_validate(ensemble))


def test_a_learner_that_reads_the_shown_position_is_refused_before_any_trial(workspace):
    manifest = read_manifest(workspace.features)
    plan = {"features": [{"name": "price", "kind": "shown_position"}]}  # as if it were one
    replace(manifest, settings={"plan": plan}).write(workspace.features)
    with pytest.raises(UserError, match="lightgbm_ranker scores by price, at which the log"):
        _made(workspace, settings())
    _made(workspace, settings(settings={"exclude": ["price"]}))
    choices = {"kind": "choice", "choices": [["price"], ["price", "user_*"]]}
    _made(workspace, settings(space={**SPACE, "exclude": choices}))


def _left_in(folder: Path) -> list[str]:
    scratch = folder / "scratch"
    return sorted(str(path.relative_to(scratch)) for path in scratch.rglob("*"))


def test_checkpoints_of_a_population_stay_for_a_search_that_goes_on(tmp_path):
    def left(population):
        for study in ("search", "full", "random"):
            (tmp_path / "scratch" / study / "trial-0").mkdir(parents=True, exist_ok=True)
        _clear(tmp_path, population=population)
        return _left_in(tmp_path)

    assert left(True) == ["search", "search/trial-0"]
    assert left(False) == []
    assert not (tmp_path / "scratch").exists()


def test_checkpoints_of_trials_that_a_budget_cut_off_stay_for_a_search_that_goes_on(tmp_path):
    space = distributions(settings().space)
    for study, ended in (("search", 1), ("full", 0), ("random", 2)):
        made = open_study(tmp_path, name=study)
        for number in range(2):
            trial = made.ask(space)
            place = tmp_path / "scratch" / study / f"trial-{number}"
            (place / "step-000000020").mkdir(parents=True)
            if number < ended:
                made.tell(trial, 0.5)
        (tmp_path / "scratch" / study / "left behind").write_text("by a learner")
    _clear(tmp_path, population=False)
    kept = ["full/trial-0", "full/trial-1", "search/trial-1"]
    steps = [f"{trial}/step-000000020" for trial in kept]
    assert _left_in(tmp_path) == sorted([*kept, *steps, "full", "search"])


def test_each_study_keeps_its_own_checkpoints(tmp_path):
    made = toy.plan(tmp_path)
    other = made.of("full", made.settings)
    assert (other.study, other.checkpoints) == ("full", made.checkpoints.with_name("full"))


def test_the_proxy_is_of_the_search_alone(workspace):
    asked = settings(proxy={"requests": 20, "validation_requests": 10, "steps": 0.5})
    search, full = _made(workspace, asked), _made(workspace, asked, "full")
    assert (search.share, full.share) == (0.5, 1.0)
    few, every = search.rows.examples.batch(), full.rows.examples.batch()
    assert few.n_requests == 20 and every.n_requests == 40
    assert search.rows.validation.n_requests == 10 and full.rows.validation.n_requests == 20
    assert (search.grace, full.grace) == (20, 0)


@pytest.mark.long
def test_features_are_run_once_for_each_of_their_settings(tmp_path):
    shop = logs.workspace(tmp_path, logs.as_rows(test_columns.log()))
    features.run(test_columns.settings(), shop, spread=InProcess())
    manifest = read_manifest(shop.features)
    folds = manifest.figures["folds"]
    every = Examples(shop.features, tuple(folds["train"]))
    rows = Rows(every, every.with_folds(folds["validation"]).batch())
    runs = FeatureRuns(rows, shop, tmp_path / "runs", manifest.settings, Proxy(requests=10))

    asked = {"features.history": 1, "learning_rate": 0.1}
    examples, judged = runs.of(asked)
    assert max(len(each) for each in every.batch().history) > 1
    assert max(len(each) for each in examples.batch().history) == 1
    assert examples.batch().n_requests <= 11 and judged.n_requests == rows.validation.n_requests
    (made,) = (tmp_path / "runs").iterdir()
    before = (made / "features" / "manifest.json").stat().st_mtime_ns
    assert runs.of({**asked, "learning_rate": 0.3})[0] == examples
    assert (made / "features" / "manifest.json").stat().st_mtime_ns == before
    assert runs.of({"features.history": manifest.settings["history"]})[0] == every

    space = settings(space={"features.history": INT}).space
    assert check(settings(space={"features.history": INT}), manifest.settings) == {
        "features.history": manifest.settings["history"]
    }
    assert space.keys() == {"features.history"}
    with pytest.raises(UserError, match="did you mean 'history'"):
        check(settings(space={"features.histry": INT}), manifest.settings)


@pytest.fixture
def here(monkeypatch):
    """The stage as it is, with trials one after the other in this process."""
    from raysys.tuning import runner

    def run(objective, made, left, progress):
        toy.drive(made, left, lambda job: objective(job, lambda *_: None))

    for module in (tune, train):
        monkeypatch.setattr(module, "ray_session", contextlib.nullcontext)
    monkeypatch.setattr(tune, "resources_here", lambda wanted: wanted)
    monkeypatch.setattr(runner, "run", run)


@pytest.mark.long
def test_an_ensemble_is_searched_on_what_train_stored(here, tmp_path):
    shop = write_features(tmp_path)
    learners = {"popular": {}, "repeat_purchase": {}, "co_occurrence": {}}
    train.run(train.TrainSettings(learners=learners), shop)
    content = {
        "learner": "ensemble",
        "space": {
            "methods": {
                "kind": "choice",
                "choices": [["average_rank"], ["average_standard", "stack_both"]],
            },
            "rounds": {"kind": "int", "low": 2, "high": 20},
        },
        "trials": 4,
        "scheduler": "none",
    }
    by_query = TuneSettings.model_validate({**content, "settings": {"block_by": "query"}})
    with pytest.raises(UserError, match="no request of fold 2 has a query"):
        tune.run(by_query, shop)
    done = tune.run(TuneSettings.model_validate(content), shop)
    assert done.counts["trials"] == 4 and 0 < done.figures["ndcg@10"] < 1
    best = yaml.safe_load((shop.tune / "ensemble" / "best.yaml").read_text())
    made = train.TrainSettings(learners=learners, ensemble=best["ensemble"])
    assert made.ensemble.rounds == best["ensemble"]["rounds"]


@pytest.mark.long
def test_a_search_refits_compares_and_is_not_run_twice(here, workspace):
    asked = settings(
        settings={"n_estimators": 8, "early_stopping_rounds": 0, "min_child_samples": 2},
        proxy={"requests": 20, "steps": 0.5},
        full={"best": 1},
        compare_random=True,
        trials=3,
        scheduler="none",
    )
    done = tune.run(asked, workspace)
    folder = workspace.tune / "lightgbm_ranker"
    content = json.loads((folder / "trials.json").read_text())
    assert {name: len(content[name]) >= least for name, least in COUNTS.items()} == dict.fromkeys(
        COUNTS, True
    )
    assert done.figures["ndcg@10"] == max(trial["score"] for trial in content["full"])
    assert (
        content["random"][0]["values"] == content["search"][0]["values"] == {"learning_rate": 0.08}
    )
    before = (folder / "report.html").stat().st_mtime_ns
    assert tune.run(asked, workspace).created == done.created
    assert (folder / "report.html").stat().st_mtime_ns == before
    more = tune.run(asked.model_copy(update={"trials": 4}), workspace)
    assert more.counts["trials"] == 4
    assert json.loads((folder / "trials.json").read_text())["search"][:3] == content["search"]


@pytest.mark.long
def test_a_trial_cut_off_by_its_minutes_goes_on_where_it_was_when_there_are_more(
    here, workspace, monkeypatch
):
    """The second of two trials is cut off at its fourth tree, with a checkpoint of two."""
    from raysys.tuning import runner

    asked = settings(
        settings={"n_estimators": 8, "early_stopping_rounds": 7, "min_child_samples": 2},
        scheduler={"kind": "asha", "grace": 2},
        trials=2,
    )
    steps: list[int] = []

    def run(objective, made, left, progress):
        toy.drive(made, 1, lambda job: objective(job, lambda *_: None))
        searcher = runner.JournalSearch(made)
        config = searcher.suggest("cut")
        job = Job(values=config, **config.pop(JOB))

        def tell(step, score):
            steps.append(step)
            if step == 4 and len(steps) == 2:
                raise TimeoutError

        with contextlib.suppress(TimeoutError):
            objective(job, tell)
        searcher.on_trial_complete("cut")

    def go_on(objective, made, left, progress):
        toy.drive(made, left, lambda job: objective(job, lambda step, _: steps.append(step)))

    monkeypatch.setattr(runner, "run", run)
    first = tune.run(asked, workspace)
    assert (first.counts["trials"], steps) == (1, [2, 4])
    monkeypatch.setattr(runner, "run", go_on)
    more = tune.run(asked.model_copy(update={"minutes": 90}), workspace)
    assert (more.counts["trials"], steps) == (2, [2, 4, 4, 6, 8])
    assert not (workspace.tune / "lightgbm_ranker" / "scratch").exists()


@pytest.mark.long
@pytest.mark.parametrize("chosen", [False, True])
def test_files_that_settings_name_are_among_what_a_search_depends_on(
    here, workspace, tmp_path, monkeypatch, chosen
):
    """Any setting may name a folder of weights: this one costs no transformer."""
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "price" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"as it was pre-trained first")
    few = {"n_estimators": 4, "early_stopping_rounds": 0, "min_child_samples": 2}
    asked = settings(
        settings=few if chosen else {**few, "exclude": ["price"]},
        space={"exclude": {"kind": "choice", "choices": [[], ["price"]]}} if chosen else SPACE,
        trials=1,
        scheduler="none",
    )
    first = tune.run(asked, workspace)
    assert first.inputs.keys() == {"features", "price/model.safetensors"}
    weights.write_bytes(b"as it was pre-trained again")
    changed = tune.run(asked, workspace)
    assert changed.inputs != first.inputs and changed.counts["trials"] == 1
    causes = [_causes(asked, each) for each in (first, changed)]
    assert causes[0] != causes[1]
    assert tune.run(asked, workspace).created == changed.created


COUNTS = {"search": 3, "random": 1, "full": 1}
