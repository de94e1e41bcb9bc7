"""One request's budget, stage by stage, in microseconds: in one process, without a network.

Medians over several hundred requests of different users. What is left between the sum of a
surface's stages and `whole` is what lies between them; `http` is all that FastAPI, middleware and
the hand-over to a thread add to the service's own work.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic_core import to_json

from benchmarks.result import Figure
from benchmarks.serving_parts.args import SURFACES, arguments, questions
from benchmarks.serving_parts.ask import REQUESTS
from raysys.serving.app import http_app
from raysys.serving.args import ServeArgs
from raysys.serving.asking import Context, Watch
from raysys.serving.listing import listed
from raysys.serving.pauses import keep_short
from raysys.serving.service import Service


def measure(registry: Path, *, requests: int = 400, rounds: int = 5) -> list[Figure]:
    """Medians of every stage of every surface, and the least and most of the rounds'."""
    args = ServeArgs.model_validate(arguments(registry))
    service = Service(args)
    service.warm_up()
    keep_short()  # as a replica does
    app = http_app(service)
    asked = questions(registry, n=requests * 2)
    found: list[Figure] = []
    for surface in SURFACES:
        runs: dict[str, list[float]] = defaultdict(list)
        for number in range(rounds):
            some = asked[surface][number % 2 * requests :][:requests]
            _forget(service)  # queries are encoded anew in every round
            for stage, spent in _round(service, app, surface, some).items():
                runs[stage].append(float(np.median(spent)))
        found += _figures(surface, runs, requests, rounds)
    service.close()
    return found


def _forget(service: Service) -> None:
    search = service.bundle.search
    with search._lock:
        search._vectors_of.clear()


def _round(
    service: Service, app: Any, surface: str, some: Sequence[Mapping[str, Any]]
) -> dict[str, list[float]]:
    """Microseconds of every request by stage."""
    spent: dict[str, list[float]] = defaultdict(list)
    half = len(some) // 2
    for body in some[:half]:
        began = time.perf_counter()
        request = REQUESTS[surface].validate_python(body)
        spent["check"].append((time.perf_counter() - began) * 1e6)
        watch = Watch()
        ask, _ = service.asking(request, Context(time.perf_counter()))
        watch.lap("asking")
        ranking = service.ranker.scored(ask)
        watch.skip()
        arranged = service.ranker.arrange(ranking, ask)
        watch.lap("policy")
        listed(ranking, arranged, service.bundle, explain=False)
        watch.lap("listing")
        for stage, ms in {**watch.laps, **ranking.milliseconds}.items():
            spent[stage].append(ms * 1000)
    for body in some[half : half + half // 2]:
        request = REQUESTS[surface].validate_python(body)
        began = time.perf_counter()
        content = service.content(request, Context(began))
        answered = time.perf_counter()
        to_json(content)
        spent["json"].append((time.perf_counter() - answered) * 1e6)
        spent["service"].append((time.perf_counter() - began) * 1e6)
    whole = asyncio.run(_through_http(app, surface, some[half + half // 2 :]))
    spent["whole"] = whole
    return spent


async def _through_http(
    app: Any, surface: str, some: Sequence[Mapping[str, Any]]
) -> list[float]:  # microseconds
    taken = []
    for body in some:
        content = to_json(body)
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
            "scheme": "http", "path": f"/v1/{surface}", "raw_path": f"/v1/{surface}".encode(),
            "query_string": b"", "root_path": "", "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(content)).encode()),
            ],
        }  # fmt: skip
        statuses: list[int] = []

        async def receive(content: bytes = content) -> dict[str, Any]:
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: Mapping[str, Any], told: list[int] = statuses) -> None:
            if message["type"] == "http.response.start":
                told.append(message["status"])

        began = time.perf_counter()
        await app(scope, receive, send)
        taken.append((time.perf_counter() - began) * 1e6)
        assert statuses == [200], statuses
    return taken


def _figures(
    surface: str, runs: Mapping[str, list[float]], requests: int, rounds: int
) -> list[Figure]:
    whole = float(np.median(runs["whole"]))
    runs = {**runs, "http": [w - s for w, s in zip(runs["whole"], runs["service"], strict=True)]}
    stages = {name: float(np.median(us)) for name, us in runs.items()}
    largest = max((s for s in stages if s not in ("whole", "service")), key=lambda s: stages[s])
    found = []
    for stage, middle in stages.items():
        how = f"{middle / whole:.0%} of a request; median of {requests} in each of {rounds} rounds"
        if stage == largest:
            how += "; the largest stage"
        spread = runs[stage]
        name = f"{surface}_{stage}_us"
        found.append(Figure(name, middle, "µs", min(spread), max(spread), reference=how))
    return found
