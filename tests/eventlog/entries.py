"""Entries for tests."""

from __future__ import annotations

import time

from raysys.eventlog.entries import NewEntry

NOW = time.time_ns() // 1_000_000


def entry(event_id: str, timestamp: int = NOW, kind: str = "event", **body: object) -> NewEntry:
    told = {"event_id": event_id, "event_type": "click", "user_id": "u", "item_id": "i"}
    if kind != "event":
        told = {"event_id": event_id}
    return NewEntry(event_id, timestamp, kind, {**told, "timestamp": timestamp, **body})


def entries(*names: str) -> list[NewEntry]:
    return [entry(name) for name in names]
