"""Scored candidates of requests that come again, in this replica and, where configured, in Redis.

What is kept is what the learners said, before the policy: pins, caps and exploration are done anew
for every answer. The key holds all that may change the scores, so nothing is ever taken back; a
user's new event raises a version in the key, and the next answer is made afresh.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field
from safetensors.numpy import load, save

from raysys.config import Settings
from raysys.errors import missing_extra
from raysys.retrieval.merge import Candidates
from raysys.serving.asking import Ranking
from raysys.serving.members import Costs
from raysys.serving.metrics import Metrics

log = logging.getLogger("raysys")

_MAKE = "make"

Told = Literal["hit", "stale", "miss", "shared", "remote"]
"""In memory; there, but old, and being made anew; made; made for another request; in Redis."""


class CacheArgs(Settings):
    """How long scored candidates are kept.

    Attributes:
        fresh_s: so long they are used as they are; what other users do shows that much later.
        stale_s: so much longer they are still used, while they are made anew behind the scenes.
        entries: most requests that a replica remembers; each weighs some 10 KB.
        redis: URL of a Redis that all replicas share, such as redis://127.0.0.1:6379/0 (extra
            `redis`); null: none. When it does not answer, each replica goes on alone.
        redis_timeout_ms: that an answer waits for it at most.
    """

    fresh_s: Annotated[float, Field(gt=0)] = 30
    stale_s: Annotated[float, Field(ge=0)] = 60
    entries: Annotated[int, Field(ge=1, le=10_000_000)] = 5000
    redis: str | None = None
    redis_timeout_ms: Annotated[float, Field(gt=0, le=1000)] = 10


def key_of(*parts: object) -> str:
    """One key of all that may change an answer: 32 hexadecimal digits."""
    text = json.dumps(parts, default=str, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@dataclass
class _Entry:
    ranking: Ranking
    made: float  # time.monotonic()


class _Flight:
    """A ranking that is being made, or is about to be."""

    def __init__(self, *, begun: bool) -> None:
        self.future: Future[Ranking] = Future()
        self.begun = begun  # else it waits for the thread that refreshes


class Cache:
    """Rankings by key; safe to use from several threads.

    Args:
        args: how long, how many, and where else.
        metrics: counts how each one was known.
    """

    def __init__(self, args: CacheArgs, metrics: Metrics) -> None:
        self.args, self._metrics = args, metrics
        self._held: OrderedDict[str, _Entry] = OrderedDict()
        self._flights: dict[str, _Flight] = {}
        self._costs = Costs()
        self._lock = threading.Lock()
        self._refresher = ThreadPoolExecutor(1, thread_name_prefix="refresh")
        self._remote = None if args.redis is None else Remote(args, metrics)

    def get(
        self,
        key: str,
        make: Callable[[], Ranking],
        *,
        again: Callable[[], Ranking] | None = None,
        until: float = np.inf,
    ) -> tuple[Ranking, Told]:
        """The ranking of a key, made if need be; of several who want one, one makes it.

        Args:
            key: see `key_of`.
            make: a ranking; one that leaves somebody out is not kept, nor shared.
            again: makes it behind the scenes, when nobody waits any more; None: as `make`.
            until: `time.perf_counter()` at which this caller wants it; who makes it is waited for
                as long as there would still be time to make it afterwards.
        """
        told: Told
        with self._lock:
            entry = self._held.get(key)
            age = np.inf if entry is None else time.monotonic() - entry.made
            if entry is not None and age <= self.args.fresh_s + self.args.stale_s:
                self._held.move_to_end(key)
                told = "hit" if age <= self.args.fresh_s else "stale"
                if told == "stale" and key not in self._flights:
                    queued = self._flights[key] = _Flight(begun=False)
                    self._refresher.submit(self._refresh, key, queued, again or make)
                return entry.ranking, told
            flight = self._flights.get(key)
            ours = flight is None or not flight.begun  # others are before it in the queue
            if flight is None:
                flight = self._flights[key] = _Flight(begun=True)
            flight.begun = True
        if ours:
            return self._fly(key, flight, make)
        try:
            # in vain it would have waited if no time were left to make it
            left = until - time.perf_counter() - self._costs.expected(_MAKE, 1)
            ranking = flight.future.result(None if until == np.inf else max(0.0, left))
        except TimeoutError:
            return make(), "miss"
        if ranking.reasons:  # the one who made it had less time
            return make(), "miss"
        return ranking, "shared"

    def peek(self, key: str) -> str:
        """How the key would be known now: hit, stale or miss."""
        with self._lock:
            entry = self._held.get(key)
        age = np.inf if entry is None else time.monotonic() - entry.made
        if age <= self.args.fresh_s:
            return "hit"
        return "stale" if age <= self.args.fresh_s + self.args.stale_s else "miss"

    def close(self) -> None:
        """End the thread that refreshes."""
        self._refresher.shutdown(wait=False, cancel_futures=True)

    def _refresh(self, key: str, flight: _Flight, make: Callable[[], Ranking]) -> None:
        """Make it behind the scenes, unless somebody who waits has taken it over."""
        with self._lock:
            if flight.begun:
                return
            flight.begun = True
        self._fly(key, flight, make)

    def _fly(self, key: str, flight: _Flight, make: Callable[[], Ranking]) -> tuple[Ranking, Told]:
        """Find or make it, keep it, and tell all who wait for it."""
        told: Told = "remote"
        try:
            found = self._remote.get(key) if self._remote is not None else None
            if found is None:
                began = time.perf_counter()
                found, told = (make(), 0.0), "miss"
                if not found[0].reasons:  # whole
                    self._costs.took(_MAKE, 1, time.perf_counter() - began)
            ranking, age = found
            if not ranking.reasons:
                self._keep(key, ranking, age)
                if told == "miss" and self._remote is not None:
                    self._refresher.submit(self._remote.put, key, ranking)
        except BaseException as error:
            flight.future.set_exception(error)
            flight.future.exception()  # seen: nobody may have waited
            raise
        else:
            flight.future.set_result(ranking)
        finally:
            with self._lock:
                self._flights.pop(key, None)
        return ranking, told

    def _keep(self, key: str, ranking: Ranking, age: float) -> None:
        with self._lock:
            self._held[key] = _Entry(ranking.lean(), time.monotonic() - age)
            self._held.move_to_end(key)
            while len(self._held) > self.args.entries:
                self._held.popitem(last=False)


class Remote:
    """Rankings in Redis; every fault is a miss, and after one it is left alone for a while."""

    REST_S = 5.0

    def __init__(self, args: CacheArgs, metrics: Metrics) -> None:
        try:
            import redis
        except ImportError:
            raise missing_extra("redis", "redis") from None
        timeout = args.redis_timeout_ms / 1000
        self._client: Any = redis.Redis.from_url(
            str(args.redis), socket_timeout=timeout, socket_connect_timeout=timeout
        )
        self._fault: type[Exception] = redis.RedisError
        self._fresh_ms = int(args.fresh_s * 1000)
        self._metrics = metrics
        self._rests_until = 0.0

    def get(self, key: str) -> tuple[Ranking, float] | None:
        """The ranking of a key and its age in seconds; None where there is none, or no Redis."""
        found = self._try(lambda: self._client.get(f"raysys:{key}"))
        try:
            return None if found is None else _decode(found)
        except Exception:  # of another version, or of nobody's making
            log.exception("what Redis holds under %s is no ranking", key)
            return None

    def put(self, key: str, ranking: Ranking) -> None:
        """Keep a ranking as long as it is fresh."""
        self._try(lambda: self._client.set(f"raysys:{key}", _encode(ranking), px=self._fresh_ms))

    def _try(self, call: Callable[[], Any]) -> Any:
        if time.monotonic() < self._rests_until:
            return None
        try:
            return call()
        except self._fault as error:
            log.warning("the shared cache does not answer: %s", error)
            self._metrics.count("raysys_cache_faults")
            self._rests_until = time.monotonic() + self.REST_S
            return None


def _encode(ranking: Ranking) -> bytes:
    """As bytes, in safetensors: no reader of them runs code."""
    arrays = {
        "items": np.ascontiguousarray(ranking.pool.items),
        "sources": np.ascontiguousarray(ranking.pool.sources),
        "scores": np.ascontiguousarray(ranking.scores, dtype=np.float32),
        "facts": np.frombuffer(
            json.dumps(
                [
                    ranking.pool.names,
                    ranking.timestamp,
                    ranking.fallback,
                    time.time(),
                    ranking.filled_for,
                ]
            ).encode(),
            np.uint8,
        ),
    }
    if ranking.relevance is not None:
        arrays["relevance"] = np.ascontiguousarray(ranking.relevance, dtype=np.float32)
    if ranking.reranked is not None:
        arrays["reranked"] = np.ascontiguousarray(ranking.reranked, dtype=np.float32)
    return save(arrays)


def _decode(content: bytes) -> tuple[Ranking, float]:
    """What `_encode` gave, and its age in seconds."""
    arrays = load(content)
    names, timestamp, fallback, made, filled_for = json.loads(arrays["facts"].tobytes())
    pool = Candidates(arrays["items"], arrays["sources"], tuple(names))
    ranking = Ranking(
        pool,
        int(timestamp),
        scores=arrays["scores"],
        fallback=str(fallback),
        relevance=arrays.get("relevance"),
        reranked=arrays.get("reranked"),
        filled_for=int(filled_for),
    )
    return ranking, max(0.0, time.time() - made)
