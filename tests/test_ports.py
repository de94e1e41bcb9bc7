"""The ports that docs/security.md lists, held against what the installed Ray listens on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from click import Command
from ray._private import ray_constants
from ray.autoscaler._private.constants import AUTOSCALER_METRIC_PORT
from ray.dashboard import http_server_agent
from ray.dashboard.consts import DASHBOARD_METRIC_PORT
from ray.scripts import scripts
from ray.serve._private import constants
from ray.serve.config import gRPCOptions
from ray.util.client.server import proxier

from raysys.stages.doctor import PORTS

ROOT = Path(__file__).parent.parent


def listed() -> dict[str, tuple[str, ...]]:
    """Rows of the table by their first cell: what, interface, open to all, let through to."""
    text = (ROOT / "docs" / "security.md").read_text().partition("\n## Ports\n")[2]
    rows = [line for line in text.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    cells = [tuple(cell.strip() for cell in row.strip("|").split("|")) for row in rows[1:]]
    assert {len(row) for row in cells} == {5}  # every column is filled
    assert all(all(row) for row in cells)
    table = {row[0]: row[1:] for row in cells if "random" not in row[0]}
    return table | {f"random: {row[1]}": row[1:] for row in cells if "random" in row[0]}


def option(name: str) -> object:
    """What `ray start` takes when an option is not given."""
    command: Command = scripts.start
    (found,) = [each for each in command.params if f"--{name}" in each.opts]
    return command.make_context("start", [], resilient_parsing=True).params[str(found.name)]


@pytest.mark.parametrize(
    ("port", "variables"),
    [
        (str(constants.DEFAULT_HTTP_PORT), ()),
        (
            str(constants.RAY_SERVE_FALLBACK_PROXY_HTTP_PORT),
            ("RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",),
        ),
        (
            f"{constants.RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT} to "
            f"{constants.RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT}",
            ("RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT",),
        ),
        (str(constants.RAY_SERVE_HAPROXY_STATS_PORT), ("RAY_SERVE_HAPROXY_STATS_PORT",)),
        (str(constants.RAY_SERVE_HAPROXY_METRICS_PORT), ("RAY_SERVE_HAPROXY_METRICS_PORT",)),
        (f"{AUTOSCALER_METRIC_PORT}, {DASHBOARD_METRIC_PORT}", ("AUTOSCALER_METRIC_PORT",)),
    ],
)
def test_what_serve_and_its_helpers_listen_on_is_listed(
    port: str, variables: tuple[str, ...]
) -> None:
    what = listed()[port][0] + listed()[port][1]
    for variable in variables:
        assert f"`{variable}`" in what
        assert variable in dir(constants) or variable == "AUTOSCALER_METRIC_PORT"


@pytest.mark.parametrize(
    ("port", "flags"),
    [
        (str(ray_constants.DEFAULT_DASHBOARD_PORT), ()),
        (str(ray_constants.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT), ("dashboard-agent-listen-port",)),
        (str(ray_constants.DEFAULT_PORT), ("port",)),
        (
            f"{option('min-worker-port')} to {option('max-worker-port')}",
            ("min-worker-port", "max-worker-port"),
        ),
        (f"{proxier.MIN_SPECIFIC_SERVER_PORT} to {proxier.MAX_SPECIFIC_SERVER_PORT}", ()),
        ("10001", ("ray-client-server-port",)),
    ],
)
def test_what_ray_start_listens_on_is_listed(port: str, flags: tuple[str, ...]) -> None:
    row = listed()[port]
    for flag in flags:
        option(flag)  # there is such a one
        assert f"`--{flag}`" in row[0]


def test_what_is_drawn_at_random_is_listed_with_the_option_that_sets_it() -> None:
    drawn = " ".join(row[0] for name, row in listed().items() if name.startswith("random"))
    for flag in (
        *("node-manager-port", "object-manager-port", "metrics-export-port"),
        *("runtime-env-agent-port", "dashboard-agent-grpc-port"),
    ):
        assert option(flag) in (None, 0), flag
        assert f"`--{flag}`" in drawn


def test_whatever_the_doctor_knows_and_the_cluster_lets_in_is_listed() -> None:
    known = {int(number) for name in listed() for number in re.findall(r"\d+", name)}
    assert set(PORTS) <= known
    for document in yaml.safe_load_all((ROOT / "deploy" / "kuberay.yaml").read_text()):
        if document["kind"] == "NetworkPolicy":
            inner, callers = document["spec"]["ingress"]
            assert "ports" not in inner  # pods of the cluster reach each other's replicas
            assert callers == {"ports": [{"port": 8000, "protocol": "TCP"}]}


def test_what_is_open_without_a_token_is_said() -> None:
    table = listed()
    for port in (constants.RAY_SERVE_HAPROXY_STATS_PORT, constants.RAY_SERVE_HAPROXY_METRICS_PORT):
        assert table[str(port)][1:3] == ("all interfaces", "everybody")
    agent = table[str(ray_constants.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT)]
    assert agent[2] == "health checks"
    assert all(path.endswith("healthz") for path in http_server_agent.PUBLIC_EXACT_PATHS)


def test_grpc_is_named_with_its_ports() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    (said,) = re.findall(r"gRPC \((\d.*?)\)", text, re.DOTALL)
    assert [int(number) for number in re.findall(r"\d+", said)] == [
        gRPCOptions().port,
        constants.RAY_SERVE_FALLBACK_PROXY_GRPC_PORT,
        constants.RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT,
        constants.RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT,
    ]
