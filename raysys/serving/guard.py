"""When to turn a canary off: its answers against the champion's, arm beside arm. Pure logic.

Three things are watched, each by a one-sided test, so that a canary is neither kept for want of
patience nor ended by chance:

- errors: answers that failed or were degraded, among the last `window` of each arm;
- latency: answers slower than `latency_ratio` times the champion's 95th percentile. Of a canary
  no slower than that, 5% are: more than chance allows beyond 5% is slower;
- an online metric: outcomes (clicks, purchases) an answer, since the canary began.

A guard looks again and again, and each look may err. The threshold is 3.5 standard errors (0.02% a
look on the normal scale) and windows overlap, so that looks are far from independent; the tests
measure how often two equal arms are told apart. Outcomes of one user resemble each other, which
makes the real error larger: hence also `metric_drop`, a drop too small to matter.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections import deque
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from raysys.config import Settings

Arm = Literal["champion", "challenger"]

SIGMAS = 3.5
_TAIL = 0.05  # beyond the 95th percentile


class GuardArgs(Settings):
    """What a canary must not do.

    Attributes:
        window: the last answers of each arm that errors and latency are counted over.
        min_answers: of each arm, before anything is said.
        error_margin: share of failed or degraded answers that it may have more than the champion.
        latency_ratio: how many times the champion's 95th percentile of milliseconds it may take.
        metric_drop: share of the champion's outcomes an answer that it may lose; null: outcomes
            are not watched.
    """

    window: Annotated[int, Field(ge=50, le=100_000)] = 1000
    min_answers: Annotated[int, Field(ge=20, le=100_000)] = 200
    error_margin: Annotated[float, Field(ge=0, le=1)] = 0.01
    latency_ratio: Annotated[float, Field(ge=1, le=100)] = 1.5
    metric_drop: Annotated[float, Field(ge=0, lt=1)] | None = 0.05

    @property
    def silent(self) -> str:
        """Why it would never say anything; empty: it may.

        To be asked where somebody writes it down; what is stored already has to be read.
        """
        if self.min_answers <= self.window:
            return ""
        return (
            f"min_answers ({self.min_answers}) of the last {self.window} (window) never are: "
            "the guard would say nothing, whatever happens"
        )


@dataclass
class ArmCounts:
    """What is known of one arm.

    Attributes:
        answers: since the start.
        outcomes: since the start, by weight.
        squares: of the outcomes' weights, for their variance.
    """

    window: int
    answers: int = 0
    outcomes: float = 0.0
    squares: float = 0.0
    _failed: deque[bool] = field(default_factory=deque)
    _n_failed: int = 0
    _times: deque[float] = field(default_factory=deque)
    _sorted: list[float] = field(default_factory=list)

    def answer(self, milliseconds: float, *, failed: bool) -> None:
        """Count an answer."""
        self.answers += 1
        self._failed.append(failed)
        self._n_failed += failed
        self._times.append(milliseconds)
        insort(self._sorted, milliseconds)
        if len(self._failed) > self.window:
            self._n_failed -= self._failed.popleft()
            oldest = self._times.popleft()
            del self._sorted[bisect_right(self._sorted, oldest) - 1]

    @property
    def n(self) -> int:
        """Answers in the window."""
        return len(self._failed)

    @property
    def error_rate(self) -> float:
        """Failed or degraded, of the window; 0 when it is empty."""
        return self._n_failed / self.n if self.n else 0.0

    @property
    def rate(self) -> float:
        """Outcomes an answer, since the start; 0 before the first."""
        return self.outcomes / self.answers if self.answers else 0.0

    def quantile(self, share: float) -> float:
        """Milliseconds that this share of the window's answers took at most; NaN when empty."""
        if not self._sorted:
            return math.nan
        return self._sorted[max(0, math.ceil(share * self.n) - 1)]

    def slower_than(self, milliseconds: float) -> int:
        """Answers of the window that took longer."""
        return self.n - bisect_right(self._sorted, milliseconds)

    def told(self) -> dict[str, float | int | None]:
        """For people."""
        p95 = self.quantile(0.95)
        return {
            "answers": self.answers,
            "error_rate": round(self.error_rate, 5),
            "p50_ms": None if math.isnan(p95) else round(self.quantile(0.5), 2),
            "p95_ms": None if math.isnan(p95) else round(p95, 2),
            "outcomes": round(self.outcomes, 3),
            "rate": round(self.rate, 6),
        }


class Guard:
    """Counts both arms and says when the challenger is to be turned off; not thread-safe.

    Args:
        args: what it must not do.
    """

    def __init__(self, args: GuardArgs) -> None:
        self.args = args
        self.arms: dict[Arm, ArmCounts] = {
            "champion": ArmCounts(args.window),
            "challenger": ArmCounts(args.window),
        }

    def answer(self, arm: Arm, milliseconds: float, *, failed: bool = False) -> None:
        """Count an answer of an arm; `failed`: it failed, or was degraded."""
        self.arms[arm].answer(milliseconds, failed=failed)

    def outcome(self, arm: Arm, weight: float = 1.0) -> None:
        """Count what a user of an arm did; a purchase may weigh more than a click."""
        self.arms[arm].outcomes += weight
        self.arms[arm].squares += weight * weight

    def verdict(self) -> str | None:
        """Why the challenger is to be turned off; None: it may go on."""
        champion, challenger = self.arms["champion"], self.arms["challenger"]
        if min(champion.n, challenger.n) < self.args.min_answers:
            return None
        return (
            self._errors(champion, challenger)
            or self._latency(champion, challenger)
            or self._metric(champion, challenger)
        )

    def _errors(self, champion: ArmCounts, challenger: ArmCounts) -> str | None:
        ours, theirs = _shrunk(challenger), _shrunk(champion)
        excess = challenger.error_rate - champion.error_rate - self.args.error_margin
        error = math.sqrt(ours * (1 - ours) / challenger.n + theirs * (1 - theirs) / champion.n)
        if excess <= SIGMAS * error:
            return None
        return (
            f"error rate: {challenger.error_rate:.1%} of its last {challenger.n} answers failed or "
            f"were degraded, {champion.error_rate:.1%} of the champion's"
        )

    def _latency(self, champion: ArmCounts, challenger: ArmCounts) -> str | None:
        limit = self.args.latency_ratio * champion.quantile(1 - _TAIL)
        slow = challenger.slower_than(limit) / challenger.n
        # the champion's percentile is itself an estimate: its error counts as well
        error = math.sqrt(_TAIL * (1 - _TAIL) * (1 / challenger.n + 1 / champion.n))
        if slow - _TAIL <= SIGMAS * error:
            return None
        return (
            f"latency: {slow:.1%} of its last {challenger.n} answers took longer than {limit:.0f} "
            f"ms, {self.args.latency_ratio:g} times the champion's 95th percentile"
        )

    def _metric(self, champion: ArmCounts, challenger: ArmCounts) -> str | None:
        drop = self.args.metric_drop
        if drop is None or not champion.outcomes:
            return None
        wanted = (1 - drop) * champion.rate
        error = math.hypot(
            math.sqrt(max(challenger.squares, 1.0)) / challenger.answers,
            (1 - drop) * math.sqrt(champion.squares) / champion.answers,
        )
        if wanted - challenger.rate <= SIGMAS * error:
            return None
        return (
            f"online metric: {challenger.rate:.4f} outcomes an answer over "
            f"{challenger.answers} answers, {champion.rate:.4f} of the champion's"
        )


def _shrunk(arm: ArmCounts) -> float:
    """An error rate for its own standard error: never 0, where no error would mean no doubt."""
    return (arm.error_rate * arm.n + 2) / (arm.n + 4)  # Agresti and Coull 1998
