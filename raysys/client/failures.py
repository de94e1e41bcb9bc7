"""What a call can end with instead of an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raysys.client.answers import EventsAnswer


class _Failure(Exception):  # noqa: N818  what it is says who derives from it
    """What both have in common.

    Attributes:
        answered: of `events`: what became of those that were answered before; None: of other calls.
        unanswered: of `events`: all the others, with the `event_id` that they were sent by. Send
            these again, and each counts once.
    """

    answered: EventsAnswer | None = None
    unanswered: list[dict[str, Any]] = []


class ApiError(_Failure):
    """The server answered with a problem (RFC 9457).

    Attributes:
        status: of HTTP.
        kind: last part of the problem's type, such as `unknown-user`; empty: a proxy answered.
        detail: what is wrong, and how to mend it.
        errors: the fields at fault: path, message, value.
        retry_after_s: seconds after which to try again; None: the server did not say.
        attempts: how often it was tried.
    """

    def __init__(
        self,
        status: int,
        problem: Mapping[str, Any],
        retry_after_s: float | None = None,
        attempts: int = 1,
    ) -> None:
        self.status = status
        self.kind = str(problem.get("type", "")).rpartition(":")[2]
        self.detail = str(problem.get("detail", ""))
        found = problem.get("errors")
        self.errors: list[dict[str, Any]] = found if isinstance(found, list) else []
        self.retry_after_s = retry_after_s
        self.attempts = attempts
        super().__init__(f"{status} {self.kind}: {self.detail}".replace(" :", ":"))

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross processes whole."""
        problem = {"type": f"urn:raysys:problem:{self.kind}", "detail": self.detail}
        content = {**problem, "errors": self.errors}
        given = (self.status, content, self.retry_after_s, self.attempts)
        return type(self), given, {"answered": self.answered, "unanswered": self.unanswered}


class Unreachable(_Failure):
    """Nobody answered, or not in time; the cause is httpx's error.

    Attributes:
        attempts: how often it was tried.
    """

    def __init__(self, message: str, attempts: int = 1) -> None:
        super().__init__(message, attempts)
        self.attempts = attempts

    def __str__(self) -> str:
        return f"{self.args[0]} (tried {self.attempts} times)"
