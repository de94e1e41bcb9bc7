"""Round after round: begun by the clock, by how much is new, or because the shop has drifted."""

from __future__ import annotations

import json
import logging
import time
from calendar import timegm
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raysys.datasets.files import expand_variables
from raysys.errors import UserError
from raysys.monitoring.drift import served_drift
from raysys.progress import task
from raysys.registry import Registry
from raysys.stages import learn
from raysys.stages.learn_log import LearnedLog
from raysys.stages.learn_settings import DriftFile, LearnSettings
from raysys.storage import Manifest, Workspace

log = logging.getLogger("raysys")

RETRY_MINUTES = 5
"""After a round that failed."""

Clock = Callable[[], float]
"""Seconds since 1970."""


def drift_of(settings: LearnSettings, workspace: Workspace) -> str | None:
    """In words what has drifted, as `follow.drift` looks for it; None: nothing, or nobody knows."""
    told = settings.follow.drift
    if isinstance(told, DriftFile):
        figure = read_figure(told)
        if figure is None or figure <= told.above:
            return None
        return f"{told.figure} is {figure:.3g}, above {told.above:g}"
    if told is None:
        return None
    windows = workspace.registry.parent / "monitor"
    if told.windows is not None:
        windows = Path(expand_variables(told.windows))
    champion = Registry(workspace.registry).path(settings.champion)
    found = served_drift(champion, windows, hours=told.hours, thresholds=told.thresholds)
    return f"the shop has drifted: {'; '.join(found.reasons)}" if found and found.drifted else None


def read_figure(told: DriftFile) -> float | None:
    """The number that a JSON file holds under the trigger's `figure`.

    None where there is no such file or number, or only half of it yet.
    """
    try:
        content: Any = json.loads(Path(expand_variables(told.file)).read_text(encoding="utf-8"))
        for key in told.figure.split("."):
            content = content[key]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(content) if isinstance(content, int | float) else None


class Due:
    """When the next round is due.

    Args:
        settings: see `FollowSettings`.
        workspace: whose journal tells of the last round.
        events: the log, for how much is new.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        settings: LearnSettings,
        workspace: Workspace,
        events: LearnedLog,
        clock: Clock = time.time,
    ) -> None:
        self._settings, self._workspace = settings, workspace
        self._events, self._clock = events, clock
        self._complained = self._here = self._failed = False
        rounds = learn.journal(workspace)
        self._position = int(rounds[-1]["position"]) if rounds else 0
        self._began: float | None = None  # of the last round, seconds since 1970
        if rounds:
            self._began = timegm(time.strptime(rounds[-1]["began"], "%Y-%m-%d %H:%M:%S"))

    def reason(self) -> str | None:
        """Why a round is due now; None: none is."""
        told, passed = self._settings.follow, self._passed()
        if not self._here and learn.unfinished(self._workspace):
            return "one was cut off"
        if self._failed and passed is not None and passed >= RETRY_MINUTES:
            return "the last one failed"
        if told.every_minutes is not None:
            if passed is None:
                return "it is the first"
            if passed >= told.every_minutes:
                return f"{told.every_minutes:g} minutes have passed"
        if told.new_events is not None and self.waiting() >= told.new_events:
            return f"{self.waiting():,} events are new"
        if told.drift is not None and (passed is None or passed >= told.rest_minutes):
            return self._drift()
        return None

    def begun(self) -> None:
        """A round begins now: what comes from here on is for the next."""
        self._began, self._here, self._failed = self._clock(), True, False
        self._position = self._events.end()

    def failed(self) -> None:
        """The round that began last came to nothing: another try is due before long."""
        self._failed = True

    def waiting(self) -> int:
        """Events in the log that no round has seen."""
        return max(0, self._events.end() - self._position)

    def _drift(self) -> str | None:
        """See `drift_of`; what keeps it from being told is said once."""
        try:
            return drift_of(self._settings, self._workspace)
        except UserError as error:
            if not self._complained:
                log.warning("learn: whether the shop drifts cannot be told: %s", error)
            self._complained = True
            return None

    def _passed(self) -> float | None:
        """Minutes since the last round began, of this process or an earlier one."""
        return None if self._began is None else (self._clock() - self._began) / 60


def follow(
    settings: LearnSettings,
    workspace: Workspace,
    told: Callable[[Manifest], None] = lambda manifest: None,
    *,
    rounds: int | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Run rounds as they are due, until interrupted.

    What goes wrong in the first round is raised; later it is logged, and the next round tries
    again: a disk that was full, a champion that was just replaced.

    Args:
        settings: the YAML.
        workspace: as for `learn.run`.
        told: gets what each round came to.
        rounds: end after so many; None: never.
        pause: waits some seconds between two looks.

    Raises:
        UserError: the first round cannot be run.
        OSError: its files cannot be written.
    """
    events = LearnedLog(settings, workspace)
    done, last = 0, None
    try:
        due = Due(settings, workspace, events)
        while rounds is None or done < rounds:
            reason = _wait(due, settings, pause)
            due.begun()
            try:
                manifest = learn.run(settings, workspace, trigger=reason, events=events)
                if manifest.figures["round"] == last:
                    log.info("learn: nothing is new")
                else:
                    told(manifest)
                last = manifest.figures["round"]
            except (UserError, OSError) as error:
                if not done:
                    raise
                log.warning("learn: this round failed, the next one tries again: %s", error)
                due.failed()
            done += 1
    finally:
        events.close()


def _wait(due: Due, settings: LearnSettings, pause: Callable[[float], None]) -> str:
    """Until a round is due; why it is."""
    with task("learn: waiting for a round to be due") as waiting:
        while (reason := due.reason()) is None:
            if (new := due.waiting()) != waiting.done:
                waiting.reach(new)
            pause(settings.follow.poll_seconds)
        waiting.note = reason
    return reason
