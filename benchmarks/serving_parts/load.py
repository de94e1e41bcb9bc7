"""Load over HTTP/1.1 keep-alive connections: closed loops, and open ones at a fixed rate.

One asyncio thread, bodies made beforehand, as little parsing as will do: some 60 µs of a core a
request, which the servers lack where all share two cores. In a closed loop each connection asks
again as soon as it is answered. In an open loop requests come by a Poisson process whatever
becomes of those before, and latency counts from the moment at which a request was due, so that a
server that stalls is charged for all who waited (no coordinated omission; Tene 2013).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

DRAIN_S = 3.0  # after the last request was due
NO_ANSWER = 0  # status of what broke off, or was never answered


@dataclass
class Outcome:
    """What became of the requests of a run.

    Attributes:
        seconds: of the run.
        due: float64[n], seconds from its beginning at which each request was sent, or should be.
        ms: float64[n], from then to its answer.
        status: int64[n], of HTTP; `NO_ANSWER`.
        late_ms: how far behind its plan the sender itself was at most (open loop).
        work: int64[n], which of the work each was, by its place in the list.
    """

    seconds: float
    due: np.ndarray
    ms: np.ndarray
    status: np.ndarray
    late_ms: float = 0.0
    work: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def of(self, chosen: np.ndarray) -> Outcome:
        """Those of the run for which a mask, bool[n], is true."""
        due, ms, status = self.due[chosen], self.ms[chosen], self.status[chosen]
        return Outcome(self.seconds, due, ms, status, self.late_ms, self.work[chosen])

    @property
    def good(self) -> np.ndarray:
        """Which were answered with 200."""
        return self.status == 200

    @property
    def per_s(self) -> float:
        """Answers of 200 a second."""
        return float(self.good.sum() / self.seconds)

    def quantile(self, share: float) -> float:
        """Milliseconds of the answers of 200 at a share of them; NaN without any."""
        return float(np.quantile(self.ms[self.good], share)) if self.good.any() else float("nan")


def requests(
    host: str,
    port: int,
    path: str,
    bodies: Sequence[bytes],
    headers: Mapping[str, str] | None = None,
) -> list[bytes]:
    """Whole HTTP requests of JSON bodies, with headers of one's own beside those they need."""
    told = {"Host": f"{host}:{port}", "Content-Type": "application/json", **(headers or {})}
    lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    head = f"POST {path} HTTP/1.1\r\n{lines}"
    return [f"{head}Content-Length: {len(b)}\r\n\r\n".encode() + b for b in bodies]


class _Link(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self) -> None:
        self.transport: Any = None  # asyncio's, or uvloop's, which is none of asyncio's classes
        self.waits: asyncio.Future[int] | None = None
        self._held = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self._end(NO_ANSWER)

    def data_received(self, data: bytes) -> None:
        self._held += data
        head, found, rest = self._held.partition(b"\r\n\r\n")
        if not found:
            return
        lowered = head.lower()
        if b"transfer-encoding: chunked" in lowered:
            if not rest.endswith(b"0\r\n\r\n"):
                return
        else:
            at = lowered.find(b"content-length:")
            size = int(lowered[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(rest) < size:
                return
        self._held = b""
        self._end(int(head[9:12]))
        if b"connection: close" in lowered and self.transport is not None:
            self.transport.close()

    def _end(self, status: int) -> None:
        waits, self.waits = self.waits, None
        if waits is not None and not waits.done():
            waits.set_result(status)


@dataclass
class _Pool:
    """Connections to one address; a broken one is opened again."""

    host: str
    port: int
    free: deque[_Link] = field(default_factory=deque)
    opened: int = 0

    async def ask(self, request: bytes, timeout_s: float) -> int:
        """The status of an answer, `NO_ANSWER` where none comes."""
        loop = asyncio.get_running_loop()
        link = self.free.popleft() if self.free else _Link()
        try:
            if link.transport is None or link.transport.is_closing():
                link = _Link()
                self.opened += 1
                await asyncio.wait_for(
                    loop.create_connection(lambda: link, self.host, self.port), timeout_s
                )
            waits = link.waits = loop.create_future()
            link.transport.write(request)
            status = await asyncio.wait_for(waits, timeout_s)
        except (OSError, TimeoutError):
            if link.transport is not None:
                link.transport.abort()
            return NO_ANSWER
        if link.transport is not None:
            self.free.append(link)
        return status


def closed(
    host: str, port: int, work: Sequence[bytes], connections: int, seconds: float,
    timeout_s: float = 30.0,
) -> Outcome:  # fmt: skip
    """Each of `connections` callers asks as soon as it is answered."""

    async def run() -> Outcome:
        rows: list[_Row] = []
        began = time.perf_counter()

        async def caller(number: int) -> None:
            pool, at = _Pool(host, port), number * 31
            while (due := time.perf_counter()) - began < seconds:
                status = await pool.ask(work[at % len(work)], timeout_s)
                now = time.perf_counter()
                rows.append((due - began, (now - due) * 1000, status, at % len(work)))
                at += 1
                if status == NO_ANSWER:
                    await asyncio.sleep(0.01)
            _close(pool)

        await asyncio.gather(*(caller(number) for number in range(connections)))
        return _outcome(rows, time.perf_counter() - began)

    return _run(run())


def opened(
    host: str, port: int, work: Sequence[bytes], per_s: float, seconds: float,
    timeout_s: float = 10.0, seed: int = 0, most: int = 2000,
) -> Outcome:  # fmt: skip
    """Requests by a Poisson process of a rate; at most `most` in flight, the others break off."""
    chance = random.Random(seed)
    plan: list[float] = []
    at = chance.expovariate(per_s)
    while at < seconds:
        plan.append(at)
        at += chance.expovariate(per_s)

    async def run() -> Outcome:
        rows: list[_Row] = []
        pool = _Pool(host, port)
        running: set[asyncio.Task[None]] = set()
        late = 0.0
        began = time.perf_counter() + 0.05

        async def one(due: float, which: int) -> None:
            status = await pool.ask(work[which], timeout_s)
            rows.append((due, (time.perf_counter() - began - due) * 1000, status, which))

        for number, due in enumerate(plan):
            wait = began + due - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            elif number % 64 == 0:
                await asyncio.sleep(0)  # answers are read even where we are late
            late = max(late, time.perf_counter() - began - due)
            if len(running) >= most:
                rows.append((due, 0.0, NO_ANSWER, number % len(work)))
                continue
            task = asyncio.ensure_future(one(due, number % len(work)))
            running.add(task)
            task.add_done_callback(running.discard)
        if running:
            await asyncio.wait(running, timeout=timeout_s + DRAIN_S)
        _close(pool)
        return _outcome(rows, seconds, late * 1000)

    return _run(run())


_Row = tuple[float, float, int, int]
"""Seconds at which it was due, milliseconds, status, and which of the work it was."""


def _outcome(rows: list[_Row], seconds: float, late: float = 0.0) -> Outcome:
    due, ms, status, work = (np.array(each) for each in zip(*sorted(rows), strict=True))
    return Outcome(seconds, due, ms, status.astype(int), late, work.astype(int))


def _close(pool: _Pool) -> None:
    for link in pool.free:
        if link.transport is not None:
            link.transport.close()


def _run(work: object) -> Outcome:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)  # type: ignore[arg-type]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found: Outcome = runner.run(work)  # type: ignore[arg-type]
        return found
