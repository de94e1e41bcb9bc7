"""Refusals before Ray Serve looks at a request.

With HAProxy a replica reads requests itself, and what Serve does for each of them (ids, the route,
its own queue, tasks) costs more than all of a refusal here. Under load nine of ten requests may be
refused, and what they cost is taken from the answers. So the outermost ASGI middleware refuses a
list for which there is no room. Serve puts it there where the environment of `ray start` says

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=raysys.serving.early.middlewares

Without it Serve and `admission.Admission` refuse them, later. It imports next to nothing: Serve's
proxies load it too, where it lets everything pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

Headers = list[tuple[bytes, bytes]]
Refusal = tuple[int, Headers, bytes]
"""Status, headers and body."""


@dataclass(frozen=True)
class Room:
    """What a process says of its room for lists.

    Attributes:
        priorities: of the lists, by path below any prefix.
        wait: told a priority and how many lists are in the process, seconds after which to try
            again where there is no room; else None.
        refusal: told a path and these seconds, what is answered.
        note: told a list's path below any prefix, and the milliseconds of each refusal.
        background: the priority of what says `X-Priority: background`.
        browsers: whether pages of other origins may read answers: their refusals need headers that
            come later.
    """

    priorities: Mapping[str, int]
    wait: Callable[[int, int], int | None]
    refusal: Callable[[str, int], Refusal]
    note: Callable[[str, float], None]
    background: int
    browsers: bool


_rooms: Final[list[Room]] = []  # of this process: one or none


def open_room(room: Room | None) -> None:
    """Have lists refused by what a room says; None: let everything pass."""
    _rooms[:] = [] if room is None else [room]


def middlewares() -> list[Middleware]:
    """For `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`."""
    return [Middleware(EarlyRefusal)]


class EarlyRefusal:
    """ASGI middleware that answers lists for which its process has no room.

    Attributes:
        inside: lists that are under way behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        room = _rooms[0] if _rooms else None
        priority = None if room is None else _priority(room, scope)
        if room is None or priority is None:
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        wait = room.wait(priority, self.inside)
        if wait is None:
            self.inside += 1
            try:
                await self.app(scope, receive, send)
            finally:
                self.inside -= 1
            return
        status, headers, body = room.refusal(scope["path"], wait)
        await send({"type": "http.response.start", "status": status, "headers": [*headers]})
        await send({"type": "http.response.body", "body": body})
        path = scope["path"]
        room.note(path[path.find("/v1/") :], (time.perf_counter() - began) * 1000)


def _priority(room: Room, scope: Scope) -> int | None:
    """Of a list that may be refused here; None: another call."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    path: str = scope["path"]
    priority = room.priorities.get(path[path.find("/v1/") :])  # Serve may put a prefix before it
    if priority is None:
        return None
    for name, value in scope["headers"]:
        if name == b"x-priority" and value == b"background":
            priority = room.background
        elif name == b"origin" and room.browsers:
            return None
    return priority
