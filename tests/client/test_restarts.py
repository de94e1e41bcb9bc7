"""What a client does while the server it knows restarts: waits, and sends nothing twice."""

from __future__ import annotations

import asyncio
import random
import socket

import httpx
import pytest

from raysys.client import ApiError, AsyncClient, Client, Retries, Unreachable
from raysys.client.sending import _refused
from tests.client.test_client import EMPTY, OK, Server, problem


def refusal() -> httpx.ConnectError:
    """As httpx has it."""
    error = httpx.ConnectError("refused")
    error.__cause__ = ConnectionRefusedError(111, "Connection refused")
    return error


@pytest.mark.parametrize("call", ["recommend", "rollback"])
def test_a_server_that_restarts_is_waited_for(call: str) -> None:
    told = {"name": "champion", "bundle": "b", "before": None, "reason": "", "live": True}
    done = httpx.Response(200, json=EMPTY | told)
    refused = [refusal()] * 9
    server = Server(OK, *refused, done)
    waits: list[float] = []
    with Client(transport=httpx.MockTransport(server), sleep=waits.append) as client:
        client.recommend("u1")
        answer = client.recommend("u1") if call == "recommend" else client.rollback()
    assert answer.bundle == "b" and len(server.requests) == 11
    assert len(waits) == 9 and max(waits) <= 1.0

    async def asynchronous() -> int:
        async def sleep(seconds: float) -> None:
            waits.append(seconds)

        again = Server(OK, *refused, done)
        transport = httpx.MockTransport(again)
        async with AsyncClient(transport=transport, sleep=sleep) as client:
            await client.recommend("u1")
            await getattr(client, call)(*(["u1"] if call == "recommend" else []))
        return len(again.requests)

    assert asyncio.run(asynchronous()) == 11


def test_a_proxy_that_has_just_started_is_asked_again() -> None:
    lost = httpx.Response(404, text="Path '/v1/recommend' not found.")
    server = Server(OK, *[refusal()] * 5, *[lost] * 5, OK)
    waits: list[float] = []
    with Client(transport=httpx.MockTransport(server), sleep=waits.append) as client:
        client.recommend("u1")
        assert client.recommend("u1").bundle == "b"
    assert len(server.requests) == 12
    with pytest.raises(ApiError, match="not found"):  # nobody was ever there: a wrong address
        Server(lost).ask("recommend", "u1")
    server = Server(problem(404))
    with pytest.raises(ApiError):
        server.ask("recommend", "u1")
    assert len(server.requests) == 1  # raysys says so itself


def test_but_not_for_ever_and_not_where_nobody_ever_was() -> None:
    gone = Server(OK, refusal())
    waits: list[float] = []
    retries = Retries(down_s=6.0, rng=random.Random(0))
    transport = httpx.MockTransport(gone)
    with Client(transport=transport, retries=retries, sleep=waits.append) as client:
        client.recommend("u1")
        with pytest.raises(Unreachable, match="refused"):
            client.recommend("u1")
    assert 5.0 < sum(waits) <= 6.0
    with pytest.raises(Unreachable, match="tried 4 times"):
        Server(httpx.ConnectError("refused")).ask("recommend", "u1")
    for other in (httpx.ReadTimeout("late"), httpx.ConnectError("no such name")):
        there = Server(OK, other)
        with Client(transport=httpx.MockTransport(there), sleep=waits.append) as client:
            client.recommend("u1")
            with pytest.raises(Unreachable, match="tried 4 times"):
                client.recommend("u1")
    for few in (Retries(attempts=1), Retries(total_s=0.0)):  # who wants to know at once
        gone = Server(OK, refusal())
        with Client(transport=httpx.MockTransport(gone), retries=few, sleep=waits.append) as client:
            client.recommend("u1")
            with pytest.raises(Unreachable, match="tried 1 times"):
                client.recommend("u1")


def test_what_the_caller_is_handling_says_nothing_of_a_call() -> None:
    late = httpx.ReadTimeout("late")
    server = Server(OK, late)
    with Client(transport=httpx.MockTransport(server), sleep=lambda _: None) as client:
        client.recommend("u1")
        try:
            raise Unreachable("gone") from refusal()
        except Unreachable as handled:
            late.__context__ = handled
            with pytest.raises(Unreachable, match="tried 1 times"):
                client.rollback()
    assert len(server.requests) == 2  # it may have been done


def test_a_refused_connection_is_known_as_one() -> None:
    """By both transports, over the network."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"  # nobody listens
        with pytest.raises(httpx.ConnectError) as caught:
            httpx.get(url)
        assert _refused(caught.value)

        async def asynchronous() -> None:
            async with httpx.AsyncClient() as client:
                await client.get(url)

        with pytest.raises(httpx.ConnectError) as caught:
            asyncio.run(asynchronous())
        assert _refused(caught.value)
    with pytest.raises(httpx.ConnectError) as caught:
        httpx.get("http://nobody.invalid")
    assert not _refused(caught.value)
    try:
        raise refusal()
    except httpx.ConnectError:  # what the caller is handling
        with pytest.raises(httpx.ConnectError) as caught:
            httpx.get("http://nobody.invalid")
    assert not _refused(caught.value)
