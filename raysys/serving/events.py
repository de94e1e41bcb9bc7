"""The events of one replica: takes them in, follows the log, rolls it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

from raysys.errors import UserError
from raysys.eventlog.entries import EventLog, LogBusy, LogUnavailable, NewEntry
from raysys.eventlog.opening import open_log
from raysys.eventlog.rolled import Rolled, last_received, roll
from raysys.eventlog.tidying import forget
from raysys.features.live import LiveFeatures
from raysys.serving.args import ServeArgs
from raysys.serving.events_api import (
    STATUSES,
    Clock,
    EventOutcome,
    EventsAnswer,
    read_events,
)
from raysys.serving.events_args import EventsArgs
from raysys.serving.follower import Counted, Follower
from raysys.serving.problems import Problem
from raysys.serving.snapshots import Snapshots

log = logging.getLogger("raysys")
T = TypeVar("T")

_DAY_MS: Final = 86_400_000
_BEYOND_LOG_MS: Final = _DAY_MS  # a clock that stands at the log's end goes on by leaps
_THREADS: Final = 32  # most of which wait for the disk
_ROUND_S: Final = 10  # between looks at whether something should be rolled
_SHOWN: Final = 20  # errors of a batch in which nothing is good


class EventService:
    """Takes events in for a replica.

    Args:
        args: the log, and which events it takes.
        folder: of the log.
        live: the state that follows it; None: the deployment ranks nothing.
        wall: whether the clock is the wall's; else it stands where the state does.
        counted: see `Follower`.
        bundle: id of the bundle whose state it is.

    Attributes:
        counts: events by what became of them, since the start.

    Raises:
        UserError: the log cannot be opened.
        LogUnavailable: its disk is full, or Redis does not answer.
    """

    def __init__(
        self,
        args: EventsArgs,
        folder: Path,
        live: LiveFeatures | None,
        *,
        wall: bool,
        counted: Counted | None = None,
        bundle: str = "",
    ) -> None:
        self.args = args
        self._live, self._wall = live, wall or live is None
        self.log: EventLog = open_log(args, folder)
        self.rolled = Rolled(folder)
        self.follower: Follower | None = None
        if live is not None:
            self.follower = Follower(
                self.log, self.rolled, live,
                gap_minutes=args.session_gap_minutes, new_users=args.new_users,
                poll_s=args.poll_ms / 1000, ahead_ms=None if self._wall else _BEYOND_LOG_MS,
                counted=counted,
                snapshots=Snapshots(folder, bundle) if bundle and args.snapshot_events else None,
            )  # fmt: skip
        self.counts = dict.fromkeys(STATUSES, 0)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="events")
        self._waiting = 0
        self._counting = threading.Lock()
        self._newest = 0
        self._done = threading.Event()
        self._roller: threading.Thread | None = None

    def start(self) -> None:
        """Catch up with the log, and follow it from now on.

        Raises:
            LogUnavailable: it cannot be read.
        """
        if self.follower is not None:
            self.follower.start()
        self._newest = max(self._newest, last_received(self.log, self.rolled))
        if self.args.roll_events or self.args.snapshot_events:
            self._roller = threading.Thread(target=self._tend, name="event log", daemon=True)
            self._roller.start()

    def clock(self) -> Clock:
        """Between which moments events are taken now.

        A clock that was set back makes nobody's events come from the future: what it said before,
        here or where another replica took events in, still counts as the latest.
        """
        if self._wall:
            now = time.time_ns() // 1_000_000
            followed = 0 if self.follower is None else self.follower.followed.received
            self._newest = latest = max(self._newest, now, followed)
        else:
            assert self._live is not None
            now = latest = self._live.as_of + 1
        ahead = round(self.args.max_ahead_minutes * 60_000)
        return Clock(
            now=now,
            earliest=now - round(self.args.max_age_days * _DAY_MS),
            latest=latest + (ahead if self._wall else max(ahead, _BEYOND_LOG_MS)),
            quarantine=self.args.out_of_range == "quarantine",
            follows=not self._wall,
        )

    def take(self, sent: Sequence[Any]) -> EventsAnswer:
        """Answer POST /v1/events: durable, and in this replica's state, when it returns.

        Raises:
            Problem: 422, nothing of the batch is good; 503, it cannot be written now.
        """
        entries, indices, outcomes = read_events(sent, self.clock())
        if not entries:
            self._count(outcomes)
            errors = [error for outcome in outcomes for error in outcome.errors]
            detail = f"none of {len(sent):,} events is good: {errors[0].path}: {errors[0].message}"
            raise Problem(422, "invalid-request", detail, errors[:_SHOWN])
        for index, status in zip(indices, self._append(entries), strict=True):
            if status == "duplicate":
                outcomes[index].status = "duplicate"
        counts = self._count(outcomes)
        return EventsAnswer(**counts, events=outcomes)

    @contextlib.contextmanager
    def waiting(self, events: int) -> Iterator[None]:
        """While a batch is worked on; for who would queue batches before `take` sees them.

        Raises:
            Problem: 503, more would wait than may.
        """
        with self._counting:
            if self._waiting and self._waiting + events > self.args.queue_events:
                detail = f"{self._waiting:,} events are waiting; send yours again a little later"
                raise self._later("busy", detail)
            self._waiting += events
        try:
            yield
        finally:
            with self._counting:
                self._waiting -= events

    async def run(self, events: int, work: Callable[[], T]) -> T:
        """Do blocking work on so many events off the event loop, in threads of its own.

        Raises:
            Problem: 503, too much is waiting.
        """
        with self.waiting(events):
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def session(self, user: int, timestamp: int) -> int:
        """The session that a user is in who names none, -1: none."""
        assert self._live is not None
        gap = round(self.args.session_gap_minutes * 60_000)
        return self._live.current_session(user, timestamp, gap)

    def close(self) -> None:
        """Write what waits, and end the threads."""
        self._done.set()
        if self._roller is not None:
            self._roller.join()
        if self.follower is not None:
            self.follower.stop()
        self._pool.shutdown(cancel_futures=True)
        self.log.close()

    def _count(self, outcomes: Sequence[EventOutcome]) -> dict[str, int]:
        counts = dict.fromkeys(STATUSES, 0)
        for outcome in outcomes:
            counts[outcome.status] += 1
        with self._counting:
            for status, count in counts.items():
                self.counts[status] += count
        return counts

    def _append(self, entries: Sequence[NewEntry]) -> list[Any]:
        try:
            appended = self.log.append(entries)
        except LogBusy as error:
            raise self._later("busy", f"{error}; send them again a little later") from None
        except LogUnavailable as error:
            log.error("events cannot be written: %s", error)
            detail = "events cannot be written now; send the same ones again, each counts once"
            raise self._later("not-available", detail) from None
        if self.follower is not None:
            try:
                self.follower.catch_up(appended.last)
            except LogUnavailable as error:  # it is durable, and the follower tries again
                log.warning("the event log cannot be read: %s", error)
        return list(appended.outcomes)

    def _later(self, kind: str, detail: str) -> Problem:
        return Problem(503, kind, detail, retry_after_s=self.args.retry_after_s)

    def _tend(self) -> None:
        """Roll what is much or old, forget what the files hold, leave copies of the state."""
        while not self._done.wait(_ROUND_S):
            try:
                self.tend()
            except (LogUnavailable, OSError) as error:
                log.warning("the event log cannot be tended now: %s", error)
            except Exception:
                log.exception("the event log could not be tended")

    def tend(self) -> None:
        """One round of that; nothing is done twice by replicas that do it at once.

        Raises:
            LogUnavailable: the log cannot be asked.
            OSError: no space.
        """
        now = time.time_ns() // 1_000_000
        if self.args.roll_events:
            oldest = now - round(self.args.roll_minutes * 60_000)
            roll(self.log, self.rolled, at_least=self.args.roll_events, older_than=oldest)
            forget(self.log, self.rolled, now - round(self.args.keep_hours * 3_600_000))
        if self.follower is not None and self.args.snapshot_events:
            followed = self.follower.followed
            if followed.position - followed.copied >= self.args.snapshot_events:
                with self.log.exclusively("state") as mine:
                    if mine:
                        self.follower.copy()


def open_events(
    args: ServeArgs,
    live: LiveFeatures | None,
    bundle: str = "",
    counted: Counted | None = None,
) -> EventService | None:
    """What takes a deployment's events in; None: it takes none.

    Args:
        args: of the deployment.
        live: the state that follows; None: the deployment ranks nothing.
        counted: see `Follower`.

    Raises:
        UserError: the log cannot be opened, or not now.
    """
    if args.events is None:
        return None
    try:
        return EventService(
            args.events,
            args.events_path,
            live,
            wall=args.clock == "wall",
            counted=counted,
            bundle=bundle,
        )
    except LogUnavailable as error:
        mend = "make room on the disk, or start Redis; then deploy again"
        raise UserError(str(error), where="events", mend=mend) from None
