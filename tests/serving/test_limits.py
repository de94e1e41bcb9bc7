"""How often a key may call: counted in one replica or in Redis, and a Redis that hangs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from limits import RateLimitItemPerHour
from pydantic import ValidationError

from raysys.errors import UserError
from raysys.serving import limits as module
from raysys.serving.edge_args import LimitArgs
from raysys.serving.keys import KeyFile
from raysys.serving.limits import RateLimits
from raysys.serving.service import Service
from tests.serving.test_edge import served


@pytest.fixture
def long_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second of the limiter lasts an hour: no test takes so long."""
    monkeypatch.setattr(module, "RateLimitItemPerSecond", lambda n: RateLimitItemPerHour(n))


def test_a_key_beyond_its_rate_waits(service: Service, tmp_path: Path, long_seconds: None) -> None:
    file = KeyFile(tmp_path / "keys.json")
    _, slow = file.create("slow", ("read",), per_second=3)
    _, other = file.create("other", ("read",))
    client = served(service, auth={"keys": str(file.path)}, limits={"per_second": 5})

    def ask(secret: str) -> httpx.Response:
        return client.get("/v1/users/u1/profile", headers={"X-API-Key": secret})

    assert [ask(slow).status_code for _ in range(5)] == [200, 200, 200, 429, 429]
    assert [ask(other).status_code for _ in range(6)] == [200] * 5 + [429]  # the default's
    refused = ask(slow)
    assert refused.json()["type"].endswith("too-many-requests") and "3 times" in refused.text
    assert int(refused.headers["retry-after"]) >= 1
    assert client.get("/healthz").status_code == 200  # is not counted


def test_without_keys_an_address_has_the_rate(service: Service, long_seconds: None) -> None:
    body = {"query": "milk", "k": 1}
    for auth in ({"open": True}, {}):
        client = served(service, auth=auth, limits={"per_second": 2})
        client.headers["Host"] = "127.0.0.1"
        asked = [client.post("/v1/search", json=body) for _ in range(3)]
        assert [each.status_code for each in asked] == [200, 200, 429], auth
        assert "2 times" in asked[-1].text and int(asked[-1].headers["retry-after"]) >= 1
        assert client.get("/v1/users/u1/profile").status_code == 429
        for path in ("/healthz", "/docs"):
            assert client.get(path).status_code == 200
        other = TestClient(client.app, client=("127.0.0.2", 1), headers={"Host": "127.0.0.1"})
        assert other.post("/v1/search", json=body).status_code == 200
    unlimited = served(service, auth={"open": True})
    asked = [unlimited.post("/v1/search", json=body) for _ in range(60)]
    assert {each.status_code for each in asked} == {200}


def test_an_address_is_told_by_what_its_owner_has_one_of() -> None:
    def known(host: str | None) -> str:
        return module.address_of({"client": host and (host, 5)})

    assert known("203.0.113.7") != known("203.0.113.8") and "203" not in known("203.0.113.7")
    assert known("::ffff:203.0.113.7") == known("203.0.113.7")
    assert known("2001:db8:1:2::1") == known("2001:db8:1:2:ffff::9") != known("2001:db8:1:3::1")
    assert known(None) == known("") != known("testclient")  # a socket has none


class Shared:
    """RateLimits over nothing: hits only."""

    def __init__(self, **args: Any) -> None:
        async def app(*_: Any) -> None: ...

        self.limits = RateLimits(app, LimitArgs(**args))

    async def hits(self, n: int, key: str, patience_s: float = 60.0) -> int:
        item = RateLimitItemPerHour(5)
        return sum([await self.limits._hit(item, key, patience_s) for _ in range(n)])


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of its own; the tests that want it are left out where there is none."""
    path = tmp_path_factory.mktemp("redis")
    address = path / "r.sock"
    command = ["redis-server", "--port", "0", "--unixsocket", str(address), "--save", ""]
    try:
        process = subprocess.Popen(command, cwd=path, stdout=subprocess.PIPE, text=True)
    except FileNotFoundError:
        pytest.skip("no redis-server on this machine")
    assert process.stdout is not None
    for line in process.stdout:
        if "ready to accept" in line.lower():
            break
    yield f"unix://{address}"
    process.kill()
    process.wait()
    process.stdout.close()


def test_replicas_count_together_in_redis(redis_url: str) -> None:
    pytest.importorskip("redis")

    async def count() -> list[int]:
        replicas = [Shared(redis=redis_url), Shared(redis=redis_url)]
        hits = [await replica.hits(4, "k") for replica in replicas]
        for replica in replicas:
            await replica.limits._together.storage.bridge.storage.aclose()
        return hits

    assert asyncio.run(count()) == [4, 1]
    alone = asyncio.run(Shared().hits(9, "k"))
    assert alone == 5


def test_a_redis_that_is_gone_costs_no_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("redis")
    gone = Shared(redis=f"unix://{tmp_path}/none.sock")
    assert asyncio.run(gone.hits(9, "k")) == 5  # counts alone
    assert caplog.text.count("counts alone") == 1  # and does not try each time


@pytest.fixture
def hanging() -> Iterator[str]:
    """Address of a Redis that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        taken: list[socket.socket] = []

        def accept() -> None:
            with contextlib.suppress(OSError):  # the server is closed
                while True:
                    taken.append(server.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield f"redis://127.0.0.1:{server.getsockname()[1]}/0"
        server.shutdown(socket.SHUT_RDWR)
    for connection in taken:
        connection.close()


def asked(deadline: bytes | None, since_s: float = 0.0) -> dict[str, Any]:
    headers = [] if deadline is None else [(b"x-deadline-ms", deadline)]
    arrived = time.perf_counter() - since_s
    return {"type": "http", "headers": headers, "state": {"arrived": arrived}}


@pytest.mark.parametrize(
    ("deadline", "since_s", "own", "most_s"),
    [
        (None, 0.0, None, 0.1),  # nobody waits longer than this
        (b"60000", 0.0, 50.0, 0.1),  # the caller's own counts
        (b"50", 0.0, None, 0.025),  # the other half is for the answer
        (None, 0.0, 50.0, 0.025),
        (b"50", 0.04, 60_000.0, 0.02),
        (b"50", 3.0, None, 0.02),  # too late already
        (b"0.001", 0.0, None, 0.02),  # no way around a Redis that is there
        (b"soon", 0.0, 50.0, 0.025),  # the route refuses these
        (b"nan", 0.0, 50.0, 0.025),
    ],
)
def test_redis_gets_a_part_of_what_is_left_of_the_deadline(
    deadline: bytes | None, since_s: float, own: float | None, most_s: float
) -> None:
    limits = RateLimits(Shared().limits.app, LimitArgs(), deadline_ms=own)
    given = limits.patience_s(asked(deadline, since_s))
    assert module.REDIS_LEAST_S <= given <= most_s
    if most_s == module.REDIS_PATIENCE_S:
        assert given == most_s


def test_waiting_for_redis_is_a_part_of_what_an_answer_took(
    service: Service, tmp_path: Path, hanging: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("redis")
    file = KeyFile(tmp_path / "keys.json")
    _, secret = file.create("a", ("read",))
    client = served(
        service, auth={"keys": str(file.path)}, limits={"per_second": 1000, "redis": hanging}
    )
    given: list[float] = []
    hit = RateLimits._hit

    async def noted(self: RateLimits, item: Any, key_id: str, patience_s: float) -> bool:
        given.append(patience_s)
        return await hit(self, item, key_id, patience_s)

    monkeypatch.setattr(RateLimits, "_hit", noted)
    for deadline, least_s, most_s in ((60_000, 0.1, 0.1), (50, 0.0, 0.025)):
        answer = client.post(
            "/v1/search",
            json={"query": "milk"},
            headers={"X-API-Key": secret, "X-Deadline-Ms": str(deadline)},
        )
        assert answer.status_code == 200
        assert least_s <= given[-1] <= most_s
        assert answer.json()["took_ms"] >= least_s * 990  # clocks of loops are coarse


def test_a_redis_that_hangs_is_left_alone_whoever_waited_for_it(
    hanging: str, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("redis")

    async def impatient() -> tuple[int, int]:
        replica = Shared(redis=hanging)
        counted = await replica.hits(2, "k", patience_s=0.0)
        await asyncio.gather(*replica.limits._asked)
        return counted, await replica.hits(7, "k")

    assert asyncio.run(impatient()) == (2, 3)  # counts alone
    assert caplog.text.count("counts alone") == 1


class LateNo:
    """Redis that refuses, once it is told to answer."""

    def __init__(self, told: asyncio.Event) -> None:
        self._told = told

    async def hit(self, *_: Any) -> bool:
        await self._told.wait()
        return False


def test_a_caller_in_a_hurry_does_not_make_a_redis_that_answers_be_left_alone() -> None:
    async def hurried() -> tuple[bool, bool]:
        replica, late = Shared(), asyncio.Event()
        replica.limits._together = LateNo(late)
        alone = bool(await replica.hits(1, "k", patience_s=0.0))
        late.set()
        await asyncio.gather(*replica.limits._asked)
        return alone, bool(await replica.hits(1, "k"))

    assert asyncio.run(hurried()) == (True, False)  # alone at first, then as Redis says


def test_a_no_that_comes_late_holds_for_the_next() -> None:
    async def hasty() -> list[bool]:
        replica, late = Shared(), asyncio.Event()
        replica.limits._together = LateNo(late)
        first = bool(await replica.hits(1, "k", patience_s=0.0))
        late.set()
        await asyncio.gather(*replica.limits._asked)
        late.clear()  # nobody waits for it again
        others = [bool(await replica.hits(1, key, patience_s=0.0)) for key in ("k", "other")]
        late.set()
        await asyncio.gather(*replica.limits._asked)
        return [first, *others]

    assert asyncio.run(hasty()) == [True, False, True]


def test_bad_limits_are_named() -> None:
    for content in ({"per_second": 0}, {"redis": "http://x"}, {"redis": "localhost"}):
        with pytest.raises(ValidationError):
            LimitArgs.model_validate(content)
    with pytest.raises(UserError, match=r"redis"):
        Shared(redis="redis://host:notaport")
