"""The routes of text tasks."""

# No `from __future__ import annotations` here: FastAPI reads the annotations of the routes.
import time
from collections.abc import Iterator, Sequence
from typing import Final

from fastapi import FastAPI, Request

from raysys.serving.api import Deadline
from raysys.serving.asking import Context
from raysys.serving.intake import until
from raysys.serving.problems import Problem, invalid
from raysys.serving.service import Service
from raysys.serving.text import TextService
from raysys.serving.text_api import (
    ClassifyAnswer,
    EntitiesAnswer,
    EntitiesRequest,
    LabelRequest,
    RelevanceAnswer,
    RelevanceRequest,
    SentimentAnswer,
)
from raysys.serving.workers import BACKGROUND, PATIENCE_S

DEADLINE_MS: Final = 10_000.0
"""Of a call that names none. A deployment's own is for lists, which have lesser answers."""
MOST_CHARACTERS: Final = 200_000
"""Of all texts of a call for entities: taggers read each to its end, the others its beginning."""
PART: Final = 20_000
"""Characters after which the clock is looked at."""


def add_text_routes(app: FastAPI, service: Service) -> None:
    """Add `/v1/text/*`; a route of which the deployment has no task answers 404 and how to mend."""
    text = service.text

    @app.post("/v1/text/classify", tags=["text"], summary="What texts are")
    async def classify(
        asked: LabelRequest, request: Request, deadline_ms: Deadline = None
    ) -> ClassifyAnswer:
        """The category of each text, with calibrated probabilities."""
        context = _context(request, deadline_ms)
        return await service.run(lambda: text.classify(asked, context.arrived), context)

    @app.post("/v1/text/sentiment", tags=["text"], summary="How reviews sound")
    async def sentiment(
        asked: LabelRequest, request: Request, deadline_ms: Deadline = None
    ) -> SentimentAnswer:
        """Negative, neutral or positive, with calibrated probabilities, and a rating."""
        context = _context(request, deadline_ms)
        return await service.run(lambda: text.sentiment(asked, context.arrived), context)

    @app.post("/v1/text/entities", tags=["text"], summary="Brand, model and the like in titles")
    async def entities(
        asked: EntitiesRequest, request: Request, deadline_ms: Deadline = None
    ) -> EntitiesAnswer:
        """Spans of characters in each text, with their labels."""
        _check_size(asked)
        context = _context(request, deadline_ms)
        late = until(context, service.args) + PATIENCE_S
        return await service.run(lambda: _entities(text, asked, context.arrived, late), context)

    @app.post(
        "/v1/text/relevance",
        tags=["text"],
        summary="How well texts answer a query",
        response_model_exclude_unset=True,  # a model without probabilities gives none
    )
    async def relevance(
        asked: RelevanceRequest, request: Request, deadline_ms: Deadline = None
    ) -> RelevanceAnswer:
        """A grade for each text, in the units of the judgements, and whether it is relevant."""
        context = _context(request, deadline_ms)
        return await service.run(lambda: text.relevance(asked, context.arrived), context)


def _context(request: Request, deadline_ms: float | None) -> Context:
    """How a call for texts came in: lists go first, and nobody waits for ever."""
    return Context(request.state.arrived, deadline_ms or DEADLINE_MS, BACKGROUND)


def _check_size(asked: EntitiesRequest) -> None:
    """Refuse what would keep a thread for minutes.

    Raises:
        Problem: 422.
    """
    size = sum(map(len, asked.texts))
    if size > MOST_CHARACTERS:
        raise invalid(
            "body.texts",
            f"{size:,} characters in all; a call may hold {MOST_CHARACTERS:,}: send the texts in "
            "several calls",
        )


def _entities(
    text: TextService, asked: EntitiesRequest, arrived: float, late: float
) -> EntitiesAnswer:
    """The answer, made of those to parts of the texts.

    Raises:
        Problem: 503, it took too long; see `TextService.entities`.
    """
    found: EntitiesAnswer | None = None
    for part in _parts(asked.texts):
        if found is not None and time.perf_counter() > late:
            done, n = len(found.results), len(asked.texts)
            raise Problem(
                503,
                "too-late",
                f"{done} of {n} texts were read when the time was over: send fewer in a call, or "
                "allow more time in X-Deadline-Ms",
                retry_after_s=1,
            )
        next_one = text.entities(asked.model_copy(update={"texts": part}), arrived)
        before = [] if found is None else found.results
        found = next_one.model_copy(update={"results": [*before, *next_one.results]})
    assert found is not None  # a call has a text
    return found


def _parts(texts: Sequence[str]) -> Iterator[list[str]]:
    """In their order, as many at once as have `PART` characters; a longer one by itself."""
    part: list[str] = []
    size = 0
    for each in texts:
        if part and size + len(each) > PART:
            yield part
            part, size = [], 0
        part.append(each)
        size += len(each)
    if part:
        yield part
