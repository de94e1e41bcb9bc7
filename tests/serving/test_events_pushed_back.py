"""Where nothing can be written, nothing is acknowledged, and nothing is lost."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raysys.errors import UserError
from tests.serving.eventing import (
    Start,
    click,
    client_of,
    kept,
    refused,
    send,
    statuses,
)


def test_too_much_at_once_is_pushed_back(start: Start) -> None:
    service = start(queue_events=100, retry_after_s=7)
    client = client_of(service)
    with service.events.waiting(60):
        response = client.post("/v1/events", json={"events": [click(f"e{n}") for n in range(41)]})
        problem = refused(response, 503)
        assert response.headers["retry-after"] == "7" and "60 events" in problem["detail"]
        send(client, *(click(f"e{n}") for n in range(40)))
    answer = send(client, *(click(f"e{n}") for n in range(41)))
    assert (answer["accepted"], answer["duplicate"]) == (1, 40)


def test_a_full_disk_is_pushed_back_until_there_is_room(start: Start, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        service = start(path=str(disk / "log"))
        (disk / "others").write_bytes(bytes(1_500_000))
        client, accepted, response = client_of(service), 0, None
        for at in range(60):
            batch = [click(f"{at}-{n}", query="x" * 900) for n in range(100)]
            response = client.post("/v1/events", json={"events": batch})
            if response.status_code != 200:
                break
            accepted += 100
        assert response is not None and accepted > 500
        problem = refused(response, 503)
        assert response.headers["retry-after"] == "1" and "again" in problem["detail"]
        assert client.post("/v1/recommend", json={"user_id": "u1"}).status_code == 200
        (disk / "others").unlink()
        assert send(client, *batch)["accepted"] == 100
        assert len(service.events.log.read(0, 100_000)) == accepted + 100
        service.close()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_redis_that_is_gone_is_pushed_back_until_it_is_back(start: Start, own_redis) -> None:
    service = start(backend="redis", url=own_redis.url)
    client = client_of(service)
    send(client, click("a"))
    own_redis.kill()
    response = client.post("/v1/events", json={"events": [click("a"), click("b")]})
    refused(response, 503)
    assert client.post("/v1/recommend", json={"user_id": "u1"}).status_code == 200
    own_redis.start()
    assert statuses(send(client, click("a"), click("b"))) == ["duplicate", "accepted"]
    assert service.events.follower.followed.events == 2


def test_a_redis_that_would_lose_events_is_refused(start: Start, own_redis) -> None:
    own_redis.redis.config_set("appendfsync", "everysec")
    with pytest.raises(UserError, match="lose acknowledged events: appendfsync everysec"):
        start(backend="redis", url=own_redis.url)
    own_redis.kill()
    with pytest.raises(UserError, match="start Redis"):
        start(backend="redis", url=own_redis.url)


def test_many_clients_at_once_lose_nothing(start: Start) -> None:
    services = [start(), start()]
    clients = [client_of(service) for service in services]

    def run(number: int) -> None:
        for at in range(8):
            send(clients[number % 2], *(click(f"{number}-{at}-{n}") for n in range(20)))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({entry.body["event_id"] for entry in kept(services[0])}) == 640
    for service in services:
        service.events.follower.catch_up()
        assert service.events.follower.followed.events == 640


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Any]:
    import socket

    from tests.eventlog.redis_server import RedisServer

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis", port)
    server.start()
    yield server
    server.kill()
