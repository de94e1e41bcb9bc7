"""The routes of text tasks."""

# No `from __future__ import annotations` here: FastAPI reads the annotations of the routes.
from fastapi import FastAPI, Request

from raysys.serving.service import Service
from raysys.serving.text_api import (
    ClassifyAnswer,
    EntitiesAnswer,
    EntitiesRequest,
    LabelRequest,
    RelevanceAnswer,
    RelevanceRequest,
    SentimentAnswer,
)


def add_text_routes(app: FastAPI, service: Service) -> None:
    """Add `/v1/text/*`; a route of which the deployment has no task answers 404 and how to mend."""
    text = service.text

    @app.post("/v1/text/classify", tags=["text"], summary="What texts are")
    async def classify(asked: LabelRequest, request: Request) -> ClassifyAnswer:
        """The category of each text, with calibrated probabilities."""
        arrived = request.state.arrived
        return await service.run(lambda: text.classify(asked, arrived))

    @app.post("/v1/text/sentiment", tags=["text"], summary="How reviews sound")
    async def sentiment(asked: LabelRequest, request: Request) -> SentimentAnswer:
        """Negative, neutral or positive, with calibrated probabilities, and a rating."""
        arrived = request.state.arrived
        return await service.run(lambda: text.sentiment(asked, arrived))

    @app.post("/v1/text/entities", tags=["text"], summary="Brand, model and the like in titles")
    async def entities(asked: EntitiesRequest, request: Request) -> EntitiesAnswer:
        """Spans of characters in each text, with their labels."""
        arrived = request.state.arrived
        return await service.run(lambda: text.entities(asked, arrived))

    @app.post("/v1/text/relevance", tags=["text"], summary="How well texts answer a query")
    async def relevance(asked: RelevanceRequest, request: Request) -> RelevanceAnswer:
        """A grade for each text, in the units of the judgements."""
        arrived = request.state.arrived
        return await service.run(lambda: text.relevance(asked, arrived))
