"""The clients: one that waits, and one for asyncio; the same calls."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx
from pydantic import BaseModel

from raysys.client import answers, calls
from raysys.client.batches import Batches
from raysys.client.calls import Call, Event, Listed, Recommended, Whom
from raysys.client.failures import ApiError, Unreachable
from raysys.client.retries import Retries
from raysys.client.sending import Attempts, read, settings

A = TypeVar("A", bound=BaseModel)


class Client:
    """Calls a served application; safe to use from several threads, keeps connections open.

    All calls raise `ApiError` for a refusal and `Unreachable` for no answer, after the retries
    that are worth it.

    Args:
        base_url: of the application; None: RAYSYS_URL, else http://127.0.0.1:8000.
        key: an API key; None: RAYSYS_API_KEY, else none.
        timeout_s: seconds that one try may take; a call's own `deadline_ms` makes it less.
        retries: when to try again.
        verify: as httpx has it: an `ssl.SSLContext` for certificates of your own.
        transport: httpx's, in place of the network.
        sleep: waits so many seconds.
    """

    def __init__(
        self,
        base_url: str | None = None,
        key: str | None = None,
        *,
        timeout_s: float = 5.0,
        retries: Retries | None = None,
        verify: bool | ssl.SSLContext = True,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        options = settings(base_url, key, timeout_s, verify)
        self._http = httpx.Client(**options, transport=transport)
        self._retries, self._sleep = retries or Retries(), sleep
        self._timeout_s = timeout_s
        self._met: set[str] = set()  # calls that raysys has answered

    def __enter__(self) -> Self:
        self._http.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.__exit__(kind, error, trace)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def recommend(
        self, user_id: str | None = None, **asked: Unpack[Recommended]
    ) -> answers.ListAnswer:
        """A list for a user or a session."""
        return self._send(calls.listed("/v1/recommend", **{"user_id": user_id, **asked}))

    def search(self, query: str, **asked: Unpack[Listed]) -> answers.ListAnswer:
        """A list for a query."""
        return self._send(calls.listed("/v1/search", query=query, **asked))

    def similar(self, item_id: str, **asked: Unpack[Listed]) -> answers.ListAnswer:
        """Items like one."""
        return self._send(calls.listed("/v1/similar", item_id=item_id, **asked))

    def rank(
        self, item_ids: Sequence[str], *, query: str | None = None, **asked: Unpack[Whom]
    ) -> answers.ListAnswer:
        """The items given, all of them, ranked for a query or a user."""
        return self._send(calls.listed("/v1/rank", item_ids=item_ids, query=query, **asked))

    def profile(self, user_id: str) -> answers.Profile:
        """What is known of a user."""
        return self._send(calls.profile(user_id))

    def events(self, events: Sequence[Event]) -> answers.EventsAnswer:
        """Send what users did; any number, in batches.

        A batch in which nothing is good is told as `rejected` events, and the others are sent.
        Events without an `event_id` get one before the first try, so that retries count once;
        when you call this again yourself, only ids of your own keep events from counting twice.

        Raises:
            ApiError, Unreachable: a batch was not answered. `answered` says what became of those
                before it, `unanswered` holds the other events, with the ids they were sent by.
        """
        batches = Batches(events)
        for call in batches:
            try:
                batches.answered(self._send(call))
            except (ApiError, Unreachable) as error:
                batches.failed(error)
        return batches.joined()

    def classify(self, texts: Sequence[str], *, choices: int = 3) -> answers.Labels:
        """What texts are."""
        return self._send(calls.of_texts("classify", answers.Labels, texts, choices=choices))

    def sentiment(self, texts: Sequence[str], *, choices: int = 3) -> answers.Sentiments:
        """How texts sound."""
        return self._send(calls.of_texts("sentiment", answers.Sentiments, texts, choices=choices))

    def entities(
        self, texts: Sequence[str], *, labels: Sequence[str] | None = None
    ) -> answers.Entities:
        """Brands, models and the like in texts; `labels`: these alone."""
        return self._send(calls.of_spans(texts, labels))

    def relevance(self, query: str, texts: Sequence[str]) -> answers.Grades:
        """How well texts answer a query."""
        return self._send(calls.of_texts("relevance", answers.Grades, texts, query=query))

    def ready(self) -> answers.Readiness:
        """What answers."""
        return self._send(calls.READY)

    def bundles(self) -> answers.BundlesAnswer:
        """All bundles (role admin, as what follows)."""
        return self._send(calls.BUNDLES)

    def promote(
        self, bundle: str, *, name: str | None = None, force: bool = False
    ) -> answers.PointerAnswer:
        """Give a bundle the champion's name, or another; 409 if its figures are worse."""
        return self._send(calls.promote(bundle, name, force))

    def rollback(self, name: str = "champion") -> answers.PointerAnswer:
        """Give a name back to the bundle that had it before; never sent twice by itself."""
        return self._send(calls.rollback(name))

    def canary(self) -> answers.CanaryAnswer:
        """What is tried, and how it does."""
        return self._send(calls.CANARY)

    def try_canary(self, canary: Mapping[str, Any] | None) -> answers.CanaryAnswer:
        """Try a bundle beside the champion, such as {"bundle": …, "share": 0.1}; None: stop."""
        return self._send(calls.canary(canary))

    def leave_canary(self) -> answers.CanaryAnswer:
        """Leave it to the deployment's `user_config` again, whatever was asked for."""
        return self._send(calls.LEAVE_CANARY)

    def _send(self, call: Call[A]) -> A:
        attempts = Attempts(call, self._retries, self._timeout_s, self._met)
        while True:
            try:
                response = self._http.request(
                    call.method,
                    call.path,
                    json=call.body,
                    headers=call.headers,
                    timeout=attempts.left_s(),
                )
            except httpx.TransportError as error:
                wait: float | None = attempts.after_failure(error)
            else:
                wait = attempts.after_response(response)
                if wait is None:
                    return read(call, response)
            self._sleep(wait or 0.0)


class AsyncClient:
    """`Client` for asyncio; see there."""

    def __init__(
        self,
        base_url: str | None = None,
        key: str | None = None,
        *,
        timeout_s: float = 5.0,
        retries: Retries | None = None,
        verify: bool | ssl.SSLContext = True,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Any] = asyncio.sleep,
    ) -> None:
        options = settings(base_url, key, timeout_s, verify)
        self._http = httpx.AsyncClient(**options, transport=transport)
        self._retries, self._sleep = retries or Retries(), sleep
        self._timeout_s = timeout_s
        self._met: set[str] = set()  # calls that raysys has answered

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.__aexit__(kind, error, trace)

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def recommend(
        self, user_id: str | None = None, **asked: Unpack[Recommended]
    ) -> answers.ListAnswer:
        """See `Client.recommend`."""
        return await self._send(calls.listed("/v1/recommend", **{"user_id": user_id, **asked}))

    async def search(self, query: str, **asked: Unpack[Listed]) -> answers.ListAnswer:
        """See `Client.search`."""
        return await self._send(calls.listed("/v1/search", query=query, **asked))

    async def similar(self, item_id: str, **asked: Unpack[Listed]) -> answers.ListAnswer:
        """See `Client.similar`."""
        return await self._send(calls.listed("/v1/similar", item_id=item_id, **asked))

    async def rank(
        self, item_ids: Sequence[str], *, query: str | None = None, **asked: Unpack[Whom]
    ) -> answers.ListAnswer:
        """See `Client.rank`."""
        return await self._send(calls.listed("/v1/rank", item_ids=item_ids, query=query, **asked))

    async def profile(self, user_id: str) -> answers.Profile:
        """See `Client.profile`."""
        return await self._send(calls.profile(user_id))

    async def events(self, events: Sequence[Event]) -> answers.EventsAnswer:
        """See `Client.events`."""
        batches = Batches(events)
        for call in batches:
            try:
                batches.answered(await self._send(call))
            except (ApiError, Unreachable) as error:
                batches.failed(error)
        return batches.joined()

    async def classify(self, texts: Sequence[str], *, choices: int = 3) -> answers.Labels:
        """See `Client.classify`."""
        return await self._send(calls.of_texts("classify", answers.Labels, texts, choices=choices))

    async def sentiment(self, texts: Sequence[str], *, choices: int = 3) -> answers.Sentiments:
        """See `Client.sentiment`."""
        call = calls.of_texts("sentiment", answers.Sentiments, texts, choices=choices)
        return await self._send(call)

    async def entities(
        self, texts: Sequence[str], *, labels: Sequence[str] | None = None
    ) -> answers.Entities:
        """See `Client.entities`."""
        return await self._send(calls.of_spans(texts, labels))

    async def relevance(self, query: str, texts: Sequence[str]) -> answers.Grades:
        """See `Client.relevance`."""
        return await self._send(calls.of_texts("relevance", answers.Grades, texts, query=query))

    async def ready(self) -> answers.Readiness:
        """See `Client.ready`."""
        return await self._send(calls.READY)

    async def bundles(self) -> answers.BundlesAnswer:
        """See `Client.bundles`."""
        return await self._send(calls.BUNDLES)

    async def promote(
        self, bundle: str, *, name: str | None = None, force: bool = False
    ) -> answers.PointerAnswer:
        """See `Client.promote`."""
        return await self._send(calls.promote(bundle, name, force))

    async def rollback(self, name: str = "champion") -> answers.PointerAnswer:
        """See `Client.rollback`."""
        return await self._send(calls.rollback(name))

    async def canary(self) -> answers.CanaryAnswer:
        """See `Client.canary`."""
        return await self._send(calls.CANARY)

    async def try_canary(self, canary: Mapping[str, Any] | None) -> answers.CanaryAnswer:
        """See `Client.try_canary`."""
        return await self._send(calls.canary(canary))

    async def leave_canary(self) -> answers.CanaryAnswer:
        """See `Client.leave_canary`."""
        return await self._send(calls.LEAVE_CANARY)

    async def _send(self, call: Call[A]) -> A:
        attempts = Attempts(call, self._retries, self._timeout_s, self._met)
        while True:
            try:
                response = await self._http.request(
                    call.method,
                    call.path,
                    json=call.body,
                    headers=call.headers,
                    timeout=attempts.left_s(),
                )
            except httpx.TransportError as error:
                wait: float | None = attempts.after_failure(error)
            else:
                wait = attempts.after_response(response)
                if wait is None:
                    return read(call, response)
            await self._sleep(wait or 0.0)
