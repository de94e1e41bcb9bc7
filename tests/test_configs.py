"""Every YAML in the repository is loaded by the model that reads it."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from raysys.config import load_settings
from raysys.learners import LEARNERS, learner_class
from raysys.learners.sequences import SEQUENCE_LEARNERS
from raysys.learners.text import TEXT_LEARNERS

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


CLUSTERS = (Path("cluster.yaml"), Path("deploy/cluster-local.yaml"))


def cluster_file(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / path).read_text())
    return content


def validated(content: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` makes of a file before it calls the provider.

    Raises:
        ValidationError, ValueError: Ray refuses it.
    """
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, Any] = prepare_config(content)
    validate_config(config)
    return config


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
        case "cluster.yaml" | "deploy/cluster-local.yaml":
            assert validated(cluster_file(path))["cluster_name"] == "raysys"
        case "mkdocs.yml":
            content = yaml.load((ROOT / path).read_text(), _AnyTag)  # noqa: S506
            assert content["strict"]
        case ".pre-commit-config.yaml":
            from pre_commit.clientlib import load_config

            assert load_config(str(ROOT / path))["repos"]
        case "prometheus" | "alerts" | "raysys":  # tests/test_monitoring.py knows more of them
            assert yaml.safe_load((ROOT / path).read_text())
        case other:
            pytest.fail(f"no test knows who reads {other}")


@pytest.mark.parametrize("path", [each for each in files() if kind(each) == "tune"], ids=str)
def test_a_search_begins_with_what_it_is_to_improve_on(path):
    from raysys.stages.tune import check
    from raysys.tuning.space import inside

    settings = load_settings(stage_settings("tune"), ROOT / path)
    own = check(settings, features={})
    outside = [name for name, each in settings.space.items() if not inside({name: each}, own)]
    assert not outside, f"{path}: {own}"


@pytest.mark.parametrize("path", CLUSTERS, ids=str)
def test_a_cluster_starts_ray_from_the_checkout_and_with_a_token(path):
    config = validated(cluster_file(path))
    assert config["file_mounts"]["~/raysys"] == "."
    assert any("make -C ~/raysys .venv/.installed" in step for step in config["setup_commands"])
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        stop, start = commands
        assert stop == "~/raysys/.venv/bin/ray stop"
        assert "RAY_AUTH_MODE=token" in start and "~/raysys/.venv/bin/ray start" in start
        assert "--dashboard-host=0.0.0.0" not in start
    head = config["head_start_ray_commands"][-1]
    assert "--dashboard-host=127.0.0.1" in head and "--autoscaling-config=" in head
    assert "--address=$RAY_HEAD_IP:6379" in config["worker_start_ray_commands"][-1]


def test_the_cluster_is_on_aws_and_grows_as_work_comes():
    config = validated(cluster_file(Path("cluster.yaml")))
    assert config["provider"]["type"] == "aws"
    types = config["available_node_types"]
    assert set(types) == {"head", "cpu", "gpu"} and config["head_node_type"] == "head"
    assert types["gpu"]["min_workers"] == types["cpu"]["min_workers"] == 0  # nothing idles
    assert max(kind["max_workers"] for kind in types.values()) <= config["max_workers"]
    # SSH and the nodes themselves: what Ray's own security group lets in, and nothing beside it
    assert "security_group" not in config["provider"]
    assert "~/.ray/auth_token" in config["file_mounts"]
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        assert "RAY_SERVE_ENABLE_HA_PROXY=1 RAY_SERVE_THROUGHPUT_OPTIMIZED=1" in commands[-1]
    (boto,) = [step for step in config["head_setup_commands"] if "boto3" in step]
    assert boto not in config["worker_setup_commands"]


def test_a_cluster_of_one_s_own_machines_has_them_all():
    config = validated(cluster_file(Path("deploy/cluster-local.yaml")))
    assert config["provider"]["type"] == "local"
    assert config["max_workers"] == len(config["provider"]["worker_ips"])


@pytest.mark.parametrize("path", CLUSTERS, ids=str)
@pytest.mark.parametrize(
    "slip",
    [
        {"head_node_typ": "head"},
        {"idle_timeout_minutes": "soon"},
        {"rsync_filter": ".gitignore"},
        {"rsync_exclude": "runs/"},
        {"auth": {"ssh_user": 5}},
    ],
    ids=lambda slip: next(iter(slip)),
)
def test_slips_in_a_cluster_are_found(path, slip):
    import jsonschema

    with pytest.raises((jsonschema.ValidationError, ValueError)):
        validated(cluster_file(path) | slip)


def test_more_workers_than_all_may_be_are_refused():
    content = cluster_file(Path("cluster.yaml"))
    content["available_node_types"]["cpu"]["min_workers"] = content["max_workers"] + 1
    with pytest.raises(ValueError, match="smaller than the sum of `min_workers`"):
        validated(content)


def test_the_list_of_files_is_not_empty():
    names = {str(path) for path in files()}
    assert {str(path) for path in CLUSTERS} <= names
    assert {"mkdocs.yml", "tune_configs/lightgbm_ranker.yaml"} <= names


def test_every_learner_with_settings_worth_searching_and_the_ensemble_have_a_search():
    """Baselines that read one column have nothing to search; a blend would fit all its members."""
    searches = [
        load_settings(stage_settings("tune"), path)
        for path in (ROOT / "tune_configs").glob("*.yaml")
    ]
    searched = {each.learner for each in searches}
    worth = {name for name in LEARNERS if learner_class(name).family != "baseline"}
    texts = set(TEXT_LEARNERS) - {"text_blend", "relevance_blend", "gazetteer_tagger"}
    assert worth | texts | {"ensemble"} <= searched
    within = {each.settings.get("learner") for each in searches if each.learner == "next_item"}
    assert within == set(SEQUENCE_LEARNERS) - {"recent_popularity"}  # a half-life alone
