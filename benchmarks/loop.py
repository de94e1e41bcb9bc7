"""The loop: durable events a second, kill -9 under load, freshness across replicas, a real day.

Six to ten minutes; `events`, `kills`, `freshness` or `replay` measures that part alone.

Two replicas on uvicorn share a log on this machine's disk; clients and replicas share its cores.
"""

from __future__ import annotations

import argparse
import http.client
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil

from benchmarks.crash import Replicas, Sender, Verdict, free_port, under_load, verdict
from benchmarks.parts import write_loop_result
from benchmarks.real_day import compare
from benchmarks.result import Figure
from raysys.eventlog.local import LocalLog
from raysys.eventlog.redis_log import RedisLog
from raysys.eventlog.rolled import Rolled, roll
from raysys.serving.events_args import EventsArgs
from tests.eventlog.redis_server import RedisServer
from tests.serving.shop import publish_shop

_ROUNDS = 6  # over one log
BOUGHT = "i00007"  # by those whose events are looked for
PARTS = ("events", "kills", "freshness", "replay")


def deployment(folder: Path, **events: Any) -> dict[str, Any]:
    """Arguments of a small shop's deployment whose log lies in the folder."""
    registry = folder / "registry"
    if not registry.exists():
        publish_shop(registry, with_encoder=False)
    told = {"path": str(folder / "eventlog"), "roll_events": 0, **events}
    return {"registry": str(registry), "events": told}


def measure_events(folder: Path, seconds: float, clients: int, size: int) -> list[Figure]:
    """Events a second and the latency of acknowledgements, over windows of a second."""
    args = deployment(folder)
    replicas = Replicas(args)
    replicas.start()
    ports = [replica.port for replica in replicas.all]
    senders = [
        Sender(f"load-{n}", ports[n % 2 :] + ports[: n % 2], size, again=0) for n in range(clients)
    ]
    windows: list[float] = []
    for sender in senders:
        sender.start()
    time.sleep(2)  # connections, and the first segment
    for sender in senders:
        sender.latencies.clear()
    burnt = cpu_seconds(replicas)
    began = before = time.perf_counter()
    count = told = sum(len(sender.acknowledged) for sender in senders)
    while time.perf_counter() - began < seconds:
        time.sleep(1)
        now, acknowledged = time.perf_counter(), sum(len(s.acknowledged) for s in senders)
        windows.append((acknowledged - count) / (now - before))
        before, count = now, acknowledged
    rate = (count - told) / (before - began)
    burnt = cpu_seconds(replicas) - burnt
    share = burnt / (before - began)
    for sender in senders:
        sender.stopped.set()
    for sender in senders:
        sender.join(60)
    replicas.kill()
    log = LocalLog(folder / "eventlog", EventsArgs(**args["events"]))
    found = verdict(log, senders, 0)
    log.close()
    assert not found.lost and not found.twice
    ms = np.concatenate([sender.latencies for sender in senders]) * 1000
    sync = disk_ms(folder)
    beside = f"{clients} clients, batches of {size}; a write of 20 kB and its sync: {sync:.1f} ms"
    return [
        Figure(
            "durable_events_per_s", rate, "events/s", *np.quantile(windows, [0.025, 0.975]),
            aim="≥ 10,000 on two cores", reference=f"{beside}; spread over windows of a second",
        ),
        Figure(
            "events_per_cpu_second", (count - told) / burnt, "events/s",
            reference=f"of one core, clients included; {share:.2f} cores were to be had here, as "
            "other programs ran; both replicas count every event",
        ),
        Figure("ack_p99_ms", float(np.quantile(ms, 0.99)), "ms", reference=beside),
        Figure("ack_p50_ms", float(np.median(ms)), "ms", reference=beside),
    ]  # fmt: skip


def cpu_seconds(replicas: Replicas) -> float:
    """Burnt so far by the replicas, and by the clients, which are threads of this process."""
    pids = [replica.process.pid for replica in replicas.all if replica.process is not None]
    times = [psutil.Process(pid).cpu_times() for pid in (*pids, None)]
    return float(sum(each.user + each.system for each in times))


def disk_ms(folder: Path, n: int = 100) -> float:
    """Median time of a write of 20 kB and its sync, over what is there already: the floor."""
    import os

    path, taken = folder / "probe", []
    path.write_bytes(bytes(20_000 * n))
    file = os.open(path, os.O_WRONLY)
    os.fsync(file)
    for at in range(n):
        began = time.perf_counter()
        os.pwrite(file, b"x" * 20_000, 20_000 * at)
        os.fdatasync(file)
        taken.append(time.perf_counter() - began)
    os.close(file)
    path.unlink()
    return float(np.median(taken) * 1000)


def measure_kills(folder: Path, rounds: int) -> list[Figure]:
    """Kill replicas, whole nodes and Redis: a third of the rounds each, Redis where it is."""
    with_redis = shutil.which("redis-server") is not None
    of_redis = rounds // 3 if with_redis else 0
    found = []
    for at in range(0, rounds - of_redis, _ROUNDS):  # a replica that starts counts the whole log
        part = min(_ROUNDS, rounds - of_redis - at)
        found.append(_kill_replicas(folder / f"local-{at}", part))
    for at in range(0, of_redis, _ROUNDS):
        found.append(_kill_redis(folder / f"redis-{at}", min(_ROUNDS, of_redis - at)))
    told, kept = sum(v.acknowledged for v in found), sum(v.kept for v in found)
    nodes = sum(v.nodes for v in found)
    how = f"{rounds - of_redis - nodes} a replica, {nodes} all of the node, {of_redis} Redis"
    acknowledged = f"of {told:,} acknowledged events"
    return [
        Figure("kills", sum(v.kills for v in found), "rounds", aim="≥ 50", reference=how),
        Figure("lost", sum(len(v.lost) for v in found), "events", aim="0", reference=acknowledged),
        Figure(
            "duplicated", sum(len(v.twice) for v in found), "events", aim="0",
            reference=f"of {kept:,} in the logs; one batch in ten was sent again",
        ),
    ]  # fmt: skip


def _kill_replicas(folder: Path, rounds: int) -> Verdict:
    """One of two, then both, and so on."""
    # rolled and copied all the while, so that this is killed too
    args = deployment(folder, segment_mb=4, roll_events=5_000, snapshot_events=10_000)
    replicas = Replicas(args)
    replicas.start()

    def kill(*numbers: int) -> Callable[[], None]:
        def do() -> None:
            replicas.kill(*numbers)
            replicas.start(*numbers)

        return do

    plan = [kill() if n % 2 else kill(n // 2 % 2) for n in range(rounds)]
    try:
        senders = under_load(replicas, plan)
    finally:
        replicas.kill()
    log = LocalLog(folder / "eventlog", EventsArgs(**args["events"]))
    found = verdict(log, senders, rounds)
    roll(log, Rolled(folder / "eventlog"))
    log.close()
    names = pl.read_parquet(folder / "eventlog/rolled/events/*.parquet")["event_id"]
    assert len(names) == names.n_unique() == found.kept, "rolled twice, or not at all"
    found.nodes = rounds // 2
    print(f"{folder.name}: {found.acknowledged:,} acknowledged", flush=True)
    return found


def _kill_redis(folder: Path, rounds: int) -> Verdict:
    folder.mkdir(parents=True)
    server = RedisServer(folder, free_port())
    server.start()
    args = deployment(folder, backend="redis", url=server.url)
    replicas = Replicas(args)
    replicas.start()

    def kill() -> None:
        server.kill()
        server.start()

    try:
        senders = under_load(replicas, [kill] * rounds)
        replicas.kill()
        log = RedisLog(EventsArgs(**args["events"]), folder)
        found = verdict(log, senders, rounds)
        log.close()
    finally:
        replicas.kill()
        server.kill()
    return found


def measure_freshness(folder: Path, samples: int) -> list[Figure]:
    """From an acknowledgement by one replica until another answers by it, for new users.

    Of a profile and of a ranked list, alone and while other clients send events.
    """
    replicas = Replicas(deployment(folder))
    replicas.start()
    ports = [replica.port for replica in replicas.all]
    try:
        alone = _fresh(ports, "alone", samples, _has_profile)
        list_alone = _fresh(ports, "list-alone", samples, _is_in_list)
        senders = [
            Sender(f"beside-{n}", ports[n % 2 :] + ports[: n % 2], size=20, again=0, pause_s=0.1)
            for n in range(3)
        ]
        began = time.perf_counter()
        for sender in senders:
            sender.start()
        beside = _fresh(ports, "beside", samples, _has_profile)
        list_beside = _fresh(ports, "list-beside", samples, _is_in_list)
        for sender in senders:
            sender.stopped.set()
        for sender in senders:
            sender.join(60)
        rate = sum(len(sender.acknowledged) for sender in senders) / (time.perf_counter() - began)
    finally:
        replicas.kill()
    load = f"; beside {rate:.0f} events/s of three other clients"
    found = [
        ("freshness_p99_s", alone, "new users"),
        ("freshness_list_p99_s", list_alone, "new users, the list's own time included"),
        ("freshness_under_load_p99_s", beside, f"new users{load}"),
        (
            "freshness_list_under_load_p99_s", list_beside,
            f"new users, the list's own time included{load}",
        ),
    ]  # fmt: skip
    told = [
        Figure(
            name, float(np.quantile(fresh.taken, 0.99)), "s",
            low=min(fresh.taken), high=max(fresh.taken), aim="< 1 across replicas",
            reference=f"{samples} {of}; median {np.median(fresh.taken):.3f} s",
        )
        for name, fresh, of in found
    ]  # fmt: skip
    at_once = sum(fresh.at_once for _, fresh, _ in found) / (len(found) * samples)
    return [
        *told,
        Figure(
            "fresh_at_once", at_once, "share", aim="1 within one replica",
            reference="in the very next answer of the replica that took the event",
        ),
    ]  # fmt: skip


@dataclass
class _Fresh:
    """Seconds until another replica answered by an event, and how often the one that took it did
    so in its next answer."""

    taken: list[float] = field(default_factory=list)
    at_once: int = 0


Look = Callable[[http.client.HTTPConnection, str], bool]


def _fresh(ports: list[int], name: str, samples: int, look: Look) -> _Fresh:
    """A purchase by each of some new users to the first replica, looked for at both."""
    found = _Fresh()
    with (
        closing(http.client.HTTPConnection("127.0.0.1", ports[0], timeout=30)) as one,
        closing(http.client.HTTPConnection("127.0.0.1", ports[1], timeout=30)) as two,
    ):
        for number in range(samples):
            user = f"fresh-{name}-{number}"
            event = {"event_type": "purchase", "user_id": user, "item_id": BOUGHT}
            status, _ = _ask(one, "POST", "/v1/events", {"events": [event]})
            assert status == 200
            began = time.perf_counter()
            found.at_once += look(one, user)
            while not look(two, user):
                assert time.perf_counter() - began < 30
            found.taken.append(time.perf_counter() - began)
            time.sleep(0.02 * (number % 5))  # at any phase of the other's looking
    return found


def _has_profile(link: http.client.HTTPConnection, user: str) -> bool:
    return _ask(link, "GET", f"/v1/users/{user}/profile")[0] == 200


def _is_in_list(link: http.client.HTTPConnection, user: str) -> bool:
    """Whether the user's next list was scored by what they bought."""
    asked = {"user_id": user, "k": 100, "explain": True}
    status, answer = _ask(link, "POST", "/v1/recommend", asked)
    assert status == 200, answer
    features = [each["why"]["features"] for each in answer["items"] if each["item_id"] == BOUGHT]
    return any(told["user_item_purchases_112d"] for told in features)


def _ask(
    link: http.client.HTTPConnection, method: str, path: str, content: Any = None
) -> tuple[int, Any]:
    """Status and JSON of an answer."""
    body = None if content is None else json.dumps(content)
    link.request(method, path, body, {"content-type": "application/json"})
    response = link.getresponse()
    return response.status, json.loads(response.read())


def measure_replay(folder: Path) -> list[Figure]:
    """A day of the grocer's, over HTTP and by the offline replay."""
    found = compare(folder, date(2017, 11, 15))
    return [
        Figure(
            "replay_live_max_difference", found.difference, "", aim="0",
            reference=f"{found.events:,} events of a day over HTTP; {found.features} features of "
            f"{found.rows:,} candidates before {found.baskets} baskets, against the offline replay",
        )
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", choices=("all", *PARTS), default="all")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--size", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=54)
    parser.add_argument("--samples", type=int, default=200)
    given = parser.parse_args()
    work: dict[str, Callable[[Path], list[Figure]]] = {
        "events": lambda at: measure_events(at, given.seconds, given.clients, given.size),
        "kills": lambda at: measure_kills(at, given.rounds),
        "freshness": lambda at: measure_freshness(at, given.samples),
        "replay": measure_replay,
    }
    for part in PARTS if given.part == "all" else (given.part,):
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            figures = work[part](Path(folder))
        write_loop_result(part, figures, time.perf_counter() - began)


if __name__ == "__main__":
    main()
