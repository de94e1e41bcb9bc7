"""`raysys demo`: the whole system on a real shop's year, from the log to HTTP answers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raysys.cluster import ray_session, stay_until_interrupted
from raysys.config import find_config, load_settings
from raysys.errors import UserError
from raysys.progress import task
from raysys.storage import Manifest, Workspace

PRESET = "complete_journey"
STAGES = {
    # stage: its configuration, and about how many seconds it takes on two cores
    "ingest": (PRESET, 16),
    "features": (PRESET, 66),
    "tune": ("tune_configs/demo.yaml", 35),
    "train": (PRESET, 290),
    "evaluate": (PRESET, 75),
    "deploy": ("serve_configs/local.yaml", 15),
}


@dataclass(frozen=True)
class Call:
    """An HTTP call that the demo shows and checks."""

    path: str
    body: dict[str, Any] | None = None

    def curl(self, address: str) -> str:
        """The call as a line for a shell."""
        if self.body is None:
            return f"curl -s {address}{self.path}"
        body = json.dumps(self.body)
        return f"curl -s {address}{self.path} -H 'content-type: application/json' -d '{body}'"


CALLS = (
    Call("/v1/recommend", {"user_id": "1228", "place": "home", "k": 5}),
    Call("/v1/search", {"query": "frozen pizza", "user_id": "1228", "k": 5}),
    Call("/v1/users/1228/profile"),
)


def run(workspace: Workspace, *, exit_after_check: bool = False) -> None:
    """Run every stage that is not done yet, serve, check the answers, stay up until Ctrl-C.

    Args:
        workspace: stages that are done there are reused.
        exit_after_check: end after checking the answers instead of staying up.

    Raises:
        UserError: a stage's; or an answer that is not what it should be.
    """
    console = Console()
    began = time.monotonic()
    with leaving_nothing_behind():
        _check_not_running(workspace)
        with ray_session(dashboard=True), contextlib.ExitStack() as serving:
            with _Clock() as clock:
                for number, (stage, (config, seconds)) in enumerate(STAGES.items(), 1):
                    with clock.stage(f"stage {number} of {len(STAGES)}: {stage}", seconds):
                        if stage == "deploy":
                            deployment = _deploy(config, workspace)
                            serving.callback(_stop_serving)
                        else:
                            _run_stage(stage, config, workspace)
                with task("demo: checking the answers"):
                    check(deployment.address)
            _show(console, workspace, deployment, time.monotonic() - began)
            if exit_after_check:
                return
            console.print("\nUp until Ctrl-C.", style="bold")
            stay_until_interrupted()
            console.print("stopping …")


def _run_stage(stage: str, config: str, workspace: Workspace) -> Manifest:
    module = import_module(f"raysys.stages.{stage}")
    model = getattr(module, f"{stage.capitalize()}Settings")
    manifest: Manifest = module.run(load_settings(model, find_config(config, stage)), workspace)
    return manifest


def _deploy(config: str, workspace: Workspace) -> Any:
    """Serve on the configured port, or on the next one that is free."""
    from raysys.stages import deploy
    from raysys.stages.deploy_plan import DeploySettings, listens_on, plan

    settings = load_settings(DeploySettings, find_config(config, "deploy"))
    planned, bundle = plan(settings, workspace)
    planned.setdefault("http_options", {})["port"] = free_port(*listens_on(planned))
    with deploy.cluster() as (dashboard, _):
        return deploy.deploy(planned, bundle, dashboard)


def _stop_serving() -> None:
    """A cluster that RAY_ADDRESS names goes on without us, and would go on serving the demo."""
    from ray import serve

    with contextlib.suppress(Exception):  # as in `_shut_ray_down`
        serve.shutdown()


def free_port(host: str, wanted: int) -> int:
    """The wanted port, or the first free one of the hundred after it.

    Raises:
        UserError: none is free.
    """
    from raysys.stages.deploy import listen

    last = min(wanted + 99, 65_535)
    for port in range(wanted, last + 1):
        with contextlib.suppress(OSError):
            listen(host, port)
            return port
    raise UserError(f"no free port from {wanted} to {last}", where=host)


def check(address: str) -> None:
    """Make the calls that the demo shows and look at the answers.

    Raises:
        UserError: an answer that is not what it should be.
    """
    import httpx

    for call in CALLS:
        method = "GET" if call.body is None else "POST"
        answer = httpx.request(method, address + call.path, json=call.body, timeout=30)
        problem = _problem_with(call, answer)
        if problem:
            raise UserError(
                f"{problem}: {answer.status_code} {answer.text[:300]}",
                where=f"{method} {call.path}",
                mend="`raysys doctor` looks at this machine; the Serve logs lie in Ray's session",
            )


def _problem_with(call: Call, answer: Any) -> str:
    """What is wrong with an answer; empty if nothing is."""
    if answer.status_code != 200:
        return "not answered"
    content = answer.json()
    if call.body is None:
        return "" if content["value"]["n_orders"] > 0 else "a customer without orders"
    items = content["items"]
    if len(items) != call.body["k"]:
        return f"{len(items)} items instead of {call.body['k']}"
    scores = [item["score"] for item in items]
    if scores != sorted(scores, reverse=True):
        return "items not in order of their scores"
    return "degraded" if content["degraded"] else ""


def _show(console: Console, workspace: Workspace, deployment: Any, seconds: float) -> None:
    """The table of systems, the addresses and the lines to try."""
    report = json.loads((workspace.evaluate / "report.json").read_text())
    console.print(_table(report))
    console.print(_verdict(report), soft_wrap=True)
    console.print(f"\nReady in {seconds / 60:.1f} minutes.", style="bold green")
    facts = {
        **deployment.addresses,
        "report": (workspace.evaluate / "report.html").resolve().as_uri(),
        "data quality": (workspace.ingest / "report.html").resolve().as_uri(),
    }
    for name, address in facts.items():
        console.print(
            Text(f"{name:>14}  ", style="bold").append(address, style="cyan"), soft_wrap=True
        )
    if os.environ.get("RAY_AUTH_MODE") == "token":
        console.print(
            Text("the dashboard asks for a token: ", style="dim").append(_token_command()),
            soft_wrap=True,
        )
    console.print("\nTry:", style="bold")
    for call in CALLS:
        console.print(Text(call.curl(deployment.address)), soft_wrap=True)


def _token_command() -> str:
    """What prints the token, from where the user stands."""
    ray = Path(sys.executable).with_name("ray")
    with contextlib.suppress(ValueError):
        ray = ray.relative_to(Path.cwd())
    return f"{ray} get-auth-token"


def _table(report: dict[str, Any]) -> Table:
    """Ensemble, learners and baselines on the last four weeks, best first."""
    table = Table(title="The last four weeks, as served", title_justify="left")
    table.add_column("system", no_wrap=True)
    for name in ("NDCG@10", "95% interval", "recall@10", "MRR", "MAP@10"):
        table.add_column(name, justify="right", no_wrap=True)
    shown = {n: s for n, s in report["scorers"].items() if s["kind"] != "fallback"}
    for name, scorer in sorted(
        shown.items(), key=lambda row: -row[1]["metrics"]["ndcg@10"]["value"]
    ):
        figures = scorer["metrics"]
        ndcg = figures["ndcg@10"]
        others = [f"{figures[metric]['value']:.4f}" for metric in ("recall@10", "mrr", "map@10")]
        table.add_row(
            name,
            f"{ndcg['value']:.4f}",
            f"{ndcg['low']:.4f} – {ndcg['high']:.4f}",
            *others,
            style="bold" if name == "ensemble" else "",
        )
    return table


def _verdict(report: dict[str, Any]) -> str:
    best = report["best_single"]
    gain = report["ensemble_minus"][best]
    return (
        f"ensemble − {best}: NDCG@10 {gain['value']:+.4f} "
        f"(95% interval {gain['low']:+.4f} to {gain['high']:+.4f}, paired)"
    )


class _Clock:
    """One bar over all stages, moved by the seconds they usually take."""

    def __init__(self) -> None:
        self._total = sum(seconds for _, seconds in STAGES.values())
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> _Clock:
        self._task = self._stack.enter_context(task("demo, in seconds", self._total))
        self._reached = 0
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    @contextlib.contextmanager
    def stage(self, name: str, seconds: int) -> Iterator[None]:
        """Tick while a stage runs; jump to its end when it is done early."""
        over = threading.Event()

        def tick() -> None:
            for second in range(1, seconds):
                if over.wait(1):
                    return
                self._task.reach(self._reached + second)

        ticking = threading.Thread(target=tick, daemon=True)
        with task(name):
            ticking.start()
            try:
                yield
            finally:
                over.set()
                ticking.join()
        self._reached += seconds
        self._task.reach(self._reached)


def _check_not_running(workspace: Workspace) -> None:
    """Two demos in one workspace would write over each other."""
    workspace.root.mkdir(parents=True, exist_ok=True)
    lock = workspace.root / "demo.pid"
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        other = psutil.Process(int(lock.read_text()))
        if other.pid != os.getpid() and "raysys" in " ".join(other.cmdline()):
            raise UserError(
                f"a demo already runs here (process {other.pid})",
                where=str(workspace.root),
                mend="stop it, or give another --workspace",
            )
    lock.write_text(str(os.getpid()))


@contextlib.contextmanager
def leaving_nothing_behind() -> Iterator[None]:
    """End every process that the block started, however it ends, Ctrl-C included.

    Ray takes its own processes down; what it leaves, after an interrupted start say, is ended
    here: first asked, then killed.
    """
    me = psutil.Process()
    before = {child.pid for child in me.children(recursive=True)}
    try:
        yield
    finally:
        with _no_interruption():
            mine = [p for p in me.children(recursive=True) if p.pid not in before]
            if "ray" in sys.modules:
                _shut_ray_down()
            mine += [p for p in me.children(recursive=True) if p.pid not in before]
            _, alive = psutil.wait_procs(mine, timeout=3)
            for ending in ("terminate", "kill"):
                for process in alive:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        getattr(process, ending)()
                _, alive = psutil.wait_procs(alive, timeout=5)


def _shut_ray_down() -> None:
    import ray

    if not ray.is_initialized():
        return
    if "ray.serve" in sys.modules:
        from ray import serve

        # a cluster that was interrupted while starting may not answer: it is ended all the same
        with contextlib.suppress(Exception):
            serve.shutdown()
    ray.shutdown()


@contextlib.contextmanager
def _no_interruption() -> Iterator[None]:
    """A second Ctrl-C while cleaning up would leave processes behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Callable[..., Any] | int | None = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
