"""How the calls of one replica went over the last minute: rates, latencies, what failed."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raysys.serving.access import AccessTable, path_of
from raysys.serving.metrics import Metrics
from raysys.web.operations import CallFacts

WINDOW_S = 60
_STEP = 1.05  # each bin of latencies is 5% wider than the one before
_BINS = 260  # from 0.05 ms to over 10 s
_LEAST_MS = 0.05


@dataclass
class _Second:
    """What ended within one second."""

    at: int
    count: int = 0
    failed: int = 0
    degraded: int = 0
    bins: np.ndarray = field(default_factory=lambda: np.zeros(_BINS, np.int32))


class Traffic:
    """Counts by call and second; what is older than the window is forgotten.

    Latencies are kept in bins 5% wide, so that memory is bounded whatever the rate.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._calls: dict[str, deque[_Second]] = {}

    def note(self, call: str, milliseconds: float, status: int, *, degraded: bool) -> None:
        """One answer that went out."""
        now = int(self._clock())
        seconds = self._calls.setdefault(call, deque(maxlen=WINDOW_S))
        if not seconds or seconds[-1].at != now:
            seconds.append(_Second(now))
        second = seconds[-1]
        second.count += 1
        second.failed += status >= 500
        second.degraded += degraded
        place = math.log(max(milliseconds, _LEAST_MS) / _LEAST_MS, _STEP)
        second.bins[min(int(place), _BINS - 1)] += 1

    def facts(self) -> list[CallFacts]:
        """Of every call in the window, busiest first."""
        return facts_of([self.told()])

    def told(self) -> dict[str, Any]:
        """The window as JSON can say it: `spent` seconds, and of each call of `calls` what was
        counted and how many answers lie in which bin of latencies.
        """
        since = int(self._clock()) - WINDOW_S
        calls: dict[str, dict[str, Any]] = {}
        for call, seconds in self._calls.copy().items():
            recent = [each for each in seconds.copy() if each.at > since]
            if not recent:
                continue
            bins = np.sum([each.bins for each in recent], axis=0)
            calls[call] = {
                "count": sum(each.count for each in recent),
                "failed": sum(each.failed for each in recent),
                "degraded": sum(each.degraded for each in recent),
                "bins": {str(place): int(bins[place]) for place in np.flatnonzero(bins)},
            }
        return {"spent": min(WINDOW_S, max(self._clock() - self._began, 1.0)), "calls": calls}


def facts_of(replicas: Sequence[Mapping[str, Any]]) -> list[CallFacts]:
    """The calls of some replicas together, busiest first.

    Args:
        replicas: what each one has `told`.
    """
    found = []
    for call in dict.fromkeys(name for told in replicas for name in told["calls"]):
        mine = [(told["calls"][call], told["spent"]) for told in replicas if call in told["calls"]]
        count = sum(each["count"] for each, _ in mine)
        bins = np.zeros(_BINS, np.int64)
        for each, _ in mine:
            for place, n in each["bins"].items():
                bins[int(place)] += n
        upto = np.cumsum(bins)
        p50, p99 = (
            _LEAST_MS * _STEP ** (int(np.searchsorted(upto, share * count)) + 0.5)
            for share in (0.5, 0.99)
        )
        found.append(
            CallFacts(
                call=call,
                per_second=sum(each["count"] / spent for each, spent in mine),
                p50_ms=p50,
                p99_ms=p99,
                degraded=sum(each["degraded"] for each, _ in mine) / count,
                failed=sum(each["failed"] for each, _ in mine) / count,
            )
        )
    return sorted(found, key=lambda facts: -facts.per_second)


class Watched:
    """ASGI middleware that notes every answer of an API call, refusals among them.

    A caller who leaves before the answer is a 499, which is no fault of the server. A route says
    in `request.state.degraded` that it left something out.

    Args:
        app: what answers.
        traffic: where it is noted.
        metrics: gives the metrics it is counted in as well.
    """

    def __init__(self, app: ASGIApp, traffic: Traffic, metrics: Callable[[], Metrics]) -> None:
        self.app, self.traffic, self.metrics = app, traffic, metrics
        self._table = AccessTable()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        route = self._table.route(path_of(scope))  # never the path: a label is one of a few
        if not route.startswith("/v1/"):
            await self.app(scope, receive, send)
            return
        began, ended, status = time.perf_counter(), 0.0, 0

        async def noted(message: Message) -> None:
            nonlocal status, ended
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                ended = time.perf_counter()  # what is done behind the answer is not its time

        try:
            await self.app(scope, receive, noted)
        except asyncio.CancelledError:
            status = status or 499
            raise
        finally:
            status = status or 500
            degraded = bool(scope.get("state", {}).get("degraded"))
            spent = ((ended or time.perf_counter()) - began) * 1000
            self.traffic.note(route, spent, status, degraded=degraded)
            self.metrics().count("raysys_requests", route=route, status=str(status))
            self.metrics().observe("raysys_request_seconds", spent / 1000, route=route)
