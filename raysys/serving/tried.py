"""A challenger beside the champion in one replica, and what it takes to ask it as well."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

from raysys.serving.guard import Arm, Guard
from raysys.serving.lease import Lease
from raysys.serving.rollout import CanaryArgs
from raysys.serving.service import Service
from raysys.serving.shadow import Shadow
from raysys.serving.treatments import Treatment

_VERDICT_EVERY = 20  # answers


@dataclass
class Tried:
    """A challenger beside the champion.

    Attributes:
        canary: what was asked for, with the bundle's id.
        lease: the challenger.
        guard: counts both arms.
        shadow: where both answers are compared; None: the challenger answers its share.
    """

    canary: CanaryArgs
    lease: Lease
    guard: Guard
    shadow: Shadow | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    counted: int = 0

    def count(self, arm: Arm, began: float, *, failed: bool) -> str | None:
        """Count an answer; returns why the challenger is to be turned off, if it is."""
        milliseconds = (time.perf_counter() - began) * 1000
        with self.lock:
            self.guard.answer(arm, milliseconds, failed=failed)
            self.counted += 1
            return self.guard.verdict() if self.counted % _VERDICT_EVERY == 0 else None


def treated(treatment: Treatment | None, service: Service) -> Service:
    """The service as an experiment's arms want it."""
    if treatment is None or not treatment.decided:
        return service
    return service.variant(treatment.surface, treatment.decided)


def degraded(answer: Any) -> bool:
    """Whether members had no say in an answer, whatever its form."""
    return bool(answer["degraded"] if isinstance(answer, dict) else answer.degraded)


def afresh(rest: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same call as if it arrived now: the champion has used up the first one's time."""
    now = time.perf_counter()
    first, *others = rest
    if is_dataclass(first) and not isinstance(first, type):
        return (replace(first, arrived=now), *others)
    return (now, *others)
