"""`raysys text fit`: what it writes, chooses, publishes, refuses, and does not do twice."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from rich.console import Console
from typer.testing import CliRunner

from raysys import schema
from raysys.cli import app
from raysys.config import PRESETS, load_settings, parse_settings
from raysys.errors import UserError
from raysys.evaluation.text_judge import TextJudge
from raysys.learners import text as learners
from raysys.learners.text import make_text_learner
from raysys.learners.text_blend import TextBlendModel
from raysys.learners.text_protocol import PREDICTIONS, TextContext
from raysys.registry import Registry, TextBundle
from raysys.stages import text, text_judging
from raysys.stages.named_files import named_files
from raysys.stages.text import show
from raysys.stages.text_settings import TextSettings
from raysys.storage import Workspace, read_manifest
from tests.learners.label_suite import titles
from tests.stages import texts

QUICK = {"tfidf_classifier": {"costs": [3.0], "thresholds": {"choose": "none"}}}
GAZETTEER: dict[str, Any] = {"gazetteer_tagger": {}}


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> tuple[TextSettings, Workspace]:
    folder = tmp_path_factory.mktemp("classify")
    settings = texts.settings_of("classify", texts.write_titles(folder / "a.csv"), QUICK)
    workspace = Workspace(folder / "ws")
    text.run(settings, workspace)
    return settings, workspace


def test_it_publishes_what_it_judged(classified: tuple[TextSettings, Workspace]) -> None:
    _, workspace = classified
    folder = workspace.text / "text-classify"
    manifest = read_manifest(folder)
    registry = Registry(workspace.registry)
    bundle = TextBundle.load(registry.path("text-classify"))
    assert bundle.id == manifest.figures["bundle"] and bundle.task == "classify"
    assert bundle.columns == ("title",) and bundle.manifest.surface == "text"
    said = pl.read_parquet(folder / "predictions" / "tfidf_classifier.parquet")
    again = bundle.model.predict(said.select("text").to_arrow())
    assert said["predicted_label"].to_list() == again["label"].to_pylist()
    test = said.filter(pl.col("split") == "test")
    right = float((test["label"] == test["predicted_label"]).mean())  # type: ignore[arg-type]
    figure = manifest.figures["test"]["tfidf_classifier"]["accuracy"]
    assert figure["value"] == pytest.approx(right) and right > 0.8
    assert figure["low"] <= figure["value"] <= figure["high"]
    assert manifest.counts["test"] == test.height
    rows = pl.read_parquet(folder / "rows.parquet")
    assert sum(manifest.counts[name] for name in ("train", "validation", "test")) == rows.height


def test_the_report_stands_alone_and_says_the_same(
    classified: tuple[TextSettings, Workspace],
) -> None:
    folder = classified[1].text / "text-classify"
    page = (folder / "report.html").read_text(encoding="utf-8")
    for part in ("Learners on the test", "By label", "Confusion", "Probabilities", "Where it errs"):
        assert f"<h2>{part}</h2>" in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["test"] == read_manifest(folder).figures["test"]
    assert sum(label["support"] for label in report["by_label"]) == report["counts"]["test"]


def test_what_is_done_is_not_done_again(
    classified: tuple[TextSettings, Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, workspace = classified
    before = read_manifest(workspace.text / "text-classify")
    monkeypatch.setattr(text, "_fit", lambda *_: pytest.fail("fitted again"))
    assert text.run(settings, workspace).created == before.created


def test_a_second_fit_takes_the_name_and_can_be_rolled_back(tmp_path: Path) -> None:
    path = texts.write_titles(tmp_path / "a.csv", 150)
    workspace = Workspace(tmp_path / "ws")
    first = text.run(texts.settings_of("classify", path, QUICK), workspace)
    second = text.run(texts.settings_of("classify", path, QUICK, seed=1, sample=120), workspace)
    registry = Registry(workspace.registry)
    assert first.figures["bundle"] != second.figures["bundle"]
    assert registry.resolve("text-classify") == second.figures["bundle"]
    assert registry.rollback("text-classify") == first.figures["bundle"]


def test_what_a_fit_depends_on_is_all_its_files_and_models(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "ws")
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"as it was pre-trained first")
    for name in ("a", "b"):  # two files of one name
        (tmp_path / name).mkdir()
        texts.write_titles(tmp_path / name / "titles.csv", 120)
    settings = texts.settings_of("classify", tmp_path / "a" / "titles.csv", QUICK)
    other = texts.settings_of("classify", tmp_path / "b" / "titles.csv", QUICK)
    both = settings.model_copy(update={"sources": (*settings.sources, *other.sources)})
    first = text.run(both, workspace)
    assert text.run(both, workspace).created == first.created
    os.utime(tmp_path / "a" / "titles.csv", (1, 1))
    second = text.run(both, workspace)
    assert second.created != first.created or second.inputs != first.inputs
    named = {"text_classifier": {"model": str(model)}, "blend": [{"teacher": str(model)}]}
    before = named_files(named)
    assert list(before) == [f"{model}/model.safetensors"]
    (model / "model.safetensors").write_bytes(b"as it was pre-trained again")
    assert named_files(named) != before
    assert named_files({"model": "all-MiniLM-L6-v2", "costs": [3.0], "gone": None}) == {}


@pytest.mark.long
def test_items_in_files_of_their_own_are_among_what_a_fit_depends_on(tmp_path: Path) -> None:
    told = pl.read_csv(texts.write_judgements(tmp_path / "whole.csv"))
    numbers = pl.int_range(pl.len()).alias("product")
    told.select("query", "grade", numbers).write_csv(tmp_path / "judgements.csv")
    told.select(numbers, "title").write_ndjson(tmp_path / "products.jsonl")
    source = {
        **{"kind": "files", "paths": str(tmp_path / "judgements.csv"), "item": "product"},
        **{"query": "query", "grade": "grade"},
        "items": {"paths": str(tmp_path / "products.jsonl"), "id": "product", "text": "title"},
    }
    learners_ = {"relevance_trees": {"vectors": None}}
    content = {"task": "relevance", "sources": source, "learners": learners_, "resamples": 100}
    settings = parse_settings(TextSettings, content, where="test")
    workspace = Workspace(tmp_path / "ws")
    first = text.run(settings, workspace)
    assert text.run(settings, workspace).created == first.created
    again = pl.col("title") + " new"
    told.select(numbers, again).write_ndjson(tmp_path / "products.jsonl")
    assert text.run(settings, workspace).inputs != first.inputs
    rows = pl.read_parquet(workspace.text / "text-relevance" / "rows.parquet")
    assert rows["text"].str.ends_with(" new").all()


@pytest.mark.long
def test_texts_without_a_label_teach_who_reads_them_and_are_never_judged(tmp_path: Path) -> None:
    path = texts.write_titles(tmp_path / "a.csv", 300)
    frame = pl.read_csv(path).with_row_index()
    bare = pl.col("index") % 3 == 0
    for name in ("department", "category"):
        frame = frame.with_columns(pl.when(~bare).then(pl.col(name)).alias(name))
    frame.drop("index").write_csv(path)
    workspace = Workspace(tmp_path / "ws")
    quick = QUICK["tfidf_classifier"]
    learners_ = {**QUICK, "pseudo_labels": {"settings": quick, "confidence": 0.5}}
    done = text.run(texts.settings_of("classify", path, learners_), workspace)
    folder = workspace.text / "text-classify"
    history = json.loads((folder / "models" / "pseudo_labels" / "history.json").read_text())
    assert history[-1]["pseudo_labels"] > 20
    rows = pl.read_parquet(folder / "rows.parquet")
    assert rows.filter(pl.col("label").is_null())["split"].unique().to_list() == ["train"]
    assert done.counts["aside"] == 0 and rows.height == 300
    for name in learners_:
        said = pl.read_parquet(folder / "predictions" / f"{name}.parquet")
        assert said["label"].null_count() == 0
        assert done.counts["validation"] + done.counts["test"] == said.height
    without = text.run(texts.settings_of("classify", path, QUICK, name="without"), workspace)
    assert without.counts["aside.label_missing"] == 100
    assert without.figures["test"]["tfidf_classifier"] == done.figures["test"]["tfidf_classifier"]


def test_learners_of_a_killed_run_are_not_fitted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = texts.write_attributes(tmp_path / "a.jsonl")
    both = {"gazetteer_tagger": {}, "gazetteer_tagger_wide": {"longest": 20}}
    monkeypatch.setitem(
        learners.TEXT_LEARNERS,
        "gazetteer_tagger_wide",
        learners.TEXT_LEARNERS["gazetteer_tagger"],
    )
    settings = texts.settings_of("entities", path, both)
    workspace = Workspace(tmp_path / "ws")
    fit = text._fit

    def killed(name: str, *rest: Any) -> Any:
        if name == "gazetteer_tagger_wide":
            raise KeyboardInterrupt
        return fit(name, *rest)

    monkeypatch.setattr(text, "_fit", killed)
    with pytest.raises(KeyboardInterrupt):
        text.run(settings, workspace)
    assert not (workspace.text / "text-entities").exists()
    monkeypatch.setattr(text, "_fit", fit)
    fitted: list[str] = []
    kind = type(make_text_learner("gazetteer_tagger", {}))
    plain = kind.fit

    def counted(self: Any, *rest: Any) -> Any:
        fitted.append("one")
        return plain(self, *rest)

    monkeypatch.setattr(kind, "fit", counted)
    done = text.run(settings, workspace)
    assert len(fitted) == 1 and set(done.figures["test"]) == set(both)
    assert not list(workspace.text.glob(".*.work"))


def test_reviews_become_sentiments_and_bad_rows_are_kept_aside(tmp_path: Path) -> None:
    path = texts.write_reviews(tmp_path / "a.csv")
    workspace = Workspace(tmp_path / "ws")
    settings = texts.settings_of("sentiment", path, QUICK, split={"by": "time"})
    done = text.run(settings, workspace)
    assert done.counts["aside.empty_text"] == 2 and done.counts["aside.rating_not_a_number"] == 1
    aside = pl.read_parquet(workspace.text / "text-sentiment" / "quarantine.parquet")
    assert aside.height == 3
    figures = done.figures["test"]["tfidf_classifier"]
    assert figures["macro_f1"]["value"] > 0.8 and figures["rating_rmse"]["value"] < 1.2
    assert done.figures["split"] == "time"


def test_attributes_become_entities(tmp_path: Path) -> None:
    path = texts.write_attributes(tmp_path / "a.jsonl")
    workspace = Workspace(tmp_path / "ws")
    done = text.run(texts.settings_of("entities", path, GAZETTEER), workspace)
    assert done.figures["mended"] == {"attribute_value_not_in_text": 1}
    assert done.figures["test"]["gazetteer_tagger"]["micro_f1"]["value"] > 0.8
    page = (workspace.text / "text-entities" / "report.html").read_text(encoding="utf-8")
    assert "brand" in page and "was found" in page


def test_tokens_with_tags_become_entities_with_no_column_named(tmp_path: Path) -> None:
    lines = [
        f"{brand} B-BRAND\nmill{at} O\nred I-COLOR\n"
        for at in range(40)
        for brand in ("Acme", "Nova")
    ]
    (tmp_path / "train.txt").write_text("-DOCSTART- O\n\n" + "\n".join(lines))
    (tmp_path / "a.yaml").write_text(
        f"task: entities\nsources: {{kind: files, paths: {tmp_path}/train.txt}}\n"
        "learners: {gazetteer_tagger: {}}\nresamples: 100\n"
    )
    command = ["text", "fit", "-c", str(tmp_path / "a.yaml"), "-w", str(tmp_path / "ws")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    told = read_manifest(tmp_path / "ws" / "text" / "text-entities")
    assert told.settings["sources"][0]["spans"] == "spans"
    assert told.figures["test"]["gazetteer_tagger"]["micro_f1"]["value"] == 1
    rows = pl.read_parquet(tmp_path / "ws" / "text" / "text-entities" / "rows.parquet")
    assert rows.height == 80 and rows["text"][0].endswith(" red")


def test_judgements_become_relevance(tmp_path: Path) -> None:
    path = texts.write_judgements(tmp_path / "a.csv")
    workspace = Workspace(tmp_path / "ws")
    learners_ = {"relevance_trees": {"vectors": None}}
    done = text.run(texts.settings_of("relevance", path, learners_), workspace)
    figures = done.figures["test"]["relevance_trees"]
    assert 0.5 < figures["ndcg@10"]["value"] <= 1 and figures["rmse"]["value"] < 1
    said = pl.read_parquet(
        workspace.text / "text-relevance" / "predictions" / "relevance_trees.parquet"
    )
    assert said.group_by("query").agg(pl.col("split").n_unique())["split"].max() == 1


def test_a_baseline_that_wins_is_used_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a transformer of the same quality the baseline serves: it costs less."""
    monkeypatch.setitem(learners.TEXT_LEARNERS, "costly", "tests.stages.test_text:CostlyClassifier")
    path = texts.write_titles(tmp_path / "a.csv", 150)
    settings = texts.settings_of(
        "classify", path, {"costly": QUICK["tfidf_classifier"], **QUICK}, blend=False
    )
    done = text.run(settings, Workspace(tmp_path / "ws"))
    assert done.figures["chosen"] == "tfidf_classifier" == done.figures["baseline"]
    assert done.figures["gain"]["value"] == 0
    console = Console(file=io.StringIO(), width=120)
    show(done, console)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "The simple baseline tfidf_classifier wins" in shown
    assert done.figures["bundle"] in shown and "costly" in shown


def test_a_blend_gives_labels_when_its_members_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tables = {name: titles(300, name, 0) for name in ("train", "validation")}
    always = {"choose": "none"}

    def blended(*told: dict[str, Any]) -> dict[str, text_judging.Fit]:
        made = {
            name: make_text_learner(
                "tfidf_classifier", {"terms": terms, "costs": [3.0], "thresholds": thresholds}
            )
            for name, terms, thresholds in zip(
                ("words", "letters"), ([["words", 1, 1]], [["letters", 2, 4]]), told, strict=True
            )
        }
        fits = {
            name: text_judging.Fit(
                each.fit(tables["train"], tables["validation"], TextContext(tmp_path)),
                "baseline", 0.0, [],
            )
            for name, each in made.items()
        }  # fmt: skip
        return text._blended(fits, made, tables, tmp_path)

    model = blended(always, always)[text.BLEND].model
    assert isinstance(model, TextBlendModel) and len(model.weights) == 2
    assert (model.labelling.calibration.weights == 1).all()
    assert not model.labelling.calibration.thresholds[-1].any()
    sure = blended(*[{"choose": "precision", "precision": 0.99}] * 2)[text.BLEND].model
    assert isinstance(sure, TextBlendModel)
    assert sure.labelling.calibration.thresholds[-1].any()
    assert blended(always, {"choose": "f1"}) == {}
    assert "words and letters are told different `thresholds`" in caplog.text


@pytest.mark.parametrize(
    ("baseline", "transformer", "blend", "chosen"),
    [
        (0.70, 0.71, 0.71, "baseline"),  # a hair's breadth is luck
        (0.70, 0.95, 0.95, "transformer"),
        (0.50, 0.70, 0.95, "blend"),
        (0.90, 0.60, 0.60, "baseline"),
    ],
)
def test_the_cheapest_that_is_as_good_is_chosen(
    baseline: float, transformer: float, blend: float, chosen: str
) -> None:
    n = 400
    truth = ["a", "b"] * (n // 2)
    rows = [{"text_id": str(at), "text": "t", "label": name, "split": "validation"}
            for at, name in enumerate(truth)]  # fmt: skip
    judging = TextJudge(
        "classify", pa.Table.from_pylist(rows, schema.LABELLED_TEXTS), np.arange(n), resamples=300
    )
    verdicts = {}
    quality = {"baseline": baseline, "transformer": transformer, "blend": blend}
    for at, (name, share) in enumerate(quality.items()):
        good = np.random.default_rng(at).permutation(n) < share * n
        said = [t if right else "ab"[t == "a"] for t, right in zip(truth, good, strict=True)]
        told = [{"label": s, "probability": 1.0, "choices": [{"label": s, "probability": 1.0}]}
                for s in said]  # fmt: skip
        verdicts[name] = judging.verdict(pa.Table.from_pylist(told, PREDICTIONS["classify"]))
    fits = {name: text_judging.Fit(None, name, 0.0, []) for name in quality}  # type: ignore[arg-type]
    assert text_judging.simplest(quality, fits, verdicts, judging) == chosen


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"learners": {"entity_tagger": {}}}, "cannot learn classify"),
        ({"learners": {"tfidf": {}}}, "no text learner 'tfidf'"),
        ({"learners": {"tfidf_classifier": {"cost": [1]}}}, "unknown key"),
    ],
)
def test_learners_that_do_not_fit_are_refused_before_anything_is_read(
    tmp_path: Path, more: dict[str, Any], said: str
) -> None:
    settings = texts.settings_of("classify", tmp_path / "none.csv", more["learners"])
    with pytest.raises(UserError, match=said):
        text.run(settings, Workspace(tmp_path / "ws"))


def test_settings_say_what_they_do_not_know() -> None:
    with pytest.raises(UserError, match=r"learner_resources\.x: not among"):
        texts.settings_of("classify", Path("a"), QUICK, learner_resources={"x": {}})


def test_the_preset_needs_nothing_but_its_package() -> None:
    settings = load_settings(TextSettings, PRESETS / "complete_journey" / "text.yaml")
    assert settings.title == "text-classify"
    for name, values in settings.learners.items():
        make_text_learner(name, values, task=settings.task)


class CostlyClassifier(type(make_text_learner("tfidf_classifier", {}))):  # type: ignore[misc]
    """The baseline in a transformer's clothes."""

    name = "costly"
    family = "transformer"


@pytest.mark.slow
def test_fits_run_through_ray_train_where_resources_say_so(tmp_path: Path) -> None:
    path = texts.write_attributes(tmp_path / "a.jsonl", 80)
    quick = {"word_tagger": {"training": {"epochs": 2}}, **GAZETTEER}
    resources = {"word_tagger": {"workers": 1, "cpus_per_worker": 1}}
    workspace = Workspace(tmp_path / "ws")
    done = text.run(
        texts.settings_of("entities", path, quick, learner_resources=resources), workspace
    )
    assert set(done.figures["test"]) == set(quick)
    page = (workspace.text / "text-entities" / "report.html").read_text(encoding="utf-8")
    assert "Learning curves" in page
