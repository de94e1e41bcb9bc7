"""What `raysys deploy` refuses before it touches a cluster."""

from __future__ import annotations

import json
import shutil
import socket
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from raysys.cli import app
from raysys.config import load_settings, parse_settings
from raysys.errors import UserError
from raysys.registry import Registry
from raysys.serving.app import build, settle
from raysys.serving.args import ServeArgs
from raysys.serving.experiments import AcceptedFile, load_experiments
from raysys.serving.keys import KeyFile
from raysys.serving.rollout import Rollout
from raysys.stages import deploy
from raysys.stages.deploy import (
    _check_port,
    _check_readable,
    _ours,
    _root,
    _wait_ready,
    cluster,
)
from raysys.stages.deploy_plan import OURS, DeploySettings, listens_on, plan, tls_files
from raysys.storage import Manifest, Workspace
from tests.serving.test_arms import copy

LOCAL = Path(__file__).parents[2] / "serve_configs" / "local.yaml"


def config(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(LOCAL.read_text())
    content["applications"][0] |= changes
    return content


def test_the_local_config_is_planned_with_the_workspace_s_champion(registry: Registry) -> None:
    settings = load_settings(DeploySettings, LOCAL)
    workspace = Workspace(registry.root.parent)
    (workspace.registry).exists() or workspace.registry.symlink_to(registry.root)
    planned, bundle = plan(settings, workspace)
    args = planned["applications"][0]["args"]
    assert args["pinned"] == bundle == registry.resolve("champion")
    assert args["bundle"] == "champion" and Path(args["registry"]).is_absolute()
    assert planned["http_options"] == {"host": "127.0.0.1", "port": 8000, "request_timeout_s": 10}


@pytest.mark.parametrize(
    ("change", "telling"),
    [
        ({"nam": "x"}, ["applications.0.nam", "did you mean 'name'", "route_prefix"]),
        (
            {"deployments": [{"name": "Ranker", "num_replica": 2}]},
            ["applications.0.deployments.0.num_replica", "num_replicas"],
        ),
        (
            {"deployments": [{"name": "Ranker", "autoscaling_config": {"min_replica": 1}}]},
            ["autoscaling_config.min_replica", "min_replicas"],
        ),
        (
            {"deployments": [{"name": "Ranker", "ray_actor_options": {"num_cpu": 1}}]},
            ["ray_actor_options.num_cpu", "num_cpus"],
        ),
        ({"args": {"bundel": "x"}}, ["applications.0.args", "bundel", "'bundle'"]),
        ({"args": {"search": {"weight": 1}}}, ["search.weight", "relevance_weight"]),
        ({"args": {"k_max": 0}}, ["k_max: 0", "greater than or equal to 1"]),
        ({"args": {"clock": "sundial"}}, ["clock", "'wall' or 'log_end'"]),
        ({"args": {"recommend": {"policy": {"at_most": {"colour": 1}}}}}, ["at_most.colour"]),
        (
            {"deployments": [{"name": "Ranker", "user_config": {"canari": None}}]},
            ["deployments.0.user_config", "did you mean 'canary'"],
        ),
        (
            {
                "deployments": [
                    {"name": "Ranker", "user_config": {"canary": {"bundle": "champion"}}}
                ]
            },
            ["user_config", "give a share above 0"],
        ),
        (
            {
                "deployments": [
                    {"name": "Ranker", "user_config": {"canary": {"bundle": "x", "share": 0.1}}}
                ]
            },
            ["no bundle 'x'"],
        ),
        (
            {
                "deployments": [
                    {"name": "Ranker", "user_config": {"canary": {"bundle": "x", "share": 1}}}
                ]
            },
            ["user_config.canary.share", "no answers to compare with", "promote the bundle"],
        ),
        (
            {"deployments": [{"name": "Transformer", "num_replicas": 1}]},
            ["deployments.0.name", "no deployment 'Transformer'", "transformer: {}"],
        ),
        ({"args": {"transformer": {"max_batchh": 2}}}, ["transformer.max_batchh", "max_batch"]),
        ({"import_path": "other:app"}, ["no application of raysys", "raysys.serving.app:build"]),
        ({"deployments": [{"name": "Ranker", "max_ongoing_requests": -1}]}, ["max_ongoing"]),
    ],
)
def test_what_nobody_reads_or_cannot_be_is_refused(
    registry: Registry, change: dict[str, Any], telling: list[str]
) -> None:
    args = {"registry": str(registry.root), **change.pop("args", {})}
    with pytest.raises(UserError) as caught:
        plan(parse_settings(DeploySettings, config(args=args, **change), where="x.yaml"), None)
    for part in telling:
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["local", "production", "sticky", "canary", "experiment"])
def test_every_config_says_only_what_is_read(registry: Registry, name: str, tmp_path: Path) -> None:
    content = yaml.safe_load((LOCAL.parent / f"{name}.yaml").read_text())
    app = content["applications"][0]
    app["args"]["registry"] = str(registry.root)
    if "auth" in app["args"]:
        app["args"]["auth"]["keys"] = str(tmp_path / "keys.json")
        KeyFile(tmp_path / "keys.json").create("a", ("read",))
    if name == "canary":
        app["deployments"][0]["user_config"]["canary"]["bundle"] = "champion"
    planned, bundle = plan(parse_settings(DeploySettings, content, where=name), None)
    assert bundle == registry.resolve("champion")
    # what waits within a replica has to fit into what Serve lets it have
    ranker = planned["applications"][0]["deployments"][0]
    args = planned["applications"][0]["args"]
    assert ranker["max_ongoing_requests"] > args["threads"]
    application = build(ServeArgs.model_validate(args))
    assert type(application).__name__ == "Application"
    if name == "canary":  # the replicas agree on what is tried
        assert ranker["user_config"]["canary"]["bundle"] == bundle
    if name == "experiment":
        (files,) = ranker["user_config"]["experiments"]
        assert Path(files).is_absolute()
        assert args["experiments"]["exposures"] == str(registry.root.parent / "exposures")


def test_experiments_are_checked_before_anything_starts(registry: Registry, tmp_path: Path) -> None:
    folder = LOCAL.parent / "experiments"
    content = yaml.safe_load((folder / "home.yaml").read_text())
    path = tmp_path / "home.yaml"
    shutil.copytree(registry.root, tmp_path / "registry", symlinks=True)
    own = Registry(tmp_path / "registry")

    def planned() -> dict[str, Any]:
        path.write_text(yaml.safe_dump(content))
        ranker = {"name": "Ranker", "user_config": {"experiments": str(path)}}
        told = config(args={"registry": str(own.root)}, deployments=[ranker])
        found: dict[str, Any] = plan(parse_settings(DeploySettings, told, where="x"), None)[0]
        return found

    assert planned()["applications"][0]["deployments"][0]["user_config"] == {
        "canary": None,
        "experiments": [str(path)],
    }
    now = datetime(2026, 11, 20, tzinfo=UTC)
    AcceptedFile(own.root).accept(load_experiments([str(path)]), now, own.resolve, "tests")
    arms = content["experiments"][0]["arms"]
    arms[0]["share"], arms[1]["share"] = 0.3, 0.7
    with pytest.raises(UserError, match="shares change their ratio"):
        planned()
    arms[0]["share"], arms[1]["share"] = 0.5, 0.5
    arms[1]["policy"] = {"diversitee": 1}
    with pytest.raises(UserError, match=r"home_diversity\.arms\.diverse.*diversitee"):
        planned()
    path.unlink()
    ranker = {"name": "Ranker", "user_config": {"experiments": [str(path)]}}
    told = config(args={"registry": str(own.root)}, deployments=[ranker])
    with pytest.raises(UserError, match="no such file of experiments"):
        plan(parse_settings(DeploySettings, told, where="x"), None)


def test_a_canary_that_would_not_count_is_warned_of(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    content = config(args={"registry": str(registry.root)})
    content["applications"][0]["deployments"] = [
        {"name": "Ranker", "user_config": {"canary": {"bundle": "champion", "share": 0.1}}}
    ]
    settings = parse_settings(DeploySettings, content, where="x.yaml")
    rollout = Rollout(registry.root)
    try:
        for says in (False, True):
            rollout.ask(None) if says else rollout.clear()
            caplog.clear()
            plan(settings, None)
            assert ("user_config.canary does not count" in caplog.text) is says
    finally:
        rollout.path.unlink()


def test_the_router_of_sticky_users_is_there() -> None:
    from ray._common.utils import import_attr

    content = yaml.safe_load((LOCAL.parent / "sticky.yaml").read_text())
    router = content["applications"][0]["deployments"][0]["request_router_config"]
    made = import_attr(router["request_router_class"])
    from ray.serve._private.request_router.request_router import RequestRouter

    assert issubclass(made, RequestRouter)


def test_a_missing_or_damaged_bundle_is_said_before_anything_starts(tmp_path: Path) -> None:
    settings = load_settings(DeploySettings, LOCAL)
    with pytest.raises(UserError, match="raysys train"):
        plan(settings, Workspace(tmp_path))
    registry = Registry(tmp_path / "registry")
    bundle = registry.publish(lambda folder: (folder / "a.json").write_text("{}") and None)
    registry.point("champion", bundle)
    (registry.path(bundle) / "a.json").unlink()
    with pytest.raises(UserError, match=r"a\.json"):
        plan(settings, Workspace(tmp_path))


def test_the_builder_pins_the_bundle_and_refuses_unknown_arguments(registry: Registry) -> None:
    settled = settle(ServeArgs(registry=str(registry.root)))
    assert settled.pinned == registry.resolve("champion")
    application = build(ServeArgs(registry=str(registry.root)))
    assert type(application).__name__ == "Application"
    with pytest.raises(UserError, match="no bundle"):
        build(ServeArgs(registry=str(registry.root), bundle="challenger"))
    with pytest.raises(ValueError, match="registri"):
        ServeArgs.model_validate({"registri": "x"})


def test_a_relative_registry_lies_under_raysys_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAYSYS_HOME", str(tmp_path))
    assert ServeArgs(registry="runs/x").registry_path == tmp_path / "runs/x"
    assert ServeArgs(registry="/runs/x").registry_path == Path("/runs/x")
    (tmp_path / "bundles" / "b-1").mkdir(parents=True)
    content = {"shown_lists": {"folder": "shown"}, "stock": {"path": "stock.csv"}}
    settled = settle(ServeArgs.model_validate({"registry": ".", "bundle": "b-1", **content}))
    assert settled.shown_lists is not None and settled.stock is not None
    assert settled.shown_lists.folder == str(tmp_path / "shown")
    assert settled.stock.path == str(tmp_path / "stock.csv")
    monkeypatch.delenv("RAYSYS_HOME")
    assert ServeArgs(registry="runs/x").registry_path == Path("runs/x")


def test_a_taken_port_is_said(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        with pytest.raises(UserError, match="in use") as caught:
            _check_port("127.0.0.1", holder.getsockname()[1], {}, "http://127.0.0.1:8265")
    assert caught.value.where == "http_options.port" and caught.value.mend
    running = {"proxies": {"a": {}}, "http_options": {"host": "127.0.0.1", "port": 8000}}
    with pytest.raises(UserError, match="cannot move"):
        _check_port("127.0.0.1", 8001, running, "http://127.0.0.1:8265")
    _check_port("127.0.0.1", 8000, running, "http://127.0.0.1:8265")


@pytest.mark.parametrize(
    ("host", "name"),
    [("::1", "[::1]"), ("::", "[::1]"), ("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1")],
)
def test_a_host_of_either_family_can_be_listened_on(host: str, name: str) -> None:
    assert _root(host, 8000) == f"http://{name}:8000"
    assert _root(host, 8443, tls=True) == f"https://{name}:8443"
    if host in ("::1", "::") and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    _check_port(host, 0, {}, "http://127.0.0.1:8265")


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_a_port_is_read_as_ray_reads_it(registry: Registry) -> None:
    args = {"registry": str(registry.root)}

    def planned(port: object) -> dict[str, Any]:
        content = {**config(args=args), "http_options": {"host": "127.0.0.1", "port": port}}
        return plan(parse_settings(DeploySettings, content, where="x.yaml"), None)[0]

    assert listens_on(planned("8001")) == ("127.0.0.1", 8001)
    for port in (99_999, 65_536, -1):
        with pytest.raises(UserError, match=f"{port} is no port") as caught:
            planned(port)
        assert caught.value.where == "http_options.port"


def with_tls(registry: Registry, **options: str) -> dict[str, Any]:
    content = config(args={"registry": str(registry.root)})
    content["http_options"] |= options
    return plan(parse_settings(DeploySettings, content, where="x.yaml"), None)[0]


def test_what_would_not_be_tls_is_refused(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = {"ssl_certfile": str(tmp_path / "tls.crt"), "ssl_keyfile": str(tmp_path / "tls.key")}
    planned = with_tls(registry, **both)
    assert {key: str(path) for key, path in tls_files(planned).items()} == both
    assert tls_files(with_tls(registry)) == {}
    with pytest.raises(UserError, match="plain HTTP") as caught:
        with_tls(registry, ssl_keyfile=both["ssl_keyfile"])
    assert caught.value.where == "http_options.ssl_certfile" and caught.value.mend
    with pytest.raises(UserError, match="ssl_keyfile"):
        with_tls(registry, ssl_certfile=both["ssl_certfile"])
    with pytest.raises(UserError, match="not a whole path") as caught:
        with_tls(registry, ssl_certfile="tls.crt", ssl_keyfile=both["ssl_keyfile"])
    assert caught.value.where == "http_options.ssl_certfile"
    running = {"host": "127.0.0.1", "port": 8000}
    for has, wants in ((False, True), (True, False)):
        now = running | ({"ssl_certfile": both["ssl_certfile"]} if has else {})
        details = {"proxies": {"a": {}}, "http_options": now}
        with pytest.raises(UserError, match="in this cluster already"):
            _check_port("127.0.0.1", 8000, details, "http://127.0.0.1:8265", tls=wants)
        _check_port("127.0.0.1", 8000, details, "http://127.0.0.1:8265", tls=has)
    content = config(
        args={"registry": str(registry.root), "auth": {"open": True}}  # else HAProxy wants keys
    )
    content["http_options"] |= both
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    with pytest.raises(UserError, match="HAProxy") as caught:
        plan(parse_settings(DeploySettings, content, where="x.yaml"), None)
    assert "RAY_SERVE_ENABLE_HA_PROXY" in caught.value.mend


def test_a_certificate_that_is_not_there_is_said_before_anything_starts(tmp_path: Path) -> None:
    there = tmp_path / "tls.crt"
    there.write_text("-----BEGIN CERTIFICATE-----")
    _check_readable({"ssl_certfile": there})
    with pytest.raises(UserError, match=r"tls\.key cannot be read") as caught:
        _check_readable({"ssl_certfile": there, "ssl_keyfile": tmp_path / "tls.key"})
    assert caught.value.where == "http_options.ssl_keyfile"


class TwoShops(BaseHTTPRequestHandler):
    """What the proxy of Serve answers where two applications of ours run."""

    bundles = {"/food/readyz": "b-food", "/toys/readyz": "b-toys"}

    def do_GET(self) -> None:
        content = json.dumps({"bundle": self.bundles.get(self.path), "text": {}}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def test_each_of_several_applications_is_waited_for_at_its_own_route() -> None:
    routes = {"/food": "b-food", "/toys": "b-toys", None: "b-hidden"}
    config = {
        "applications": [
            {"import_path": OURS, "route_prefix": route, "args": {"bundle": "x", "pinned": bundle}}
            for route, bundle in routes.items()
        ]
        + [{"import_path": "other:app", "route_prefix": "/other"}]
    }
    with ThreadingHTTPServer(("127.0.0.1", 0), TwoShops) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}"
        ours = _ours(config, root)
        assert [app.address for app in ours] == [f"{root}/food", f"{root}/toys", None]
        for app in ours:
            _wait_ready(app)
        server.shutdown()


def test_of_several_applications_the_first_one_s_bundle_is_told(
    registry: Registry, tmp_path: Path
) -> None:
    own = Registry(tmp_path / "registry")
    champion = registry.path("champion")
    names = [
        own.publish(
            lambda folder: copy(champion, folder),
            name_hint=name,
            learners=json.loads((champion / "manifest.json").read_text())["learners"],
            figures={},
        )
        for name in ("food", "toys")
    ]
    content = config(args={"registry": str(own.root), "bundle": names[0]})
    other = {**content["applications"][0], "name": "toys", "route_prefix": "/toys"}
    other["args"] = {"registry": str(own.root), "bundle": names[1]}
    content["applications"].append(other)
    planned, bundle = plan(parse_settings(DeploySettings, content, where="x.yaml"), None)
    assert bundle == names[0]
    assert [app.args.pinned for app in _ours(planned, "http://127.0.0.1:8000")] == names


@pytest.mark.parametrize("key", ["http_options", "logging_config"])
def test_an_empty_block_says_nothing(registry: Registry, tmp_path: Path, key: str) -> None:
    keys = tmp_path / "keys.json"
    KeyFile(keys).create("a", ("read",))
    content = config(args={"registry": str(registry.root), "auth": {"keys": str(keys)}})
    planned, bundle = plan(
        parse_settings(DeploySettings, {**content, key: None}, where="x.yaml"), None
    )
    assert key not in planned and bundle == registry.resolve("champion")


def test_a_cluster_that_does_not_answer_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_DASHBOARD_ADDRESS", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9") as caught, cluster():
        pass
    assert caught.value.where == "RAY_DASHBOARD_ADDRESS" and "ray start" in caught.value.mend


def test_the_config_s_registry_is_served_unless_a_workspace_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that says which registry it serves is taken at its word, as by `serve deploy`."""
    asked: list[Workspace | None] = []

    def run(_settings: Any, workspace: Workspace | None, *, force: bool) -> Manifest:
        asked.append(workspace)
        return Manifest("deploy")

    monkeypatch.setattr(deploy, "run", run)
    monkeypatch.chdir(tmp_path)
    config = ["deploy", "--config", str(LOCAL.with_name("experiment.yaml"))]
    for more, shown in (([], "runs/demo/registry"), (["--workspace", "mine"], "mine/registry")):
        done = CliRunner().invoke(app, [*config, *more], env={"COLUMNS": "200"})
        assert done.exit_code == 0, done.output
        assert shown in done.stderr + done.stdout
    assert asked[0] is None and asked[1] is not None
    assert asked[1].registry == tmp_path / "mine" / "registry"
