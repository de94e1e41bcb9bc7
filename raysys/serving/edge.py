"""What browsers are told with every answer, and which pages' scripts may read it."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from functools import lru_cache

from fastapi import FastAPI, Request
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raysys.serving.admission import Admission
from raysys.serving.api import Readiness
from raysys.serving.args import ServeArgs
from raysys.serving.arrival import Arrival
from raysys.serving.auth import Auth
from raysys.serving.limits import RateLimits
from raysys.serving.metrics import Metrics
from raysys.serving.page_errors import PageErrors
from raysys.serving.problems import FieldError, Problem, fault
from raysys.serving.traffic import Traffic, Watched
from raysys.serving.workers import Workers

PAGE_POLICY = (
    "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'"
)
"""Content-Security-Policy of pages: their own files only, and in no frame."""

DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"
"""Of everything else, should a browser show it as a page."""

_Raw = tuple[tuple[bytes, bytes], ...]
_OF_ALL: _Raw = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_OF_PAGES: _Raw = ((b"content-security-policy", PAGE_POLICY.encode()), *_OF_ALL)
_OF_DATA: _Raw = ((b"content-security-policy", DATA_POLICY.encode()), *_OF_ALL)
_CODING = "header.content-encoding"
_JSON = re.compile(rb"application/([\w.-]+[+-])?json")
_INLINE = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def protect(
    app: FastAPI,
    args: ServeArgs,
    traffic: Traffic,
    metrics: Callable[[], Metrics],
    workers: Callable[[], Workers],
) -> None:
    """Put the moment of arrival, headers, CORS, counts, keys, room and rate limits before an
    application, in this order: nobody without a key is told whether there is room.

    Args:
        app: what answers.
        args: the deployment's.
        traffic: where each answer is noted, also one that refuses.
        metrics: gives the metrics it is counted in.
        workers: gives the threads that lists need room in.

    Raises:
        UserError: the file of keys is missing or damaged.
    """
    app.add_middleware(JsonOnly)  # each that follows comes before it
    app.add_middleware(RateLimits, args=args.limits, deadline_ms=args.deadline_ms)
    app.add_middleware(Admission, workers=workers, metrics=metrics)
    app.add_middleware(Auth, args=args.auth, cors_origins=args.cors_origins)
    app.add_middleware(Faults)
    if args.pages.storefront and args.bundle is not None:
        app.add_middleware(PageErrors, name=args.pages.name)
    app.add_middleware(Watched, traffic=traffic, metrics=metrics)
    if args.cors_origins:  # before keys: a browser asks (OPTIONS) without one, and reads a 401
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(args.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=[
                "Authorization",
                "Content-Type",
                "X-API-Key",
                "X-Deadline-Ms",
                "X-Experiment-Arm",
                "X-Priority",
                "X-Request-Id",
                "X-Session-Id",
            ],
            expose_headers=["Retry-After"],
            max_age=600,
        )
    app.add_middleware(SecurityHeaders)
    app.add_middleware(Arrival)


def minimal(ready: Readiness, request: Request) -> Readiness:
    """What a caller without a key may know, where there are keys: that it is ready, and of what."""
    if request.state.key is None and request.state.keyed:
        return Readiness(bundle=ready.bundle, text=ready.text, loaded_at=ready.loaded_at)
    return ready


class JsonOnly:
    """Refuses a body that does not say that it is JSON, or says that it is compressed.

    Pages have forms: only the calls below /v1/ are held to it. A call without a body may say
    nothing.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        writes = scope["type"] == "http" and scope["method"] in ("POST", "PUT", "PATCH")
        if writes and scope["path"].removeprefix(scope.get("root_path", "")).startswith("/v1/"):
            error = _not_json(dict(scope["headers"]))
            if error is not None:
                problem = Problem(415, "unsupported-media-type", error.message, [error])
                response = problem.response(scope["path"])
                if error.path == _CODING:
                    response.headers["Accept-Encoding"] = "identity"  # RFC 9110, 12.5.3
                await response(scope, receive, send)
                return
        await self.app(scope, receive, send)


class Faults:
    """Answers a fault with the problem that says so.

    Starlette does too, but before everything else: without the headers that all answers have.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, noted)
        except Exception as error:
            if scope["type"] != "http" or started:
                raise
            await fault(scope, error)(scope, receive, send)


def _not_json(headers: dict[bytes, bytes]) -> FieldError | None:
    """What is wrong with the headers of a body, if anything is."""
    coding, said = headers.get(b"content-encoding", b""), headers.get(b"content-type")
    if coding.strip().lower() not in (b"", b"identity"):
        value = coding[:80].decode("latin-1")
        message = f"{value} is not read here: send it uncompressed"
        return FieldError(path=_CODING, message=message, value=value)
    path = "header.content-type"
    if said is None:
        sent = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        message = "required, but missing: send Content-Type: application/json"
        return FieldError(path=path, message=message) if sent else None
    if not _says_json(said):
        message = "send the body as application/json"
        return FieldError(path=path, message=message, value=said[:80].decode("latin-1"))
    return None


@lru_cache(maxsize=64)
def _says_json(content_type: bytes) -> bool:
    return _JSON.fullmatch(content_type.partition(b";")[0].strip().lower()) is not None


class SecurityHeaders:
    """Adds what an answer does not say itself."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                said = {name.lower(): value for name, value in message.get("headers", ())}
                page = said.get(b"content-type", b"").startswith(b"text/html")
                ours = _OF_PAGES if page else _OF_DATA
                if "/v1/" in scope["path"]:  # personal, or of this moment
                    ours = (*ours, (b"cache-control", b"no-store"))
                missing = [header for header in ours if header[0] not in said]
                message = {**message, "headers": [*message.get("headers", ()), *missing]}
            await send(message)

        await self.app(scope, receive, with_headers)


def policy_for(html: str, extra: str = "") -> str:
    """The policy of a page with scripts within it: each is allowed by its hash, others are not."""
    hashes = [
        "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
        for text in _INLINE.findall(html)
    ]
    return "; ".join(filter(None, [PAGE_POLICY, f"script-src 'self' {' '.join(hashes)}", extra]))
