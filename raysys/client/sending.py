"""What both clients share: settings, and the reading of responses."""

from __future__ import annotations

import os
import ssl
import time
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from raysys.client.calls import Call
from raysys.client.failures import ApiError, Unreachable
from raysys.client.retries import (
    Retries,
    by_proxy,
    not_routed,
    retry_after,
    worth_another_try,
)

A = TypeVar("A", bound=BaseModel)

BASE_URL = "http://127.0.0.1:8000"

_LEAST_S = 0.001  # 0 would be no limit to some


def settings(
    base_url: str | None, key: str | None, timeout_s: float, verify: bool | ssl.SSLContext
) -> dict[str, Any]:
    """Arguments of httpx's clients."""
    key = key if key is not None else os.environ.get("RAYSYS_API_KEY")
    headers = {"Accept": "application/json, application/problem+json", "User-Agent": "raysys"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    return {
        "base_url": base_url or os.environ.get("RAYSYS_URL") or BASE_URL,
        "headers": headers,
        "timeout": timeout_s,
        "verify": verify,
        "follow_redirects": False,  # a key goes nowhere else
    }


@dataclass
class Attempts:
    """How often a call was tried, and whether to try again.

    Args:
        call: what is sent.
        retries: how often at most.
        timeout_s: seconds that one try may take.
        met: what raysys has answered this client before, by the beginning of the path; grows.
    """

    call: Call[Any]
    retries: Retries
    timeout_s: float
    met: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.made = 0
        self.waited = 0.0
        self.began = time.monotonic()
        if self.call.deadline_s is not None:
            self.retries = self.retries.within(self.call.deadline_s)

    def left_s(self) -> float:
        """Seconds that the try that is about to begin may take: for connecting, and for reading."""
        if self.call.deadline_s is None:
            return self.timeout_s
        return max(_LEAST_S, min(self.timeout_s, self.retries.total_s - self._spent()))

    def after_response(self, response: httpx.Response) -> float | None:
        """Seconds to wait before another try; None: this is the answer.

        Raises:
            ApiError: the server refuses, and will again.
        """
        self.made += 1
        if not by_proxy(response):
            self.met.add(self._call_kind)
        if response.is_success:
            return None
        asked = retry_after(response)
        wait = None
        if worth_another_try(response, safe=self.call.safe):
            wait = self._wait(asked)
        if wait is None and self._call_kind in self.met and not_routed(response):
            wait = self.retries.wait_while_down(self.made, self._spent())
        if wait is None:
            raise ApiError(response.status_code, _problem(response), asked, self.made)
        self.waited += wait
        return wait

    def after_failure(self, error: httpx.TransportError) -> float:
        """Seconds to wait before another try.

        Raises:
            Unreachable: there is none.
        """
        self.made += 1
        untouched = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
        wait = self._wait(None) if self.call.safe or untouched else None
        if wait is None and self.met and isinstance(error, httpx.ConnectError) and _refused(error):
            wait = self.retries.wait_while_down(self.made, self._spent())
        if wait is None:
            said = str(error) or type(error).__name__
            raise Unreachable(f"no answer: {said}", self.made) from error
        self.waited += wait
        return wait

    def _wait(self, asked_s: float | None) -> float | None:
        return self.retries.wait(self.made, self._spent(), asked_s)

    @property
    def _call_kind(self) -> str:
        """The beginning of the path: a user's id is in no call's kind."""
        return "/".join(self.call.path.split("/")[:3])

    def _spent(self) -> float:
        """Seconds since the call began, by the clock or by what was waited for."""
        return max(time.monotonic() - self.began, self.waited)


def read(call: Call[A], response: httpx.Response) -> A:
    """The answer of a successful response.

    Raises:
        ApiError: what came is no answer of raysys.
    """
    try:
        return call.answer.model_validate_json(response.content)
    except ValidationError as error:
        said = f"what came is no answer of raysys: {error.errors()[0]['msg']}"
        raise ApiError(response.status_code, {"detail": said}) from None


def _refused(error: BaseException | None) -> bool:
    """Whether a connection was refused: a name or a certificate that is wrong stays wrong."""
    if isinstance(error, ConnectionRefusedError):
        return True
    inner = getattr(error, "exceptions", ())  # asyncio tries several addresses: one was right
    if inner:
        return any(_refused(each) for each in inner)
    if error is None:
        return False
    if isinstance(error, OSError):  # the system's: its context may be what the caller handles
        return _refused(error.__cause__)
    return _refused(error.__cause__ or error.__context__)


def _problem(response: httpx.Response) -> dict[str, Any]:
    try:
        content = response.json()
    except ValueError:
        content = None
    if isinstance(content, dict) and "detail" in content:
        return content
    return {"detail": response.text[:200] or response.reason_phrase}
