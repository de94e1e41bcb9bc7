"""Open the log that settings name."""

from __future__ import annotations

from pathlib import Path

from raysys.eventlog.entries import EventLog
from raysys.eventlog.local import LocalLog
from raysys.eventlog.settings import LogSettings


def open_log(settings: LogSettings, folder: Path) -> EventLog:
    """The log.

    Args:
        settings: which.
        folder: where `local` keeps it, and where rolled files lie.

    Raises:
        UserError: a folder that cannot be written to, a missing package, a server that is not
            set up to keep what it acknowledges.
        LogUnavailable: a full disk, a server that does not answer.
    """
    if settings.backend == "redis":
        from raysys.eventlog.redis_log import RedisLog

        return RedisLog(settings, folder)
    return LocalLog(folder, settings)
