"""Base scores of a request's candidates, as far as its deadline allows."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

import numpy as np

from raysys.features.batch import Batch
from raysys.learners.protocol import Float32, Model

log = logging.getLogger("raysys")

FEATURES = "features"
FINISH = "finish"
"""What comes after the learners in any case: ensemble and policy."""

_KEPT = 64
_QUANTILE = 0.9
_EVERY = 8
_FORGET = 0.97


class Costs:
    """How long stages take: a running quantile (90%) of their last 64 runs, by name and size.

    Sizes are told apart by powers of two. Safe to use from several threads: a lost run is no loss.
    """

    def __init__(self) -> None:
        self._runs: dict[str, dict[int, _Runs]] = {}

    def took(self, name: str, n: int, seconds: float) -> None:
        """A stage ran over n candidates."""
        sizes = self._runs.setdefault(name, {})
        sizes.setdefault(n.bit_length(), _Runs()).add(seconds)

    def forget(self) -> None:
        """Nothing is known any more."""
        self._runs.clear()

    def expected(self, name: str, n: int) -> float:
        """Seconds that it will hardly exceed; 0 where nothing is known.

        Of the next larger size that has run; else of the largest one.
        """
        sizes = self._runs.get(name)
        if sizes is None:
            return 0.0
        size = n.bit_length()
        if size not in sizes:
            known = sorted(sizes)
            size = next((each for each in known if each >= size), known[-1])
        return sizes[size].expected

    def skipped(self, name: str, n: int) -> None:
        """It was left out for what it would cost: expect a little less each time, so that one bad
        moment does not keep it out for ever."""
        size = n.bit_length()
        for known, runs in list(self._runs.get(name, {}).items()):
            if known >= size:
                runs.expected *= _FORGET


class _Runs:
    """The last runs of one stage at one size."""

    def __init__(self) -> None:
        self._held: list[float] = []
        self._count = 0
        self.expected = 0.0

    def add(self, seconds: float) -> None:
        if len(self._held) < _KEPT:
            self._held.append(seconds)
        else:
            self._held[self._count % _KEPT] = seconds
        self._count += 1
        if self._count % _EVERY == 0 or self._count <= _EVERY:
            held = sorted(self._held)
            self.expected = held[int(_QUANTILE * (len(held) - 1))]


class Clock:
    """What is left of a request's time.

    Args:
        until: `time.perf_counter()` at which the answer has to be there; infinity: at no time.
        costs: what stages take.
        n: candidates.
        reserve: stages that come afterwards in any case.
    """

    def __init__(self, until: float, costs: Costs, n: int, reserve: Sequence[str] = ()) -> None:
        self._costs, self._n = costs, n
        kept = sum(costs.expected(name, n) for name in reserve) if until < np.inf else 0.0
        self._until = until - kept

    def allows(self, name: str) -> bool:
        """Whether a stage can end in time; notes it where it cannot."""
        if self._until == np.inf:
            return True
        if time.perf_counter() + self._costs.expected(name, self._n) <= self._until:
            return True
        self._costs.skipped(name, self._n)
        return False


def base_scores(
    learners: Mapping[str, Model],
    order: Sequence[str],
    batch: Batch,
    clock: Clock,
    costs: Costs,
    reasons: dict[str, str],
    laps: dict[str, float],
) -> dict[str, Float32]:
    """Base scores by learner, float32[n], of those that fit into the time and do not fail.

    Args:
        learners: by name.
        order: the cheap ones first, so that a deadline costs the dear ones.
        batch: the candidates.
        clock: of the request.
        costs: told how long each took.
        reasons: told who was left out, and why: `deadline`, `failed` or `not finite`.
        laps: told milliseconds by learner.
    """
    base: dict[str, Float32] = {}
    for name in order:
        if not clock.allows(name):
            reasons[name] = "deadline"
            continue
        began = time.perf_counter()
        try:
            scores = learners[name].score(batch)
        except Exception:  # the answer goes on without it, and says so
            log.exception("learner %s failed; answering without it", name)
            reasons[name] = "failed"
            continue
        seconds = time.perf_counter() - began
        costs.took(name, len(batch), seconds)
        laps[name] = round(seconds * 1000, 3)
        if np.isfinite(scores).all():
            base[name] = scores
        else:
            log.error("learner %s gave scores that are not finite", name)
            reasons[name] = "not finite"
    return base
