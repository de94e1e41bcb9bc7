"""A bundle's transformer made smaller: what is measured, what is chosen, what is served after."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from raysys.config import parse_settings
from raysys.errors import UserError
from raysys.learners.two_tower import TwoTower
from raysys.registry import Registry, TextBundle
from raysys.stages import compress, text, train
from raysys.stages.compress import CompressSettings, cheapest
from raysys.stages.compress_report import Row
from raysys.stages.compressible import MeanQuality, TextSubject
from raysys.storage import Workspace, read_manifest
from raysys.text.compression import probe
from raysys.text.compression.probe import Cost
from tests.stages import texts
from tests.stages.workspace import write_features
from tests.text.precision import in_float32
from tests.text.tiny import write_tiny_bert

TOWER = {"text": ["title", "category", "brand"], "steps": 20, "batch_size": 16, "max_tokens": 16,
         "learning_rate": 3e-3}  # fmt: skip


def settings(**content: object) -> CompressSettings:
    quick = {"epochs": 4, "learning_rate": 2e-3}
    content = {
        "variants": ["torch_bf16"],
        "distil": {"layers": [1], "training": quick},
        "vectors": ["scalar", "product"],
        "shapes": [[1, 8], [4, 16]],
        "requests": 60,
        "largest_loss": 0.05,
        **content,
    }
    return parse_settings(CompressSettings, content, where="test")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A trained bundle; towers are fitted in this process, which needs no Ray."""
    workspace = write_features(tmp_path_factory.mktemp("workspace"))
    bert = str(write_tiny_bert(tmp_path_factory.mktemp("bert")))
    content = {"learners": {"popular": {}, "two_tower": {"model": bert, **TOWER}}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "ray_session", contextlib.nullcontext)
        patch.setattr(
            TwoTower, "fit_folds", lambda self, folds, c: [self.fit_local(x, c) for x in folds]
        )
        train.run(parse_settings(train.TrainSettings, content, where="test"), workspace)
    return workspace


@pytest.fixture(scope="module")
def run(workspace: Workspace) -> dict[str, object]:
    before = Registry(workspace.registry).resolve("champion")
    with pytest.MonkeyPatch.context() as patch:
        in_float32(patch)  # what is served loses nothing if it is run in float32
        manifest = compress.run(settings(), workspace)
    return {"before": before, "manifest": manifest}


@pytest.mark.slow
def test_it_measures_students_and_variants(workspace: Workspace, run: dict[str, object]) -> None:
    content = json.loads(((workspace.compress / "champion") / "compress.json").read_text())
    names = [row["name"] for row in content["transformers"]]
    assert names == ["torch_fp32", "torch_bf16", "1_layers_torch_fp32", "1_layers_torch_bf16"]
    whole, half = content["transformers"][:2]
    assert whole["loss"]["value"] == 0 and whole["size_mb"] > half["size_mb"]
    assert set(whole["milliseconds"]) == {"1x8", "4x16"} and min(whole["milliseconds"].values()) > 0
    kept = {row["name"]: row["size_mb"] for row in content["vectors"]}
    assert list(kept) == ["float32", "scalar", "product"]
    assert kept["scalar"] < kept["float32"]
    page = ((workspace.compress / "champion") / "report.html").read_text()
    assert "1_layers_torch_bf16" in page and "<svg" in page
    assert not ((workspace.compress / "champion") / "work").exists()


@pytest.mark.slow
def test_the_new_champion_is_whole_and_scores_alike(
    workspace: Workspace, run: dict[str, object]
) -> None:
    registry = Registry(workspace.registry)
    after = registry.resolve("champion")
    assert after != run["before"]
    manifest = registry.verify(after)
    chosen = json.loads(((workspace.compress / "champion") / "compress.json").read_text())["chosen"]
    note = manifest.figures["compressed"]["two_tower"]
    assert note["transformer"]["name"] == chosen["transformers"]
    assert note["vectors"]["name"] == chosen["vectors"] and note["of"] == run["before"]
    old, new = registry.load(str(run["before"])), registry.load(after)
    texts = ["dairy milk", "frozen pizza"]
    towers = [bundle.learners["two_tower"] for bundle in (old, new)]
    found = towers[1].encode(texts)  # type: ignore[attr-defined]
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-4)
    layers = 1 if chosen["transformers"].startswith("1_layers") else 2
    config = registry.path(after) / "learners" / "two_tower" / "encoder" / "config.json"
    assert json.loads(config.read_text())["num_hidden_layers"] == layers
    # the items' vectors are those of the whole transformer, in fewer bytes
    near = (towers[0].item_vectors * towers[1].item_vectors).sum(1)  # type: ignore[attr-defined]
    assert near == pytest.approx(1, abs=0.05)
    assert towers[1].vector_bytes < towers[0].vector_bytes  # type: ignore[attr-defined]
    registry.rollback("champion")
    assert registry.resolve("champion") == run["before"]
    registry.point("champion", after)


@pytest.mark.slow
def test_a_second_run_finds_it_done(workspace: Workspace, run: dict[str, object]) -> None:
    again = compress.run(settings(), workspace)
    assert again.figures["bundle"] == run["manifest"].figures["bundle"]  # type: ignore[attr-defined]


@pytest.mark.slow
def test_what_is_compressed_is_not_compressed_again(
    workspace: Workspace, run: dict[str, object]
) -> None:
    with pytest.raises(UserError, match="compressed already"):
        compress.run(settings(seed=1), workspace)


@pytest.mark.slow
def test_other_features_than_the_bundle_s_are_refused(
    workspace: Workspace, run: dict[str, object], tmp_path: Path
) -> None:
    other = Workspace(tmp_path / "other")
    for part in ("registry", "features"):
        shutil.copytree(getattr(workspace, part), getattr(other, part))
    path = other.features / "manifest.json"
    content = json.loads(path.read_text())
    content["settings"]["seed"] = 99  # as by `raysys features` run anew
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="trained on other features"):
        compress.run(settings(bundle=str(run["before"])), other)


@pytest.mark.slow
def test_it_prints_a_table(workspace: Workspace, run: dict[str, object]) -> None:
    out = io.StringIO()
    manifest = read_manifest(workspace.compress / "champion")
    compress.show(manifest, Console(file=out, width=120))
    lines = out.getvalue().splitlines()
    assert "NDCG@10" in lines[0] and "ms 1x8" in lines[0]
    assert any(line.startswith("1_layers_torch_bf16") for line in lines)
    assert f"published: champion → {manifest.figures['bundle']}" in out.getvalue()


@pytest.fixture(scope="module")
def titles(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A text task whose chosen learner is a transformer."""
    folder = tmp_path_factory.mktemp("titles")
    bert = str(write_tiny_bert(folder / "bert"))
    learner = {"model": bert, "max_tokens": 16, "training": {"epochs": 3, "learning_rate": 3e-3}}
    path = texts.write_titles(folder / "titles.csv", 200)
    workspace = Workspace(folder / "ws")
    text.run(texts.settings_of("classify", path, {"text_classifier": learner}), workspace)
    return workspace


@pytest.mark.slow
def test_a_text_task_is_compressed_too(titles: Workspace) -> None:
    registry = Registry(titles.registry)
    before = registry.resolve("text-classify")
    half = settings(bundle="text-classify", variants=["torch_bf16"], distil={"layers": []})
    manifest = compress.run(half, titles)
    content = json.loads((titles.compress / "text-classify" / "compress.json").read_text())
    assert content["measure"] == "macro_f1" and content["vectors"] == []
    assert [row["name"] for row in content["transformers"]] == ["torch_fp32", "torch_bf16"]
    after = registry.resolve("text-classify")
    assert after == manifest.figures["bundle"] != before
    rows = pl.read_parquet(titles.text / "text-classify" / "rows.parquet").select("text").to_arrow()
    said = [TextBundle.load(registry.path(name)).model.predict(rows) for name in (before, after)]
    same = np.mean(
        [a == b for a, b in zip(*(each["label"].to_pylist() for each in said), strict=True)]
    )
    assert same > 0.9


@pytest.mark.slow
def test_a_reader_of_pairs_is_measured_as_it_is_served(tmp_path: Path) -> None:
    """Its transformer tells query and item apart by token types, however it is run."""
    bert = str(write_tiny_bert(tmp_path / "bert", typed=True))
    quick = {"epochs": 2, "learning_rate": 2e-3}
    learner = {"cross_encoder": {"model": bert, "max_tokens": 16, "training": quick}}
    path = texts.write_judgements(tmp_path / "a.csv")
    workspace = Workspace(tmp_path / "ws")
    text.run(texts.settings_of("relevance", path, learner), workspace)
    registry = Registry(workspace.registry)
    before = registry.resolve("text-relevance")
    compress.run(settings(bundle="text-relevance", variants=["onnx_fp32"]), workspace)
    content = json.loads((workspace.compress / "text-relevance" / "compress.json").read_text())
    whole, onnx = content["transformers"][:2]
    rows = pl.read_parquet(workspace.text / "text-relevance" / "rows.parquet")
    judged = rows.filter(pl.col("split") == "validation")
    model = TextBundle.load(registry.path(before)).model
    told = TextSubject(workspace, before, 10_000, 0)
    assert len(told.truth) == judged.height
    own = told.judge.verdict(model.predict(told.truth.select(["query", "text"])))
    assert whole["quality"] == pytest.approx(own.figures[told.measure].value, abs=1e-6)
    assert onnx["quality"] == pytest.approx(whole["quality"], abs=1e-3)


@pytest.mark.slow
def test_a_bundle_is_not_judged_by_the_rows_of_a_later_fit(
    titles: Workspace, tmp_path: Path
) -> None:
    other = Workspace(tmp_path / "other")
    for part in ("registry", "text"):
        shutil.copytree(getattr(titles, part), getattr(other, part))
    path = other.text / "text-classify" / "manifest.json"
    content = json.loads(path.read_text())
    bundle = content["figures"]["bundle"]
    assert TextSubject(other, bundle, 100, 0).truth.num_rows
    content["settings"]["seed"] = 99  # as by `raysys text fit` with another seed
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="text-classify was fitted anew since"):
        TextSubject(other, bundle, 100, 0)


@pytest.mark.slow
def test_a_blend_of_transformers_is_refused(tmp_path: Path) -> None:
    quick = {"model": str(write_tiny_bert(tmp_path / "bert")), "training": {"max_steps": 2}}
    trees = {"vectors": None, "n_estimators": 5, "factors": 2}
    members = [
        {"learner": "relevance_trees", "settings": trees},
        {"learner": "bi_encoder", "settings": quick},
    ]
    path = texts.write_judgements(tmp_path / "a.csv")
    workspace = Workspace(tmp_path / "ws")
    learner = {"relevance_blend": {"members": members, "folds": 2, "trees": trees}}
    text.run(texts.settings_of("relevance", path, learner), workspace)
    with pytest.raises(UserError, match="2 transformers in one learner"):
        compress.run(settings(bundle="text-relevance"), workspace)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "where"),
    [
        ({"shapes": [[1, 8], [1, 65]], "distil": {"layers": []}}, "shapes"),
        ({"distil": {"layers": [1], "max_tokens": 70}}, "distil.max_tokens"),
    ],
)
def test_more_tokens_than_a_transformer_reads_are_refused(
    content: dict[str, object], where: str, workspace: Workspace, run: dict[str, object]
) -> None:
    told = settings(bundle=str(run["before"]), **content)
    with pytest.raises(UserError, match="64 tokens at most") as error:
        compress.run(told, workspace)
    assert error.value.where == where


@pytest.mark.slow
def test_a_whole_model_that_cannot_be_timed_is_told_of(
    workspace: Workspace, run: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other takes its place."""
    monkeypatch.setattr(probe, "TIMEOUT_S", 0.01)
    with pytest.raises(UserError, match=r"the whole model: not timed within 0\.01 s"):
        compress.run(settings(bundle=str(run["before"]), distil={"layers": []}), workspace)
    assert not list(workspace.compress.glob(f"{run['before']}*"))


@pytest.mark.slow
def test_a_task_without_a_transformer_says_so(titles: Workspace, tmp_path: Path) -> None:
    path = texts.write_titles(tmp_path / "a.csv", 150)
    quick = {"tfidf_classifier": {"costs": [3.0]}}
    text.run(texts.settings_of("classify", path, quick, name="words"), titles)
    with pytest.raises(UserError, match="counts words"):
        compress.run(settings(bundle="words"), titles)


@pytest.mark.slow
def test_learners_without_a_transformer_are_named(workspace: Workspace) -> None:
    with pytest.raises(UserError, match="two_tower"):
        compress.run(settings(learner="popular", bundle="champion"), workspace)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"variants": ["onnx_int4"]}, "no variant 'onnx_int4'"),
        ({"vectors": ["float8"]}, "vectors"),
        ({"shapes": []}, "texts, tokens"),
        ({"largest_loss": 1}, "less than 1"),
    ],
)
def test_settings_that_cannot_work_are_named(content: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(**content)


def test_where_a_gpu_serves_only_what_pytorch_runs_is_chosen() -> None:
    names = ["torch_fp32", "torch_bf16", "onnx_int8", "3_layers_torch_bf16", "3_layers_onnx_int8"]
    rows = [row(name, 0.5, 10 - at) for at, name in enumerate(names)]
    assert compress.served_on("cpu", rows) == rows
    assert [each.name for each in compress.served_on("cuda", rows)] == [
        "torch_fp32", "torch_bf16", "3_layers_torch_bf16",
    ]  # fmt: skip
    assert cheapest(compress.served_on("cuda", rows), 0.1, lambda each: each.latency) == rows[3]


def row(name: str, value: float, ms: float, best: float = 0.5) -> Row:
    quality = MeanQuality(np.full(10, value))
    loss = quality.loss_to(MeanQuality(np.full(10, best)), 0)
    return Row(name, quality, loss, Cost({"1x8": ms}, 1.0, ms), ms, Path())


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
@pytest.mark.parametrize("each", [[0.0, np.nan, 0.0], [np.nan, np.nan]])
def test_a_whole_model_that_is_right_nowhere_is_told_of(each: list[float]) -> None:
    """Of it no share can be lost: the search ended in a traceback, or published the whole."""
    with pytest.raises(UserError, match=r"NDCG@10 is (0|nan) on what was drawn"):
        compress._require_quality(MeanQuality(np.array(each)), "NDCG@10")
    compress._require_quality(MeanQuality(np.array([0.0, np.nan, 0.1])), "NDCG@10")


def test_the_cheapest_within_the_loss_is_chosen() -> None:
    rows = [
        row("whole", 0.5, 10),
        row("close", 0.499, 5),
        row("far", 0.4, 1),
        row("slow", 0.51, 20),
    ]
    assert cheapest(rows, 0.005, lambda each: each.latency).name == "close"
    assert cheapest(rows, 0.0, lambda each: each.latency).name == "whole"
    assert cheapest(rows, 0.25, lambda each: each.latency).name == "far"
    assert rows[2].loss == pytest.approx((0.2, 0.2, 0.2))
