"""The HTTP API from Python: `Client`, and `AsyncClient` for asyncio. Imports nothing heavy."""

from raysys.client.answers import (
    Entities,
    EventsAnswer,
    Grades,
    Labels,
    ListAnswer,
    ListedItem,
    Profile,
    Readiness,
    Sentiments,
)
from raysys.client.clients import AsyncClient, Client
from raysys.client.failures import ApiError, Unreachable
from raysys.client.retries import Retries

__all__ = [
    "ApiError",
    "AsyncClient",
    "Client",
    "Entities",
    "EventsAnswer",
    "Grades",
    "Labels",
    "ListAnswer",
    "ListedItem",
    "Profile",
    "Readiness",
    "Retries",
    "Sentiments",
    "Unreachable",
]
