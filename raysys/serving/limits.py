"""How often a key or an address may call: 429 beyond its requests a second, as ASGI middleware.

A sliding window counter (two counters each, whatever the rate) by the package `limits`; in memory,
or in Redis for all replicas together. A Redis that does not answer never costs an answer, nor its
deadline: each replica counts alone until it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import logging
import math
import time
from collections.abc import Coroutine
from functools import partial
from typing import Any

from limits import RateLimitItem, RateLimitItemPerSecond
from limits.errors import ConfigurationError
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from starlette.types import ASGIApp, Receive, Scope, Send

from raysys.errors import UserError, missing_extra
from raysys.serving.access import ASSETS, PAGES, AccessTable, path_of
from raysys.serving.arrival import left_s
from raysys.serving.edge_args import LimitArgs
from raysys.serving.keys import Key
from raysys.serving.problems import Problem

log = logging.getLogger("raysys")

REDIS_PATIENCE_S = 0.1  # nobody waits for Redis longer
REDIS_LEAST_S = 0.02  # that the most hurried one waits: a Redis that is there answers in less
REDIS_PAUSE_S = 5.0  # after a failure, requests do not wait for Redis for so long

_WINDOW_S = 1.0  # of the rates


class RateLimits:
    """Answers 429 with Retry-After to who is beyond their rate; comes after `Admission`.

    Who has a key is counted by it. Who has none is counted by address: for pages where there are
    keys, for all but health and the API page where there are none.

    Args:
        app: what answers.
        args: the deployment's.
        deadline_ms: the deployment's, of requests that name none; None: they have none.

    Raises:
        UserError: Redis is wanted and its package is missing.
    """

    def __init__(self, app: ASGIApp, args: LimitArgs, deadline_ms: float | None = None) -> None:
        self.app, self.args, self.deadline_ms = app, args, deadline_ms
        self._alone = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._table = AccessTable()
        self._together = None if args.redis is None else _in_redis(args.redis)
        self._pause_until = 0.0
        self._refused: dict[str, float] = {}  # key → until when, by what came too late
        self._asked: set[asyncio.Task[bool | None]] = set()  # a loop holds its tasks weakly

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        counted = self._counted(scope) if scope["type"] == "http" else None
        if counted is None:
            await self.app(scope, receive, send)
            return
        who, name, rate = counted
        item = RateLimitItemPerSecond(rate)
        if await self._hit(item, who, self.patience_s(scope)):
            await self.app(scope, receive, send)
            return
        reset, _ = self._alone.get_window_stats(item, who)
        wait = max(1, math.ceil(reset - time.time()))
        detail = f"{name} may ask {rate} times a second; come back later"
        problem = Problem(429, "too-many-requests", detail, retry_after_s=wait)
        await problem.response(scope["path"])(scope, receive, send)

    def _counted(self, scope: Scope) -> tuple[str, str, int] | None:
        """By what a request is counted, how to call that, and its rate; None: it is not."""
        state = scope.get("state", {})
        key: Key | None = state.get("key")
        if key is not None:
            rate = key.per_second or self.args.per_second
            return (key.id, f"the key {key.id}", rate) if rate else None
        keyed = state.get("keyed", False)
        rate = self.args.pages_per_second if keyed else self.args.per_second
        if not rate:
            return None
        methods, path = self._table.methods(path_of(scope)), self._table.route(path_of(scope))
        is_page = f"{scope['method']} {path}" in PAGES and path != ASSETS
        if is_page or (not keyed and methods.get(scope["method"], "open") != "open"):
            return address_of(scope), "one address", rate
        return None

    def patience_s(self, scope: Scope) -> float:
        """Seconds that a request waits for Redis: half of what its deadline leaves, at most.

        But never less than a Redis needs that is there: or a header would be a way around it.
        """
        half = left_s(scope, self.deadline_ms) / 2
        return min(REDIS_PATIENCE_S, max(REDIS_LEAST_S, half))

    async def _hit(self, item: RateLimitItem, key_id: str, patience_s: float) -> bool:
        together = self._together
        if together is not None and time.monotonic() >= self._pause_until:
            # goes on when the caller waits no longer: whether Redis is to be left alone is not for
            # the most hurried one to say
            task = asyncio.create_task(self._hit_in_redis(together.hit(item, key_id)))
            self._asked.add(task)
            task.add_done_callback(self._asked.discard)
            done, _ = await asyncio.wait({task}, timeout=patience_s)
            if done and (allowed := task.result()) is not None:
                return allowed
            task.add_done_callback(partial(self._note_late, key_id))
        if time.monotonic() < self._refused.get(key_id, 0.0):
            return False
        return self._alone.hit(item, key_id)

    def _note_late(self, key_id: str, task: asyncio.Task[bool | None]) -> None:
        """What Redis said when nobody waited any more: a no holds for the next ones."""
        if not task.cancelled() and task.exception() is None and task.result() is False:
            now = time.monotonic()
            self._refused = {k: until for k, until in self._refused.items() if until > now}
            self._refused[key_id] = now + _WINDOW_S

    async def _hit_in_redis(self, hit: Coroutine[Any, Any, bool]) -> bool | None:
        """Whether Redis allows it; None: it does not answer."""
        try:
            return bool(await asyncio.wait_for(hit, 2 * REDIS_PATIENCE_S))
        except Exception as error:  # whatever it is, it must not cost the answer
            if time.monotonic() >= self._pause_until:
                log.warning("no Redis for rate limits (%r): this replica counts alone", error)
            self._pause_until = time.monotonic() + REDIS_PAUSE_S
            return None


def address_of(scope: Scope) -> str:
    """What one address is counted by, which does not tell it.

    The server in front of the application says who called: uvicorn, which Serve runs, believes
    X-Forwarded-For of this machine, or of the proxies that FORWARDED_ALLOW_IPS names.
    """
    host = (scope.get("client") or ("",))[0]
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        mapped = getattr(address, "ipv4_mapped", None) or address
        # whoever has one address of IPv6 has the others of its network as well
        host = str(mapped if mapped.version == 4 else ipaddress.ip_network((mapped, 64), False))
    return "address-" + hashlib.blake2b(host.encode("utf-8", "replace"), digest_size=8).hexdigest()


def _in_redis(url: str) -> Any:
    try:
        import redis.asyncio  # noqa: F401
        from limits.aio.storage import RedisStorage
        from limits.aio.strategies import SlidingWindowCounterRateLimiter as Shared
    except ImportError:
        raise missing_extra("redis", "redis") from None
    try:
        storage = RedisStorage(
            f"async+{url.replace('unix:', 'redis+unix:', 1)}",
            implementation="redispy",
            key_prefix="raysys:limits",
            socket_timeout=REDIS_PATIENCE_S,
            socket_connect_timeout=REDIS_PATIENCE_S,
        )
    except (ValueError, ConfigurationError) as error:
        raise UserError(f"no address of Redis: {error}", where="limits.redis") from None
    return Shared(storage)
