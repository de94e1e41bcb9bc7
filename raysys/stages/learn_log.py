"""The event log that is learned from: rolled before a round, counted between rounds."""

from __future__ import annotations

import logging
from pathlib import Path

from raysys.config import find_config, load_settings
from raysys.datasets.event_log import EventLogSource
from raysys.datasets.files import expand_variables
from raysys.eventlog.entries import EventLog, LogUnavailable
from raysys.eventlog.opening import open_log
from raysys.eventlog.rolled import Rolled, roll
from raysys.eventlog.settings import LogSettings
from raysys.stages.events import named_log
from raysys.stages.ingest import IngestSettings
from raysys.stages.learn_settings import LearnSettings
from raysys.storage import Workspace

log = logging.getLogger("raysys")


class LearnedLog:
    """The log that the settings name, opened when it is there.

    Args:
        settings: `deployment` names it, else `ingest` does; neither: there is none.
        workspace: where a deployment keeps it unless its config says otherwise.

    Raises:
        UserError: a configuration that is not there or names no log.
    """

    def __init__(self, settings: LearnSettings, workspace: Workspace) -> None:
        self._named: tuple[LogSettings, Path] | None = None
        self._open: EventLog | None = None
        self._complained = False
        if settings.deployment is not None:
            self._named = named_log(settings.deployment, workspace)
        elif settings.ingest is not None:
            told = load_settings(IngestSettings, find_config(settings.ingest, "ingest"))
            folder = told.event_log
            if folder is None and isinstance(told.source, EventLogSource):
                folder = told.source.path
            if folder is not None:
                self._named = LogSettings(), Path(expand_variables(folder))

    def roll(self) -> int:
        """Write what is not in Parquet yet; the offset up to which all is, 0 without a log."""
        if self._named is None:
            return 0
        rolled = Rolled(self._named[1])
        try:
            if (opened := self._opened()) is not None:
                roll(opened, rolled)
        except LogUnavailable as error:
            log.warning("learn: the event log cannot be rolled now: %s", error)
        return rolled.last()

    def end(self) -> int:
        """Offset of its newest entry, as far as that can be told; 0 without a log."""
        if self._named is None:
            return 0
        try:
            if (opened := self._opened()) is not None:
                end = opened.end()
                self._complained = False
                return end
        except LogUnavailable as error:
            if not self._complained:
                log.warning("learn: the event log cannot be asked now: %s", error)
            self._complained = True
        return Rolled(self._named[1]).last()

    def close(self) -> None:
        """Let go of it."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def _opened(self) -> EventLog | None:
        """The log; None while a local one is not there, as opening would make it."""
        assert self._named is not None
        settings, folder = self._named
        if self._open is None and (settings.backend != "local" or (folder / "head").exists()):
            self._open = open_log(settings, folder)
        return self._open
