"""`raysys text fit` on what users clicked: alone, and beside judgements."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

from raysys.cli import app
from raysys.config import parse_settings
from raysys.datasets import labelled
from raysys.errors import UserError
from raysys.registry import Registry, TextBundle
from raysys.stages import text
from raysys.stages.text_settings import TextSettings
from raysys.stages.text_sources import inputs_of, read_and_divide, text_columns
from raysys.storage import Workspace, read_manifest
from raysys.text.behaviour_source import notes_on_models
from raysys.text.pretraining.corpus import log_end, scan_events
from raysys.text.pretraining.log_read import write_log_read
from tests.stages import texts
from tests.text.shop_log import shop
from tests.text.tiny import write_tiny_bert

TREES: dict[str, Any] = {"relevance_trees": {"vectors": None}}
ALONE: dict[str, Any] = {
    "task": "relevance",
    "sources": {"kind": "behaviour", "prior": 0.5},
    "resamples": 100,
}


def settings_of(**more: Any) -> TextSettings:
    return parse_settings(TextSettings, {**ALONE, "learners": TREES, **more}, where="test")


@pytest.mark.long
def test_transformers_are_fitted_on_clicks_by_the_command(tmp_path: Path) -> None:
    workspace = shop(tmp_path / "ws", requests=500)
    quick = {
        "model": str(write_tiny_bert(tmp_path / "tiny")),
        "training": {"epochs": 1, "learning_rate": 3e-3, "batch_size": 16},
    }
    learners = {"bi_encoder": {**quick, "contrast": 0}, "cross_encoder": quick}
    told: dict[str, Any] = {**ALONE, "name": "clicks", "learners": learners}
    told["split"] = {"validation": 0.2, "test": 0.2}
    config = tmp_path / "clicks.yaml"
    config.write_text(yaml.safe_dump(told), encoding="utf-8")
    words = ["text", "fit", "--config", str(config), "--workspace", str(workspace.root)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    manifest = read_manifest(workspace.text / "clicks")
    assert manifest.figures["split"] == "time" and "behaviour" in manifest.inputs
    rows = pl.read_parquet(workspace.text / "clicks" / "rows.parquet")
    assert set(rows["split"]) == {"train", "validation", "test"}
    highest = rows["grade"].max()
    for name in learners:
        said = pl.read_parquet(workspace.text / "clicks" / "predictions" / f"{name}.parquet")
        guess = said["predicted_grade"]
        assert guess.n_unique() > 10 and guess.is_between(0, highest).all()
        assert 0 < manifest.figures["test"][name]["ndcg@10"]["value"] <= 1
    bundle = TextBundle.load(Registry(workspace.registry).path("clicks"))
    assert bundle.task == "relevance" and bundle.columns[0] == "title"


def test_clicks_teach_beside_judgements_that_judge_alone(tmp_path: Path) -> None:
    workspace = shop(tmp_path / "ws", requests=600)
    path = texts.write_judgements(tmp_path / "a.csv", 40)
    judged = texts.settings_of("relevance", path, TREES)
    files = judged.sources[0].model_dump(mode="json")
    both = settings_of(sources=[files, {"kind": "behaviour", "weight": 0.2}])
    found = labelled.find(judged.files)
    _, alone = read_and_divide(judged, found, workspace, unlabelled=False)
    read, divided = read_and_divide(both, found, workspace, unlabelled=False)
    assert read.read == read.rows.height > alone.rows.height
    weak = divided.rows.filter(pl.col("source") == "behaviour")
    rest = divided.rows.filter(pl.col("source") != "behaviour")
    assert rest.equals(alone.rows) and weak.height
    assert set(weak["split"]) == {"train"} and set(weak["grade"]) == {1.0, 2.0, 3.0}
    assert weak["weight"].max() <= 0.2  # type: ignore[operator]
    held = rest.filter(pl.col("split") != "train")["query"].unique().implode()
    assert not weak["query"].is_in(held).any()
    assert set(divided.aside["reason"]) == {"also_in_test", "also_in_validation"}
    assert any("come from behaviour" in note for note in divided.notes)
    assert text_columns(both) == (("title",), " ")
    assert inputs_of(both, found, workspace).keys() - inputs_of(
        judged, found, workspace
    ).keys() == {"behaviour"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"task": "classify"}, "behaviour teaches relevance"),
        ({"split": {"by": "random"}}, "divided by time, not random"),
        ({"sources": [{"kind": "behaviour"}] * 2}, "once"),
        ({"sources": {"kind": "behaviour", "gain": {}}}, "did you mean 'gains'"),
    ],
)
def test_what_behaviour_cannot_do_is_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        settings_of(**more)


def test_it_needs_a_log(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing here yet") as caught:
        text.run(settings_of(), Workspace(tmp_path))
    assert "raysys ingest" in caught.value.mend


def test_a_model_that_has_read_what_is_judged_is_told_of(tmp_path: Path) -> None:
    workspace = shop(tmp_path / "ws", requests=600)
    models = {name: tmp_path / name for name in ("late", "early", "public")}
    for folder in models.values():
        folder.mkdir()
    settings = settings_of(
        learners={
            "relevance_trees": {"vectors": str(models["late"])},
            "bi_encoder": {"model": str(models["early"])},
            "cross_encoder": {"model": str(models["public"])},
        }
    )
    behaviour = settings.behaviour
    assert behaviour is not None
    last = log_end(workspace.ingest, 0)
    assert last is not None
    rows = scan_events(workspace.ingest).select("timestamp").collect()["timestamp"].sort()
    begins = rows[int(0.7 * len(rows))]  # 30% are validation and test; about there it is cut
    write_log_read(models["late"], last)
    write_log_read(models["early"], begins - (last - begins) / 2)
    told = (behaviour, workspace.ingest, settings.split, settings.learners)
    (note,) = notes_on_models(*told)
    assert note.startswith(f"learners.relevance_trees.vectors: {models['late']} was pre-trained")
    days = int(re.findall(r"`held_back_days: (\d+)`", note)[0])
    write_log_read(models["late"], last - timedelta(days=days))
    assert notes_on_models(*told) == ()
    write_log_read(models["late"], last)
    _, divided = read_and_divide(settings, [], workspace, unlabelled=False)
    assert note in divided.notes
