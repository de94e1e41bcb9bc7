"""The routes of ranked lists."""

# No `from __future__ import annotations` here: FastAPI reads the annotations of the routes.
from fastapi import FastAPI, Request
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
from raysys.serving.service import ListRequest, Service
from raysys.serving.workers import BACKGROUND, NORMAL, URGENT


def add_list_routes(app: FastAPI, service: Service) -> None:
    """Add `/v1/recommend`, `/v1/search`, `/v1/similar` and `/v1/rank`."""

    async def answer(
        asked: ListRequest, request: Request, deadline_ms: float | None, urgency: str, own: int
    ) -> Response:
        priority = BACKGROUND if urgency == "background" else own
        context = Context(request.state.arrived, deadline_ms, priority)

        def work() -> bytes:
            # the answer is our own: serialised in the thread, and not checked once more by FastAPI
            given = service.content(asked, context)
            request.state.degraded = given["degraded"]
            return to_json(given)

        return Response(await service.run(work, context), media_type="application/json")

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
    ) -> Response:
        """A list for a user or a session: home page, beside an item, or with a cart.

        An unknown user gets what sells, or what goes with `item_ids`, and `cold_start: true`.
        """
        return await answer(asked, request, deadline_ms, priority, NORMAL)

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
    ) -> Response:
        """Items for a query, by words and meaning, ordered for the user where one is given.

        Slips of the pen, stems and beginnings of words are understood.
        """
        return await answer(asked, request, deadline_ms, priority, URGENT)

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
    ) -> Response:
        """Items like one: by words, by meaning and by what is bought with it."""
        return await answer(asked, request, deadline_ms, priority, NORMAL)

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
    ) -> Response:
        """The caller's own items, all of them, ranked for a query or a user.

        Items that the catalogue lacks come last with `score: null`, and in `unknown_item_ids`.
        """
        return await answer(asked, request, deadline_ms, priority, NORMAL)
