"""One bundle behind five servers: closed loops at 1, 8 and 32 connections, and fixed rates.

All servers run at once, each with one process that answers, over one bundle with the same
arguments; runs of a few seconds alternate between them, so that whatever else the machine does
meets all alike. What a run takes the load generator is taken from the same cores, and from all
alike. uvicorn and Ray Serve run one application; LitServe and BentoML read and write JSON in their
own way, and requests are checked by the same models. About 18 minutes, four of them for starting.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import psutil

from benchmarks.result import Figure
from benchmarks.serving_parts.args import SURFACES, arguments, questions
from benchmarks.serving_parts.load import Outcome, closed, opened
from benchmarks.serving_parts.servers import NAMES, Running, running

ROUNDS = 5
SECONDS = 3.0  # of a run
CONNECTIONS = {"rank": (1, 8, 32)}
SHARES = {"rank": (0.5, 0.75)}  # of what a server did at 8 connections
OTHER_CONNECTIONS, OTHER_SHARES = (8, 32), (0.5,)  # of the other surfaces
OURS = "serve_haproxy"
MEANS = {
    "uvicorn": "FastAPI on uvicorn, one process",
    "serve": "Ray Serve, its default proxy",
    "serve_haproxy": "Ray Serve behind HAProxy",
    "litserve": "LitServe, one worker",
    "bentoml": "BentoML, one worker",
}
Runs = dict[tuple[str, str, str], list[Outcome]]  # server, surface, load


def measure(
    registry: Path,
    environments: Path,
    *,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    servers: Sequence[str] = NAMES,
    surfaces: Sequence[str] = SURFACES,
) -> list[Figure]:
    """Requests a second, latencies and ratios of every server that can be started."""
    args = arguments(registry)
    asked = questions(registry)
    runs: Runs = defaultdict(list)
    memory: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        there: dict[str, Running] = {}
        for name in servers:
            try:
                there[name] = stack.enter_context(running(name, args, environments))
            except (RuntimeError, SystemExit) as error:  # the others are worth measuring
                print(f"{name} is left out: {error}", flush=True)
        work = {
            (name, surface): _requests(server, surface, asked[surface])
            for name, server in there.items()
            for surface in surfaces
        }
        for (name, _), some in work.items():
            closed("127.0.0.1", there[name].port, some, 8, seconds)  # warm
        for number in range(rounds):
            for surface in surfaces:
                _round(there, work, surface, number, seconds, runs)
            print(f"round {number + 1} of {rounds}", flush=True)
        memory = {name: server.memory_gb for name, server in there.items()}
    return [*_figures(runs, seconds), *_of_memory(memory)]


def _requests(server: Running, surface: str, asked: Sequence[Mapping]) -> list[bytes]:
    from benchmarks.serving_parts.load import requests

    bodies = [server.body(surface, each) for each in asked]
    return requests("127.0.0.1", server.port, server.path(surface), bodies)


def _round(
    there: Mapping[str, Running],
    work: Mapping[tuple[str, str], list[bytes]],
    surface: str,
    number: int,
    seconds: float,
    runs: Runs,
) -> None:
    """One run of every kind on every server, another one first each time."""
    names = [*there][number % len(there) :] + [*there][: number % len(there)]
    for connections in CONNECTIONS.get(surface, OTHER_CONNECTIONS):
        for name in names:
            some = work[name, surface][number * 131 :] + work[name, surface][: number * 131]
            found = closed("127.0.0.1", there[name].port, some, connections, seconds)
            runs[name, surface, f"{connections}"].append(found)
    for share in SHARES.get(surface, OTHER_SHARES):
        for name in names:
            capacity = np.median([run.per_s for run in runs[name, surface, "8"]])
            found = opened(
                "127.0.0.1", there[name].port, work[name, surface], max(1.0, share * capacity),
                seconds, seed=number,
            )  # fmt: skip
            runs[name, surface, f"open{share * 100:.0f}"].append(found)


def _figures(runs: Runs, seconds: float) -> list[Figure]:
    found: list[Figure] = []
    for (name, surface, load), some in runs.items():
        lost = sum(int((~run.good).sum()) for run in some)
        asked = sum(len(run.status) for run in some)
        how = f"{MEANS[name]}; {len(some)} runs of {seconds:g} s"
        if lost:
            how += f"; {lost} of {asked} failed"
        stem = f"{surface}_{name}"
        p99 = [run.quantile(0.99) for run in some]
        if load.startswith("open"):
            share = load.removeprefix("open")
            rate = np.median([len(run.status) / run.seconds for run in some])
            how = f"{MEANS[name]}; open loop at {rate:.0f}/s; {len(some)} runs, {lost} failed"
            found.append(_figure(f"{stem}_p99_ms_at_{share}", p99, "ms", how))
            continue
        rates = [run.per_s for run in some]
        found.append(_figure(f"{stem}_per_s_{load}", rates, "requests/s", how))
        found.append(_figure(f"{stem}_p50_ms_{load}", [r.quantile(0.5) for r in some], "ms", how))
        found.append(_figure(f"{stem}_p99_ms_{load}", p99, "ms", how))
    return [*_aims(runs), *found]


def _aims(runs: Runs) -> list[Figure]:
    """The ratios and latencies that we set out for."""
    found: list[Figure] = []
    aims = {"uvicorn": "≥ 0.7", "litserve": "≥ 1.5", "bentoml": "≥ 1.5"}
    for surface in dict.fromkeys(surface for _, surface, _ in runs):
        for ours, stem in ((OURS, surface), ("serve", f"{surface}_default_proxy")):
            for peer, aim in aims.items():
                both = [runs.get((name, surface, "8"), []) for name in (ours, peer)]
                if not all(both):
                    continue  # one of them could not be started
                ratios = [a.per_s / b.per_s for a, b in zip(*both, strict=True) if b.per_s]
                if ratios:
                    how = f"{MEANS[ours]} ÷ {MEANS[peer]}, requests/s at 8 connections, round by "
                    name = f"{stem}_ratio_{peer}"
                    found.append(_figure(name, ratios, "×", f"{how}round", aim))
        limit = {"rank": "≤ 20", "search": "≤ 40"}.get(surface, "")
        half = runs.get((OURS, surface, "open50"), [])
        if half:
            rate = np.median([len(run.status) / run.seconds for run in half])
            how = f"{MEANS[OURS]}, open loop at half of its capacity, {rate:.0f}/s"
            p99 = [run.quantile(0.99) for run in half]
            found.append(_figure(f"{surface}_p99_ms", p99, "ms", how, limit))
    late = [run.late_ms for some in runs.values() for run in some if run.late_ms]
    if late:
        how = "most that the generator was behind its own plan; it is counted as latency"
        found.append(_figure("generator_late_ms", late, "ms", how))
    return found


def _figure(name: str, values: Sequence[float], unit: str, how: str, aim: str = "") -> Figure:
    """Median of runs, with the least and the most."""
    kept = [float(v) for v in values if np.isfinite(v)] or [-1.0]
    middle = float(np.median(kept))
    return Figure(name, middle, unit, min(kept), max(kept), aim=aim, reference=how)


def _of_memory(memory: Mapping[str, float]) -> list[Figure]:
    total = psutil.virtual_memory().total / 2**30
    return [
        Figure(
            f"memory_gb_{name}", held, "GB",
            reference=f"{MEANS[name]}, all its processes, shared pages shared out; of {total:.0f}",
        )
        for name, held in memory.items()
    ]  # fmt: skip
