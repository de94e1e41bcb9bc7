"""Where an event log lives and what it bears: part of a deployment's arguments."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raysys.config import Settings

REMEMBERED_SLACK_DAYS = 2
"""Ids are known so much longer than an event may be old, for clocks and the rounding to days."""


class LogSettings(Settings):
    """An event log.

    Attributes:
        backend: `local`: files of one node, shared by its replicas. `redis`: Redis Streams, for
            many nodes; needs the extra `redis`, and a server with appendfsync always.
        path: the log's folder, where rolled Parquet lies too; null: `eventlog` beside the
            registry. For `local` on a disk of this machine, not on a network's; for `redis` one
            that all nodes see.
        url: of Redis.
        name: begins the names of all keys in Redis.
        queue_events: events that may wait to be written; beyond that 503 at once.
        max_age_days: an older event is refused; so long an id is remembered at least.
        segment_mb: size of the files of `local`; so much disk space is taken ahead.
        keep_hours: entries stay in the log for so long after they were rolled.
        roll_events: rolled to Parquet by itself when there are so many; 0: only on command.
        roll_minutes: or when the oldest is so old.
    """

    backend: Literal["local", "redis"] = "local"
    path: str | None = None
    url: str = "redis://127.0.0.1:6379/0"
    name: str = "raysys"
    queue_events: Annotated[int, Field(ge=1, le=10_000_000)] = 20_000
    max_age_days: Annotated[float, Field(gt=0, le=3650)] = 30
    segment_mb: Annotated[int, Field(ge=1, le=1024)] = 32
    keep_hours: Annotated[float, Field(ge=0)] = 24
    roll_events: Annotated[int, Field(ge=0)] = 100_000
    roll_minutes: Annotated[float, Field(gt=0)] = 60

    @property
    def remember_days(self) -> int:
        """How long after its event, or after it came in, an id is known."""
        return int(self.max_age_days) + 1 + REMEMBERED_SLACK_DAYS
