"""Both clients against the real routes, and against servers that fail."""

from __future__ import annotations

import asyncio
import inspect
import json
import pickle
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import raysys
from raysys.client import ApiError, AsyncClient, Client, Retries, Unreachable
from raysys.client.answers import ListAnswer
from raysys.client.batches import MAX_BYTES, MAX_EVENTS

PROBLEM = {"type": "urn:raysys:problem:overloaded", "detail": "too many", "errors": []}
EMPTY = {
    "request_id": "r",
    "items": [],
    "bundle": "b",
    "arm": "champion",
    "degraded": False,
    "cold_start": True,
    "took_ms": 1.0,
}


def problem(status: int, **headers: str) -> httpx.Response:
    headers["content-type"] = "application/problem+json"
    return httpx.Response(status, json=PROBLEM, headers=headers)


class Server:
    """Answers with what it is given, in order; notes requests and waits."""

    def __init__(self, *replies: httpx.Response | Exception) -> None:
        self.replies = list(replies)
        self.requests: list[httpx.Request] = []
        self.waits: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, Exception):
            raise reply
        return httpx.Response(reply.status_code, headers=reply.headers, content=reply.content)

    def ask(self, call: str, *args: Any, retries: Retries | None = None, **asked: Any) -> Any:
        """By both clients, which must do the same."""
        retries = retries or Retries(rng=random.Random(0))
        before = list(self.replies)
        results = []
        for run in (self._sync, self._async):
            self.replies, self.requests, self.waits = list(before), [], []
            retries.rng.seed(0)
            try:
                result: Any = run(retries, call, *args, **asked)
            except (ApiError, Unreachable) as error:
                result = error
            waits = pytest.approx(self.waits, abs=0.5)  # a date is not reached at the same moment
            results.append((str(result), type(result), len(self.requests), waits))
        assert results[0][:3] == results[1][:3] and self.waits == results[0][3]
        if isinstance(result, Exception):
            raise result
        return result

    def _sync(self, retries: Retries, call: str, *args: Any, **asked: Any) -> Any:
        transport = httpx.MockTransport(self)
        with Client(transport=transport, retries=retries, sleep=self.waits.append) as client:
            return getattr(client, call)(*args, **asked)

    def _async(self, retries: Retries, call: str, *args: Any, **asked: Any) -> Any:
        async def sleep(seconds: float) -> None:
            self.waits.append(seconds)

        async def run() -> Any:
            transport = httpx.MockTransport(self)
            async with AsyncClient(transport=transport, retries=retries, sleep=sleep) as client:
                return await getattr(client, call)(*args, **asked)

        return asyncio.run(run())


OK = httpx.Response(200, json=EMPTY)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again(status: int) -> None:
    server = Server(problem(status), problem(status), OK)
    assert server.ask("recommend", "u1").bundle == "b"
    assert len(server.waits) == 2
    assert 0 <= server.waits[0] <= 0.1 and 0 <= server.waits[1] <= 0.2


def test_retry_after_is_the_least_that_is_waited() -> None:
    server = Server(problem(503, **{"retry-after": "2"}), OK)
    server.ask("search", "milk")
    assert 2 <= server.waits[0] <= 2.1
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)
    server = Server(problem(429, **{"retry-after": soon}), OK)
    server.ask("search", "milk", retries=Retries(rng=random.Random(0)))
    assert 0 < server.waits[0] <= 3.2
    for nonsense in ("soon", "-1", ""):
        server = Server(problem(503, **{"retry-after": nonsense}), OK)
        server.ask("search", "milk")
        assert server.waits[0] <= 0.1


def test_who_asks_for_too_long_is_not_waited_for() -> None:
    server = Server(problem(429, **{"retry-after": "60"}), OK)
    with pytest.raises(ApiError) as caught:
        server.ask("recommend", "u1")
    assert caught.value.retry_after_s == 60 and caught.value.attempts == 1 and not server.waits


def test_nobody_waits_longer_than_the_deadline_that_a_call_names() -> None:
    for call in ("recommend", "search", "similar"):
        server = Server(problem(503, **{"retry-after": "1"}), OK)
        with pytest.raises(ApiError) as caught:
            server.ask(call, "u1", deadline_ms=80)
        assert caught.value.attempts == 1 and not server.waits
        assert caught.value.retry_after_s == 1
    server = Server(problem(503, **{"retry-after": "1"}), OK)
    server.ask("recommend", "u1", deadline_ms=2000)  # there is time to try again
    assert server.waits[0] >= 1
    server = Server(problem(503))
    with pytest.raises(ApiError):
        server.ask("rank", ["i1"], deadline_ms=80, retries=Retries(attempts=100, slack_s=0.1))
    assert sum(server.waits) <= 0.18
    # the server refuses such a deadline itself
    assert isinstance(Server(OK).ask("recommend", "u1", deadline_ms=-1e9), ListAnswer)


def test_no_try_outlasts_the_deadline_that_a_call_names() -> None:
    given: list[float] = []

    def note(request: httpx.Request) -> httpx.Response:
        given.append(request.extensions["timeout"]["read"])
        raise httpx.ReadTimeout("hung")

    retries = Retries(first_s=0.01, slack_s=0.2)
    with Client(transport=httpx.MockTransport(note), retries=retries) as client:
        with pytest.raises(Unreachable):
            client.recommend("u1", deadline_ms=300)
        assert len(given) > 1 and given == sorted(given, reverse=True)
        assert 0.3 < given[0] <= 0.5
        given.clear()
        with pytest.raises(Unreachable):
            client.recommend("u1")
        assert set(given) == {5.0}


@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_a_hung_server_costs_the_deadline_and_no_more(client: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hung:  # takes connections, answers none
        shop = client(f"http://127.0.0.1:{hung.getsockname()[1]}", retries=Retries(slack_s=0.05))
        began = time.monotonic()
        with pytest.raises(Unreachable):
            asked = shop.recommend("u1", deadline_ms=50)
            asyncio.run(asked) if client is AsyncClient else None
        assert time.monotonic() - began < 2, "a try may take five seconds otherwise"


def test_it_gives_up_at_last() -> None:
    server = Server(problem(503))
    with pytest.raises(ApiError, match="503 overloaded: too many") as caught:
        server.ask("recommend", "u1")
    assert caught.value.attempts == len(server.requests) == 4
    server = Server(problem(503))
    with pytest.raises(ApiError):
        server.ask("recommend", "u1", retries=Retries(attempts=1))
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 500])
def test_a_refusal_is_not_repeated(status: int) -> None:
    server = Server(problem(status), OK)
    with pytest.raises(ApiError) as caught:
        server.ask("profile", "u1")
    assert caught.value.status == status and len(server.requests) == 1
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert str(again) == str(caught.value) and again.kind == "overloaded"


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_what_a_proxy_says_is(status: int) -> None:
    server = Server(httpx.Response(status, text="<h1>bad gateway</h1>"), OK)
    assert server.ask("recommend", "u1").items == []
    with pytest.raises(ApiError, match="bad gateway"):
        Server(httpx.Response(status, text="<h1>bad gateway</h1>")).ask("recommend", "u1")


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("refused"), httpx.ReadTimeout("late"), httpx.ReadError("")]
)
def test_a_broken_connection_is_tried_again(error: Exception) -> None:
    assert Server(error, OK).ask("recommend", "u1").bundle == "b"
    with pytest.raises(Unreachable, match="tried 4 times") as caught:
        Server(error).ask("recommend", "u1")
    assert isinstance(caught.value.__cause__, httpx.TransportError)


def test_a_rollback_is_never_sent_twice() -> None:
    for reply in (problem(503), httpx.Response(502), httpx.ReadTimeout("late")):
        server = Server(reply)
        with pytest.raises((ApiError, Unreachable)):
            server.ask("rollback")
        assert len(server.requests) == 1
    told = {"name": "champion", "bundle": "b", "before": None, "reason": "", "live": True}
    done = httpx.Response(200, json=told)
    for reply in (problem(429), httpx.ConnectError("refused")):  # it had no effect
        assert Server(reply, done).ask("rollback").bundle == "b"


def test_events_keep_their_ids_over_retries_and_batches() -> None:
    answer = {"accepted": 1, "duplicate": 0, "rejected": 1, "events": [
        {"index": 0, "status": "accepted"}, {"index": 1, "status": "rejected"}]}  # fmt: skip
    reply = httpx.Response(200, json=answer)
    server = Server(httpx.ReadTimeout("late"), reply)
    sent = [{"event_type": "click", "item_id": str(n)} for n in range(MAX_EVENTS + 1)]
    sent[3]["event_id"] = "mine"
    told = server.ask("events", sent)
    first, again, second = (request.read() for request in server.requests)
    assert first == again and b'"mine"' in first and b'"mine"' not in second
    assert told.accepted == told.rejected == 2
    assert [outcome.index for outcome in told.events] == [0, 1, MAX_EVENTS, MAX_EVENTS + 1]
    assert sent[0].keys() == {"event_type", "item_id"}  # what was given is left as it is
    assert Server(reply).ask("events", []).events == []


def kept(count: int) -> httpx.Response:
    outcomes = [{"index": index, "status": "accepted"} for index in range(count)]
    told = {"accepted": count, "duplicate": 0, "rejected": 0, "events": outcomes}
    return httpx.Response(200, json=told)


def nothing_good(*indices: int) -> httpx.Response:
    errors = [{"path": f"body.events.{index}.item_id", "message": "missing"} for index in indices]
    told = {
        "type": "urn:raysys:problem:invalid-request",
        "detail": "none is good",
        "errors": errors,
    }
    return httpx.Response(422, json=told)


def test_batches_are_cut_by_bytes_as_well() -> None:
    server = Server(kept(1))
    text = "ü" * 1000  # two bytes each
    sent = [{"event_type": "item", "item_id": str(n), "title": text} for n in range(1000)]
    told = server.ask("events", sent)
    sizes = [len(request.read()) for request in server.requests]
    assert len(sizes) == 3 and max(sizes) <= MAX_BYTES + 100
    assert told.events[0].index == 0 and told.accepted == 3
    with pytest.raises(ValueError, match="JSON"):
        Server(kept(1)).ask("events", [{"event_type": "click"}, {"price": float("nan")}])


def test_a_batch_without_anything_good_stops_no_other() -> None:
    sent = [{"event_id": f"e{n}", "item_id": str(n)} for n in range(2 * MAX_EVENTS + 2)]
    server = Server(kept(MAX_EVENTS), nothing_good(0, 7), kept(2))
    told = server.ask("events", sent)
    assert told.accepted == MAX_EVENTS + 2 and told.rejected == MAX_EVENTS
    assert [outcome.index for outcome in told.events] == list(range(2 * MAX_EVENTS + 2))
    bad = told.events[MAX_EVENTS + 7]
    assert bad.status == "rejected" and bad.errors[0]["message"] == "missing"
    assert bad.event_id == f"e{MAX_EVENTS + 7}"
    assert told.events[MAX_EVENTS + 1].reason == "none is good"  # not all errors are listed
    # one that is too large for any body is refused alone
    large = [{"event_id": "1", "title": "x" * (MAX_BYTES + 1)}, {"event_id": "2"}]
    assert Server(problem(413), kept(1)).ask("events", large).rejected == 1


@pytest.mark.parametrize("failure", [problem(503), problem(413), httpx.ReadTimeout("late")])
def test_what_was_not_answered_is_told_with_its_ids(failure: httpx.Response | Exception) -> None:
    sent = [{"event_type": "click", "item_id": str(n)} for n in range(2 * MAX_EVENTS + 1)]
    server = Server(kept(MAX_EVENTS), failure)
    with pytest.raises((ApiError, Unreachable)) as caught:
        server.ask("events", sent)
    error = pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    assert error.answered.accepted == MAX_EVENTS and len(error.unanswered) == MAX_EVENTS + 1
    assert error.unanswered[0]["item_id"] == str(MAX_EVENTS)
    again = json.loads(server.requests[-1].read())["events"]
    assert error.unanswered[:MAX_EVENTS] == again and all(event["event_id"] for event in again)


def test_what_is_no_answer_is_said() -> None:
    for content in ("<html>", "{}", "[]"):
        with pytest.raises(ApiError, match="no answer of raysys"):
            Server(httpx.Response(200, text=content)).ask("recommend", "u1")
    with pytest.raises(ApiError) as caught:  # a key goes nowhere else
        Server(httpx.Response(307, headers={"location": "https://evil.example"})).ask("ready")
    assert caught.value.status == 307


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYSYS_URL", "https://shop.example/rank/")
    monkeypatch.setenv("RAYSYS_API_KEY", "rsk_1")
    server = Server(OK)
    server.ask("search", "milk", deadline_ms=50, priority="background", k=3)
    (request,) = server.requests
    assert str(request.url) == "https://shop.example/rank/v1/search"
    assert request.headers["authorization"] == "Bearer rsk_1"
    assert request.headers["x-deadline-ms"] == "50"
    assert request.headers["x-priority"] == "background"
    assert request.read() == b'{"query":"milk","k":3}'
    assert "x-session-id" not in request.headers


@pytest.mark.parametrize(
    ("asked", "who"),
    [
        ({"user_id": "u1", "session_id": "s1"}, "u1"),
        ({"session_id": "s1"}, "s1"),
        ({"user_id": "Ü"}, None),  # no header can say it
        ({"user_id": " u"}, None),
        ({"user_id": "u\n"}, None),
        ({"user_id": "u" * 300}, None),
        ({}, None),
    ],
)
def test_a_router_is_told_who_asks(asked: dict[str, Any], who: str | None) -> None:
    server = Server(OK)
    server.ask("recommend", **asked)
    (request,) = server.requests
    assert request.headers.get("x-session-id") == who


@given(
    attempt=st.integers(1, 9),
    spent=st.floats(0, 30),
    asked=st.none() | st.floats(0, 10),
    seed=st.integers(0, 99),
)
def test_waits_keep_to_their_bounds(
    attempt: int, spent: float, asked: float | None, seed: int
) -> None:
    retries = Retries(attempts=6, rng=random.Random(seed))
    wait = retries.wait(attempt, spent, asked)
    if wait is None:
        assert attempt >= 6 or (asked or 0) > 5 or spent + (asked or 0) + 5 > 15
        return
    assert (asked or 0) <= wait <= (asked or 0) + min(5.0, 0.1 * 2 ** (attempt - 1))
    assert spent + wait <= 15 and attempt < 6


def test_both_clients_have_the_same_calls() -> None:
    def signatures(kind: type) -> dict[str, tuple[list[str], Any]]:
        found: dict[str, Callable[..., Any]] = dict(inspect.getmembers(kind, inspect.isfunction))
        return {
            name: (list(inspect.signature(call).parameters), call.__annotations__.get("return"))
            for name, call in found.items()
            if not name.startswith("_")
        }

    assert signatures(Client) == signatures(AsyncClient)


def test_importing_raysys_stays_cheap() -> None:
    code = (
        "import sys, raysys; assert 'httpx' not in sys.modules; raysys.Client;"
        "heavy = {'ray', 'torch', 'numpy', 'pandas', 'pyarrow', 'polars', 'fastapi', 'yaml'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
    assert raysys.Client is Client and raysys.AsyncClient is AsyncClient
    with pytest.raises(AttributeError, match="Klient"):
        _ = raysys.Klient


def test_odd_retries_are_refused() -> None:
    for odd in ({"attempts": 0}, {"first_s": -1.0}, {"down_s": -1.0}):
        with pytest.raises(ValueError, match="must be"):
            Retries(**odd)
    assert isinstance(iter([]), Iterator)
