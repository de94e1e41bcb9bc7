"""The transformers of bundles in a process of their own: loaded, warm, each behind a batcher.

It knows bundles by their ids: a vector is of use only beside the vectors it was trained with, so
every call names its bundle, and a replica holds those of the champion, of what is tried beside it,
and of the one before.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import Field

from raysys.cluster import device_here
from raysys.errors import UserError
from raysys.learners.protocol import Float32
from raysys.registry import Registry, Transformers, load_transformers
from raysys.serving.asking import Int32
from raysys.serving.batching import BatchArgs, Batcher
from raysys.serving.lease import Rest
from raysys.serving.metrics import Metrics

log = logging.getLogger("raysys")

QUERIES: Final = "queries"
SESSIONS: Final = "sessions"
PAIRS: Final = "pairs"
COMPARED: Final = "query_vectors"

_WARM_PAIRS = 16  # of one call


class TransformerArgs(BatchArgs):
    """Of the deployment `Transformer`; how many replicas, CPUs and GPUs say `deployments`.

    Attributes:
        device: where the models run; `auto`: on a GPU where the replica has one.
        max_pairs: pairs of query and item that a cross-encoder reads at once.
        keep: bundles whose transformers are held, the last ones asked for.
        timeout_ms: that an answer without a deadline waits for it at most.
        rest_s: after several faults in a row it is left alone for so long.
        start_s: that a replica which starts waits for it to be warm; then it answers without.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    max_pairs: Annotated[int, Field(ge=1, le=4096)] = 64
    keep: Annotated[int, Field(ge=1, le=100)] = 3
    timeout_ms: Annotated[float, Field(gt=0, le=60_000)] = 1000
    rest_s: Annotated[float, Field(gt=0, le=3600)] = 5
    start_s: Annotated[float, Field(ge=0, le=3600)] = 120


@dataclass(frozen=True)
class Encoded:
    """What transformers made of one request.

    Attributes:
        queries: float32[texts, d]; None where none were given, or nobody encodes them.
        sessions: float32[histories, d]; likewise.
        compared: float32[texts, d], of all spaces side by side (`QueryEncoders`); likewise.
    """

    queries: Float32 | None = None
    sessions: Float32 | None = None
    compared: Float32 | None = None


class NotLoadedError(Exception):
    """The bundle is not here yet; it is being loaded, or cannot be (then the text says why)."""


class Hosted:
    """The transformers of one bundle behind batchers.

    Args:
        models: loaded.
        args: how calls are put together.
        metrics: counts batches.
    """

    def __init__(self, models: Transformers, args: TransformerArgs, metrics: Metrics) -> None:
        self._models, self._args, self._metrics = models, args, metrics
        self._batchers: dict[str, Batcher[Any, Any]] = {}
        texts, sessions, pairs = models.texts, models.sessions, models.reranker
        compared = models.queries
        if texts is not None:
            self._add(QUERIES, lambda given: texts.encode(_flat(given)), args)
        if sessions is not None:
            self._add(SESSIONS, lambda given: sessions.encode_sessions(_flat(given)), args)
        if compared is not None:
            self._add(COMPARED, lambda given: compared.encode(_flat(given)), args)
        if pairs is not None:
            many = args.model_copy(
                update={
                    "max_batch": args.max_pairs,
                    "max_waiting": args.max_waiting * args.max_pairs,
                }
            )
            self._batchers[PAIRS] = Batcher(
                PAIRS, pairs.pairs_of, many, lambda size, waits: self._told(PAIRS, size, waits)
            )

    def _add(self, kind: str, run: Callable[[list[list[Any]]], Float32], args: BatchArgs) -> None:
        """A batcher of calls with several inputs each, of which each gets its rows."""

        def split(given: list[list[Any]]) -> list[Float32]:
            sizes = [len(each) for each in given]
            return np.split(run(given), np.cumsum(sizes)[:-1])

        self._batchers[kind] = Batcher(
            kind, split, args, lambda size, waits: self._told(kind, size, waits)
        )

    def _told(self, kind: str, size: int, waits: list[float]) -> None:
        self._metrics.observe("raysys_batch_size", size, kind=kind)
        for wait in waits:
            self._metrics.observe("raysys_batch_wait_seconds", wait, kind=kind)

    def warm_up(self) -> None:
        """Run batches of every size."""
        n_items = self._models.n_items
        history = np.arange(min(n_items, 30), dtype=np.int32)
        examples: dict[str, tuple[list[Any], int]] = {
            QUERIES: ([["milk"], ["frozen pizza, large, of the house brand"]], 1),
            SESSIONS: ([[history], [history[:3]]], 1),
            COMPARED: ([["milk"], ["frozen pizza, large, of the house brand"]], 1),
            PAIRS: ([("frozen pizza", history[: min(n_items, _WARM_PAIRS)])], _WARM_PAIRS),
        }
        for kind, batcher in self._batchers.items():
            batcher.warm_up(*examples[kind])

    def encode(
        self, texts: Sequence[str], histories: Sequence[Int32], until: float
    ) -> tuple[Future[Float32] | None, Future[Float32] | None]:
        """Vectors of queries and histories, as they come.

        Raises:
            FullError: too many wait.
        """
        return self._submit(QUERIES, texts, until), self._submit(SESSIONS, histories, until)

    def compared(self, texts: Sequence[str], until: float) -> Future[Float32] | None:
        """Vectors of normalised queries for features; see `encode`.

        Raises:
            FullError: too many wait.
        """
        return self._submit(COMPARED, texts, until)

    def _submit(self, kind: str, given: Sequence[Any], until: float) -> Future[Float32] | None:
        batcher = self._batchers.get(kind) if len(given) else None
        return None if batcher is None else batcher.submit(list(given), len(given), until)

    def pairs(self, query: str, items: Int32, until: float) -> Future[Float32]:
        """Scores of pairs; see `encode`.

        Raises:
            NotLoadedError: the bundle has no cross-encoder.
        """
        if PAIRS not in self._batchers:
            raise NotLoadedError("the bundle has no cross-encoder")
        return self._batchers[PAIRS].submit((query, items), len(items), until)

    def close(self) -> None:
        """End the threads."""
        for batcher in self._batchers.values():
            batcher.close()


def _flat(given: list[list[Any]]) -> list[Any]:
    return [each for several in given for each in several]


class Host:
    """The transformers of several bundles; safe to use from several threads.

    Args:
        registry: where the bundles lie.
        args: the deployment's.
        metrics: counts batches.
    """

    def __init__(self, registry: Path, args: TransformerArgs, metrics: Metrics) -> None:
        self._registry, self._args, self._metrics = Registry(registry), args, metrics
        self._held: OrderedDict[str, Hosted] = OrderedDict()
        self._lock = threading.Lock()  # of what is held
        self._loading = threading.Lock()  # one at a time
        self._wanted: set[str] = set()
        self._resting: dict[str, Rest] = {}

    def get(self, bundle: str) -> Hosted:
        """The transformers of a bundle.

        Raises:
            NotLoadedError: they are being loaded from now on; or could not be, a while ago.
        """
        with self._lock:
            hosted = self._held.get(bundle)
            if hosted is not None:
                self._held.move_to_end(bundle)
                return hosted
            if self._rests(bundle) is not None:
                raise NotLoadedError("failed")
            fresh = bundle not in self._wanted
            self._wanted.add(bundle)
        if fresh:
            threading.Thread(target=self._try, args=(bundle,), name="load", daemon=True).start()
        raise NotLoadedError("loading")

    def prepare(self, bundle: str) -> None:
        """Have a bundle's transformers here and warm.

        Raises:
            UserError: there is no such bundle, or it is damaged; or it could not be loaded, and for
                a while nobody tries again.
        """
        with self._loading:
            with self._lock:
                if bundle in self._held:
                    return
                if (rest := self._rests(bundle)) is not None:
                    raise UserError(rest.why)
            try:
                hosted = self._load(bundle)
            except Exception as error:
                why = f"the transformers of {bundle} cannot be loaded: {error}"
                with self._lock:
                    self._resting[bundle] = Rest.after(self._resting.get(bundle), why)
                raise
            with self._lock:
                self._resting.pop(bundle, None)
                self._held[bundle] = hosted
                gone = []
                while len(self._held) > self._args.keep:
                    gone.append(self._held.popitem(last=False)[1])
        for old in gone:
            old.close()

    def close(self) -> None:
        """End everything."""
        with self._lock:
            held = list(self._held.values())
            self._held.clear()
        for hosted in held:
            hosted.close()

    def _load(self, bundle: str) -> Hosted:
        """A bundle's transformers, warm."""
        began = time.perf_counter()
        models = load_transformers(self._registry.path(bundle), self._device())
        hosted = Hosted(models, self._args, self._metrics)
        try:
            hosted.warm_up()
        except BaseException:
            hosted.close()  # or its threads would hold the models in memory
            raise
        log.info("transformers of %s: warm in %.1f s", bundle, time.perf_counter() - began)
        return hosted

    def _rests(self, bundle: str) -> Rest | None:
        """The rest that a bundle has from being loaded; the lock is held."""
        rest = self._resting.get(bundle)
        return rest if rest is not None and time.monotonic() < rest.until else None

    def _try(self, bundle: str) -> None:
        try:
            self.prepare(bundle)
        except UserError as error:
            log.error("transformers of %s cannot be loaded: %s", bundle, error)
        except Exception:
            log.exception("transformers of %s cannot be loaded", bundle)
        finally:
            with self._lock:
                self._wanted.discard(bundle)

    def _device(self) -> str:
        return device_here() if self._args.device == "auto" else self._args.device
