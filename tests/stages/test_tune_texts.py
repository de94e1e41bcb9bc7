"""`raysys tune` over text learners: what is refused at once, and what comes of a search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from raysys.errors import UserError
from raysys.stages import text, tune
from raysys.stages.train_settings import TrainSettings, chosen_settings
from raysys.stages.tune import TuneSettings
from raysys.stages.tune_texts import TextTask, check_texts, sample_rows, without
from raysys.stages.tuned import tuned_file
from raysys.storage import Manifest, Workspace, read_manifest
from raysys.tuning.settings import Proxy
from raysys.tuning.study import SEARCH
from tests.stages import texts
from tests.tuning.test_texts import fitted

INT = {"kind": "int", "low": 1, "high": 3}
COSTS = {"kind": "choice", "choices": [[0.3], [3.0], [30.0]]}


def settings(**more: Any) -> TuneSettings:
    told = {"learner": "tfidf_classifier", "text": "text-classify", "space": {"least": INT}}
    return TuneSettings.model_validate({**told, **more})


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> tuple[TextTask, Workspace]:
    task, _ = fitted(tmp_path_factory.mktemp("classify"), "classify")
    return task, Workspace(task.folder.parent.parent)


@pytest.mark.parametrize(
    ("task", "more", "problem"),
    [
        ("classify", {"learner": "lightgbm_ranker"}, "learns from requests, not from texts"),
        ("classify", {"learner": "ensemble"}, "learns from requests, not from texts"),
        ("classify", {"learner": "text_clasifier"}, "no text learner 'text_clasifier'"),
        ("entities", {}, "tfidf_classifier cannot learn entities"),
        ("classify", {"space": {"leest": INT}}, "did you mean 'least'"),
        ("classify", {"space": {"least": {**INT, "low": -1}}}, "-1"),
        ("classify", {"settings": {"least": 2}}, "both fixed and searched"),
        ("classify", {"space": {"data.negatives": INT}}, "no settings of data"),
        ("classify", {"space": {"features.history": INT}}, "no settings of features"),
        ("classify", {"objective": {"metric": "ndcg@10"}}, "no trial reports 'ndcg@10'"),
        ("sentiment", {"objective": {"metric": "rating_rmse"}}, "max would look for the worst"),
        ("classify", {"constraints": {"latency": 1}}, "did you mean 'latency_ms'"),
        ("classify", {"scheduler": "pbt", "trials": 6}, "may change while it is fitted"),
        ("classify", {"proxy": {"steps": 0.5}}, "has no steps to take fewer of"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_is_read(task, more, problem):
    with pytest.raises(UserError, match=problem):
        check_texts(settings(**more), task)


def test_an_error_is_no_reason_to_stop_a_trial():
    goal = {"metric": "rmse", "direction": "min"}
    told = {"learner": "relevance_trees", "space": {"num_leaves": INT}, "objective": goal}
    with pytest.raises(ValueError, match="choose none"):
        settings(**told)
    low = {"num_leaves": {**INT, "low": 2}}
    check_texts(settings(**{**told, "space": low}, scheduler="none"), "relevance")


def test_a_text_learner_without_texts_says_how_to_name_them(classified):
    with pytest.raises(UserError, match="learns from texts, and none are named") as raised:
        tune.run(settings(text=None), classified[1])
    assert "text: text-classify" in str(raised.value.mend)


def test_a_task_that_is_not_there_is_said_with_those_that_are(classified, tmp_path):
    with pytest.raises(UserError, match="no text task 'text-sentiment'") as raised:
        tune.run(settings(text="text-sentiment"), classified[1])
    assert raised.value.mend == "there are text-classify"
    with pytest.raises(UserError, match="no text task") as raised:
        tune.run(settings(), Workspace(tmp_path))
    assert "raysys text fit" in str(raised.value.mend)


def test_a_search_starts_from_what_the_task_has(tmp_path):
    own = {"least": 2, "folds": 4, "thresholds": {"choose": "none"}, "costs": [3.0]}
    workspace = Workspace(tmp_path / "ws")
    path = texts.write_titles(tmp_path / "titles.csv", 150)
    text.run(texts.settings_of("classify", path, {"tfidf_classifier": own}), workspace)
    task = TextTask.open(workspace, "text-classify")
    found, start = task.prepared(settings(settings={"folds": 5}))
    assert start == {"least": 2} and found.objective.metric == "macro_f1"
    assert found.settings == {"folds": 5, "thresholds": {"choose": "none"}, "costs": [3.0]}
    other, start = task.prepared(
        settings(learner="text_classifier", space={"training.batch_size": INT})
    )
    assert start == {"training.batch_size": 32} and other.settings == {}


def test_settings_can_be_left_out_by_dotted_name():
    told = {"a": {"b": 1, "c": 2}, "d": [1], "e": 3}
    assert without(told, ["a.b", "d", "x.y", "e.f"]) == {"a": {"c": 2}}
    assert told == {"a": {"b": 1, "c": 2}, "d": [1], "e": 3}


def test_inputs_are_the_rows_and_not_the_learners(classified, tmp_path):
    task, workspace = classified
    before = task.inputs
    manifest = read_manifest(task.folder)
    changed = Workspace(tmp_path / "ws")
    folder = changed.text / "text-classify"
    folder.mkdir(parents=True)
    (folder / "rows.parquet").write_bytes((task.folder / "rows.parquet").read_bytes())
    told = {**manifest.settings, "learners": {"text_classifier": {}}}
    Manifest(stage="text", settings=told).write(folder)
    assert TextTask.open(changed, "text-classify").inputs == before
    rows = pl.read_parquet(folder / "rows.parquet")
    rows[1:].write_parquet(folder / "rows.parquet")
    assert TextTask.open(changed, "text-classify").inputs != before
    assert workspace.text == task.folder.parent


def test_a_sample_is_drawn_by_whole_queries():
    rows = pl.DataFrame({"query": [f"q{at // 5}" for at in range(100)], "text": "t", "grade": 1.0})
    found = sample_rows(rows, "relevance", 32, 1)
    assert found.height == 30
    assert found.group_by("query").len()["len"].to_list() == [5] * 6
    assert sample_rows(rows, "relevance", 32, 1).equals(found)
    assert not sample_rows(rows, "relevance", 32, 2).equals(found)
    assert sample_rows(rows, "relevance", 2, 1).height == 5, "at least one"
    assert (
        sample_rows(rows, "relevance", None, 1).height
        == sample_rows(rows, "relevance", 100, 1).height
        == 100
    )


def test_the_proxy_is_of_the_search_alone(classified, tmp_path):
    task, _ = classified
    asked = settings(proxy={"requests": 40, "validation_requests": 10})
    made = task.objectives(asked, tmp_path)
    search, full = made("search"), made("full")
    assert len(search.train) == 40 and len(search.validation) == 10
    assert len(full.train) > 100 and len(full.validation) > 20
    assert (search.grace, full.grace) == (20, 0)
    assert search.folder != full.folder


@pytest.mark.parametrize(
    ("kind", "change", "problem"),
    [
        ("classify", pl.lit("a").alias("label"), "all validation texts have one label"),
        ("entities", pl.lit([]).cast(pl.List(pl.Struct(
            {"start": pl.Int32, "end": pl.Int32, "label": pl.String}))).alias("spans"),
         "no validation text has a span"),
        ("relevance", pl.lit(1.0, pl.Float32).alias("grade"), "no query of validation has texts"),
    ],
)  # fmt: skip
def test_validation_that_tells_nobody_apart_is_said_before_any_trial(
    tmp_path, kind, change, problem
):
    task, learner = fitted(tmp_path, kind)
    path = task.folder / "rows.parquet"
    rows = pl.read_parquet(path)
    held = pl.col("split") == "validation"
    pl.concat([rows.filter(~held), rows.filter(held).with_columns(change)]).write_parquet(path)
    with pytest.raises(UserError, match=problem):
        task.objective(settings(learner=learner, space={"x": INT}), SEARCH, tmp_path, Proxy())


def _found(workspace: Workspace, learner: str, content: dict[str, Any], of: str | None) -> Path:
    folder = workspace.tune / learner
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "best.yaml").write_text(yaml.safe_dump(content))
    Manifest(stage="tune", settings={"text": of}).write(folder)
    return folder / "best.yaml"


@pytest.mark.long
def test_a_fit_takes_what_a_search_over_its_texts_found(tmp_path):
    workspace = Workspace(tmp_path / "ws")
    path = texts.write_titles(tmp_path / "titles.csv", 150)
    own = {"tfidf_classifier": {"costs": [3.0], "least": 1}}
    asked = texts.settings_of("classify", path, own)
    first = text.run(asked, workspace)
    best = _found(workspace, "tfidf_classifier", {"tfidf_classifier": {"least": 2}}, "text-other")
    assert text.run(asked, workspace).created == first.created, "of other texts"
    _found(workspace, "tfidf_classifier", {"tfidf_classifier": {"least": 2}}, "text-classify")
    second = text.run(asked, workspace)
    assert second.settings["learners"] == {"tfidf_classifier": {"costs": [3.0], "least": 2}}
    assert text.run(asked, workspace).created == second.created
    alone = text.run(asked.model_copy(update={"use_tuned": False}), workspace)
    assert alone.settings["learners"] == own
    named = asked.model_copy(update={"use_tuned": False, "tuned": {"tfidf_classifier": str(best)}})
    assert text.run(named, workspace).settings["learners"] == second.settings["learners"]
    gone = named.model_copy(update={"tuned": {"tfidf_classifier": "gone.yaml"}})
    with pytest.raises(UserError, match=r"no such file: 'gone\.yaml'"):
        text.run(gone, workspace)
    best.write_text("lightgbm_ranker: {}\n")
    with pytest.raises(UserError, match="no settings of tfidf_classifier"):
        text.run(named, workspace)
    with pytest.raises(UserError, match=r"tuned.cross_encoder: not among the learners"):
        texts.settings_of("classify", path, own, tuned={"cross_encoder": "x"})


def test_rankers_take_no_search_over_texts(tmp_path):
    workspace = Workspace(tmp_path)
    _found(workspace, "lightgbm_ranker", {"lightgbm_ranker": {"num_leaves": 9}}, "text-classify")
    train = TrainSettings(learners={"lightgbm_ranker": {}})
    assert chosen_settings(train, workspace) == {"lightgbm_ranker": {}}
    found = _found(workspace, "lightgbm_ranker", {"lightgbm_ranker": {"num_leaves": 9}}, None)
    assert chosen_settings(train, workspace) == {"lightgbm_ranker": {"num_leaves": 9}}
    found.with_name("manifest.json").unlink()  # put there by hand
    assert tuned_file("lightgbm_ranker", {}, workspace, look=True) == found
    assert tuned_file("lightgbm_ranker", {}, workspace, look=False) is None


@pytest.mark.slow
def test_a_search_goes_on_and_what_it_finds_is_fitted(tmp_path):
    """On Ray; a transformer from nothing, whose weakest trials are stopped."""
    workspace = Workspace(tmp_path / "ws")
    path = texts.write_titles(tmp_path / "titles.csv", 240)
    tiny = {
        "scratch": {"layers": 1, "width": 16, "heads": 2, "vocabulary": 200},
        "training": {"epochs": 3, "evaluate_every": {"steps": 4}, "precision": "fp32"},
    }
    asked = texts.settings_of("classify", path, {"text_classifier": tiny})
    first = text.run(asked, workspace)
    search = settings(
        learner="text_classifier",
        space={"training.learning_rate": {"kind": "float", "low": 1e-5, "high": 0.02, "log": True}},
        scheduler={"kind": "asha", "grace": 4, "reduction": 2},
        trials=4,
        concurrent=2,
        full={"best": 1},
        seed=0,
    )
    done = tune.run(search, workspace)
    assert done.counts["trials"] == 4 and done.counts["failed"] == 0
    folder = workspace.tune / "text_classifier"
    best = yaml.safe_load((folder / "best.yaml").read_text())["text_classifier"]
    assert best["scratch"] == tiny["scratch"] and best["training"]["learning_rate"] > 1e-5
    page = (folder / "report.html").read_text()
    assert "macro_f1 on validation of text-classify" in page
    assert "on the validation texts as each fit went on" in page
    assert not list((folder / "scratch").glob("*")) or not any((folder / "scratch").iterdir())
    assert tune.run(search, workspace).created == done.created

    again = tune.run(search.model_copy(update={"trials": 6}), workspace)
    assert again.counts["trials"] == 6, "it goes on"
    second = text.run(asked, workspace)
    trained = second.settings["learners"]["text_classifier"]["training"]
    found = yaml.safe_load((folder / "best.yaml").read_text())["text_classifier"]
    assert trained["learning_rate"] == found["training"]["learning_rate"]
    value = second.figures["validation"]["text_classifier"]["macro_f1"]["value"]
    assert value == pytest.approx(again.figures["macro_f1"], abs=1e-6)
    assert value >= first.figures["validation"]["text_classifier"]["macro_f1"]["value"]
    kept = tune.run(search.model_copy(update={"trials": 6}), workspace)
    assert kept.created == again.created, "the fit that took its settings changes no search"
