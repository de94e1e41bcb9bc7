"""When a request arrived, and until when its answer is of use."""

from __future__ import annotations

import math
import time

from starlette.types import ASGIApp, Receive, Scope, Send


class Arrival:
    """ASGI middleware that notes in `scope["state"]["arrived"]` when a request came.

    It has to come before all that may wait: keys, rates and the reading of the body are a part of
    the time that the caller waits.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http":
            scope.setdefault("state", {})["arrived"] = time.perf_counter()
        await self.app(scope, receive, send)


def left_s(scope: Scope, deadline_ms: float | None) -> float:
    """Seconds until the answer has to be there, as far as the headers say; below 0: it is late.

    Args:
        scope: of a request that `Arrival` noted.
        deadline_ms: the deployment's, for who names none; None: infinity then.
    """
    for name, value in scope["headers"]:
        if name == b"x-deadline-ms":
            try:
                asked = float(value)
            except ValueError:  # the route refuses it
                continue
            if math.isfinite(asked):
                deadline_ms = asked
    if deadline_ms is None:
        return math.inf
    return float(scope["state"]["arrived"] + deadline_ms / 1000 - time.perf_counter())
