"""Whatever can die is killed under load, each in turn: what fails, and what a retry cures.

A head and two worker nodes (processes on this machine, `ray.cluster_utils`), two replicas of the
ranker, one a worker node, and two of the transformer, which reads texts for them. An open loop
without retries says what fails and how long nothing came; beside it `raysys.Client`s with their own
retries say what a caller of ours would have noticed.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from benchmarks.crash import free_port
from benchmarks.result import Figure
from benchmarks.serving_parts.args import VARIABLE, arguments, questions
from benchmarks.serving_parts.load import Outcome, opened, requests
from benchmarks.serving_parts.servers import PATIENCE_S, Running, ha_proxy, started
from raysys.client import ApiError, Client, Unreachable

RATES = {"rank": 40.0, "search": 15.0}  # a second, raw, and CALLERS more with retries
CALLERS = 4
REPLICAS = 2
KINDS = ("ranker", "transformer", "proxy", "controller", "node")


@dataclass
class Callers:
    """Clients with retries, each asking again a moment after it is answered.

    Attributes:
        asked, failed: how many, in all.
        longest_ms: that one call took, its retries included.
    """

    url: str
    users: list[str]
    asked: int = 0
    failed: list[str] = field(default_factory=list)
    longest_ms: float = 0.0
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self, number: int) -> None:
        with Client(self.url, timeout_s=10) as client:
            at = number * 17
            while not self.stopped.wait(0.05):
                began = time.perf_counter()
                try:
                    client.recommend(user_id=self.users[at % len(self.users)], k=5)
                except (ApiError, Unreachable) as error:
                    self.failed.append(f"{error}")
                self.asked += 1
                self.longest_ms = max(self.longest_ms, (time.perf_counter() - began) * 1000)
                at += 1


def measure(
    registry: Path, environments: Path, *, seconds: float = 40.0, haproxy: bool = True
) -> list[Figure]:
    """What each kill cost."""
    asked = questions(registry)
    found: list[Figure] = []
    args = arguments(registry, transformer={})
    told = {VARIABLE: json.dumps(args)} | (ha_proxy() if haproxy else {})
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.serving_parts.nodes", str(port)]
    log = environments.parent / "serving-kills.log"
    with log.open("wb") as out, started(command, told, out) as process:
        server = Running(port, process)
        _ready(server, log)
        users = [str(each["user_id"]) for each in asked["recommend"]]
        work = {}
        for surface, rate in RATES.items():
            bodies = [server.body(surface, each) for each in asked[surface]]
            work[surface] = requests("127.0.0.1", port, f"/v1/{surface}", bodies)
            opened("127.0.0.1", port, work[surface], rate, 5)  # warm
        for kind in KINDS:
            surface = "search" if kind == "transformer" else "rank"  # it reads queries
            try:
                found += _one(server, kind, work[surface], users, seconds, RATES[surface])
            except (RuntimeError, IndexError) as error:  # the others are worth measuring
                print(f"{kind}: {error!r}", flush=True)
    failed = sum(f.value for f in found if f.name.endswith("_failed_after_retry"))
    several = f"over {', '.join(KINDS)}; {CALLERS} callers of `raysys.Client`"
    total = Figure(
        "failed_after_retry", failed, "requests", aim="0", reference=f"in all, {several}"
    )
    return [total, *found]


def _ready(server: Running, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise RuntimeError(log.read_text(errors="replace")[-1500:])
        if b"ready\n" in log.read_bytes():
            return
        time.sleep(0.5)
    raise RuntimeError("the cluster is not ready")


def _one(
    server: Running, kind: str, work: list[bytes], users: list[str], seconds: float, rate: float
) -> list[Figure]:
    callers = Callers(f"http://127.0.0.1:{server.port}", users)
    threads = [
        threading.Thread(target=callers.run, args=(number,), daemon=True)
        for number in range(CALLERS)
    ]
    for thread in threads:
        thread.start()
    killed_at: list[float] = []
    began = time.perf_counter()

    def kill() -> None:
        time.sleep(seconds / 4)
        _kill(server, kind)
        killed_at.append(time.perf_counter() - began)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    outcome = opened("127.0.0.1", server.port, work, rate, seconds, timeout_s=10)
    killer.join(60)
    callers.stopped.set()
    for thread in threads:
        thread.join(30)
    if not killed_at:
        raise RuntimeError("nothing was killed")
    print(f"{kind}: {len(callers.failed)} failed after retries {callers.failed[:2]}", flush=True)
    _settle(server)
    return _figures(kind, outcome, callers, killed_at[0], rate)


def _kill(server: Running, kind: str) -> None:
    """SIGKILL, by process id, of ours."""
    if kind == "node":
        assert server.process.stdin is not None
        server.process.stdin.write(b"node\n")
        server.process.stdin.flush()
        return
    marks = {
        "ranker": ("ServeReplica:raysys:Ranker",),
        "transformer": ("ServeReplica:raysys:Transformer",),
        "controller": ("ServeController",),
        "proxy": ("haproxy", "ProxyActor"),
    }[kind]
    pids: list[int] = []
    for mark in marks:
        for process in server.processes:
            with contextlib.suppress(psutil.Error):
                said = " ".join(process.cmdline()) or process.name()
                own = mark in said and "benchmarks.serving_parts" not in said
                if own and (mark != "haproxy" or process.name() == "haproxy"):
                    pids.append(process.pid)
        if pids:
            break
    if not pids:
        raise RuntimeError(f"no process of {kind}")
    os.kill(pids[0], 9)


def _settle(server: Running) -> None:
    """Until both replicas are there and it answers for three seconds without a failure."""
    import httpx

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and _ready_replicas(server) < REPLICAS:
        time.sleep(0.5)
    deadline, since = time.monotonic() + 90, time.monotonic()
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=5) as client:
        while time.monotonic() < deadline and time.monotonic() - since < 3:
            try:
                good = client.post("/v1/recommend", json={"user_id": "x", "k": 1}).is_success
            except httpx.HTTPError:
                good = False
            since = since if good else time.monotonic()
            time.sleep(0.1)
    time.sleep(5)


def _ready_replicas(server: Running) -> int:
    """Replicas that are loaded, by what their processes call themselves."""
    n = 0
    for process in server.processes:
        with contextlib.suppress(psutil.Error):
            said = " ".join(process.cmdline())
            n += "ServeReplica:raysys:Ranker" in said and "initialize" not in said
    return n


def gaps(outcome: Outcome, killed: float, normal_ms: float) -> tuple[float, float]:
    """Longest time without an answer of 200, and seconds from a kill until all is as before."""
    done = np.sort(outcome.due[outcome.good] + outcome.ms[outcome.good] / 1000)
    gap = float(np.diff(done).max()) if len(done) > 1 else outcome.seconds
    slow = ~outcome.good | (outcome.ms > max(5 * normal_ms, 100.0))
    late = outcome.due[slow & (outcome.due >= killed - 1)]
    return gap, max(0.0, float(late.max()) - killed) if len(late) else 0.0


def _figures(
    kind: str, outcome: Outcome, callers: Callers, killed: float, rate: float
) -> list[Figure]:
    failed = int((~outcome.good).sum())
    before = outcome.good & (outcome.due < killed - 0.5)
    normal = float(np.quantile(outcome.ms[before], 0.99)) if before.any() else 50.0
    gap, recovery = gaps(outcome, killed, normal)
    load = f"{len(outcome.status):,} requests, {rate:.0f}/s without retries"
    return [
        Figure(f"kill_{kind}_failed", failed, "requests", reference=f"of {load}"),
        Figure(
            f"kill_{kind}_gap_s", gap, "s", reference="longest time without an answer, of all that"
        ),
        Figure(
            f"kill_{kind}_recovery_s", recovery, "s",
            reference="from the kill to the last request that failed or took 5 times as long as "
            "99% did before (100 ms at least)",
        ),
        Figure(
            f"kill_{kind}_failed_after_retry", len(callers.failed), "requests", aim="0",
            reference=f"of {callers.asked:,} by `raysys.Client`; the longest took "
            f"{callers.longest_ms:.0f} ms",
        ),
    ]  # fmt: skip
