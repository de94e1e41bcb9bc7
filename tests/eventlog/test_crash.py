"""Kill -9 in the middle of writes under load; `benchmarks.loop` does more rounds of the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.crash import Replicas, free_port, under_load, verdict
from raysys.eventlog.local import LocalLog
from raysys.eventlog.redis_log import RedisLog
from raysys.eventlog.rolled import Rolled, roll
from raysys.serving.events_args import EventsArgs
from tests.eventlog.redis_server import RedisServer
from tests.serving.shop import publish_shop

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(publish_shop(tmp_path_factory.mktemp("ws") / "registry", with_encoder=False)[0].root)


def test_a_killed_replica_and_a_killed_node_lose_nothing(registry: str, tmp_path: Path) -> None:
    told = {"path": str(tmp_path / "log"), "segment_mb": 1, "roll_events": 0}
    replicas = Replicas({"registry": registry, "events": told})
    replicas.start()

    def kill(*numbers: int) -> None:
        replicas.kill(*numbers)
        replicas.start(*numbers)

    rounds = [lambda: kill(0), kill, lambda: kill(1)]
    senders = under_load(replicas, rounds)
    replicas.kill()
    log = LocalLog(tmp_path / "log", EventsArgs(**told))
    found = verdict(log, senders, 3)
    assert found.lost == [] and found.twice == []
    assert found.acknowledged > 1000 and sum(sender.broken for sender in senders) > 0
    assert sum(stretch.events for stretch in roll(log, Rolled(log.folder))) == found.kept


def test_a_killed_redis_loses_nothing(registry: str, tmp_path: Path) -> None:
    server = RedisServer(tmp_path, free_port())
    server.start()
    told = {"backend": "redis", "url": server.url, "roll_events": 0, "path": str(tmp_path / "log")}
    replicas = Replicas({"registry": registry, "events": told})
    replicas.start()

    def kill() -> None:
        server.kill()
        server.start()

    try:
        senders = under_load(replicas, [kill] * 2)
        replicas.kill()
        log = RedisLog(EventsArgs(**told), tmp_path / "log")
        found = verdict(log, senders, 3)
        log.close()
    finally:
        replicas.kill()
        server.kill()
    assert found.lost == [] and found.twice == []
    assert found.acknowledged > 500
    assert sum(sender.broken + sender.pushed_back for sender in senders) > 0
