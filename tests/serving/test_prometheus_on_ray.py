"""What Prometheus makes of a deployment: the shipped scrape configuration, rules and dashboard."""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from raysys.cluster import ray_session
from raysys.config import parse_settings
from raysys.stages.deploy import Deployment, cluster, deploy
from raysys.stages.deploy_plan import DeploySettings, plan
from tests.prometheus_server import PrometheusServer
from tests.serving.test_on_ray import LOCAL
from tests.serving.watched import publish_watched
from tests.test_monitoring import dashboard, rules

pytestmark = pytest.mark.slow

CORE = (
    *("Requests a second", "Milliseconds, median and p99", "Degraded lists", "Members left out"),
    *("Seconds by stage, mean", "Cache", "Shown lists", "Events a second", "Lag of events"),
    *("Bundles", "Replicas' queues", "Lists a second by arm", "Milliseconds by arm, p99"),
    *("Click rate by arm", "Largest PSI", "PSI by feature and score", "Answers that are watched"),
    "Missing values by feature",
)
"""Panels that show something wherever lists are asked for and events sent."""


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """serve_configs/local.yaml for the small shop, with a cache."""
    from ray import serve

    root = tmp_path_factory.mktemp("workspace") / "registry"
    registry = publish_watched(root, with_encoder=False)
    config: dict[str, Any] = yaml.safe_load(LOCAL.read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        config["http_options"]["port"] = probe.getsockname()[1]
    args = config["applications"][0]["args"]
    args |= {"registry": str(registry.root), "cache": {}, "deadline_ms": None}
    args["monitor"] |= {"refresh_s": 0.5, "thresholds": {"least_requests": 20}}
    args["shown_lists"]["segment_s"] = 1
    settings = parse_settings(DeploySettings, config, where="local.yaml")
    with ray_session(dashboard=True), cluster() as (url, own):
        assert not own
        yield deploy(*plan(settings, None), url)
        serve.shutdown()


@pytest.fixture(scope="module")
def visited(deployment: Deployment) -> Iterator[None]:
    """People come all the while: lists anew, of the cache and in haste, and events of them."""
    ended = threading.Event()

    def visit() -> None:
        with httpx.Client(base_url=deployment.address, timeout=30) as client:
            turn = 0
            while not ended.wait(0.05):
                turn += 1
                body = {"user_id": f"u{turn % 20}", "k": 5}
                answer = client.post("/v1/recommend", json=body).json()
                first = {"request_id": answer["request_id"], "user_id": body["user_id"]}
                events = [
                    {"event_type": "impression", "event_id": f"i{turn}", **first},
                    {"event_type": "click", "event_id": f"c{turn}", **first},
                ]
                item = {"item_id": answer["items"][0]["item_id"]}
                sent = {"events": [{**event, **item} for event in events]}
                assert client.post("/v1/events", json=sent).json()["accepted"] == 2
                search = {"query": "rye bread", "k": 5}
                client.post("/v1/search", json=search)
                hasty = {"query": f"rye {turn}", "k": 5}
                client.post("/v1/search", json=hasty, headers={"X-Deadline-Ms": "1"})

    visiting = threading.Thread(target=visit)
    visiting.start()
    yield
    ended.set()
    visiting.join()


@pytest.fixture(scope="module")
def prometheus(
    visited: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PrometheusServer]:
    import ray

    session = ray._private.worker._global_node.get_session_dir_path()
    targets = Path(session) / "prom_metrics_service_discovery.json"
    server = PrometheusServer(tmp_path_factory.mktemp("prometheus"), targets)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def of_panels() -> list[tuple[str, str]]:
    """Title and expression, as Grafana would send it."""
    return [
        (panel["title"], target["expr"].replace("$__rate_interval", "1m"))
        for panel in dashboard()["panels"]
        for target in panel.get("targets", ())
    ]


def test_all_that_ray_names_is_scraped(prometheus: PrometheusServer) -> None:
    def all_up() -> list[dict[str, Any]] | None:
        targets: list[dict[str, Any]] = prometheus.get("targets")["activeTargets"]
        return targets if targets and {t["health"] for t in targets} == {"up"} else None

    targets = prometheus.wait_until(all_up)
    assert {target["labels"]["job"] for target in targets} == {"ray"}


def test_every_panel_is_understood_and_the_core_ones_show_something(
    prometheus: PrometheusServer,
) -> None:
    empty = set(CORE)

    def all_seen() -> bool | None:
        """An expression that Prometheus does not take fails within `query`.

        A gauge is left out of a scrape where a busy replica reports late: each was there once.
        """
        empty.difference_update([title for title, expr in of_panels() if prometheus.query(expr)])
        return None if empty else True

    try:
        prometheus.wait_until(all_seen)
    except AssertionError:
        raise AssertionError(f"panels without data: {sorted(empty)}") from None


def test_figures_are_those_of_what_was_asked(prometheus: PrometheusServer) -> None:
    def value(title: str, **labels: str) -> float:
        """Of one series, once it is a number: a rate needs two scrapes."""
        expr = next(expr for name, expr in of_panels() if name == title)

        def look() -> float | None:
            for series in prometheus.query(expr):
                if series["metric"].items() >= labels.items():
                    number = float(series["value"][1])
                    return number if math.isfinite(number) and number > 0 else None
            return None

        return prometheus.wait_until(look)

    lists = value("Requests a second", route="/v1/recommend")
    assert value("Requests a second", route="/v1/search") > lists > 0  # two searches a list
    assert 0 < value("Milliseconds, median and p99", route="/v1/recommend") < 10
    assert value("Degraded lists", surface="search") <= 1
    assert value("Members left out", reason="deadline") > 0
    assert value("Cache", result="hit") > 0 and value("Cache", result="miss") > 0
    assert value("Shown lists", outcome="written") > 0
    assert value("Events a second", status="accepted") > 0
    assert value("Bundles", arm="champion") == 1
    failed = next(expr for name, expr in of_panels() if name == "Failed and refused")
    assert [float(s["value"][1]) for s in prometheus.query(failed)] in ([], [0.0])


def test_every_alert_is_evaluated(prometheus: PrometheusServer) -> None:
    def evaluated() -> list[dict[str, Any]] | None:
        told = [r for group in prometheus.get("rules")["groups"] for r in group["rules"]]
        return told if told and all(rule["health"] != "unknown" for rule in told) else None

    told = prometheus.wait_until(evaluated)
    assert {rule["name"] for rule in told} == {rule["alert"] for rule in rules()}
    assert {rule["name"]: rule["lastError"] for rule in told if rule.get("lastError")} == {}
    assert {rule["health"] for rule in told} == {"ok"}
    for rule in rules():
        prometheus.query(rule["expr"])
    paging = {rule["name"] for rule in told if rule["labels"]["severity"] == "page"}
    firing = {alert["labels"]["alertname"] for alert in prometheus.get("alerts")["alerts"]}
    assert "RaysysAnswersFail" in paging and "RaysysAnswersFail" not in firing
