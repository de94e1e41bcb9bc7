"""What tests of events share: events, clients, and what they look at."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fastapi.testclient import TestClient

from raysys.eventlog.entries import Entry
from raysys.serving.app import http_app
from raysys.serving.service import Service

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000


Start = Callable[..., Service]


def now() -> int:
    return time.time_ns() // 1_000_000


def click(event_id: str | None = None, **told: Any) -> dict[str, Any]:
    event = {"event_type": "click", "user_id": "u1", "item_id": "i00001", **told}
    return event if event_id is None else {"event_id": event_id, **event}


def client_of(service: Service) -> TestClient:
    return TestClient(http_app(service), raise_server_exceptions=False)


def send(client: TestClient, *events: Any) -> dict[str, Any]:
    response = client.post("/v1/events", json={"events": events})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    counted = ("accepted", "duplicate", "quarantined", "rejected")
    assert sum(answer[name] for name in counted) == len(events) == len(answer["events"])
    assert [outcome["index"] for outcome in answer["events"]] == list(range(len(events)))
    return answer


def statuses(answer: dict[str, Any]) -> list[str]:
    return [outcome["status"] for outcome in answer["events"]]


def refused(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["status"] == status and problem["instance"] == "/v1/events"
    return problem


def kept(service: Service) -> list[Entry]:
    assert service.events is not None
    return service.events.log.read(0)


def followed(service: Service, until: Service) -> None:
    """Wait until a replica has come as far in the log as another."""
    deadline = time.monotonic() + 30
    end = until.events.follower.followed.position
    while service.events.follower.followed.position < end:
        assert time.monotonic() < deadline
        time.sleep(0.01)
