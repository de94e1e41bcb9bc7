from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from raysys import learners
from raysys.serving.args import ServeArgs
from raysys.serving.pages import ServiceAnswers
from raysys.serving.service import Service
from raysys.web import assets, storefront
from tests.serving import shop


class Recorded(list[dict[str, Any]]):
    """What visitors did, in order."""

    async def take(self, events: Sequence[dict[str, Any]]) -> bool:
        self.extend(events)
        return True

    def told(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self if event["event_type"] == kind]


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    learners.LEARNERS["hashed_words"] = "tests.serving.shop:HashedWordsLearner"
    registry = shop.publish_shop(tmp_path_factory.mktemp("registry"))[0]
    yield Service(ServeArgs(registry=str(registry.root), clock="log_end"))
    learners.LEARNERS.pop("hashed_words", None)  # another file of this folder may have taken it out


@pytest.fixture
def events() -> Recorded:
    return Recorded()


@pytest.fixture
def pages(service: Service, events: Recorded) -> FastAPI:
    app = FastAPI()
    app.include_router(assets())
    app.include_router(storefront(ServiceAnswers(service, events.take), "Corner Shop"))
    return app


@pytest.fixture
def visitor(pages: FastAPI) -> TestClient:
    return TestClient(pages)
