"""Serve configs behind HAProxy, on one node and on several."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import ray
import yaml
from ray.serve._private.haproxy import HAProxyConfig
from ray.serve.config import HTTPOptions

from raysys.config import parse_settings
from raysys.errors import UserError
from raysys.registry import Registry
from raysys.stages.deploy import deploy
from raysys.stages.deploy_plan import DeploySettings, listens_on, plan
from raysys.stages.deploy_reach import EVERYWHERE, LOOPBACK, check_host, check_nodes

ROOT = Path(__file__).parents[2]


class Cluster(BaseHTTPRequestHandler):
    """A dashboard that tells of some nodes, and notes what it is asked for."""

    nodes = 1
    broken = False
    asked: list[str]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        type(self).asked.append(path)
        if path == "/api/v0/nodes":
            found: dict[str, Any] = {
                "result": [] if self.broken else [node(at) for at in range(self.nodes)],
                "total": self.nodes,
                "num_after_truncation": self.nodes,
                "num_filtered": self.nodes,
            }
            content: Any = {
                "result": not self.broken,
                "msg": "out of order",
                "data": {"result": found},
            }
        elif path == "/api/serve/applications/":
            content = {"applications": {}, "proxies": {}}
        else:
            content = {
                "version": "1",
                "ray_version": ray.__version__,
                "ray_commit": "",
                "session_name": "s",
            }
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def node(at: int) -> dict[str, Any]:
    return {
        "node_id": f"{at:056x}",
        "node_ip": f"10.0.0.{at}",
        "is_head_node": at == 0,
        "state": "ALIVE",
        "state_message": None,
        "node_name": f"10.0.0.{at}",
        "resources_total": {},
        "labels": {},
    }


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Cluster]]]:
    kind = type("Cluster", (Cluster,), {"asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", kind
        server.shutdown()


@pytest.mark.parametrize("host", [*LOOPBACK, *EVERYWHERE, "10.0.0.7"])
def test_haproxy_listens_where_the_config_says(host: str) -> None:
    """What the rest of this file rests on; a Ray that changes it should be noticed."""
    listens = HAProxyConfig(http_options=HTTPOptions(host=host)).frontend_host
    assert listens == ("*" if host in EVERYWHERE else host)


@pytest.mark.parametrize("host", LOOPBACK)
def test_loopback_behind_haproxy_is_for_one_node(
    dashboard: tuple[str, type[Cluster]], monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    url, kind = dashboard
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    check_nodes(host, url)  # one machine: nothing else is to be reached
    assert "/api/v0/nodes" in kind.asked
    kind.nodes = 3
    with pytest.raises(UserError, match=f"{host} .* has 3 nodes") as caught:
        check_nodes(host, url)
    assert caught.value.where == "http_options.host"
    assert "0.0.0.0" in caught.value.mend and "RAY_SERVE_ENABLE_HA_PROXY" in caught.value.mend


def test_nobody_counts_nodes_where_it_does_not_matter(
    dashboard: tuple[str, type[Cluster]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, kind = dashboard
    kind.nodes = 3
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    for host in EVERYWHERE:
        check_nodes(host, url)
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    check_nodes("127.0.0.1", url)  # Ray's own proxy asks replicas through Ray
    assert kind.asked == []


def test_a_dashboard_that_does_not_tell_of_nodes_is_named(
    dashboard: tuple[str, type[Cluster]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, kind = dashboard
    kind.broken = True
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    with pytest.raises(UserError, match="how many nodes") as caught:
        check_nodes("127.0.0.1", url)
    assert caught.value.where == url and "0.0.0.0" in caught.value.mend


def test_a_deployment_is_refused_before_anything_is_sent(
    dashboard: tuple[str, type[Cluster]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, kind = dashboard
    kind.nodes = 2
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    config = {"http_options": {"host": "127.0.0.1", "port": 8000}, "applications": []}
    with pytest.raises(UserError, match="has 2 nodes"):
        deploy(config, "", url)


def test_one_address_of_a_machine_is_refused_behind_haproxy(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = yaml.safe_load((ROOT / "serve_configs" / "local.yaml").read_text())
    content["applications"][0]["args"] = {"registry": str(registry.root), "auth": {"open": True}}
    content["http_options"]["host"] = "10.0.0.7"
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    plan(parse_settings(DeploySettings, content, where="x.yaml"), None)
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    with pytest.raises(UserError, match=r"listen on 10\.0\.0\.7 alone") as caught:
        plan(parse_settings(DeploySettings, content, where="x.yaml"), None)
    assert caught.value.where == "http_options.host" and "0.0.0.0" in caught.value.mend
    for host in (*LOOPBACK, *EVERYWHERE):
        check_host(host)


def shipped() -> dict[str, dict[str, Any]]:
    """Every serve config of the repository, that of Kubernetes among them."""
    found = {}
    for path in sorted((ROOT / "serve_configs").glob("*.yaml")):
        found[path.name] = yaml.safe_load(path.read_text())
    for document in yaml.safe_load_all((ROOT / "deploy" / "kuberay.yaml").read_text()):
        if document["kind"] == "RayService":
            found["kuberay.yaml"] = yaml.safe_load(document["spec"]["serveConfigV2"])
    return {name: content for name, content in found.items() if "applications" in content}


def test_what_is_for_several_nodes_can_be_reached_from_them() -> None:
    several = {
        name for name, content in shipped().items() if content.get("proxy_location") == "EveryNode"
    }
    assert several == {"production.yaml", "kuberay.yaml"}
    for name in several:
        assert listens_on(shipped()[name])[0] in EVERYWHERE, name
