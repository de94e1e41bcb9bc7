"""A warm service behind other servers' calls: requests are checked by the same models as ours."""

from __future__ import annotations

import time
from typing import Any, Final

from pydantic import TypeAdapter

from raysys.serving.api import RankRequest, RecommendRequest, SearchRequest, SimilarRequest
from raysys.serving.args import ServeArgs
from raysys.serving.asking import Context
from raysys.serving.intake import ListRequest
from raysys.serving.service import Service

REQUESTS: Final[dict[str, TypeAdapter[Any]]] = {
    "rank": TypeAdapter(RankRequest),
    "recommend": TypeAdapter(RecommendRequest),
    "search": TypeAdapter(SearchRequest),
    "similar": TypeAdapter(SimilarRequest),
}


class Answers:
    """A service, loaded and warm.

    Args:
        args: of the deployment.
    """

    def __init__(self, args: dict[str, Any]) -> None:
        self.service = Service(ServeArgs.model_validate(args))
        self.service.warm_up()

    def content(self, surface: str, asked: dict[str, Any]) -> dict[str, Any]:
        """What an answer says, as plain values."""
        request: ListRequest = REQUESTS[surface].validate_python(asked)
        return self.service.content(request, Context(time.perf_counter()))
