"""What the serving benchmark measures with: its load generator and what it reads from a run."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.serving_page import plot, table
from benchmarks.serving_parts import compare, growth, overload
from benchmarks.serving_parts.kills import gaps
from benchmarks.serving_parts.load import NO_ANSWER, Outcome, closed, opened, requests
from benchmarks.serving_parts.overload import recovery_s
from raysys.learners import LEARNERS

ANSWER = b"HTTP/1.1 %d OK\r\nContent-Length: 2\r\n\r\n{}"


class Server(asyncio.Protocol):
    """Answers 200, every fourth time 503, and hangs up where it is asked to."""

    asked = 0
    background = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        assert data.endswith(b"}"), "bodies arrive whole: they are small"
        Server.asked += 1
        Server.background += b"X-Priority: background" in data
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


def test_headers_of_one_s_own_are_sent() -> None:
    plain, told = (
        requests("h", 1, "/x", [b"{}"], headers)[0] for headers in (None, {"X-Priority": "b"})
    )
    assert plain == (
        b"POST /x HTTP/1.1\r\nHost: h:1\r\nContent-Type: application/json\r\n"
        b"Content-Length: 2\r\n\r\n{}"
    )
    assert told == plain.replace(b"Content-Length", b"X-Priority: b\r\nContent-Length")


def test_a_run_tells_its_work_apart(port: int) -> None:
    work = requests("127.0.0.1", port, "/x", [b'{"a": 1}', b'{"do": "hang up"}'])
    for found in (
        opened("127.0.0.1", port, work, 400, 0.3),
        closed("127.0.0.1", port, work, 2, 0.3),
    ):
        assert set(found.work.tolist()) == {0, 1}
        broken = found.of(found.work == 1)
        assert 0 < len(broken.status) < len(found.status)
        assert set(broken.status.tolist()) == {NO_ANSWER} and broken.seconds == found.seconds
        assert NO_ANSWER not in found.of(found.work == 0).status


def test_overload_is_of_a_replica_as_production_has_it() -> None:
    taken = overload.bounds()
    assert set(taken.args) == {"threads", "max_waiting", "deadline_ms"}
    assert taken.ongoing == taken.args["threads"] + taken.args["max_waiting"]
    assert taken.options["backpressure_config"]["status_code"] == 503
    with pytest.raises(KeyError):  # a config without them is no production
        overload.bounds(overload.ROOT / "serve_configs" / "experiment.yaml")


def test_a_share_of_the_storm_is_background_and_told_apart() -> None:
    urgent, late = [b"u%d" % n for n in range(400)], [b"b%d" % n for n in range(400)]
    work, which = overload.mixed(urgent, late)
    assert [w == b for w, b in zip(work, late, strict=True)] == which.tolist()
    assert which.mean() == pytest.approx(overload.BACKGROUND, abs=0.07)
    storm = Outcome(
        2.0,
        due=np.arange(6.0),
        ms=np.array([10.0, 20.0, 30.0, 400.0, 1.0, 1.0]),
        status=np.array([200, 200, 200, 200, 503, 503]),
        work=np.array([0, 0, 1, 1, 1, 0]),
    )
    is_background = np.array([False, True])
    found = {f.name: f for f in overload.apart(10.0, storm, is_background)}
    assert found["overload_urgent_goodput"].value == pytest.approx(2 / 2 / 10)
    assert found["overload_background_goodput"].value == pytest.approx(2 / 2 / 10)
    assert found["overload_urgent_p99_ms"].value == pytest.approx(19.9)
    assert found["overload_background_p99_ms"].value == pytest.approx(396.3)
    assert "{200: 2, 503: 1}" in found["overload_urgent_goodput"].reference
    refused = overload.apart(10.0, storm.of(storm.status == 503), is_background)
    assert [f.name for f in refused] == ["overload_urgent_goodput", "overload_background_goodput"]


@pytest.mark.long
def test_overload_runs_from_end_to_end(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a server that is none of ours: what is sent, and that every figure comes of it."""
    given: dict[str, Any] = {}

    @contextlib.contextmanager
    def running(name: str, args: Any, environments: Path, **options: Any) -> Iterator[Any]:
        given.update(args=args, options=options)
        yield SimpleNamespace(
            port=port, memory_gb=1.0, body=lambda surface, asked: json.dumps(asked).encode()
        )

    monkeypatch.setattr(overload, "running", running)
    monkeypatch.setattr(overload, "questions", lambda _: {"rank": [{"a": n} for n in range(50)]})
    monkeypatch.setattr(overload, "LEAST_S", 0.1)
    monkeypatch.setattr(overload, "TIMES", 0.2)  # a generator here is slower than such a server
    found = overload.measure(Path("registry"), Path("environments"), seconds=0.5, rounds=1)
    names = {figure.name: figure for figure in found}
    assert len(names) == len(found) == 11
    assert all(np.isfinite(figure.value) for figure in found)
    for name in ("urgent", "background"):
        assert names[f"overload_{name}_goodput"].value > 0
    taken = overload.bounds()
    assert given["args"].items() >= taken.args.items() and given["options"] == taken.options
    assert Server.background > 0


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


def test_servers_are_compared_by_turns_in_runs_long_enough(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Five runs of three seconds of every load on every server, within twenty minutes."""
    names = ("uvicorn", "serve", "serve_haproxy", "litserve", "bentoml")
    ran: list[tuple[int, str, float]] = []  # port, load, seconds

    @contextlib.contextmanager
    def running(name: str, *_: Any) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(
            port=names.index(name), path=str, memory_gb=1.0, body=lambda surface, asked: b"{}"
        )

    def outcome(port: int, load: str, seconds: float) -> Outcome:
        ran.append((port, load, seconds))
        n = 10 * (port + 1)
        return Outcome(seconds, np.zeros(n), np.ones(n), np.full(n, 200))

    monkeypatch.setattr(compare, "running", running)
    monkeypatch.setattr(compare, "arguments", lambda registry: {})
    monkeypatch.setattr(
        compare, "questions", lambda registry: dict.fromkeys(compare.SURFACES, [{}] * 3)
    )
    monkeypatch.setattr(
        compare, "closed", lambda host, port, work, n, seconds: outcome(port, f"{n}", seconds)
    )
    monkeypatch.setattr(
        compare,
        "opened",
        lambda host, port, work, per_s, seconds, seed: outcome(port, f"at {per_s:.2f}/s", seconds),
    )
    figures = {figure.name: figure for figure in compare.measure(tmp_path, tmp_path)}
    assert all(seconds >= 3 for _, _, seconds in ran)
    assert sum(seconds for _, _, seconds in ran) <= 15 * 60  # starting and loading come on top
    warm = len(names) * len(compare.SURFACES)
    turns = [ran[at : at + len(names)] for at in range(warm, len(ran), len(names))]
    assert all(sorted(port for port, _, _ in turn) == [*range(len(names))] for turn in turns)
    assert len({turn[0][0] for turn in turns}) == len(names)  # each comes first once
    for name in names:
        for surface in compare.SURFACES:
            assert "5 runs of 3 s" in figures[f"{surface}_{name}_per_s_8"].reference
    assert figures["rank_ratio_uvicorn"].value == pytest.approx(3.0)  # 30 answers against 10
