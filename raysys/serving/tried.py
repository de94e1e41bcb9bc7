"""A challenger beside the champion in one replica, and what it takes to ask it as well."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from raysys.serving.asking import Context
from raysys.serving.guard import Arm, Guard
from raysys.serving.lease import Lease
from raysys.serving.problems import Problem
from raysys.serving.rollout import CanaryArgs
from raysys.serving.service import Service
from raysys.serving.shadow import Shadow
from raysys.serving.treatments import Treatment

log = logging.getLogger("raysys")

_VERDICT_EVERY = 20  # answers


@dataclass
class Tried:
    """A challenger beside the champion.

    Attributes:
        canary: what was asked for, with the bundle's id.
        lease: the challenger.
        guard: counts both arms, of those who are drawn into one of them.
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


@dataclass(frozen=True)
class Asked:
    """A call for a list.

    Attributes:
        treatment: by an experiment's arms; None: there is none.
        name: of the service's method.
        request: its first argument.
        rest: the others.
    """

    treatment: Treatment | None
    name: str
    request: Any
    rest: tuple[Any, ...]

    def treated(self, service: Service) -> Service:
        """The service as the experiment's arms want it."""
        if self.treatment is None or not self.treatment.decided:
            return service
        return service.variant(self.treatment.surface, self.treatment.decided)

    def of(self, treated: Service) -> Any:
        """What such a service answers."""
        return getattr(treated, self.name)(self.request, *self.rest)

    def again(self, treated: Service) -> Any:
        """The same as if it was asked now."""
        return replace(self, rest=afresh(self.rest)).of(treated)


class Count(Protocol):
    """Counts an answer of an arm that began at `time.perf_counter()`."""

    def __call__(self, arm: Arm, began: float, *, failed: bool) -> None:
        """See above."""


def either(tried: Tried, champion: Service, asked: Asked, count: Count) -> Any:
    """The answer of the arm of whoever asks; the champion's where the challenger fails.

    Args:
        tried: the challenger, in use while this lasts.
        champion: the same.
        asked: the call.
        count: is told how each arm did.
    """
    champion = asked.treated(champion)
    who = asked.request.user_id or asked.request.session_id
    arm = tried.canary.arm_of(who)
    if not who and tried.shadow is None:  # in no arm: the challenger has none to compare it with
        return asked.of(champion)
    began, failed = time.perf_counter(), False
    if arm == "challenger":
        try:
            answer = asked.of(asked.treated(tried.lease.service))
        except Exception as error:
            # the user's own mistakes fail on both, and then say nothing of the challenger
            answer = asked.of(champion)
            failed = True
            if not isinstance(error, Problem):
                log.exception("the challenger failed; the champion answers")
        count(arm, began, failed=failed or degraded(answer))
        return answer
    try:
        answer = asked.of(champion)
    except Problem:
        raise
    except Exception:
        count(arm, began, failed=True)
        raise
    count(arm, began, failed=degraded(answer))
    if tried.shadow is not None and tried.lease.take():
        challenger = asked.treated(tried.lease.service)

        def again() -> Any:
            began = time.perf_counter()
            shadowed, failed = None, True
            try:
                shadowed = asked.again(challenger)
                failed = degraded(shadowed)
            finally:
                count("challenger", began, failed=failed)
            return shadowed

        tried.shadow.offer(asked.name, asked.request, answer, again, tried.lease.give_back)
    return answer


def degraded(answer: Any) -> bool:
    """Whether members had no say in an answer, whatever its form."""
    return bool(answer["degraded"] if isinstance(answer, dict) else answer.degraded)


def afresh(rest: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same call as if it arrived now: the champion has used up the first one's time.

    Nor is it told to the first one's trace, which may be on its way already.
    """
    now = time.perf_counter()
    first, *others = rest
    if isinstance(first, Context):
        return (replace(first, arrived=now, trace=None), *others)
    return (now, *others)
