"""Replicas that are killed in the middle of writes, and clients who remember what they were told.

Replicas are processes of their own on uvicorn, sharing one event log; clients send batches, again
and again until they are acknowledged, and some a second time. Nothing acknowledged may be missing,
nothing may be there twice.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import multiprocessing
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from typing import Any

from raysys.eventlog.entries import EventLog

PATIENCE_S = 120.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def serve(args: dict[str, Any], port: int) -> None:
    """One replica; never returns."""
    import uvicorn

    from raysys.serving.app import http_app
    from raysys.serving.args import ServeArgs
    from raysys.serving.service import Service

    service = Service(ServeArgs.model_validate(args))
    service.warm_up()
    uvicorn.run(http_app(service), host="127.0.0.1", port=port, log_level="error")


@dataclass
class Replica:
    port: int
    process: BaseProcess | None = None


class Replicas:
    """Some replicas of one deployment.

    Args:
        args: of the deployment, as YAML has them.
        n: how many.
    """

    def __init__(self, args: dict[str, Any], n: int = 2) -> None:
        self.args = args
        # children of a process that has imported everything start in a fraction of a second
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["benchmarks.warm"])
        self.all = [Replica(free_port()) for _ in range(n)]

    def start(self, *numbers: int) -> None:
        """Start those that do not run, and wait until they answer."""
        which = [self.all[n] for n in numbers] or self.all
        for replica in which:
            if replica.process is None:
                replica.process = self._context.Process(
                    target=serve, args=(self.args, replica.port), daemon=True
                )
                replica.process.start()
        for replica in which:
            deadline = time.monotonic() + PATIENCE_S
            while not answers(replica.port):
                assert replica.process is not None and replica.process.is_alive(), (
                    "it did not start"
                )
                assert time.monotonic() < deadline, "it does not answer"
                time.sleep(0.02)

    def kill(self, *numbers: int) -> None:
        """SIGKILL, all at once."""
        which = [self.all[n] for n in numbers] or self.all
        for replica in which:
            if replica.process is not None and replica.process.pid is not None:
                os.kill(replica.process.pid, signal.SIGKILL)
        for replica in which:
            if replica.process is not None:
                replica.process.join()
                replica.process = None


def answers(port: int) -> bool:
    """Whether a replica is ready."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with contextlib.closing(link), contextlib.suppress(OSError, http.client.HTTPException):
        link.request("GET", "/readyz")
        return link.getresponse().status == 200
    return False


class Sender(threading.Thread):
    """A client that sends batches until it is stopped, and every one until it is acknowledged.

    Args:
        name: begins the ids of its events.
        ports: of the replicas; after a failure it goes to the next.
        size: events of a batch.
        again: share of batches that it sends a second time, later.
        pause_s: between two batches.

    Attributes:
        acknowledged: ids that a replica said are kept.
        latencies: seconds from sending to an answer of 200.
        pushed_back: how many answers were 503; broken: how many never came.
        wrong: acknowledged ids that were accepted as new when sent again.
    """

    def __init__(
        self,
        name: str,
        ports: list[int],
        size: int = 100,
        again: float = 0.1,
        pause_s: float = 0.0,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.ports, self.size, self.again, self.pause_s = ports, size, again, pause_s
        self.stopped = threading.Event()
        self.acknowledged: list[str] = []
        self.latencies: list[float] = []
        self.pushed_back = self.broken = 0
        self.wrong: list[str] = []
        self._links: dict[int, http.client.HTTPConnection] = {}
        self._chance = random.Random(name)
        self._at = self._chance.randrange(len(ports))
        self._number = 0

    def run(self) -> None:
        try:
            self._send()
        finally:
            for link in self._links.values():
                link.close()

    def _send(self) -> None:
        old: list[bytes] = []
        while not self.stopped.wait(self.pause_s):
            body = self._batch()
            if (outcomes := self._until_acknowledged(body)) is None:
                return
            self.acknowledged += [outcome["event_id"] for outcome in outcomes]
            if self._chance.random() < self.again:
                old.append(body)
            if old and self._chance.random() < self.again:
                repeated = self._until_acknowledged(old.pop(self._chance.randrange(len(old))))
                for outcome in repeated or ():
                    if outcome["status"] != "duplicate":
                        self.wrong.append(outcome["event_id"])

    def _batch(self) -> bytes:
        now = time.time_ns() // 1_000_000
        events = []
        for _ in range(self.size):
            self._number += 1
            events.append({
                "event_id": f"{self.name}-{self._number}", "event_type": "click",
                "user_id": f"u{self._number % 30}", "item_id": f"i{self._number % 200:05d}",
                "timestamp": now, "session_id": f"{self.name}-{self._number // 50}",
                "request_id": f"{self._number:032x}", "position": self._number % 20 + 1,
            })  # fmt: skip
        return json.dumps({"events": events}).encode()

    def _until_acknowledged(self, body: bytes) -> list[dict[str, Any]] | None:
        """Outcomes of a batch; None: stopped before it had any."""
        while True:
            port = self.ports[self._at % len(self.ports)]
            began = time.perf_counter()
            try:
                status, answer = self._post(port, body)
            except (OSError, http.client.HTTPException):
                self.broken += 1
                if port in self._links:
                    self._links.pop(port).close()
            else:
                if status == 200:
                    self.latencies.append(time.perf_counter() - began)
                    outcomes: list[dict[str, Any]] = json.loads(answer)["events"]
                    assert len(outcomes) == self.size
                    return outcomes
                assert status == 503, answer
                self.pushed_back += 1
            if self.stopped.is_set():
                return None
            self._at += 1
            time.sleep(0.02)

    def _post(self, port: int, body: bytes) -> tuple[int, bytes]:
        if port not in self._links:
            self._links[port] = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        link = self._links[port]
        link.request("POST", "/v1/events", body, {"content-type": "application/json"})
        response = link.getresponse()
        return response.status, response.read()


@dataclass
class Verdict:
    """What came of it.

    Attributes:
        kills: how many; nodes: those of them that killed every replica.
        acknowledged, kept: events.
        lost: acknowledged ids that the log does not have; twice: ids that it has more than once.
    """

    kills: int
    nodes: int = 0
    acknowledged: int = 0
    kept: int = 0
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)


def verdict(log: EventLog, senders: list[Sender], kills: int) -> Verdict:
    """Compare what clients were told with what the log has."""
    seen: Counter[str] = Counter()
    at = 0
    while entries := log.read(at):
        seen.update(entry.body["event_id"] for entry in entries)
        at = entries[-1].offset
    told = [name for sender in senders for name in sender.acknowledged]
    return Verdict(
        kills=kills,
        acknowledged=len(told),
        kept=sum(seen.values()),
        lost=[name for name in told if name not in seen],
        twice=[name for name, count in seen.items() if count > 1]
        + [name for sender in senders for name in sender.wrong],
    )


def under_load(
    replicas: Replicas,
    rounds: list[Callable[[], None]],
    clients: int = 4,
    least_s: float = 0.3,
    most_s: float = 0.9,
) -> list[Sender]:
    """Send, and between random pauses do what each round says: kill something, start it again.

    Returns:
        the clients, after their last batch was acknowledged.
    """
    chance = random.Random(len(rounds))
    ports = [replica.port for replica in replicas.all]
    mark = f"{time.time_ns():x}"
    # pauses, so that the log does not grow by more than a replica that starts can count soon
    senders = [Sender(f"{mark}-{n}", ports, pause_s=0.05) for n in range(clients)]
    for sender in senders:
        sender.start()
    try:
        for each in rounds:
            time.sleep(chance.uniform(least_s, most_s))
            each()
        time.sleep(least_s)
    finally:
        for sender in senders:
            sender.stopped.set()
        for sender in senders:
            sender.join(PATIENCE_S)
    assert all(not sender.is_alive() for sender in senders)
    return senders
