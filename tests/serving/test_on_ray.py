"""On real Ray Serve: `raysys deploy`'s way, a new champion, overload, and `serve deploy`."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from raysys.cluster import ray_session
from raysys.config import parse_settings
from raysys.errors import UserError
from raysys.eventlog.local import LocalLog
from raysys.eventlog.settings import LogSettings
from raysys.registry import Registry
from raysys.stages.deploy import Deployment, cluster, deploy
from raysys.stages.deploy_plan import DeploySettings, plan
from tests.serving.shop import publish_shop
from tests.serving.test_arms import copy
from tests.serving.watched import publish_watched

pytestmark = pytest.mark.slow
LOCAL = Path(__file__).parents[2] / "serve_configs" / "local.yaml"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    root = tmp_path_factory.mktemp("workspace") / "registry"
    return publish_watched(root, with_encoder=False)


@pytest.fixture(scope="module")
def config(registry: Registry) -> dict[str, Any]:
    """serve_configs/local.yaml for the small shop, on a port that is free."""
    content: dict[str, Any] = yaml.safe_load(LOCAL.read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        content["http_options"]["port"] = probe.getsockname()[1]
    content["applications"][0]["args"]["registry"] = str(registry.root)
    content["applications"][0]["args"]["monitor"]["refresh_s"] = 0.5
    return content


@pytest.fixture(scope="module")
def dashboard() -> Iterator[str]:
    from ray import serve

    with ray_session(dashboard=True), cluster() as (url, own):
        assert not own
        yield url
        serve.shutdown()


@pytest.fixture(scope="module")
def deployment(config: dict[str, Any], dashboard: str) -> Deployment:
    settings = parse_settings(DeploySettings, config, where="local.yaml")
    return deploy(*plan(settings, None), dashboard)


def test_every_route_answers(deployment: Deployment) -> None:
    with httpx.Client(base_url=deployment.address, timeout=30) as client:
        assert client.get("/readyz").json()["bundle"] == deployment.bundle
        assert client.get("/docs").status_code == 200
        body = {"user_id": "u1", "k": 5}
        answer = client.post("/v1/recommend", json=body).json()
        assert len(answer["items"]) == 5 and answer["bundle"] == deployment.bundle
        answer = client.post("/v1/search", json={"query": "rye bread", **body}).json()
        assert len(answer["items"]) == 5
        items = {"user_id": "u1", "item_ids": ["i00001", "x"]}
        assert len(client.post("/v1/rank", json=items).json()["items"]) == 2
        assert client.get("/v1/users/u1/profile").json()["value"]["n_orders"] > 0
        problem = client.post("/v1/recommend", json={"user_id": "u1", "k": 0})
        assert problem.status_code == 422
        assert problem.headers["content-type"] == "application/problem+json"


def test_events_are_kept_and_in_the_next_answer(deployment: Deployment, registry: Registry) -> None:
    assert deployment.addresses["events"] == f"{deployment.address}/v1/events"
    with httpx.Client(base_url=deployment.address, timeout=30) as client:
        event = {"event_id": "e", "event_type": "purchase", "user_id": "new", "item_id": "i00042"}
        answer = client.post("/v1/events", json={"events": [event, event]}).json()
        assert (answer["accepted"], answer["duplicate"]) == (1, 1)
        profile = client.get("/v1/users/new/profile").json()
        assert profile["recent_items"][0]["item_id"] == "i00042"
    log = LocalLog(registry.root.parent / "eventlog", LogSettings())
    assert [entry.body["event_id"] for entry in log.read(0)] == ["e"]
    log.close()


def test_sixteen_at_once_all_get_their_own_answer(deployment: Deployment) -> None:
    with httpx.Client(base_url=deployment.address, timeout=30) as client:

        def ask(number: int) -> tuple[int, str]:
            answer = client.post("/v1/recommend", json={"user_id": f"u{number % 30}", "k": 3})
            return answer.status_code, answer.json()["request_id"]

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(ask, range(200)))
    assert {status for status, _ in answers} == {200}
    assert len({request_id for _, request_id in answers}) == 200


def test_what_was_answered_is_watched(deployment: Deployment, registry: Registry) -> None:
    """On the console, on disk, and among the metrics that Prometheus scrapes."""
    import ray

    node = ray.nodes()[0]
    metrics = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    price = re.compile(r'^ray_raysys_drift_psi\{.*variable="price".*\} (\S+)', re.MULTILINE)
    told, page, moved = "", "", None
    until = time.monotonic() + 60
    # A variable's gauge is made once its figure is known, so it is told after the largest of all.
    while "ray_raysys_drift_psi_max" not in told or moved is None:
        assert time.monotonic() < until, (page, told)
        time.sleep(0.5)
        told = httpx.get(metrics, timeout=30).text
        moved = price.search(told)
        page = httpx.get(f"{deployment.address}/console/drift", timeout=30).text
    assert "No drift in" in page and "answers counted" in page
    gauge = re.search(r"^ray_raysys_drift_window_answers\{.*\} (\d+)", told, re.MULTILINE)
    assert gauge and int(gauge[1]) >= 200
    assert 0 <= float(moved[1]) < 1  # a small one is told as 5e-05
    folder = registry.root.parent / "monitor"
    assert list((folder / deployment.bundle).glob("*.parquet"))
    assert json.loads((folder / "drift.json").read_text())["drift"] == 0.0


def test_a_canary_comes_and_goes_and_no_request_is_dropped(
    deployment: Deployment, registry: Registry, config: dict[str, Any], dashboard: str
) -> None:
    """By `user_config`: the replica stays, and answers all the while."""
    champion = registry.path("champion")
    learners = registry.verify("champion").learners
    challenger = registry.publish(
        lambda folder: copy(champion, folder), name_hint="copied", learners=learners
    )
    registry.point("challenger", challenger)
    ended = threading.Event()
    seen: list[tuple[int, str]] = []

    def ask() -> None:
        with httpx.Client(base_url=deployment.address, timeout=30) as client:
            while not ended.is_set():
                body = {"user_id": f"u{len(seen) % 30}", "k": 3}
                answer = client.post("/v1/recommend", json=body)
                seen.append((answer.status_code, answer.json().get("arm", answer.text)))

    def wait_for(arms: set[str]) -> None:
        for _ in range(400):
            with httpx.Client(base_url=deployment.address, timeout=30) as client:
                users = (f"u{n}" for n in range(12))
                posts = [client.post("/v1/recommend", json={"user_id": u, "k": 1}) for u in users]
            if {post.json()["arm"] for post in posts} == arms:
                return
        raise AssertionError(f"the arms never were {arms}")

    loaded_at = httpx.get(f"{deployment.address}/readyz").json()["loaded_at"]
    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for canary, arms in (
            ({"bundle": "challenger", "share": 0.5}, {"champion", "challenger"}),
            ({"bundle": "challenger", "share": 0.99}, {"challenger"}),
            (None, {"champion"}),
        ):
            changed = deepcopy(config)
            changed["applications"][0]["deployments"][0]["user_config"] = {"canary": canary}
            settings = parse_settings(DeploySettings, changed, where="canary.yaml")
            deploy(*plan(settings, None), dashboard)
            wait_for(arms)
    finally:
        ended.set()
        asking.join()
    assert {status for status, _ in seen} == {200} and len(seen) > 20
    assert {arm for _, arm in seen} == {"champion", "challenger"}
    assert httpx.get(f"{deployment.address}/readyz").json()["loaded_at"] == loaded_at


def test_a_new_champion_takes_over_when_deployed_again(
    deployment: Deployment, registry: Registry, config: dict[str, Any], dashboard: str
) -> None:
    _, bundle = publish_shop(registry.root, n_users=31, with_encoder=False)
    assert bundle != deployment.bundle
    settings = parse_settings(DeploySettings, config, where="local.yaml")
    again = deploy(*plan(settings, None), dashboard)
    assert again.bundle == bundle
    assert httpx.get(f"{again.address}/readyz").json()["bundle"] == bundle
    registry.rollback("champion")


def test_serve_cannot_move_to_another_port(
    deployment: Deployment, config: dict[str, Any], dashboard: str
) -> None:
    moved = {**config, "http_options": {"host": "127.0.0.1", "port": 1}}
    settings = parse_settings(DeploySettings, moved, where="local.yaml")
    with pytest.raises(UserError, match="cannot move"):
        deploy(*plan(settings, None), dashboard)


def test_plain_serve_deploy_takes_the_same_file(
    deployment: Deployment,
    registry: Registry,
    config: dict[str, Any],
    dashboard: str,
    tmp_path: Path,
) -> None:
    config["applications"][0]["args"]["k_max"] = 7  # so that Serve sees a change
    path = tmp_path / "local.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [str(Path(sys.executable).parent / "serve"), "deploy", "--address", dashboard]
    done = subprocess.run(
        [*command, str(path)], env=os.environ, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    seen, until = [], time.monotonic() + 150  # a replica has to load the bundle first
    while time.monotonic() < until:
        response = httpx.post(
            f"{deployment.address}/v1/recommend", json={"user_id": "u1", "k": 8}, timeout=30
        )
        seen.append(response.status_code)
        if response.status_code == 422:
            break
    assert "from 1 to 7" in response.json()["detail"], set(seen)
    assert set(seen) <= {200, 422}  # the change lost nobody
    ready = httpx.get(f"{deployment.address}/readyz").json()
    assert ready["bundle"] == registry.resolve("champion")
