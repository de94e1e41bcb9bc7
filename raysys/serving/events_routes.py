"""The route of events, and what pages of our own send past it."""

# No `from __future__ import annotations` here: FastAPI reads the annotations of the routes.
from collections import Counter
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Response

from raysys.serving.arms import Arms
from raysys.serving.events_api import EventsAnswer, EventsRequest
from raysys.serving.problems import Problem
from raysys.serving.service import Service

_JSON = "application/json"


def add_event_routes(app: FastAPI, service: Service, arms: Arms | None = None) -> None:
    """Add `/v1/events`; where the deployment takes none it answers 404 and how to mend.

    Args:
        app: of the calls.
        service: takes the events.
        arms: told of what was accepted, for the online metric of what is tried.
    """

    @app.post(
        "/v1/events",
        tags=["events"],
        summary="What users did, up to 1,000 events",
        response_model=EventsAnswer,
    )
    async def events(asked: EventsRequest) -> Response:
        """Keep events: answered when they are on the disk, and in the next answer of this replica.

        Send the same event_id again as often as you like: it counts once. A batch may be half
        bad: the answer names what is wrong with each, and the good ones are kept.
        """
        answer = await keep_events(asked.events, service, arms)
        # FastAPI would validate each of a thousand outcomes once more
        return Response(answer.model_dump_json(exclude_defaults=True), media_type=_JSON)


async def keep_events(
    sent: Sequence[Any], service: Service, arms: Arms | None = None
) -> EventsAnswer:
    """Keep events, count them in the metrics, and tell what is tried of those that are new.

    Raises:
        Problem: 404, the deployment takes none; else see `EventService.take`.
    """
    taken = service.events
    if taken is None:
        detail = "this deployment takes no events: give `events` in the args of its config"
        raise Problem(404, "no-events", detail)

    def take() -> EventsAnswer:
        answer = taken.take(sent)
        if arms is not None:
            arms.catch_up()  # who gets another bundle's answers is answered by what it counted
        return answer

    try:
        answer = await taken.run(len(sent), take)
    except Problem as problem:
        if problem.kind == "invalid-request":  # a client that sends nothing else is to be seen
            service.metrics.count("raysys_events", len(sent), status="rejected")
        raise
    for status, count in Counter(outcome.status for outcome in answer.events).items():
        service.metrics.count("raysys_events", count, status=status)
    if arms is not None:
        for event, outcome in zip(sent, answer.events, strict=True):
            if outcome.status == "accepted" and isinstance(event, dict):
                who = event.get("user_id") or event.get("session_id")
                arms.outcome(who, event.get("event_type", ""))
    return answer
