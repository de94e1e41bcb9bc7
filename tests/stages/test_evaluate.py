"""`raysys evaluate`: report and JSON of the champion, and periods it refuses to judge."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from benchmarks.rankings import figures
from raysys.config import PRESETS, load_settings, parse_settings
from raysys.errors import UserError
from raysys.registry import Registry
from raysys.stages import evaluate, life, train
from raysys.stages.evaluate import EvaluateSettings
from raysys.storage import Workspace, read_manifest
from tests.serving.test_arms import copy
from tests.stages.test_train import settings as train_settings
from tests.stages.workspace import write_features


def settings(**content: object) -> EvaluateSettings:
    return parse_settings(
        EvaluateSettings, {"resamples": 200, "price": "price", **content}, where="test"
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = write_features(tmp_path_factory.mktemp("workspace"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "ray_session", contextlib.nullcontext)  # baselines need no Ray
        train.run(train_settings(), workspace)
    return workspace


@pytest.fixture(scope="module")
def report(trained: Workspace) -> dict[str, object]:
    evaluate.run(settings(), trained)
    content: dict[str, object] = json.loads((trained.evaluate / "report.json").read_text())
    return content


@pytest.mark.long
def test_everybody_is_judged(report: dict[str, object]) -> None:
    scorers = report["scorers"]
    assert isinstance(scorers, dict)
    assert {"ensemble", "popular", "repeat_purchase", "co_occurrence"} == set(scorers)
    for name, scorer in scorers.items():
        for metric, value in scorer["metrics"].items():
            assert value["value"] is not None, (name, metric)
            if value["low"] is not None and metric != "calibration_error":
                assert value["low"] <= value["value"] <= value["high"], (name, metric)
        assert len(scorer["recall_curve"]) == len(report["recall_at"])  # type: ignore[arg-type]
        assert scorer["recall_curve"][-1] <= report["retrieved_share"] + 1e-9


def test_the_ensemble_is_compared_with_each(report: dict[str, object]) -> None:
    gaps, scorers = report["ensemble_minus"], report["scorers"]
    assert isinstance(gaps, dict) and isinstance(scorers, dict)
    mine = scorers["ensemble"]["metrics"]["ndcg@10"]["value"]
    for name, gap in gaps.items():
        theirs = scorers[name]["metrics"]["ndcg@10"]["value"]
        assert gap["value"] == pytest.approx(mine - theirs, abs=1e-6)
    assert report["best_single"] in gaps


def test_every_loss_of_a_member_has_its_own_quality(report: dict[str, object]) -> None:
    losses = {loss["what"]: loss for loss in report["losses"]}  # type: ignore[attr-defined]
    for name in ("popular", "repeat_purchase", "co_occurrence"):
        loss = losses[f"without {name}"]
        assert name not in loss["present"] and len(loss["present"]) == 2
        assert loss["ndcg@10"]["low"] <= loss["ndcg@10"]["value"] <= loss["ndcg@10"]["high"]
        whole = report["scorers"]["ensemble"]["metrics"]["ndcg@10"]["value"]  # type: ignore[index]
        gap = loss["ndcg@10"]["value"] - whole
        assert loss["minus_ensemble"]["value"] == pytest.approx(gap, abs=1e-6)


def test_cost_and_diversity_are_told(report: dict[str, object]) -> None:
    names = {"popular", "repeat_purchase", "co_occurrence"}
    assert set(report["latency_ms"]) == names  # type: ignore[call-overload]
    subsets = report["subsets"]
    assert isinstance(subsets, list) and any(set(each["members"]) == names for each in subsets)
    alike = report["correlation"]
    assert isinstance(alike, dict)
    for key in ("values", "error_overlap"):
        matrix = alike[key]
        assert [matrix[i][i] for i in range(3)] == pytest.approx([1, 1, 1], abs=1e-3)
        assert matrix[0][1] == matrix[1][0] < 1
    assert set(report["calibrations"].values()) <= {"isotonic", "platt"}  # type: ignore[attr-defined]


def test_the_benchmark_tells_what_the_report_says(report: dict[str, object]) -> None:
    found = {figure.name: figure for figure in figures(report)}
    gain = found["completejourney_gain"]
    best = report["best_single"]
    told = report["ensemble_minus"][best]  # type: ignore[index]
    assert (gain.value, gain.low, gain.high) == (told["value"], told["low"], told["high"])
    for name in ("popular", "repeat_purchase", "co_occurrence"):
        assert found[f"completejourney_ndcg10_{name}"].reference == "baseline"
        assert found[f"completejourney_ms_{name}"].value > 0
    assert found["completejourney_recall10"].value > 0


@pytest.mark.long
def test_a_member_that_fails_on_the_period_is_left_out(
    trained: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report goes on without it, and says so."""
    real = evaluate.base_score

    def broken(name: str, model: object, batch: object, **more: object) -> np.ndarray:
        said = real(name, model, batch, **more)  # type: ignore[arg-type]
        return np.full_like(said, np.inf) if name == "popular" else said

    monkeypatch.setattr(evaluate, "base_score", broken)
    workspace = Workspace(tmp_path)
    for folder in ("features", "registry", "train"):
        (tmp_path / folder).symlink_to(getattr(trained, folder))
    evaluate.run(settings(seed=1), workspace)
    content = json.loads((workspace.evaluate / "report.json").read_text())
    assert "not finite" in content["dropped"]["popular"]
    assert "popular" not in content["scorers"]
    assert "popular has no say" in (workspace.evaluate / "report.html").read_text()


def test_slices_are_there(report: dict[str, object]) -> None:
    slices = report["slices"]
    assert isinstance(slices, list)
    groups = {part["group"] for part in slices}
    assert groups == {"orders of the user before", "department of the item", "price of the item"}
    assert all(part["requests"] > 0 for part in slices)
    whole = [part for part in slices if part["group"] == "orders of the user before"]
    assert sum(part["requests"] for part in whole) == 60  # every request of the period, once


def test_the_page_stands_alone(trained: Workspace, report: dict[str, object]) -> None:
    page = (trained.evaluate / "report.html").read_text()
    assert page.count("<svg") >= 8
    assert 'src="' not in page and "url(http" not in page and "<link" not in page
    assert "<script" not in page
    assert ">None<" not in page and "nan" not in page and "mathdefault" not in page


def test_the_manifest_holds_the_gain(trained: Workspace, report: dict[str, object]) -> None:
    figures = read_manifest(trained.evaluate).figures
    assert figures["best_single"] == report["best_single"]
    assert figures["gain"] == report["ensemble_minus"][figures["best_single"]]  # type: ignore[index]


def test_a_second_run_reuses_the_first(trained: Workspace, report: dict[str, object]) -> None:
    before = read_manifest(trained.evaluate).created
    assert evaluate.run(settings(), trained).created == before


def again(registry: Registry, *, upside_down: bool) -> str:
    """The champion once more, or one that ranks the worst first; both promise much."""
    champion = registry.path("champion")
    manifest = registry.verify("champion")

    def write(folder: Path) -> None:
        copy(champion, folder)
        content = json.loads((folder / "ensemble.json").read_text())
        if upside_down:
            content["fallbacks"] = {"full": content["alone"]["repeat_purchase"]}
            content["fallbacks"]["full"]["weights"]["standard"] = [-1.0]
        (folder / "ensemble.json").write_text(json.dumps(content))

    figures = {"ndcg10": {"full": {"value": 0.99, "low": 0.98, "high": 1.0}}}
    return registry.publish(write, learners=manifest.learners, data=manifest.data, figures=figures)


def test_a_promotion_is_judged_request_by_request(
    trained: Workspace, report: dict[str, Any]
) -> None:
    """What manifests promise does not count where both bundles can be asked."""
    registry = Registry(trained.registry)
    champion = registry.resolve("champion")
    worse = again(registry, upside_down=True)
    with pytest.raises(UserError, match="worse on the same requests"):
        life.promote(trained, worse, None, force=False)
    judged = life.promote(trained, worse, None, force=True, look=True)
    assert judged.how == "paired" and not judged.passes
    told = report["scorers"]["ensemble"]["metrics"]["ndcg@10"]
    assert judged.champion == pytest.approx(told["value"])
    assert judged.challenger is not None and judged.challenger < told["low"]
    same = again(registry, upside_down=False)
    judged = life.promote(trained, same, None, force=False, look=True)
    assert judged.passes and judged.how == "paired" and judged.challenger == judged.champion
    assert registry.resolve("champion") == champion


def test_a_bundle_of_other_features_is_refused(trained: Workspace, tmp_path: Path) -> None:
    """It may have been fitted on what is the report period here."""
    other = write_features(tmp_path, n_requests=80, seed=1)
    other.registry.symlink_to(trained.registry.resolve())
    with pytest.raises(UserError, match="other features"):
        evaluate.run(settings(), other)


def test_training_comes_first(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="raysys train"):
        evaluate.run(settings(), write_features(tmp_path, n_requests=80))


def test_a_price_that_is_no_feature_is_refused(trained: Workspace) -> None:
    with pytest.raises(UserError, match="no feature 'prize'"):
        evaluate.run(settings(price="prize"), trained)


@pytest.mark.long
def test_without_prices_there_are_no_bands(trained: Workspace) -> None:
    evaluate.run(settings(price=None, draw="request"), trained)
    report = json.loads((trained.evaluate / "report.json").read_text())
    assert report["intervals"]["drawn"] == "request"
    assert "price of the item" not in {part["group"] for part in report["slices"]}


@pytest.mark.long
def test_of_a_single_user_no_interval_is_told(trained: Workspace, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    for folder in ("registry", "train"):
        (tmp_path / folder).symlink_to(getattr(trained, folder))
    shutil.copytree(trained.features, workspace.features)
    for path in (workspace.features / "requests" / "fold=3").glob("*.parquet"):
        rows = pl.read_parquet(path, hive_partitioning=False)
        rows.with_columns(pl.col("user") * 0).write_parquet(path)
    evaluate.run(settings(seed=3), workspace)
    page = (workspace.evaluate / "report.html").read_text()
    assert "there is no interval" in page and "chance does not explain" not in page
    assert ">nan<" not in page and "+nan" not in page and "[nan" not in page
    content = json.loads((workspace.evaluate / "report.json").read_text())
    assert content["ensemble_minus"][content["best_single"]]["low"] is None


def test_a_period_in_which_nothing_was_relevant_is_said(trained: Workspace, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    for folder in ("registry", "train"):
        (tmp_path / folder).symlink_to(getattr(trained, folder))
    shutil.copytree(trained.features, workspace.features)
    for table, column in (("requests", "n_relevant"), ("examples", "label")):
        for path in (workspace.features / table / "fold=3").glob("*.parquet"):
            rows = pl.read_parquet(path, hive_partitioning=False)
            rows.with_columns(pl.col(column) * 0).write_parquet(path)
    with pytest.raises(UserError, match="nothing in the report period was relevant") as caught:
        evaluate.run(settings(seed=2), workspace)
    assert "more report_days" in caught.value.mend and not workspace.evaluate.exists()


def test_the_preset_is_valid() -> None:
    preset = load_settings(EvaluateSettings, PRESETS / "complete_journey" / "evaluate.yaml")
    assert (preset.bundle, preset.draw) == ("champion", "user")
