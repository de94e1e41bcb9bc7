"""What the serving benchmark measures with: its load generator and what it reads from a run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.serving_page import plot, table
from benchmarks.serving_parts import growth
from benchmarks.serving_parts.kills import gaps
from benchmarks.serving_parts.load import NO_ANSWER, Outcome, closed, opened, requests
from benchmarks.serving_parts.overload import recovery_s
from raysys.learners import LEARNERS

ANSWER = b"HTTP/1.1 %d OK\r\nContent-Length: 2\r\n\r\n{}"


class Server(asyncio.Protocol):
    """Answers 200, every fourth time 503, and hangs up where it is asked to."""

    asked = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert data.endswith(b"}"), "bodies arrive whole: they are small"
        Server.asked += 1
        if b'"hang up"' in data:
            self.transport.abort()
            return
        self.transport.write(ANSWER % (503 if Server.asked % 4 == 0 else 200))


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(loop.create_server(Server, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield server.sockets[0].getsockname()[1]
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    server.close()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def test_a_closed_loop_tells_statuses_apart(port: int) -> None:
    work = requests("127.0.0.1", port, "/x", [b'{"a": 1}'])
    found = closed("127.0.0.1", port, work, 3, 0.2)
    assert len(found.status) > 10 and set(found.status.tolist()) == {200, 503}
    assert found.good.mean() == pytest.approx(0.75, abs=0.05)
    assert (np.diff(found.due) >= 0).all() and (found.ms > 0).all()


def test_an_open_loop_keeps_its_rate_and_says_what_broke_off(port: int) -> None:
    work = requests("127.0.0.1", port, "/x", [b'{"a": 1}', b'{"do": "hang up"}'])
    found = opened("127.0.0.1", port, work, 400, 0.5)
    again = opened("127.0.0.1", port, work, 400, 0.5)
    assert (found.due == again.due).all(), "a plan follows from its seed"
    assert 120 < len(found.status) < 280
    assert (found.status == NO_ANSWER).mean() == pytest.approx(0.5, abs=0.02)


def outcome(due: list[float], ms: list[float], status: list[int]) -> Outcome:
    return Outcome(10.0, np.array(due), np.array(ms), np.array(status))


def test_how_long_nothing_came_after_a_kill() -> None:
    due = [*np.arange(0, 4, 0.5), 4.2, 4.6, *np.arange(7, 10, 0.5)]
    status = [200] * 8 + [0, 0] + [200] * 6
    ms = [10.0] * 8 + [1.0, 1.0] + [900.0] + [10.0] * 5
    gap, recovery = gaps(outcome(due, ms, status), killed=4.0, normal_ms=10.0)
    assert gap == pytest.approx(7.51 - 3.51, abs=0.01)
    assert recovery == pytest.approx(3.0)  # the slow one that was due at 7


def test_recovery_is_when_it_stays_calm() -> None:
    due = [0.5, 1.5, 2.5, 3.5, 9.5]
    calm = [5.0] * 5
    assert recovery_s(outcome(due, calm, [200] * 5), 20.0) == 0.0
    assert recovery_s(outcome(due, [90.0, 5.0, 90.0, 5.0, 5.0], [200] * 5), 20.0) == 3.0
    assert recovery_s(outcome(due, calm, [503, 200, 200, 200, 200]), 20.0) == 1.0


def test_the_section_of_the_page(tmp_path: Any) -> None:
    def figure(name: str, value: float) -> dict[str, Any]:
        return {"name": name, "value": value, "low": value - 1, "high": value + 1}

    figures = [
        figure("rank_uvicorn_per_s_8", 300.0), figure("rank_uvicorn_p99_ms_8", 31.4),
        figure("rank_serve_haproxy_per_s_8", 250.0), figure("rank_ratio_uvicorn", 0.8),
    ]  # fmt: skip
    text = "\n".join(table(figures))
    assert "| FastAPI on uvicorn | 300 (31) |" in text
    assert "| raysys on Serve, HAProxy | 250 |" in text
    plot(figures, tmp_path / "plot.svg")
    assert b"</svg>" in (tmp_path / "plot.svg").read_bytes()
    assert table([figure("rank_ratio_uvicorn", 0.8)]) == []


@pytest.mark.long
def test_a_shop_of_any_size_is_built_and_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growth, "REQUESTS", 3)
    learner = "tests.serving.shop:HashedWordsLearner"
    monkeypatch.setitem(LEARNERS, "hashed_words", learner)  # and away with it afterwards
    growth.build(2000, tmp_path)
    told = growth.ask(2000, tmp_path)
    assert told["events"] == 4000 and told["texts"] == 500
    assert all(0 < told[f"{surface}_p99_ms"] < 60_000 for surface in growth.SURFACES)
