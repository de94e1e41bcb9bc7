"""The transformer as a deployment of its own, on real Ray Serve: killed, and come back."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from raysys.cluster import ray_session
from raysys.config import parse_settings
from raysys.stages.deploy import cluster, deploy
from raysys.stages.deploy_plan import DeploySettings, plan
from tests.serving.shop import publish_shop

LOCAL = Path(__file__).parents[2] / "serve_configs" / "local.yaml"
BODY = {"user_id": "u1", "k": 10, "explain": True}


def ask(address: str, deadline_ms: int = 3000) -> dict[str, Any]:
    began = time.perf_counter()
    answer = httpx.post(
        f"{address}/v1/recommend",
        json=BODY,
        headers={"X-Deadline-Ms": str(deadline_ms)},
        timeout=30,
    )
    assert answer.status_code == 200, answer.text
    content: dict[str, Any] = answer.json()
    content["seconds"] = time.perf_counter() - began
    assert len(content["items"]) == 10
    return content


@pytest.mark.slow
def test_killed_the_answers_go_on_and_it_comes_back(tmp_path: Path) -> None:
    registry, bundle = publish_shop(tmp_path / "registry", with_encoder=False, with_sequences=True)
    content = yaml.safe_load(LOCAL.read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        content["http_options"]["port"] = probe.getsockname()[1]
    (app,) = content["applications"]
    app["args"] |= {"registry": str(registry.root), "transformer": {"rest_s": 0.5}}
    (ranker,) = app["deployments"]
    ranker["ray_actor_options"] = {"num_cpus": 0.5}
    app["deployments"].append({"name": "Transformer", "ray_actor_options": {"num_cpus": 0.5}})
    settings = parse_settings(DeploySettings, content, where="local.yaml")
    import ray
    from ray import serve

    with ray_session(dashboard=True), cluster() as (dashboard, _):
        address = deploy(*plan(settings, None), dashboard).address
        first = ask(address)
        assert not first["degraded"] and first["bundle"] == bundle
        assert first["explanation"]["by_source"]["next_item"] > 0
        found = httpx.post(f"{address}/v1/search", json={"query": "rye bread", **BODY}, timeout=30)
        assert found.json()["reasons"] == {}
        assert any(item["why"]["reranked"] is not None for item in found.json()["items"])
        (replica,) = [
            actor["name"]
            for actor in ray.util.list_named_actors(all_namespaces=True)
            if "#Transformer#" in actor["name"]
        ]
        ray.kill(ray.get_actor(replica, namespace="serve"), no_restart=True)
        during = [ask(address, 500) for _ in range(6)]
        assert all("next_item" in answer["reasons"] for answer in during if answer["degraded"])
        # after three faults nobody waits for it, and all the others have their say
        assert any(answer["reasons"] == {"next_item": "down"} for answer in during)
        until = time.monotonic() + 120
        while ask(address)["degraded"]:
            assert time.monotonic() < until, "it never came back"
        serve.shutdown()
