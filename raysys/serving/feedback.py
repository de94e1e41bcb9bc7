"""What came of the lists a deployment answered, computed now and then by one of its replicas.

Far off the way of answers: a thread reads what was recorded, joins it with the event log, and
leaves `feedback.json` beside the windows, where all replicas find it.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

import polars as pl

from raysys.errors import UserError
from raysys.eventlog.entries import LogUnavailable
from raysys.monitoring.drift import HOUR_MS
from raysys.monitoring.feedback import Feedback, feedback
from raysys.monitoring.reference import Outcomes
from raysys.monitoring.served import EVENTS, Lists, Reactions, read_lists
from raysys.monitoring.settings import MonitorArgs
from raysys.monitoring.windows import now_ms
from raysys.serving.metrics import Metrics
from raysys.storage import write_atomic

log = logging.getLogger("raysys")

FILE: Final = "feedback.json"
_LOCK: Final = "feedback.lock"
_LOCKED_S: Final = 600  # after so long whoever computed is taken for dead


class FeedbackWatch:
    """Keeps the figures fresh, or finds those that another replica made.

    Args:
        args: how old they may be.
        folder: absolute; all replicas see it.
        lists: folder of the shown lists.
        reactions: events that came back; None: the deployment takes none.
        outcomes: of the training log.
        items: of the catalogue.
        metrics: gets the gauges.

    Attributes:
        latest: None: nothing was computed yet.
    """

    def __init__(
        self,
        args: MonitorArgs,
        folder: Path,
        lists: Path,
        reactions: Reactions | None,
        outcomes: Mapping[str, Outcomes],
        items: int,
        metrics: Metrics,
    ) -> None:
        self._args, self._folder, self._lists = args, folder, lists
        self._reactions, self._outcomes, self._items = reactions, outcomes, items
        self._metrics = metrics
        self._stamp, self._began = 0, now_ms()
        self._told: set[tuple[str, str, str]] = set()
        self._trouble = ""
        self.latest: Feedback | None = None
        self._silent = False
        metrics.gauge("raysys_feedback_age_seconds", lambda: None if self._silent else self._age())
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feedback", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End; what is being computed is finished."""
        self._ended.set()
        self._thread.join(timeout=30)

    def stand_down(self) -> None:
        """Another bundle is the champion from now on, and tells what came of all lists."""
        self._silent = True
        self._ended.set()

    def look(self) -> None:
        """Take the figures that are there; compute them if they are too old and nobody else does.

        Raises:
            UserError: shown lists or events are not as they should be.
            LogUnavailable: the event log cannot be read now.
            OSError: no space.
        """
        self._load()
        if self.latest is not None and self._age() < self._args.feedback_s:
            return
        if not self._lists.is_dir():
            return  # nobody was answered yet
        with_lock = _take(self._folder / _LOCK)
        if not with_lock:
            return
        try:
            content = json.dumps(self.compute().to_dict(), allow_nan=False)
            if not self._silent:
                write_atomic(self._folder / FILE, content + "\n")
        finally:
            (self._folder / _LOCK).unlink(missing_ok=True)
        self._load()

    def compute(self) -> Feedback:
        """Of the window until now.

        Raises:
            UserError, LogUnavailable, OSError: see `look`.
        """
        now, length = now_ms(), round(self._args.window_hours * HOUR_MS)
        most = self._args.feedback_lists
        lists = read_lists(self._lists, now - length, now + 1, most)
        surfaces = set(lists.rows["surface"])
        before: Lists | None = None
        since = now - length
        if surfaces - self._outcomes.keys() or not lists.total:
            before, since = read_lists(self._lists, now - 2 * length, since, most), now - 2 * length
        events = pl.DataFrame(schema=EVENTS)
        if self._reactions is not None:
            ids = [each.rows["request_id"] for each in (lists, before) if each is not None]
            events = self._reactions(since, pl.concat(ids))
        return feedback(
            lists,
            events,
            (now - length, now),
            now,
            items=self._items,
            reference=self._outcomes,
            before=before,
            thresholds=self._args.thresholds,
            least_people=self._args.least_people,
        )

    def _run(self) -> None:
        while not self._ended.wait(max(0.05, self._args.feedback_s / 10)):
            try:
                self.look()
                self._trouble = ""
            except (UserError, LogUnavailable, OSError) as error:
                if str(error) != self._trouble:  # said once
                    log.warning("what came of the lists is not told: %s", error)
                self._trouble = str(error)
            except Exception:  # the thread must not end
                log.exception("what came of the lists could not be computed")

    def _load(self) -> None:
        path = self._folder / FILE
        try:
            stamp = path.stat().st_mtime_ns
            if stamp == self._stamp:
                return
            self.latest = Feedback.from_dict(json.loads(path.read_text(encoding="utf-8")))
            self._stamp = stamp
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError) as error:  # of another version: made anew
            log.warning("%s is not read: %s", path, error)
            self.latest = None
            return
        self._name(self.latest)

    def _name(self, found: Feedback) -> None:
        """Gauges of the surfaces that there are; at most as many as surfaces times outcomes."""
        keys = {("rate", s.surface, outcome) for s in found.surfaces for outcome in s.rates}
        keys |= {("change", each.surface, each.outcome) for each in found.changes}
        for what, surface, outcome in sorted(keys - self._told):
            read = partial(self._value, what, surface, outcome)
            self._metrics.gauge(f"raysys_outcome_{what}", read, surface=surface, outcome=outcome)
        self._told |= keys

    def _value(self, what: str, surface: str, outcome: str) -> float | None:
        found = self.latest
        if found is None or self._silent:
            return None
        if what == "change":
            changes = {(c.surface, c.outcome): c.change for c in found.changes}
            return changes.get((surface, outcome))
        of = [s.rates[outcome] for s in found.surfaces if s.surface == surface and s.rates]
        slots = sum(rate.slots for rate in of)
        return sum(rate.done for rate in of) / slots if slots else None

    def _age(self) -> float:
        since = self._began if self.latest is None else self.latest.computed
        return max(0.0, now_ms() - since) / 1000


def _take(path: Path) -> bool:
    """Whether this replica may compute now; a lock of one that died is taken over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        return True
    except FileExistsError:
        try:
            if time.time() - path.stat().st_mtime > _LOCKED_S:
                path.unlink(missing_ok=True)  # and the next look takes it
        except FileNotFoundError:
            pass
        return False
