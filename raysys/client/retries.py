"""When to try again, and after how long."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime

import httpx

BUSY = frozenset({429, 503})
PROXY = frozenset({500, 502, 504})
"""Tried again only when no problem+json comes with them: then a proxy answered, not raysys."""

_DOWN_LEAST_S = 0.02
_DOWN_LONGEST_S = 1.0


@dataclass(frozen=True)
class Retries:
    """Exponential backoff with full jitter (Brooker, AWS Architecture Blog 2015).

    Waits are drawn evenly from 0 to `first_s` doubled each time, so that clients that failed
    together do not come back together; `Retry-After` is the least that is waited.

    Attributes:
        attempts: in all; 1: no second try.
        first_s: the longest first wait.
        longest_s: the longest wait; a server that asks for more is not waited for.
        total_s: no try begins later than this after the call did.
        down_s: a server that answered before and now refuses connections, or whose proxy knows no
            way to it (404), restarts: it is asked again for so long, every second or more often,
            however many tries that takes, unless `attempts` is 1; never beyond `total_s`.
        slack_s: a call with a `deadline_ms` of its own ends so much later at most, answered or
            not: what the network may take beside the server.
        rng: of the waits.
    """

    attempts: int = 4
    first_s: float = 0.1
    longest_s: float = 5.0
    total_s: float = 15.0
    down_s: float = 15.0
    slack_s: float = 0.25
    rng: random.Random = field(default_factory=random.Random, compare=False)

    def __post_init__(self) -> None:
        times = (self.first_s, self.longest_s, self.total_s, self.down_s, self.slack_s)
        if self.attempts < 1 or min(times) < 0:
            raise ValueError("attempts must be 1 or more, and no time below 0")

    def within(self, deadline_s: float) -> Retries:
        """The same for a call that is of no use later than `slack_s` after its deadline."""
        total_s = min(self.total_s, max(0.0, deadline_s) + self.slack_s)
        return replace(self, total_s=total_s)

    def wait_while_down(self, attempt: int, spent_s: float) -> float | None:
        """`wait`, where the server answered before and refuses connections now."""
        if self.attempts == 1:
            return None
        most = min(_DOWN_LONGEST_S, self.first_s * 2 ** min(attempt - 1, 20))
        seconds = max(_DOWN_LEAST_S, self.rng.uniform(0, most))
        return seconds if spent_s + seconds <= min(self.down_s, self.total_s) else None

    def wait(self, attempt: int, spent_s: float, asked_s: float | None) -> float | None:
        """Seconds to wait before the next try; None: give up.

        Args:
            attempt: how many tries there were.
            spent_s: since the call began.
            asked_s: what `Retry-After` says.
        """
        if attempt >= self.attempts or (asked_s or 0) > self.longest_s:
            return None
        most = min(self.longest_s, self.first_s * 2 ** (attempt - 1))
        seconds = (asked_s or 0) + self.rng.uniform(0, most)
        return seconds if spent_s + seconds <= self.total_s else None


def retry_after(response: httpx.Response) -> float | None:
    """Seconds that the server asks to wait; None: it does not, or not in words we know."""
    said = response.headers.get("retry-after", "").strip()
    if said.isdigit():
        return float(said)
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def by_proxy(response: httpx.Response) -> bool:
    """Whether an error was not told by raysys, whose errors are problem+json."""
    said = response.headers.get("content-type", "")
    return not response.is_success and "problem+json" not in said


def worth_another_try(response: httpx.Response, *, safe: bool) -> bool:
    """Whether the same request may succeed later.

    Args:
        response: an error.
        safe: whether sending it twice does no harm.
    """
    if response.status_code == 429 or not_routed(response):  # nothing was done
        return True
    if not safe:
        return False
    return response.status_code in BUSY or (response.status_code in PROXY and by_proxy(response))


def not_routed(response: httpx.Response) -> bool:
    """Whether a proxy answered that knows no way to raysys, or not yet: it has just started."""
    return response.status_code == 404 and by_proxy(response)
