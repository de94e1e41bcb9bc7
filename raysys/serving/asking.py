"""What an answer is asked for, and what led to it."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from raysys.ensemble import EnsembleScores
from raysys.features.batch import Batch
from raysys.learners.protocol import Float32
from raysys.retrieval.allowed import Allowed
from raysys.retrieval.merge import Candidates
from raysys.serving.filters import FilterKey
from raysys.serving.tracing import Trace

Int32 = npt.NDArray[np.int32]

ABOUT_ITEMS = ("item", "cart")
"""Places whose lists go with the items in view."""


@dataclass(frozen=True)
class Context:
    """How a call came in.

    Attributes:
        arrived: `time.perf_counter()` when it did.
        deadline_ms: after which the caller does not wait; None: the deployment's.
        priority: 0 is served first.
        request_id: None: a new one; one that was given gives the same answer again.
        at: UTC ms for what is dated; None: now.
        forced: experiment → arm, as a tester wants it whatever the draw says.
        shown: whether somebody is shown the list; one that is made for its figures alone is neither
            recorded, nor counted for drift or an experiment.
        counted: whether its answer counts in the metrics; of the rankings that one list is drafted
            from, one does.
        http_request_id: by which Serve's log lines name the call; None: it came by none.
        trace: is told what the answer took; None: nobody wants to know.
    """

    arrived: float
    deadline_ms: float | None = None
    priority: int = 1
    request_id: str | None = None
    at: int | None = None
    forced: Mapping[str, str] = field(default_factory=dict)
    shown: bool = True
    counted: bool = True
    http_request_id: str | None = None
    trace: Trace | None = None


@dataclass(frozen=True)
class Ask:
    """What an answer is asked for.

    Attributes:
        surface: recommend, search, similar or rank.
        user: number, -1 for an unknown one.
        k: length of the list.
        now: UTC ms at which features are read.
        at: UTC ms of the request, for what is dated in a policy.
        request_id: of the answer; all that is random follows from it.
        until: `time.perf_counter()` at which the answer has to be there; infinity: at no time.
        seeds: int32[m], known items in view; the caller's own for `rank`.
        place: home, item or cart, for `recommend`.
        filters: as asked for, see `filters.key_of`.
        allowed: the only items that may be shown; None: all.
        session: number, -1 for none or an unknown one.
        query: number, -1 for none or one that the log never had.
        text: the query as typed; None: there is none.
    """

    surface: str
    user: int
    k: int
    now: int
    at: int
    request_id: str
    until: float = np.inf
    seeds: Int32 = field(default_factory=lambda: np.empty(0, np.int32))
    place: str = "home"
    filters: FilterKey = ()
    allowed: Allowed | None = None
    session: int = -1
    query: int = -1
    text: str | None = None

    @property
    def seed(self) -> int:
        """Of all that is random in the answer."""
        return int.from_bytes(hashlib.blake2b(self.request_id.encode(), digest_size=8).digest())


@dataclass
class Ranking:
    """Scored candidates and everything that led to their scores.

    Attributes:
        pool: the candidates, with their sources.
        timestamp: UTC ms at which features were read.
        scores: float32[n], final, of the whole pool, before the policy.
        fallback: which combination of the ensemble answered; `retrieval` when none could.
        batch: features of the pool; None when nothing was scored, or from a cache.
        base: base scores by learner, float32[n].
        ensemble: what the ensemble made of them; None when nobody scored, or from a cache.
        relevance: float32[n] to the query or item, or None.
        encoded: float32[1, d], the user's history as the session encoder says it; None: it has not
            been asked.
        query_vectors: float32[d] of a query that the log never had, by the name of the plan's
            vectors; None: they have not been asked for.
        reranked: float32[n], what the cross-encoder says of the best few, NaN for all others; None:
            it has said nothing.
        reasons: who was left out -> why.
        milliseconds: by stage.
        filled_for: so many items the pool holds, or all that may be shown.
    """

    pool: Candidates
    timestamp: int
    scores: Float32 = field(default_factory=lambda: np.empty(0, np.float32))
    fallback: str = "retrieval"
    batch: Batch | None = None
    base: dict[str, Float32] = field(default_factory=dict)
    ensemble: EnsembleScores | None = None
    relevance: Float32 | None = None
    encoded: Float32 | None = None
    query_vectors: dict[str, Float32] | None = None
    reranked: Float32 | None = None
    reasons: dict[str, str] = field(default_factory=dict)
    milliseconds: dict[str, float] = field(default_factory=dict)
    filled_for: int = 0

    def lean(self) -> Ranking:
        """Without what only an explanation needs."""
        return Ranking(
            pool=self.pool,
            timestamp=self.timestamp,
            scores=self.scores,
            fallback=self.fallback,
            relevance=self.relevance,
            encoded=self.encoded,
            reranked=self.reranked,
            filled_for=self.filled_for,
        )


class Watch:
    """Milliseconds between laps, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> float:
        """End a stage; its seconds."""
        now = time.perf_counter()
        seconds = now - self._last
        self.laps[name] = round(seconds * 1000, 3)
        self._last = now
        return seconds

    def skip(self) -> None:
        """What was until now is told by others."""
        self._last = time.perf_counter()


class _Chance:
    """Bytes of the system's generator, fetched for hundreds of ids at once.

    Each call of the system lets go of the interpreter, which another thread keeps for a while: one
    a request waited longer for that than for all its features.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = b""
        os.register_at_fork(after_in_child=self._forget)  # the parent gives these to others

    def take(self, n: int) -> bytes:
        """n bytes that nobody else gets."""
        with self._lock:
            if len(self._left) < n:
                self._left = os.urandom(_FETCHED)
            taken, self._left = self._left[:n], self._left[n:]
        return taken

    def _forget(self) -> None:
        self._lock, self._left = threading.Lock(), b""


_FETCHED: Final = 5120
_CHANCE: Final = _Chance()


def new_request_id(at: int) -> str:
    """32 hexadecimal digits that begin with the moment (UTC ms), as UUID version 7 (RFC 9562)."""
    rest = int.from_bytes(_CHANCE.take(10))
    value = (at & (2**48 - 1)) << 80 | 7 << 76 | (rest >> 4 & 0xFFF) << 64
    return f"{value | 2 << 62 | rest & (2**62 - 1):032x}"


def moment_of(request_id: str) -> int | None:
    """UTC ms at which a request id was made, or None if it is not one of ours."""
    try:
        return int(request_id, 16) >> 80 if len(request_id) == 32 else None
    except ValueError:
        return None
