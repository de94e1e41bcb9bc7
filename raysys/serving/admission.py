"""What is refused before it is read: a list for which there is no room, and a body too large."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raysys.serving.access import path_of
from raysys.serving.list_routes import LISTS
from raysys.serving.metrics import Metrics
from raysys.serving.problems import Problem
from raysys.serving.workers import BACKGROUND, Workers, overloaded

MAX_BODY: Final = 1 << 20
"""Bytes of a body."""


class Admission:
    """Refuses a list for which there is no room, as ASGI middleware; comes after `Auth`.

    Under load there are more refusals than answers, and what they cost is taken from these. So it
    comes before all that costs more than a look at the queue: rates (with a Redis one round trip
    each), body, validation. What is refused here does not count among the key's requests a second.

    Args:
        app: what answers.
        workers: gives the threads that would do the work.
        metrics: gives the metrics it is counted in.
    """

    def __init__(
        self, app: ASGIApp, workers: Callable[[], Workers], metrics: Callable[[], Metrics]
    ) -> None:
        self.app, self.workers, self.metrics = app, workers, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        priority = _priority(scope)
        wait = None if priority is None else self.workers().refusal(priority)
        if wait is None:
            await self.app(scope, receive, send)
            return
        self.metrics().count("raysys_shed", kind="overloaded")
        status, headers, body = _refusal(scope["path"], wait)
        # a list of its own: middleware that comes before adds to it
        await send({"type": "http.response.start", "status": status, "headers": [*headers]})
        await send({"type": "http.response.body", "body": body})


def _priority(scope: Scope) -> int | None:
    """Of a list that is asked for; None: it is another call, which waits for its turn."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    priority = LISTS.get(path_of(scope))
    if priority is not None:
        for name, value in scope["headers"]:
            if name == b"x-priority" and value == b"background":
                return BACKGROUND
    return priority


@lru_cache(maxsize=64)  # a few paths, a few seconds
def _refusal(path: str, wait: int) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of the problem, written once."""
    response = overloaded(wait).response(path)
    return response.status_code, response.raw_headers, bytes(response.body)


class BodyLimit:
    """Refuses a body larger than `MAX_BODY`, as ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY:
                raise _TooLarge
            return message

        length = dict(scope["headers"]).get(b"content-length", b"0")
        try:
            if length.isdigit() and int(length[:20]) > MAX_BODY:
                raise _TooLarge
            await self.app(scope, counted, send)
        except _TooLarge:
            detail = f"the body is larger than {MAX_BODY:,} bytes; send fewer items"
            response = Problem(413, "too-large", detail).response(scope["path"])
            await response(scope, receive, send)


class _TooLarge(BaseException):
    """Not an Exception: FastAPI turns those into a 400 while it reads the body."""
