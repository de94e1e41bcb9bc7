"""Every YAML in the repository is loaded by the model that reads it."""

from importlib import import_module
from pathlib import Path

import pytest
import yaml

from raysys.config import load_settings
from raysys.learners import LEARNERS, learner_class

ROOT = Path(__file__).parent.parent
ELSEWHERE = {".venv", "runs", "site", ".git", "build", "dist", "node_modules"}


class _AnyTag(yaml.SafeLoader):
    """For mkdocs.yml, which names Python objects by tags."""


_AnyTag.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def files() -> list[Path]:
    found = [*ROOT.rglob("*.yaml"), *ROOT.rglob("*.yml")]
    return sorted(
        path.relative_to(ROOT)
        for path in found
        if not any(
            part in ELSEWHERE or part.startswith(".venv") for part in path.relative_to(ROOT).parts
        )
    )


def kind(path: Path) -> str:
    """Which part of the program reads a file."""
    if path.parts[:2] in (("raysys", "presets"), ("docs", "your-shop")):
        return path.stem
    if path.parts[:2] == ("serve_configs", "experiments"):
        return "experiment"
    if path.parts[0] in ("tune_configs", "serve_configs"):
        return path.parts[0].partition("_")[0]
    return str(path)


def stage_settings(stage: str):
    module = import_module(f"raysys.stages.{stage}")
    return getattr(module, f"{stage.capitalize()}Settings")


@pytest.mark.parametrize("path", files(), ids=str)
def test_it_loads(path):
    match kind(path):
        case (
            "ingest"
            | "features"
            | "train"
            | "evaluate"
            | "text"
            | "pretrain"
            | "compress"
            | "learn"
        ) as stage:
            load_settings(stage_settings(stage), ROOT / path)
        case "relevance":
            from raysys.learners.text import make_text_learner
            from raysys.stages.text_settings import TextSettings

            text = load_settings(TextSettings, ROOT / path)
            for name, values in text.learners.items():
                make_text_learner(name, values, task=text.task)
        case "tune":
            from raysys.stages.tune import check

            check(load_settings(stage_settings("tune"), ROOT / path), features={})
        case "serve":
            load_settings(stage_settings("deploy"), ROOT / path)
        case "experiment":
            from raysys.experiments import ExperimentsSettings
            from raysys.serving.args import ServeArgs
            from raysys.serving.experiments import check_served

            settings = load_settings(ExperimentsSettings, ROOT / path)
            check_served(settings, ServeArgs(), str(path))
        case "deploy/kuberay.yaml":
            from tests.test_deployables import DOCUMENTS

            assert [document["kind"] for document in DOCUMENTS][-1] == "RayService"
        case "cluster.yaml":
            from ray.autoscaler._private.util import prepare_config, validate_config

            config = prepare_config(yaml.safe_load((ROOT / path).read_text()))
            validate_config(config)
            assert config["max_workers"] == 2
        case "mkdocs.yml":
            content = yaml.load((ROOT / path).read_text(), _AnyTag)  # noqa: S506
            assert content["strict"]
        case ".pre-commit-config.yaml":
            from pre_commit.clientlib import load_config

            assert load_config(str(ROOT / path))["repos"]
        case "prometheus" | "alerts":  # tests/test_monitoring.py knows more of them
            assert yaml.safe_load((ROOT / path).read_text())
        case other:
            pytest.fail(f"no test knows who reads {other}")


def test_the_list_of_files_is_not_empty():
    names = {str(path) for path in files()}
    assert {"cluster.yaml", "mkdocs.yml", "tune_configs/lightgbm_ranker.yaml"} <= names


def test_every_learner_with_settings_worth_searching_and_the_ensemble_have_a_search():
    """Of baselines that read one column there is nothing to search."""
    searched = {
        load_settings(stage_settings("tune"), path).learner
        for path in (ROOT / "tune_configs").glob("*.yaml")
    }
    worth = {name for name in LEARNERS if learner_class(name).family != "baseline"}
    assert worth | {"ensemble"} <= searched
