"""Simulated shoppers in front of a real shop: they ask over HTTP, react, and send events back.

Visits start on a schedule (an open loop: a slow shop is not spared), at most so many at once, for
so long. Everything that was shown and done is kept, with what was expected of each list.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from raysys import schema
from raysys.config import Settings
from raysys.errors import UserError
from raysys.simulation.shoppers import Int, Memory, Reaction, Shoppers

_TRIES = 3
_BUSY = (429, 503)


class DriveSettings(Settings):
    """How shoppers come.

    Attributes:
        seconds: most that it takes.
        visits: most of them; null: as many as the time allows.
        rate: that begin a second.
        at_once: most that are under way.
        k: length of lists.
        search: share of visits that search; the others look at the home page.
        days_per_second: how fast the shoppers' calendar runs (fatigue, budgets, seasons); the shop
            stamps events as they come, by its own clock.
        send_events: to /v1/events.
        timeout_s: of one answer.
        seed: of who comes and what they do.
    """

    seconds: float = Field(30, gt=0, le=86_400)
    visits: int | None = Field(None, ge=1)
    rate: float = Field(10, gt=0, le=10_000)
    at_once: int = Field(16, ge=1, le=1000)
    k: int = Field(10, ge=1, le=500)
    search: float = Field(0.3, ge=0, le=1)
    days_per_second: float = Field(1.0, ge=0)
    send_events: bool = True
    timeout_s: float = Field(10, gt=0)
    seed: int = Field(0, ge=0)


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        visits: that were begun; late: more than a second after their time.
        failed: what went wrong → how often.
        events: what the shop said of events (accepted, duplicate, rejected) → how many.
        acknowledged: ids of the events that the shop said it has: accepted, or there already.
        answers: one mapping a list: request_id, user_id, surface, arm, bundle, timestamp, shown,
            expected_clicks, expected_purchases, best_clicks, clicks, purchases, revenue, took_ms.
        log: events in `schema.LOGGED_EVENTS`.
        seconds: that it took.
    """

    visits: int = 0
    late: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    acknowledged: list[str] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    log: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0

    def figures(self) -> dict[str, float]:
        """Means over lists: what was expected, what was best, what came; and milliseconds."""
        if not self.answers:
            return {}
        frame = pl.DataFrame(self.answers)
        mean = {
            name: float(frame[name].mean() or 0.0)  # type: ignore[arg-type]
            for name in ("expected_clicks", "best_clicks", "clicks", "purchases", "revenue")
        }
        p50, p99 = np.quantile(frame["took_ms"].to_numpy(), [0.5, 0.99])
        return mean | {
            "lists": float(len(frame)),
            "reached": mean["expected_clicks"] / max(mean["best_clicks"], 1e-12),
            "p50_ms": float(p50),
            "p99_ms": float(p99),
        }

    def write(self, folder: Path) -> None:
        """Write `answers.parquet` and `events.parquet`."""
        folder.mkdir(parents=True, exist_ok=True)
        pl.DataFrame(self.answers, infer_schema_length=None).write_parquet(
            folder / "answers.parquet"
        )
        table = pa.Table.from_pylist(self.log, schema.LOGGED_EVENTS)
        pq.write_table(table, folder / "events.parquet", compression="zstd")


async def drive(client: httpx.AsyncClient, shoppers: Shoppers, settings: DriveSettings) -> Outcome:
    """Let shoppers visit until the time or the visits are over.

    Args:
        client: with the shop's base URL, and headers such as a key.
        shoppers: over the catalogue that the shop serves.
        settings: how they come.

    Raises:
        UserError: the shop does not answer, or refuses the first visit.
    """
    await _knock(client)
    drive_ = _Drive(client, shoppers, settings)
    await drive_.run()
    return drive_.outcome


async def _knock(client: httpx.AsyncClient) -> None:
    try:
        answer = await client.get("/readyz")
    except httpx.HTTPError as error:
        told = str(error) or type(error).__name__
        raise UserError(
            f"the shop does not answer: {told}",
            where=str(client.base_url),
            mend="start it with `raysys deploy`, or give --url",
        ) from None
    if answer.status_code != 200:
        raise UserError(f"the shop is not ready: {answer.status_code}", where=str(client.base_url))


class _Drive:
    """One run: schedule, memories, and what was seen."""

    def __init__(
        self, client: httpx.AsyncClient, shoppers: Shoppers, settings: DriveSettings
    ) -> None:
        self.client, self.shoppers, self.settings = client, shoppers, settings
        self.outcome = Outcome()
        self.memories: dict[int, Memory] = {}
        self.events_taken = settings.send_events
        self._began = 0.0

    async def run(self) -> None:
        how = self.settings
        loop = asyncio.get_running_loop()
        room = asyncio.Semaphore(how.at_once)
        self._began = loop.time()
        most = how.visits if how.visits is not None else int(how.rate * how.seconds) + 1
        async with asyncio.TaskGroup() as group:
            for number in range(most):
                due = self._began + number / how.rate
                await asyncio.sleep(max(0.0, due - loop.time()))
                await room.acquire()
                if loop.time() - self._began >= how.seconds:
                    room.release()
                    break
                self.outcome.late += loop.time() - due > 1
                task = group.create_task(self._visit(number))
                task.add_done_callback(lambda _: room.release())
        self.outcome.seconds = loop.time() - self._began

    async def _visit(self, number: int) -> None:
        """One list: ask, react, send events."""
        how, outcome = self.settings, self.outcome
        rng = np.random.default_rng((how.seed, number))
        shopper = int(rng.integers(len(self.shoppers)))
        outcome.visits += 1
        user = self.shoppers.name(shopper)
        day = (asyncio.get_running_loop().time() - self._began) * how.days_per_second
        asked: dict[str, Any] = {"user_id": user, "k": how.k}
        query = None
        if rng.random() < how.search:
            query = self.shoppers.query(shopper, rng)
            asked["query"] = query
        surface = "recommend" if query is None else "search"
        began = time.perf_counter()
        answer = await self._post(f"/v1/{surface}", asked)
        if answer is None:
            return
        took = (time.perf_counter() - began) * 1000
        numbers = [self.shoppers.catalogue.number(each["item_id"]) for each in answer["items"]]
        if None in numbers:
            outcome.failed["items that the catalogue lacks"] += 1
            return
        items = np.array(numbers, np.int64)
        memory = self.memories.setdefault(shopper, Memory())
        clicks, purchases = self.shoppers.value(shopper, items, day, query)
        ideal = self.shoppers.ideal(shopper, day, how.k, query)
        best = self.shoppers.value(shopper, ideal, day, query)[0]
        reaction = self.shoppers.react(shopper, items, day, memory, rng, query)
        now = time.time_ns() // 1_000_000
        outcome.answers.append(
            {
                "request_id": answer["request_id"], "user_id": user, "surface": surface,
                "arm": answer.get("arm"), "bundle": answer.get("bundle"), "timestamp": now,
                "shown": len(items),
                "expected_clicks": clicks, "expected_purchases": purchases, "best_clicks": best,
                "clicks": int(reaction.clicked.sum()), "purchases": int(reaction.purchased.sum()),
                "revenue": float(self.shoppers.price[items[reaction.purchased]].sum()),
                "took_ms": took,
            }
        )  # fmt: skip
        events = self._events(user, items, reaction, answer["request_id"], now, query, number)
        outcome.log += events
        await self._send(events)

    async def _send(self, events: list[dict[str, Any]]) -> None:
        if not self.events_taken or not events:
            return
        plain = [  # without their moments: a demonstration's clock is not the wall's
            {key: value for key, value in event.items() if value is not None and key != "timestamp"}
            for event in events
        ]
        for at in range(0, len(plain), 1000):
            answer = await self._post("/v1/events", {"events": plain[at : at + 1000]})
            if answer is None:
                continue
            for name in ("accepted", "duplicate", "rejected", "quarantined"):
                self.outcome.events[name] += int(answer.get(name, 0))
            self.outcome.acknowledged += [
                told["event_id"]
                for told in answer["events"]
                if told["status"] in ("accepted", "duplicate")
            ]

    async def _post(self, path: str, asked: dict[str, Any]) -> dict[str, Any] | None:
        """The answer; None where it failed, which is counted. A busy shop is asked again."""
        for attempt in range(_TRIES):
            try:
                answer = await self.client.post(path, json=asked, timeout=self.settings.timeout_s)
            except httpx.HTTPError as error:
                self.outcome.failed[f"{path} {type(error).__name__}"] += 1
                return None
            if answer.status_code == 200:
                found: dict[str, Any] = answer.json()
                return found
            if answer.status_code in _BUSY and attempt + 1 < _TRIES:
                wait = answer.headers.get("retry-after", "")
                await asyncio.sleep(min(float(wait) if wait.isdigit() else 0.1, 5.0))
                continue
            self.outcome.failed[f"{path} {answer.status_code}"] += 1
            if path == "/v1/events" and answer.status_code == 404:
                self.events_taken = False  # this deployment keeps no events: the log has them
            return None
        return None

    def _events(
        self,
        user: str,
        items: Int,
        reaction: Reaction,
        request_id: str,
        now: int,
        query: str | None,
        number: int,
    ) -> list[dict[str, Any]]:
        """What happened, in the order of one visit; ids follow from it, so a repeat counts once."""
        ids = self.shoppers.catalogue.ids
        space = uuid.uuid5(uuid.NAMESPACE_URL, f"{request_id}/{number}")
        common = {
            "user_id": user, "timestamp": now, "session_id": f"{user}-{number}",
            "request_id": request_id, "query": query,
        }  # fmt: skip

        def event(kind: str, at: int | None = None) -> dict[str, Any]:
            made = {**common, "event_type": kind, "event_id": str(uuid.uuid5(space, f"{kind}{at}"))}
            if at is not None:
                made |= {"item_id": str(ids[items[at]]), "position": at + 1}
            if kind == "purchase" and at is not None:
                made |= {"price": float(self.shoppers.price[items[at]]), "quantity": 1.0}
            return made

        found = [event("search")] if query is not None else []
        found += [event("impression", at) for at in range(len(items))]
        for kind, mask in (
            ("click", reaction.clicked), ("favorite", reaction.favorite),
            ("cart", reaction.cart), ("purchase", reaction.purchased),
        ):  # fmt: skip
            found += [event(kind, int(at)) for at in np.flatnonzero(mask)]
        return found
