"""Servers in processes of their own: started, waited for, ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import psutil

from benchmarks.crash import free_port
from benchmarks.result import ROOT
from benchmarks.serving_parts.args import OPTIONS, VARIABLE

HERE = Path(__file__).parent
PATIENCE_S = 240.0
NAMES: Final = ("uvicorn", "serve", "serve_haproxy", "litserve", "bentoml")


@dataclass(frozen=True)
class Running:
    """A server that answers.

    Attributes:
        port: on 127.0.0.1.
        process: what was started; the servers' own processes are its children.
        any_path: surfaces are told in the body, see `peer_litserve`.
    """

    port: int
    process: subprocess.Popen[bytes]
    any_path: bool = False

    def path(self, surface: str) -> str:
        """Where a surface is asked."""
        return "/v1/any" if self.any_path else f"/v1/{surface}"

    def body(self, surface: str, asked: Mapping[str, Any]) -> bytes:
        """What is sent."""
        told = {"surface": surface, "asked": asked} if self.any_path else asked
        return json.dumps(told, separators=(",", ":")).encode()

    @property
    def processes(self) -> list[psutil.Process]:
        """All that live."""
        top = psutil.Process(self.process.pid)
        return [top, *top.children(recursive=True)]

    @property
    def memory_gb(self) -> float:
        """Of all of them together; what they share counts once, as far as the kernel says."""
        held = 0
        for each in self.processes:
            with contextlib.suppress(psutil.Error):
                held += each.memory_full_info().pss
        return held / 2**30


def environment(name: str, folder: Path) -> Path:
    """The Python of an environment that has a peer beside all of ours; made where it is missing.

    What it installs is its own; everything else is read from the environment that runs this.
    """
    home = folder / name
    python = home / "bin" / "python"
    made = python.is_file()
    if not made:
        venv.create(home, with_pip=True)
    place = next(home.glob("lib/python*/site-packages"))
    ours = next(path for path in sys.path if path.endswith("site-packages"))
    (place / "ours.pth").write_text(f"{ours}\n", encoding="utf-8")  # it may have moved since
    if made:
        return python
    wanted = HERE / f"requirements-{name}.txt"
    command = [str(python), "-m", "pip", "install", "--quiet", "-r", str(wanted)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} cannot be installed:\n{done.stderr[-2000:]}")
    return python


@contextlib.contextmanager
def running(
    name: str, args: Mapping[str, Any], environments: Path, **options: Any
) -> Iterator[Running]:
    """A server of `NAMES` over the deployment of some arguments; ended afterwards.

    Args:
        name: of the server.
        args: `ServeArgs`.
        environments: folder of the peers' environments.
        options: of the deployment, for Ray Serve.

    Raises:
        RuntimeError: it ended, or did not answer in time; with its last words.
    """
    port, told = free_port(), {VARIABLE: json.dumps(args), OPTIONS: json.dumps(options)}
    log = Path(environments).parent / f"serving-{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("wb") as out,
        started(command_of(name, port, environments), told | extra_of(name), out) as process,
    ):
        server = Running(port, process, name in ("litserve", "bentoml"))
        try:
            _wait(server)
        except RuntimeError as error:
            said = log.read_text(encoding="utf-8", errors="replace")[-1500:]
            raise RuntimeError(f"{name}: {error}\n{said}") from None
        yield server


def command_of(name: str, port: int, environments: Path) -> list[str]:
    """What starts a server."""
    module = "benchmarks.serving_parts"
    if name == "uvicorn":
        return [sys.executable, "-m", f"{module}.plain", str(port)]
    if name in ("serve", "serve_haproxy"):
        return [sys.executable, "-m", f"{module}.on_ray", str(port)]
    python = environment(name, environments)
    if name == "litserve":
        return [str(python), "-m", f"{module}.peer_litserve", str(port)]
    bento = f"{module}.peer_bentoml:Lists"
    where = ["--host", "127.0.0.1", "--port", str(port), "--working-dir", str(ROOT)]
    return [str(python), "-m", "bentoml", "serve", bento, *where]


def extra_of(name: str) -> dict[str, str]:
    """What a server's environment says beside the arguments."""
    return ha_proxy() if name == "serve_haproxy" else {}


def ha_proxy() -> dict[str, str]:
    """What Serve's environment says for HAProxy, with ports and files that no other one has."""
    home = Path(tempfile.mkdtemp(prefix="haproxy-"))
    first = 20_000 + free_port() % 90 * 100
    files = {
        "CONFIG_FILE_LOC": "haproxy.cfg", "SOCKET_PATH": "admin.sock",
        "SERVER_STATE_BASE": "", "SERVER_STATE_FILE": "server-state",
        "METRICS_SOCKET_PATH": "metrics.sock",
    }  # fmt: skip
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first + 99),
        **{f"RAY_SERVE_HAPROXY_{name}": str(home / file) for name, file in files.items()},
    }


@contextlib.contextmanager
def started(
    command: Sequence[str], told: Mapping[str, str], out: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """A process with all its children; they end with the block."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # as a replica has it that may use one core
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    own = {**os.environ, **threads, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", **told}
    own |= {"BENTOML_DO_NOT_TRACK": "True", "RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.Popen(
        list(command), env=own, stdin=subprocess.PIPE, stdout=out, stderr=out,
        start_new_session=True, cwd=ROOT,
    )  # fmt: skip
    children: list[psutil.Process] = []
    try:
        yield process
        children = psutil.Process(process.pid).children(recursive=True)
    finally:
        _end(process, children)


def _end(process: subprocess.Popen[bytes], children: list[psutil.Process]) -> None:
    if process.poll() is None:
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(process.pid).children(recursive=True) or children
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(30 if "on_ray" in str(process.args) else 0.5)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
    for each in children:  # our own, by their ids: what did not end with its parent
        with contextlib.suppress(psutil.Error):
            each.kill()
    if process.poll() is None:
        process.kill()
    process.wait()


def _wait(server: Running) -> None:
    """Until a real list comes back."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise RuntimeError(f"it ended with {server.process.returncode}")
        with contextlib.suppress(httpx.HTTPError):
            asked = server.body("recommend", {"user_id": "nobody", "k": 1})
            head = {"content-type": "application/json"}
            address = f"http://127.0.0.1:{server.port}{server.path('recommend')}"
            if httpx.post(address, content=asked, headers=head, timeout=10).status_code == 200:
                return
        time.sleep(0.2)
    raise RuntimeError(f"no answer within {PATIENCE_S:.0f} s")
