"""What a transformer makes of a request: its query, the user's history, the best few candidates.

In the replica itself, or one hop away in the deployment `Transformer`. Whoever asks says how long
it can wait; what is not there by then is left out of the answer, with the reason.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from raysys.learners.protocol import Float32
from raysys.registry import Bundle
from raysys.serving.asking import Int32
from raysys.serving.transformer import Encoded, TransformerArgs

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

log = logging.getLogger("raysys")

_FAULTS = 3  # in a row, after which it is left alone for a while
_LONGER = 1.5  # times as long as others waited in vain: that is worth a try


class UnavailableError(Exception):
    """It cannot be had in time; the text says why, as `reasons` of an answer do."""


class WaitedError(UnavailableError):
    """It takes longer than a caller could wait, who did."""


class Encoding(Protocol):
    """The transformers of one bundle.

    Attributes:
        remote: whether they lie in another process, so that what can be asked together should be.
    """

    remote: bool

    def encode(
        self,
        texts: Sequence[str],
        histories: Sequence[Int32],
        wait_s: float,
        compared: Sequence[str] = (),
    ) -> Encoded:
        """Vectors of queries and of histories.

        Args:
            texts: queries, as typed.
            histories: rows of the catalogue, newest first.
            wait_s: seconds within which they are of use; infinity: whenever.
            compared: normalised queries that features compare items with.

        Raises:
            UnavailableError: they are not to be had by then.
        """

    def pairs(self, query: str, items: Int32, wait_s: float) -> Float32:
        """How well items fit a query, read together: float32[n]; see `encode`."""

    def prepare(self, wait_s: float) -> None:
        """Have everything loaded and warm.

        Raises:
            UnavailableError: it is not within so many seconds.
        """


class Here:
    """In this very process.

    Args:
        bundle: whose transformers they are.
    """

    remote = False

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle

    def encode(
        self,
        texts: Sequence[str],
        histories: Sequence[Int32],
        wait_s: float,
        compared: Sequence[str] = (),
    ) -> Encoded:
        """See `Encoding`; it takes what it takes."""
        queries = self._bundle.query_encoders
        encoder, sessions = self._bundle.search.encoder, self._bundle.session_encoder
        return Encoded(
            encoder.encode(texts) if texts and encoder is not None else None,
            sessions[1].encode_sessions(histories) if histories and sessions is not None else None,
            queries.encode(compared) if compared and queries is not None else None,
        )

    def pairs(self, query: str, items: Int32, wait_s: float) -> Float32:
        """See `Encoding`."""
        assert self._bundle.reranking is not None
        return self._bundle.reranking.model.pairs_of([(query, items)])[0]

    def prepare(self, wait_s: float) -> None:
        """See `Encoding`; the first answers of the warm-up do it."""


class Rest:
    """Leaves alone what has failed several times in a row; then one try finds out how it is.

    Who gave up early says little to those who can wait longer: for them it is not down.

    Args:
        seconds: for how long.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waits: list[float] = []  # the longest that came to nothing, the shortest first
        self._until = 0.0
        self._lock = threading.Lock()

    def admits(self, wait_s: float = math.inf) -> bool:
        """Whether to try now; while it rests, one try each time the rest is over.

        Args:
            wait_s: that whoever asks would wait; infinity: as long as anybody.
        """
        with self._lock:
            now = time.monotonic()
            vain = self._waits[0] if len(self._waits) == _FAULTS else 0.0
            if not vain or _LONGER * vain < wait_s:
                return True
            if now < self._until:
                return False
            self._until = now + self._seconds
            return True

    def failed(self, wait_s: float = math.inf) -> None:
        """A try came to nothing.

        Args:
            wait_s: that was waited; infinity: waiting longer would not have helped.
        """
        with self._lock:
            self._waits = sorted([*self._waits, wait_s])[-_FAULTS:]
            self._until = time.monotonic() + self._seconds

    def ended(self) -> None:
        """It answers."""
        with self._lock:
            self._waits = []


class There:
    """In the deployment `Transformer`.

    Args:
        handle: of the deployment.
        bundle: id of the one whose transformers are meant.
        args: how long to wait where a request has no deadline, and when to give up.
    """

    remote = True

    def __init__(self, handle: DeploymentHandle[Any], bundle: str, args: TransformerArgs) -> None:
        self._handle, self._bundle, self._args = handle, bundle, args
        self._rest = Rest(args.rest_s)

    def encode(
        self,
        texts: Sequence[str],
        histories: Sequence[Int32],
        wait_s: float,
        compared: Sequence[str] = (),
    ) -> Encoded:
        """See `Encoding`."""
        return self._ask("encode", (list(texts), list(histories), list(compared)), wait_s)  # type: ignore[return-value]

    def pairs(self, query: str, items: Int32, wait_s: float) -> Float32:
        """See `Encoding`."""
        return self._ask("pairs", (query, items), wait_s)  # type: ignore[return-value]

    def prepare(self, wait_s: float) -> None:
        """See `Encoding`; of one of the deployment's replicas, the others load at their first."""
        response = self._handle.prepare.remote(self._bundle)
        try:
            why = response.result(timeout_s=wait_s)
        except Exception as error:
            response.cancel()
            raise UnavailableError(f"{type(error).__name__}: {error}") from None
        if why:
            raise UnavailableError(why)

    def _ask(self, what: str, given: tuple[Any, ...], wait_s: float) -> object:
        most_s = self._args.timeout_ms / 1000
        own = wait_s < most_s  # a deadline of the request's own: to miss it is no fault yet
        wait_s = min(wait_s, most_s)
        patience = wait_s if own else math.inf
        if not self._rest.admits(patience):
            raise UnavailableError("down")
        until = time.perf_counter() + wait_s
        response = getattr(self._handle, what).remote(self._bundle, *given, wait_s)
        try:
            found = response.result(timeout_s=max(0.0, until - time.perf_counter()))
        except TimeoutError:
            response.cancel()  # nobody waits for it, nor should a queue
            self._rest.failed(patience)
            raise (WaitedError if own else UnavailableError)("deadline") from None
        except Exception as error:  # a dead replica, a full queue, a fault over there
            log.warning("the transformer does not answer: %s: %.300s", type(error).__name__, error)
            self._rest.failed()
            raise UnavailableError("failed") from None
        self._rest.ended()
        if isinstance(found, str):
            raise UnavailableError(found)
        return found
