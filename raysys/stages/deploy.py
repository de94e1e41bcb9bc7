"""`raysys deploy`: a serve config, strictly checked, put on a Ray cluster and waited for."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from raysys.cluster import ray_session, settle_environment, stay_until_interrupted
from raysys.config import parse_settings
from raysys.errors import UserError
from raysys.progress import task
from raysys.serving.args import ServeArgs
from raysys.stages.deploy_plan import OURS, DeploySettings, listens_on, plan, tls_files
from raysys.stages.deploy_reach import LOOPBACK, check_nodes
from raysys.storage import Manifest, Workspace

DASHBOARD = "http://127.0.0.1:8265"
PATIENCE_S = 300
_HERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""What answers on this machine where all its addresses are listened on."""
_LOCAL = (*LOOPBACK, *_HERE)
_ANYBODY = ssl._create_unverified_context()  # a port of this machine: its name need not be on it


@dataclass(frozen=True)
class Deployment:
    """What runs; of several applications of ours, the first.

    Attributes:
        address: base URL of the HTTP application.
        dashboard: URL of Ray's dashboard.
        bundle: id of the bundle that ranks; empty: none does.
        texts: text tasks that are served.
        pages: of `storefront` and `console`, those that are there.
        events: whether events are taken.
    """

    address: str
    dashboard: str
    bundle: str
    texts: tuple[str, ...] = ()
    pages: tuple[str, ...] = ()
    events: bool = False

    @property
    def addresses(self) -> dict[str, str]:
        """What a person may want to open, by name."""
        lists = {
            "recommend": f"{self.address}/v1/recommend",
            "search": f"{self.address}/v1/search",
            "similar": f"{self.address}/v1/similar",
            "rank": f"{self.address}/v1/rank",
            "profile": f"{self.address}/v1/users/{{id}}/profile",
        }
        pages = {"storefront": f"{self.address}/", "console": f"{self.address}/console"}
        return {
            **{name: url for name, url in pages.items() if name in self.pages and self.bundle},
            **(lists if self.bundle else {}),
            **({"events": f"{self.address}/v1/events"} if self.events else {}),
            **{task: f"{self.address}/v1/text/{task}" for task in self.texts},
            "API page": f"{self.address}/docs",
            "Ray dashboard": self.dashboard,
        }


def run(
    settings: DeploySettings, workspace: Workspace | None = None, *, force: bool = False
) -> Manifest:
    """Deploy; on a cluster of its own, stay until Ctrl-C.

    Args:
        settings: the serve config.
        workspace: its registry takes the place of the one in the config; None: the config's.
        force: deploy again even when nothing changed: Serve forgets the application first.
    """
    began = time.monotonic()
    config, bundle = plan(settings, workspace)
    manifest = Manifest("deploy", inputs={"bundle": bundle} if bundle else {}, settings=config)
    with cluster() as (dashboard, own):
        try:
            deployment = deploy(config, bundle, dashboard, force=force)
            manifest.seconds = time.monotonic() - began
            manifest.figures = dict(deployment.addresses)
            if own:
                for name, address in deployment.addresses.items():
                    print(f"{name:>14}  {address}")
                print("up until Ctrl-C", flush=True)
                stay_until_interrupted()
        finally:
            if own:
                _shut_down()
    return manifest


def folder_of(settings: DeploySettings, workspace: Workspace | None) -> Path:
    """The registry that `run` serves from."""
    if workspace is not None:
        return workspace.registry
    app = next(a for a in settings.applications if a.import_path == OURS)
    return parse_settings(ServeArgs, app.args or {}, where="applications").registry_path


@contextlib.contextmanager
def cluster() -> Iterator[tuple[str, bool]]:
    """The dashboard's URL of a cluster to deploy on, and whether it was started for this.

    The open session's cluster, else the one that RAY_DASHBOARD_ADDRESS or RAY_ADDRESS names, else
    one that answers on this machine, else a new one that ends with the block.

    Raises:
        UserError: the cluster that was named does not answer.
    """
    settle_environment()
    import ray

    named = os.environ.get("RAY_DASHBOARD_ADDRESS", "")
    if not named and os.environ.get("RAY_ADDRESS", "").startswith("http"):
        named = os.environ["RAY_ADDRESS"]
    if ray.is_initialized():
        yield _dashboard_of_session(), False
    elif named or os.environ.get("RAY_ADDRESS") or _answers(f"{DASHBOARD}/api/version"):
        if not _answers(f"{named or DASHBOARD}/api/version"):
            raise UserError(
                f"no Ray dashboard answers at {named or DASHBOARD}",
                where="RAY_DASHBOARD_ADDRESS" if named else "RAY_ADDRESS",
                mend="start one with `ray start --head --dashboard-host 127.0.0.1`, or unset "
                "RAY_ADDRESS to let raysys start its own",
            )
        yield named or DASHBOARD, False
    else:
        with ray_session(dashboard=True):
            yield _dashboard_of_session(), True


@dataclass(frozen=True)
class _Application:
    """One of ours in a planned config, and where it answers; None: not over HTTP."""

    address: str | None
    args: ServeArgs


def _root(host: str, port: int, *, tls: bool = False) -> str:
    """URL of what listens there, as this machine asks it."""
    name = _HERE.get(host, host)
    return f"{'https' if tls else 'http'}://{f'[{name}]' if ':' in name else name}:{port}"


def _ours(config: dict[str, Any], root: str) -> list[_Application]:
    """Our applications, each below its own route."""
    found = []
    for app in config["applications"]:
        if app["import_path"] == OURS:
            route = app.get("route_prefix", "/")
            address = None if route is None else root + route.rstrip("/")
            found.append(_Application(address, ServeArgs.model_validate(app["args"])))
    return found


def deploy(
    config: dict[str, Any], bundle: str, dashboard: str, *, force: bool = False
) -> Deployment:
    """Put a planned config on the cluster and wait until it answers.

    Raises:
        UserError: the port is taken, HAProxy would not reach the replicas (`check_nodes`), the
            cluster refuses, or the application does not start.
    """
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    with _in_our_words(dashboard):
        client = ServeSubmissionClient(dashboard)
        details = client.get_serve_details()
        host, port = listens_on(config)
        files = tls_files(config)
        _check_port(host, port, details, dashboard, tls=bool(files))
        check_nodes(host, dashboard)
        if _is_local(dashboard):
            _check_readable(files)
        if force and details.get("applications"):
            client.delete_applications()
        client.deploy_applications(config)
        with task("deploy: starting replicas", None) as progress:
            progress.note = _wait_running(client, config, progress.reach)
    root = _root(host, port, tls=bool(files))
    ours = _ours(config, root)
    if _is_local(dashboard):
        for app in ours:
            _wait_ready(app)
    args = ours[0].args
    pages = tuple(name for name, wanted in args.pages if wanted is True)
    taken = args.events is not None
    address = ours[0].address or root
    return Deployment(address, dashboard, bundle, tuple(args.pinned_text), pages, taken)


def _wait_running(client: Any, config: dict[str, Any], reach: Any) -> str:
    """Poll Serve until all applications run; returns how it stands."""
    names = [app.get("name", "default") for app in config["applications"]]
    deadline = time.monotonic() + PATIENCE_S
    began = time.monotonic()
    while time.monotonic() < deadline:
        applications = client.get_serve_details()["applications"]
        stands = {name: applications.get(name, {}) for name in names}
        for name, app in stands.items():
            if app.get("status") in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise UserError(
                    f"application {name!r} does not start: {_last_words(app)}",
                    mend="`serve status` and the dashboard's logs say more",
                )
        if all(app.get("status") == "RUNNING" for app in stands.values()):
            return ", ".join(f"{name} running" for name in names)
        reach(int(time.monotonic() - began))
        time.sleep(0.3)
    raise UserError(
        f"not running after {PATIENCE_S} s",
        where=", ".join(names),
        mend="look at `serve status`; are there enough free CPUs and memory (`ray status`)?",
    )


def _last_words(app: dict[str, Any]) -> str:
    """The line of Serve's message, or of its deployments', that says what went wrong."""
    messages = [str(app.get("message", ""))]
    messages += [str(d.get("message", "")) for d in app.get("deployments", {}).values()]
    lines = [line.strip() for text in messages for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line or "error" in line]
    return (telling or lines or ["no reason given"])[-1][:500]


def _wait_ready(app: _Application) -> None:
    """Serve says RUNNING before its proxy knows the routes, and while old replicas still answer."""
    if app.address is None:
        return
    url, bundle, texts = f"{app.address}/readyz", app.args.pinned or "", app.args.pinned_text
    deadline = time.monotonic() + 60
    while True:
        with (
            contextlib.suppress(URLError, OSError, ValueError),
            urlopen(url, timeout=3, context=_ANYBODY) as answer,
        ):
            ready = json.load(answer)
            if (ready["bundle"] or "") == bundle and ready["text"] == texts:
                return
        if time.monotonic() > deadline:
            raise UserError(
                f"the application runs, but {', '.join(filter(None, (bundle, *texts.values())))} "
                "does not answer",
                where=url,
                mend="`serve status` and the dashboard's logs say more",
            )
        time.sleep(0.1)


def _check_port(
    host: str, port: int, details: dict[str, Any], dashboard: str, *, tls: bool = False
) -> None:
    """Refuse a port that another process holds, and options that a running Serve cannot change."""
    running = details.get("http_options") or {}
    if details.get("proxies") and running:
        now = (running.get("host"), running.get("port"))
        if bool(running.get("ssl_certfile")) != tls:
            raise UserError(
                f"Serve speaks {'plain HTTP' if tls else 'TLS'} in this cluster already",
                where="http_options.ssl_certfile",
                mend="`serve shutdown -y`, then deploy again: it cannot change that",
            )
        if now != (host, port):
            raise UserError(
                f"Serve already listens on {now[0]}:{now[1]} in this cluster and cannot move",
                where="http_options",
                mend="`serve shutdown -y`, then deploy again; or give the same host and port",
            )
        return
    if not _is_local(dashboard):
        return
    try:
        listen(host, port)
    except OSError as error:
        raise UserError(
            f"{host}:{port} cannot be listened on: {error.strerror}",
            where="http_options.port",
            mend="stop what holds the port (`raysys doctor` names it), or choose another",
        ) from None


def _check_readable(files: Mapping[str, Path]) -> None:
    """Refuse certificates and keys that the proxy of this machine would look for in vain.

    Raises:
        UserError: naming the first that cannot be read.
    """
    for key, path in files.items():
        if not os.access(path, os.R_OK) or not path.is_file():
            raise UserError(
                f"{path} cannot be read",
                where=f"http_options.{key}",
                mend="give the whole path of a PEM file that the proxy's user may read",
            )


def listen(host: str, port: int) -> None:
    """Try whether a server could listen there, by IPv4 or IPv6 as the host's name says.

    Raises:
        OSError: it could not.
    """
    family, kind, _, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


@contextlib.contextmanager
def _in_our_words(dashboard: str) -> Iterator[None]:
    """Ray's client raises bare errors for what is a matter of addresses and tokens."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise UserError(
            f"the cluster refuses: {str(error).splitlines()[0]}",
            where=dashboard,
            mend="set RAY_AUTH_MODE (and RAY_AUTH_TOKEN) as the cluster was started with",
        ) from None
    except (ConnectionError, RuntimeError) as error:
        raise UserError(f"the cluster refuses: {error}", where=dashboard) from None


def _dashboard_of_session() -> str:
    import ray

    # says where the open session is; its logging stays as it is
    url = ray.init(ignore_reinit_error=True, configure_logging=False).dashboard_url
    if not url:
        raise UserError(
            "this Ray session has no dashboard, and Serve is deployed through it",
            mend="start Ray with its dashboard",
        )
    return f"http://{url}"


def _shut_down() -> None:
    from ray import serve

    # a cluster that was interrupted while starting may not answer: it is ended all the same
    with contextlib.suppress(Exception):
        serve.shutdown()


def _answers(url: str) -> bool:
    """Whether something speaks HTTP there, and not to say that it is out of order."""
    try:
        with urlopen(url, timeout=3) as answer:
            return int(answer.status) < 400
    except HTTPError as error:
        return error.code in (401, 403)  # there, but wants a token
    except (URLError, OSError, ValueError):
        return False


def _is_local(url: str) -> bool:
    return (urlsplit(url).hostname or "") in _LOCAL
