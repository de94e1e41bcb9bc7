"""How the calls of one replica went over the last minute: rates, latencies, what failed."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

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
        since = int(self._clock()) - WINDOW_S
        spent = min(WINDOW_S, max(self._clock() - self._began, 1.0))
        found = []
        for call, seconds in self._calls.items():
            recent = [each for each in seconds if each.at > since]
            count = sum(each.count for each in recent)
            if not count:
                continue
            upto = np.cumsum(np.sum([each.bins for each in recent], axis=0))
            p50, p99 = (
                _LEAST_MS * _STEP ** (int(np.searchsorted(upto, share * count)) + 0.5)
                for share in (0.5, 0.99)
            )
            found.append(
                CallFacts(
                    call=call,
                    per_second=count / spent,
                    p50_ms=p50,
                    p99_ms=p99,
                    degraded=sum(each.degraded for each in recent) / count,
                    failed=sum(each.failed for each in recent) / count,
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
        began, status = time.perf_counter(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except asyncio.CancelledError:
            status = status or 499
            raise
        finally:
            status = status or 500
            degraded = bool(scope.get("state", {}).get("degraded"))
            spent = (time.perf_counter() - began) * 1000
            self.traffic.note(route, spent, status, degraded=degraded)
            self.metrics().count("raysys_requests", route=route, status=str(status))
            self.metrics().observe("raysys_request_seconds", spent / 1000, route=route)
