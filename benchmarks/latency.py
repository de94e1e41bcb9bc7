"""Requests a second and latency of the four lists at 1 and 16 connections.

Needs a server (`raysys demo` or `raysys deploy`); about two minutes. Talks to 127.0.0.1 only.
"""

from __future__ import annotations

import argparse
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np

from benchmarks.result import Figure, write_result

QUERIES = ("milk", "dog food", "shampoo", "ice cream", "frozen pizza", "apples", "coffee", "bread")


CANDIDATES = 100  # of /v1/rank


def known_items(url: str) -> list[str]:
    """Items that the shop sells, asked of the server itself."""
    found: dict[str, None] = {}
    with httpx.Client(base_url=url, timeout=30) as client:
        for query in QUERIES:
            answer = client.post("/v1/search", json={"query": query, "k": CANDIDATES})
            answer.raise_for_status()
            found |= dict.fromkeys(item["item_id"] for item in answer.json()["items"])
    return list(found)


def bodies(path: str, users: list[str], items: list[str]) -> list[dict]:
    """Requests of many users, so that no cache answers for the system."""
    chance = random.Random(7)
    if path == "/v1/rank":
        return [
            {"user_id": chance.choice(users), "item_ids": chance.sample(items, CANDIDATES)}
            for _ in range(500)
        ]
    if path == "/v1/similar":
        return [
            {"item_id": chance.choice(items), "user_id": chance.choice(users), "k": 10}
            for _ in range(500)
        ]
    if path == "/v1/search":
        return [
            {"query": chance.choice(QUERIES), "user_id": chance.choice(users), "k": 10}
            for _ in range(500)
        ]
    return [{"user_id": chance.choice(users), "place": "home", "k": 10} for _ in range(500)]


def load(url: str, path: str, work: list[dict], connections: int, seconds: float) -> np.ndarray:
    """Latencies in ms of every answer that `connections` callers got within `seconds`."""
    until = 0.0

    def begin() -> None:  # when all are connected, which takes longer the more there are
        nonlocal until
        until = time.monotonic() + seconds

    ready = threading.Barrier(connections, action=begin)

    def caller(number: int) -> list[float]:
        taken = []
        with httpx.Client(base_url=url, timeout=30) as client:
            try:
                client.get("/healthz").raise_for_status()
            except BaseException:
                ready.abort()  # or the others wait for ever
                raise
            ready.wait(60)
            at = number * 31
            while time.monotonic() < until:
                began = time.perf_counter()
                answer = client.post(path, json=work[at % len(work)])
                answer.raise_for_status()
                taken.append((time.perf_counter() - began) * 1000)
                at += 1
        return taken

    with ThreadPoolExecutor(connections) as pool:
        callers = [pool.submit(caller, number) for number in range(connections)]
    failed = [each for each in callers if each.exception() is not None]
    for each in failed:  # what broke the barrier tells more than that it broke
        if not isinstance(each.exception(), threading.BrokenBarrierError):
            each.result()
    return np.array([ms for each in callers for ms in each.result()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--seconds", type=float, default=12)
    arguments = parser.parse_args()
    users = [str(number) for number in range(1, 2400, 3)]
    figures, started = [], time.monotonic()
    items = known_items(arguments.url)
    for path in ("/v1/recommend", "/v1/search", "/v1/similar", "/v1/rank"):
        name = path.rsplit("/", 1)[1]
        work = bodies(path, users, items)
        load(arguments.url, path, work, 1, min(2.0, arguments.seconds))  # warm-up
        for connections in (1, 16):
            taken = load(arguments.url, path, work, connections, arguments.seconds)
            p50, p99 = np.percentile(taken, [50, 99])
            rate = len(taken) / arguments.seconds
            figures += [
                Figure(f"{name}_per_s_{connections}", rate, "requests/s"),
                Figure(f"{name}_p50_ms_{connections}", p50, "ms"),
                Figure(f"{name}_p99_ms_{connections}", p99, "ms"),
            ]
    write_result("latency", figures, time.monotonic() - started)


if __name__ == "__main__":
    main()
