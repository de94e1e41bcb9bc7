"""What a deployment may say of events: the `events` of a serve config's `args`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from raysys.eventlog.settings import LogSettings


class EventsArgs(LogSettings):
    """The event log, and which events it takes.

    Attributes:
        max_ahead_minutes: an event further ahead of the clock is refused: clocks run ahead, but
            state that was taken there would read everything as it will be then.
        out_of_range: what becomes of events that are too old, or too far ahead. `reject`: nothing
            is kept. `quarantine`: kept in the log and put aside, never counted.
        session_gap_minutes: a session ends when nothing happens for longer than this; the same
            as `sessions.gap_minutes` of the ingest.
        new_users: users that may become known between two trainings by their events; and as many
            by what `user` updates tell of them.
        snapshot_events: after so many a replica leaves a copy of its state, for the next one that
            starts to go on from; 0: never.
        poll_ms: how often a replica looks at what others appended.
        retry_after_s: after so long a client should try again when pushed back.
    """

    max_ahead_minutes: Annotated[float, Field(ge=0, le=1440)] = 10
    out_of_range: Literal["reject", "quarantine"] = "reject"
    session_gap_minutes: Annotated[float, Field(gt=0)] = 30
    new_users: Annotated[int, Field(ge=0)] = 1_000_000
    snapshot_events: Annotated[int, Field(ge=0)] = 100_000
    poll_ms: Annotated[int, Field(ge=1, le=10_000)] = 50
    retry_after_s: Annotated[int, Field(ge=1, le=3600)] = 1
