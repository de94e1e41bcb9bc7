"""The routes of ranked lists."""

# No `from __future__ import annotations` here: FastAPI reads the annotations of the routes.
import time
from typing import Annotated, Final

from fastapi import FastAPI, Header, Request
from fastapi.responses import Response
from pydantic_core import to_json

from raysys.serving.api import (
    Deadline,
    ListAnswer,
    RankRequest,
    RecommendRequest,
    SearchRequest,
    SimilarRequest,
    Urgency,
)
from raysys.serving.asking import Context
from raysys.serving.edge_args import AuthArgs
from raysys.serving.intake import ListRequest
from raysys.serving.problems import Problem, invalid
from raysys.serving.service import Service
from raysys.serving.tracing import Trace, Tracing
from raysys.serving.treatments import HEADER
from raysys.serving.workers import BACKGROUND, NORMAL, URGENT

Forced = Annotated[
    str | None,
    Header(
        alias=HEADER,
        max_length=1000,
        pattern=r"^[A-Za-z0-9_-]+=[A-Za-z0-9_-]+( *, *[A-Za-z0-9_-]+=[A-Za-z0-9_-]+)*$",
        description="Experiment=arm, several by commas: for testers, with a key that has the role "
        "admin too. What they are shown is left out of the analysis.",
    ),
]

LISTS: Final = {
    "/v1/recommend": NORMAL,
    "/v1/search": URGENT,
    "/v1/similar": NORMAL,
    "/v1/rank": NORMAL,
}
"""How urgent each is, unless a caller says that it is background."""

_ID_LENGTH: Final = 200


def add_list_routes(app: FastAPI, service: Service, tracing: Tracing | None = None) -> None:
    """Add `/v1/recommend`, `/v1/search`, `/v1/similar` and `/v1/rank`.

    Args:
        app: gets them.
        service: answers.
        tracing: is told of every answer; None: no traces are made.
    """

    async def answer(
        asked: ListRequest,
        request: Request,
        deadline_ms: float | None,
        urgency: str,
        forced: str | None,
    ) -> Response:
        route = request.scope["route"].path
        own = LISTS[route]
        priority = BACKGROUND if urgency == "background" else own
        arms = _forced(forced, request, service.args.auth)
        trace = None
        if tracing is not None:
            sent = {name: request.headers.get(name) for name in ("traceparent", "tracestate")}
            carrier = {name: value for name, value in sent.items() if value is not None}
            trace = Trace(route, request.state.arrived, carrier)
        context = Context(
            request.state.arrived,
            deadline_ms,
            priority,
            forced=arms,
            http_request_id=http_request_id(request.headers.get("x-request-id")),
            trace=trace,
        )

        def work() -> bytes:
            # the answer is our own: serialised in the thread, and not checked once more by FastAPI
            given = service.content(asked, context)
            request.state.degraded = given["degraded"]
            written = to_json(given)
            if trace is not None:
                trace.ended = time.perf_counter()
            return written

        content = await service.run(work, context)
        if trace is not None and tracing is not None:
            tracing.offer(trace)
        return Response(content, media_type="application/json")

    @app.post(
        "/v1/recommend",
        tags=["lists"],
        summary="A list without a query",
        response_model=ListAnswer,
    )
    async def recommend(
        asked: RecommendRequest,
        request: Request,
        deadline_ms: Deadline = None,
        priority: Urgency = "normal",
        forced: Forced = None,
    ) -> Response:
        """A list for a user or a session: home page, beside an item, or with a cart.

        An unknown user gets what sells, or what goes with `item_ids`, and `cold_start: true`.
        """
        return await answer(asked, request, deadline_ms, priority, forced)

    @app.post(
        "/v1/search",
        tags=["lists"],
        summary="A list for a query",
        response_model=ListAnswer,
    )
    async def search(
        asked: SearchRequest,
        request: Request,
        deadline_ms: Deadline = None,
        priority: Urgency = "normal",
        forced: Forced = None,
    ) -> Response:
        """Items for a query, by words and meaning, ordered for the user where one is given.

        Slips of the pen, stems and beginnings of words are understood.
        """
        return await answer(asked, request, deadline_ms, priority, forced)

    @app.post(
        "/v1/similar",
        tags=["lists"],
        summary="Items like one",
        response_model=ListAnswer,
    )
    async def similar(
        asked: SimilarRequest,
        request: Request,
        deadline_ms: Deadline = None,
        priority: Urgency = "normal",
        forced: Forced = None,
    ) -> Response:
        """Items like one: by words, by meaning and by what is bought with it."""
        return await answer(asked, request, deadline_ms, priority, forced)

    @app.post(
        "/v1/rank",
        tags=["lists"],
        summary="The caller's own items, ranked",
        response_model=ListAnswer,
    )
    async def rank(
        asked: RankRequest,
        request: Request,
        deadline_ms: Deadline = None,
        priority: Urgency = "normal",
        forced: Forced = None,
    ) -> Response:
        """The caller's own items, all of them, ranked for a query or a user.

        Items that the catalogue lacks come last with `score: null`, and in `unknown_item_ids`.
        """
        return await answer(asked, request, deadline_ms, priority, forced)


def http_request_id(said: str | None) -> str | None:
    """The id by which Serve's log lines name a call, as records keep it.

    Serve's proxy puts one into the header where the caller sent none; a caller's may be anything.

    Args:
        said: the header `X-Request-Id`; None: there is none.

    Returns:
        Its first 200 printable characters; None: it has none.
    """
    return "".join(filter(str.isprintable, said or ""))[:_ID_LENGTH] or None


def _forced(said: str | None, request: Request, auth: AuthArgs) -> dict[str, str]:
    """Experiment → arm, as a tester wants it.

    Raises:
        Problem: 403, the key lacks the role; 422, an experiment is named twice.
    """
    if said is None:
        return {}
    key = request.state.key
    may = "admin" in key.roles if key is not None else not request.state.keyed and not auth.open
    if not may:
        detail = f"{HEADER} needs a key with the role 'admin'"
        raise Problem(403, "role-missing", detail)
    pairs = [part.strip().partition("=") for part in said.split(",")]
    found = {experiment: arm for experiment, _, arm in pairs}
    if len(found) < len(pairs):
        raise invalid(f"header.{HEADER}", "an experiment is named twice", said)
    return found
