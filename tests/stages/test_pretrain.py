"""`raysys text pretrain` from a small shop to a folder that learners begin with."""

from __future__ import annotations

import io
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from raysys.config import find_config, load_settings, parse_settings
from raysys.errors import UserError
from raysys.stages import pretrain
from raysys.stages.pretrain import PretrainSettings
from raysys.storage import Manifest, Workspace, read_manifest
from raysys.text.encoder import Encoder
from raysys.text.models import open_with_head
from raysys.text.pretraining.corpus import log_end
from raysys.text.pretraining.log_read import log_read, write_log_read
from tests.text.tiny_language import write_masked, write_shop

STEPS = {"max_steps": 4, "batch_size": 8, "evaluate_every": {"steps": 2}}
PAIRS = {"sources": ["titles", "queries"], "item": ["title"], "held_out": 0.3}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    found = Workspace(tmp_path / "shop")
    Manifest(stage="ingest").write(write_shop(found.root).resolve())
    return found


def _settings(model: Path, **more: Any) -> PretrainSettings:
    content: dict[str, Any] = {
        "model": str(model),
        "corpus": {"held_out": 0.2},
        "held_back_days": 1,
        "objectives": [
            {"kind": "masked", "max_tokens": 24, "training": STEPS},
            {"kind": "pairs", "max_tokens": 32, "pairs": PAIRS, "training": STEPS},
            {"kind": "contrastive", "max_tokens": 24, "pairs": PAIRS, "training": STEPS},
        ],
    }
    return parse_settings(PretrainSettings, {**content, **more}, where="test")


@pytest.mark.long
def test_objectives_run_one_after_the_other(workspace: Workspace, tmp_path: Path):
    settings = _settings(write_masked(tmp_path / "bert"))
    manifest = pretrain.run(settings, workspace)
    folder = workspace.pretrain
    Encoder.open(str(folder / "model"), 16, -1).encode(["milk milk1"])
    found = manifest.figures["objectives"]
    assert [each["kind"] for each in found] == ["masked", "pairs", "contrastive"]
    assert all(each["steps"] == 4 and each["before"] and each["after"] for each in found)
    assert [each["new_head"] for each in found] == [False, True, False]
    console = Console(file=io.StringIO(), width=120)
    pretrain.show(manifest, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"pairs told right +– +[\d.]+", shown) and "drawn anew" in shown
    assert re.search(r"perplexity of a guessed token +[\d.]+ +[\d.]+", shown)
    assert manifest.counts["items"] > 100 and manifest.counts["queries"] == 8
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 3 and "perplexity of a guessed token" in page
    assert "Next-sentence prediction has no figure before" in page
    assert "Masked language modelling has no figure before" not in page
    until = log_read(folder / "model")
    assert until == log_end(workspace.ingest, 1)
    history = json.loads((folder / "outcomes.json").read_text())[0]["history"]
    assert [entry["step"] for entry in history] == [2, 4]
    assert not list(workspace.root.glob(".pretrain.work/*"))
    # done is done
    created = read_manifest(folder).created
    assert pretrain.run(settings, workspace).created == created


@pytest.mark.long
def test_a_run_that_was_killed_goes_on_with_what_is_left(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = _settings(write_masked(tmp_path / "bert"))
    whole = pretrain.run(settings, Workspace(_copy(workspace, tmp_path / "other")))
    learn = pretrain._learn
    learned: list[str] = []

    def killed(material: Any, objective: Any, model: str, folder: Path) -> None:
        if objective.kind == "pairs" and not learned.count("again"):
            raise KeyboardInterrupt
        learned.append(objective.kind)
        learn(material, objective, model, folder)

    monkeypatch.setattr(pretrain, "_learn", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain.run(settings, workspace)
    assert learned == ["masked"] and not workspace.pretrain.exists()
    learned.append("again")
    resumed = pretrain.run(settings, workspace)
    assert learned == ["masked", "again", "pairs", "contrastive"]
    timeless = [
        [{k: each[k] for k in ("before", "after")} for each in m.figures["objectives"]]
        for m in (whole, resumed)
    ]
    assert timeless[0] == timeless[1]


def _copy(workspace: Workspace, root: Path) -> Path:
    root.mkdir()
    (root / "ingest").symlink_to(workspace.ingest)
    return root


def test_a_new_decoder_learns_from_files_alone(tmp_path: Path):
    texts = tmp_path / "reviews.csv"
    lines = [f"this {kind} is very {how}" for kind in ("lamp", "chair", "soap", "mug", "book")
             for how in ("good", "bad", "dear", "cheap", "small", "large")]  # fmt: skip
    texts.write_text("\n".join(["text", *lines]))
    settings = parse_settings(
        PretrainSettings,
        {
            "scratch": {"architecture": "gpt2", "layers": 1, "width": 16, "heads": 2,
                        "vocabulary": 300, "max_tokens": 32, "tokenizer": "wordpiece"},
            "corpus": {"files": [{"paths": str(texts), "text": "text"}], "held_out": 0.2},
            "objectives": [{"kind": "causal", "block": 32, "training": {"epochs": 4}}],
        },
        where="test",
    )  # fmt: skip
    manifest = pretrain.run(settings, Workspace(tmp_path / "shop"))
    (found,) = manifest.figures["objectives"]
    assert found["after"]["character_perplexity"] < found["before"]["character_perplexity"]
    open_with_head("clm", str(tmp_path / "shop" / "pretrain" / "model"), where="model")


def test_what_was_read_of_the_log_is_told_where_it_was_read(tmp_path: Path):
    bert, later = write_masked(tmp_path / "bert"), write_masked(tmp_path / "later")
    now = datetime(2026, 1, 5, tzinfo=UTC)
    write_log_read(later, now + timedelta(days=1))
    masked, pairs = {"kind": "masked"}, {"kind": "pairs", "pairs": PAIRS}
    titles = {"kind": "pairs", "pairs": {**PAIRS, "sources": ["titles"]}}
    mute = {"held_out": 0.2, "queries": False}

    def told(model: Path, corpus: Any, *objectives: Any) -> datetime | None:
        settings = _settings(model, corpus=corpus, objectives=list(objectives))
        return pretrain._log_read(settings, now)

    assert told(bert, {}, masked) == now == told(bert, mute, titles, pairs)
    assert told(bert, mute, masked, titles) is None
    assert told(later, mute, masked) == told(later, {}, masked) == now + timedelta(days=1)
    assert pretrain._log_read(_settings(bert), None) is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"objectives": []}, "at least 1"),
        ({"objectives": [{"kind": "masked"}, {"kind": "causal"}]}, "reads one way"),
        ({"objectives": [{"kind": "causal"}], "scratch": {}}, "a bert cannot learn by causal"),
        ({"objectives": [{"kind": "masked"}], "scratch": {}, "model": "x"}, "either model or"),
        ({"objectives": [{"kind": "masked", "pairs": PAIRS}]}, "unknown key"),
        ({"objectives": [{"kind": "words"}]}, "objectives"),
    ],
)
def test_settings_that_cannot_work_are_refused(content: dict[str, Any], words: str):
    with pytest.raises(UserError, match=words):
        parse_settings(PretrainSettings, content, where="test")


def test_behaviour_needs_an_ingested_log(tmp_path: Path):
    settings = _settings(write_masked(tmp_path / "bert"))
    with pytest.raises(UserError, match="raysys ingest"):
        pretrain.run(settings, Workspace(tmp_path / "empty"))


def test_the_preset_is_sound():
    settings = load_settings(PretrainSettings, find_config("complete_journey", "pretrain"))
    assert settings.held_back_days == 56
