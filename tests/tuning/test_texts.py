"""What one trial of a text learner does: as `raysys text fit` would, on after a kill, and no test.

The texts are a small shop's; transformers are made from nothing, two layers and a few numbers wide.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from raysys.evaluation.text_judge import CRITERION
from raysys.learners.text import make_text_learner
from raysys.learners.text_classifier import TextClassifier
from raysys.stages import text
from raysys.stages.text_settings import TextSettings
from raysys.stages.tune import TuneSettings
from raysys.stages.tune_texts import TextTask
from raysys.storage import Workspace, read_manifest
from raysys.tuning.metrics import COSTS, OF_TEXTS
from raysys.tuning.objective import Job
from raysys.tuning.texts import TextObjective, request_of
from tests.stages import texts
from tests.text.tiny import write_tiny_bert

SCRATCH = {"layers": 1, "width": 16, "heads": 2, "vocabulary": 200}
TINY: dict[str, Any] = {
    "scratch": SCRATCH,
    "training": {
        "epochs": 2,
        "learning_rate": 0.003,
        "evaluate_every": {"steps": 2},
        "precision": "fp32",
    },
}
TASKS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "classify": (texts.write_titles, "tfidf_classifier", {"costs": [3.0]}),
    "sentiment": (texts.write_reviews, "tfidf_classifier", {"costs": [3.0]}),
    "entities": (texts.write_attributes, "gazetteer_tagger", {}),
    "relevance": (
        texts.write_judgements,
        "relevance_trees",
        {"vectors": None, "n_estimators": 12, "min_child_samples": 3},
    ),
}
JOB = Job(0, {})


class KilledError(BaseException):
    """Stands for the kill: nobody catches it."""


def fitted(folder: Path, kind: str) -> tuple[TextTask, str]:
    """A task that `raysys text fit` has fitted, and its learner."""
    write, learner, settings = TASKS[kind]
    workspace = Workspace(folder / "ws")
    text.run(texts.settings_of(kind, write(folder / "rows"), {learner: settings}), workspace)
    return TextTask.open(workspace, f"text-{kind}"), learner


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> TextTask:
    return fitted(tmp_path_factory.mktemp("classify"), "classify")[0]


def objective(
    task: TextTask, folder: Path, learner: str, settings: dict[str, Any], **more: Any
) -> TextObjective:
    asked = TuneSettings.model_validate(
        {
            "learner": learner,
            "text": task.folder.name,
            "settings": settings,
            "space": {"any": {"kind": "int", "low": 1, "high": 2}},
            "scheduler": {"kind": "asha", "grace": 2},
            "seed": task.settings.seed,
        }
    )
    return replace(task.objective(asked, "search", folder), **more)


@pytest.mark.long
@pytest.mark.parametrize("kind", list(TASKS))
def test_a_trial_by_the_tasks_own_settings_scores_what_the_task_did(tmp_path, kind):
    task, learner = fitted(tmp_path, kind)
    own = objective(task, tmp_path / "trials", learner, task.settings.learners[learner])
    told: list[tuple[int, float]] = []
    metrics = own(JOB, lambda *each: told.append(each))
    expected = read_manifest(task.folder).figures["validation"][learner]
    shared = [name for name in OF_TEXTS[kind] if name in expected]
    assert CRITERION[kind] == OF_TEXTS[kind][0] and len(shared) >= 3
    for name in shared:
        assert metrics[name] == pytest.approx(expected[name]["value"], abs=1e-6), name
    assert all(metrics[name] > 0 for name in COSTS)
    assert not told, "none of these trains in steps that can be judged"


def test_copies_are_those_of_the_task(tmp_path):
    """None says what a text of the test says; a trial learns from the rows that the task did."""
    lines = ["text,label,split"]
    for at in range(90):
        label = ("tea", "soap", "nails")[at % 3]
        split = ("train", "train", "validation")[at // 3 % 3]
        lines.append(f"{label} n{at},{label},{split}")
        if split == "train" and at % 2:
            lines.append(f"n{at} {label},{label},test")  # what a swap would say
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    learner = {"tfidf_classifier": {"costs": [3.0], "least": 1}}
    content = {
        "task": "classify",
        "sources": {"kind": "files", "paths": str(tmp_path / "rows.csv"), "text": "text",
                    "label": "label", "split": "split"},
        "augmentation": {"methods": [{"kind": "word_swap"}]},
        "learners": learner,
        "resamples": 100,
    }  # fmt: skip
    workspace = Workspace(tmp_path / "ws")
    done = text.run(TextSettings.model_validate(content), workspace)
    task = TextTask.open(workspace, "text-classify")
    made = objective(task, tmp_path / "trials", "tfidf_classifier", learner["tfidf_classifier"])
    kept = pl.read_parquet(task.folder / "copies.parquet")
    mine = pl.from_arrow(made.train).filter(pl.col("augmented").is_not_null())
    assert mine["text"].to_list() == kept["text"].to_list() and kept.height > 20
    rows = pl.read_parquet(task.folder / "rows.parquet")
    assert not set(mine["text"]) & set(rows.filter(pl.col("split") == "test")["text"])
    found = made(JOB, print)["macro_f1"]
    assert found == pytest.approx(
        done.figures["validation"]["tfidf_classifier"]["macro_f1"]["value"], abs=1e-6
    )


def test_nothing_is_fitted_or_judged_by_the_test(classified, tmp_path):
    made = objective(classified, tmp_path, "tfidf_classifier", {"costs": [3.0]})
    rows = pl.read_parquet(classified.folder / "rows.parquet")
    counts = dict(rows["split"].value_counts().rows())
    assert (len(made.train), len(made.validation)) == (counts["train"], counts["validation"])
    test = set(rows.filter(pl.col("split") == "test")["text"])
    assert not test & {*made.train["text"].to_pylist(), *made.validation["text"].to_pylist()}


def long(epochs: int) -> dict[str, Any]:
    """Training until something is learned."""
    return {"training": {**TINY["training"], "epochs": epochs, "learning_rate": 0.01}}


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "learner", "settings", "metric"),
    [
        ("sentiment", "text_classifier", {**TINY, **long(8)}, "macro_f1"),
        ("entities", "word_tagger", long(3), "micro_f1"),
    ],
)
def test_what_is_told_on_the_way_is_what_the_task_is_judged_by(
    tmp_path, kind, learner, settings, metric
):
    task, _ = fitted(tmp_path, kind)
    made = objective(task, tmp_path / "trials", learner, settings)
    told: list[float] = []
    metrics = made(JOB, lambda _, value: told.append(value))
    assert len(told) > 3 and all(0 <= value <= 1 for value in told)
    # thresholds and temperature come after training
    assert max(told) == pytest.approx(metrics[metric], abs=0.2)


@pytest.mark.long
@pytest.mark.parametrize("loss", ["mse", "listwise"])
@pytest.mark.parametrize("learner", ["cross_encoder", "bi_encoder"])
def test_relevance_is_told_as_ndcg_whatever_the_loss(tmp_path, learner, loss):
    task, _ = fitted(tmp_path, "relevance")
    settings = {
        "model": str(write_tiny_bert(tmp_path / "model")),
        "loss": loss,
        "training": {**TINY["training"], "max_steps": 4},
    }
    made = objective(task, tmp_path / "trials", learner, settings)
    told: list[float] = []
    metrics = made(JOB, lambda _, value: told.append(value))
    assert len(told) == 2 and all(0 < value <= 1 for value in told)
    assert told[-1] == pytest.approx(metrics["ndcg@10"], abs=0.25)


@pytest.mark.long
def test_a_killed_trial_goes_on_from_its_checkpoint_to_the_same_end(
    classified, tmp_path, monkeypatch
):
    whole = objective(classified, tmp_path / "whole", "text_classifier", TINY, every=2)
    told: dict[int, float] = {}
    expected = whole(JOB, lambda step, value: told.__setitem__(step, value))
    assert (
        list(told) == sorted(told) and len(told) > 3 and all(np.isfinite(v) for v in told.values())
    )

    cut = replace(whole, folder=tmp_path / "cut")
    steps: list[int] = []

    def tell(step: int, value: float) -> None:
        steps.append(step)
        assert value == told[step]
        if step == 6 and steps.count(6) == 1:
            raise KilledError

    with pytest.raises(KilledError):
        cut(JOB, tell)
    metrics = cut(JOB, tell)
    assert steps == [2, 4, 6, 6, *[step for step in told if step > 6]], "not from the first step"
    for name in ("macro_f1", "accuracy", "calibration_error", "size_mb"):
        assert metrics[name] == pytest.approx(expected[name], abs=1e-9)

    # killed while it was judged: the fit is there
    monkeypatch.setattr(TextClassifier, "fit", lambda *_: pytest.fail("fitted again"))
    assert cut(JOB, tell)["macro_f1"] == metrics["macro_f1"]


@pytest.mark.parametrize(
    ("kind", "learner", "settings", "expected"),
    [
        ("classify", "text_classifier", {}, {"training": {"epochs": 0.75}}),
        ("sentiment", "text_classifier", {"training": {"max_steps": 100, "warm_up": 0.2}},
         {"training": {"max_steps": 25, "warm_up": 0.2}}),
        ("entities", "word_tagger", {"training": {"epochs": 4.0}}, {"training": {"epochs": 1.0}}),
        ("relevance", "bi_encoder", {"training": {"epochs": 2}}, {"training": {"epochs": 0.5}}),
        ("relevance", "relevance_trees", {"n_estimators": 40}, {"n_estimators": 10}),
        ("classify", "tfidf_classifier", {"costs": [1.0]}, {"costs": [1.0]}),
    ],
)  # fmt: skip
def test_a_quarter_of_the_steps_is_a_quarter_of_what_each_learner_counts(
    kind, learner, settings, expected, tmp_path
):
    made = TextObjective(learner, kind, settings, None, None, None, tmp_path, share=0.25)  # type: ignore[arg-type]
    found = made._learner(JOB)
    wanted = make_text_learner(learner, expected, task=kind)
    assert found.length() == wanted.length()


def test_a_reply_is_timed_for_what_is_asked_at_once(tmp_path):
    pairs = pl.DataFrame({"query": ["a", "b"], "text": ["x", "y"]}).to_arrow()
    asked = request_of(pairs)
    assert len(asked) == 100 and set(asked["query"].to_pylist()) == {"a"}
    assert set(asked["text"].to_pylist()) == {"x", "y"}
    assert request_of(pairs.select(["text"])).to_pylist() == [{"text": "x"}]


@pytest.mark.parametrize(
    ("task", "learner"),
    [
        ("classify", "text_classifier"),
        ("entities", "entity_tagger"),
        ("relevance", "cross_encoder"),
        ("relevance", "bi_encoder"),
    ],
)
def test_a_search_of_one_rate_moves_nothing_else_of_the_training(task, learner, tmp_path):
    plain = make_text_learner(learner, {}, task=task).settings.training
    made = TextObjective(learner, task, {}, None, None, None, tmp_path, every=7)  # type: ignore[arg-type]
    trial = made._learner(Job(0, {"training.learning_rate": 0.01})).settings.training
    moved = {"learning_rate": 0.01, "checkpoint_every": trial.checkpoint_every}
    assert trial == plain.model_copy(update=moved)
    assert trial.checkpoint_every.steps == 7
