"""Forgetting what the rolled files hold as well, so that a log stays as large as it must be."""

from __future__ import annotations

from raysys.eventlog.entries import EventLog
from raysys.eventlog.rolled import Rolled


def forget(log: EventLog, rolled: Rolled, before: int) -> int:
    """Drop entries that were rolled, and received before a moment (UTC ms); how many went.

    Raises:
        LogUnavailable: the log cannot be written to.
    """
    until = max((s.last for s in rolled.stretches() if s.received < before), default=0)
    return log.drop(until) if until >= log.first() else 0
