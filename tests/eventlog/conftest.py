from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raysys.eventlog.entries import EventLog
from raysys.eventlog.local import LocalLog
from raysys.eventlog.settings import LogSettings
from tests.eventlog.redis_server import RedisServer

Open = Callable[[], EventLog]


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = RedisServer(tmp_path_factory.mktemp("redis"), port)
    server.start()  # skips where there is none
    yield server
    server.kill()


@pytest.fixture(params=["local", "redis"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the same log again and again, as several processes would."""
    logs: list[EventLog] = []
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")
        server.redis.flushall()

    def open_it() -> EventLog:
        if request.param == "redis":
            from raysys.eventlog.redis_log import RedisLog

            settings = LogSettings(backend="redis", url=server.url)
            logs.append(RedisLog(settings, tmp_path / "log"))
        else:
            logs.append(LocalLog(tmp_path / "log", LogSettings(segment_mb=1)))
        return logs[-1]

    yield open_it
    for log in logs:
        log.close()
