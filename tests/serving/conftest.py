from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from raysys import learners
from raysys.registry import Registry
from raysys.serving.app import http_app
from raysys.serving.args import ServeArgs
from raysys.serving.service import Service
from tests.serving import shop
from tests.serving.eventing import Start


@pytest.fixture(scope="package", autouse=True)
def _hashed_words() -> Iterator[None]:
    """A new learner is one line in LEARNERS; only these tests have this one."""
    learners.LEARNERS["hashed_words"] = "tests.serving.shop:HashedWordsLearner"
    yield
    del learners.LEARNERS["hashed_words"]


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return shop.publish_shop(tmp_path_factory.mktemp("registry"))[0]


@pytest.fixture(scope="session")
def bundle(registry: Registry) -> Path:
    """The champion's folder."""
    return registry.path("champion")


@pytest.fixture(scope="package")
def service(registry: Registry, _hashed_words: None) -> Service:
    args = ServeArgs(registry=str(registry.root), clock="log_end", k_max=50)
    warm = Service(args)
    warm.warm_up()
    return warm


@pytest.fixture(scope="package")
def client(service: Service) -> TestClient:
    return TestClient(http_app(service), raise_server_exceptions=False)


@pytest.fixture
def start(registry: Registry, tmp_path: Path) -> Iterator[Start]:
    """Starts replicas that share a log."""
    services: list[Service] = []

    def start_it(clock: str = "wall", **events: Any) -> Service:
        told = {"path": str(tmp_path / "eventlog"), "segment_mb": 1, "roll_events": 0, **events}
        services.append(Service(ServeArgs(registry=str(registry.root), clock=clock, events=told)))
        services[-1].warm_up()
        return services[-1]

    yield start_it
    for service in services:
        service.close()
