"""Users kept on the replica whose cache knows them: Serve's own router against consistent hashing.

About five minutes: a deployment for each router and round, 20 s of requests each.

The same bundle, replicas and requests, `serve_configs/sticky.yaml` with its router and without it.
Callers come and go: of some who are on the page at once each looks at the same list a few times.
How the cache knew a list is read from the lists shown, latencies from the callers' side.
"""

from __future__ import annotations

import argparse
import copy
import random
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from benchmarks.result import ROOT, Figure, write_result
from raysys.cluster import ray_session, settle_environment
from raysys.config import load_yaml, parse_settings
from raysys.registry import Registry

settle_environment()  # Ray reads how it authenticates as soon as it is imported

from raysys.stages.demo import free_port  # noqa: E402
from raysys.stages.deploy import cluster, deploy  # noqa: E402
from raysys.stages.deploy_plan import DeploySettings, plan  # noqa: E402

ROUTERS = ("default", "consistent_hash")
LOOKS = 6  # at one's list, in a visit
PRESENT = 40  # users who are on the page at once


@dataclass(frozen=True)
class Measured:
    """One round behind one router.

    Attributes:
        milliseconds: of every answer.
        seconds: from the first request to the last answer.
        known: answers by how the cache knew them.
    """

    milliseconds: np.ndarray
    seconds: float
    known: Counter[str]

    @property
    def hit_rate(self) -> float:
        """Answers that no learner had to make."""
        made = self.known["miss"]
        return 1 - made / max(1, self.known.total())


def visits(users: list[str], n: int, seed: int) -> list[str]:
    """Who asks, request by request: each visitor `LOOKS` times among those who are there."""
    chance = random.Random(seed)
    coming = iter(chance.choices(users, k=n))
    present = [[next(coming), LOOKS] for _ in range(PRESENT)]
    asked = []
    for _ in range(n):
        at = chance.randrange(PRESENT)
        asked.append(str(present[at][0]))
        present[at][1] -= 1  # type: ignore[operator]
        if not present[at][1]:
            present[at] = [next(coming), LOOKS]
    return asked


def config_of(router: str, port: int, replicas: int, registry: Path, folder: Path) -> Any:
    """`sticky.yaml` with one router or the other, and shown lists to count by."""
    content = copy.deepcopy(load_yaml(ROOT / "serve_configs" / "sticky.yaml"))
    content["http_options"]["port"] = port
    (app,) = content["applications"]
    app["args"] |= {"registry": str(registry), "threads": 1}
    app["args"]["shown_lists"] = {"folder": str(folder), "inputs_share": 0, "segment_s": 1}
    (ranker,) = app["deployments"]
    ranker["num_replicas"] = replicas
    ranker["ray_actor_options"] = {"num_cpus": 0}  # the callers need some, too
    if router == "default":
        del ranker["request_router_config"]
    return parse_settings(DeploySettings, content, where=router)


def load(url: str, asked: list[str], connections: int, seconds: float) -> tuple[np.ndarray, float]:
    """Milliseconds of the answers that so many callers got, each caller's visitors its own."""
    until = time.monotonic() + seconds
    ready = threading.Barrier(connections)

    def caller(number: int) -> list[float]:
        taken = []
        with httpx.Client(base_url=url, timeout=30) as client:
            ready.wait()
            for user in asked[number::connections]:
                if time.monotonic() > until:
                    break
                began = time.perf_counter()
                body = {"user_id": user, "place": "home", "k": 10}
                answer = client.post("/v1/recommend", json=body, headers={"x-session-id": user})
                answer.raise_for_status()
                taken.append((time.perf_counter() - began) * 1000)
        return taken

    began = time.monotonic()
    with ThreadPoolExecutor(connections) as pool:
        taken = [ms for part in pool.map(caller, range(connections)) for ms in part]
    return np.array(taken), time.monotonic() - began


def known_by_cache(folder: Path, answers: int) -> Counter[str]:
    """Answers by how the cache knew them, once all are written."""
    for _ in range(100):
        # those that are being written begin with a dot
        paths = [str(path) for path in folder.rglob("*.parquet") if path.name[0] != "."]
        if paths:
            told = ds.dataset(paths).to_table(columns=["cache", "user_id"]).to_pylist()
            if len(told) >= answers:
                return Counter(row["cache"] for row in told)
        time.sleep(0.2)
    raise RuntimeError(f"fewer than {answers} shown lists were written")


def measure(router: str, arguments: argparse.Namespace, users: list[str], seed: int) -> Measured:
    """Deploy with a router, let the visitors come, and count."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        port = free_port("127.0.0.1", 8123)
        settings = config_of(router, port, arguments.replicas, arguments.registry, folder)
        planned, bundle = plan(settings, None)
        with cluster() as (dashboard, _):
            deployment = deploy(planned, bundle, dashboard, force=True)
            asked = visits(users, 50_000, seed)
            taken, seconds = load(
                deployment.address, asked, arguments.connections, arguments.seconds
            )
            known = known_by_cache(folder, len(taken))
            from ray import serve

            serve.shutdown()  # the next one begins with empty caches, and may have the port
    return Measured(taken, seconds, known)


def figures(rounds: dict[str, list[Measured]]) -> list[Figure]:
    """Median, least and most over the rounds."""
    found = []
    for router, measured in rounds.items():
        values = {
            "hit_rate": ("", [each.hit_rate for each in measured]),
            "p50_ms": ("ms", [float(np.percentile(m.milliseconds, 50)) for m in measured]),
            "p99_ms": ("ms", [float(np.percentile(m.milliseconds, 99)) for m in measured]),
            "per_s": ("requests/s", [len(m.milliseconds) / m.seconds for m in measured]),
        }
        for name, (unit, several) in values.items():
            middle = float(np.median(several))
            reference = "" if router == "default" else f"default_{name}"
            found.append(
                Figure(f"{router}_{name}", middle, unit, min(several), max(several), "", reference)
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--registry", type=Path, default=Path("runs/demo/registry"))
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--connections", type=int, default=4)
    arguments = parser.parse_args()
    arguments.registry = arguments.registry.resolve()
    bundle = Registry(arguments.registry).path("champion")
    users = pq.read_table(bundle / "features" / "users.parquet")["user_id"].to_pylist()
    began = time.monotonic()
    rounds: dict[str, list[Measured]] = {router: [] for router in ROUTERS}
    with ray_session(dashboard=True):
        for number in range(arguments.rounds):
            for router in ROUTERS if number % 2 == 0 else ROUTERS[::-1]:
                found = measure(router, arguments, users, seed=number)
                rounds[router].append(found)
                print(
                    f"{number} {router:16s} {len(found.milliseconds)} answers, "
                    f"hits {found.hit_rate:.3f}, "
                    f"p99 {np.percentile(found.milliseconds, 99):.1f} ms",
                    flush=True,
                )
    write_result("router", figures(rounds), time.monotonic() - began)


if __name__ == "__main__":
    main()
