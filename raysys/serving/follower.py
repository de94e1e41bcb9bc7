"""A replica's state follows the event log: what it missed at the start, and what comes in.

The bundle's state holds the log up to its newest event. What the log has of later moments is
counted on top, in the order of the log, by every replica alike; so two replicas that have come as
far say the same, whoever took the events in. From time to time one of them leaves a copy of its
state (`snapshots`), from which the next one to start goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from raysys.eventlog.entries import Entry, EventLog, LogUnavailable
from raysys.eventlog.rolled import Rolled
from raysys.features.incoming import Incoming
from raysys.features.item_updates import ItemUpdates
from raysys.features.live import LiveFeatures
from raysys.features.user_updates import UserUpdates
from raysys.serving.snapshots import Snapshots

log = logging.getLogger("raysys")

Counted = Callable[[Sequence[dict[str, Any]], int], None]

_AT_ONCE: Final = 5_000  # entries between which answers may read
_PAUSE_S: Final = 0.5  # before asking a log again that could not be asked


@dataclass
class Followed:
    """How far a replica has come.

    Attributes:
        position: offset of the newest entry that was looked at.
        copied: offset of the newest copy of the state that this replica knows of.
        events: how many were counted since the start.
        skipped: how many were not: older than the bundle's state, which may hold them; or further
            ahead than `ahead_ms`.
        lag_ms: of the last entries when they were counted, since they were received.
        items: how often an item's price or texts changed since the start.
        users: how often a user's attributes did, of those that features read.
        received: UTC ms at which the newest of them came in, by the clock that was ahead most.
    """

    position: int = 0
    copied: int = 0
    events: int = 0
    skipped: int = 0
    lag_ms: int = 0
    items: int = 0
    users: int = 0
    received: int = 0


class Follower:
    """Counts the log's events in the live state of one replica.

    Args:
        events: the log.
        rolled: its files, for what the log does not hold any more.
        live: as the bundle has it; nothing may have been counted since.
        snapshots: copies of states of this bundle; None: there are none.
        gap_minutes, new_users: see `Incoming`.
        poll_s: how long one look at the log waits for something new.
        ahead_ms: leave out what is further ahead of the state; None: count all. For a state whose
            clock is the log's, which one event of today would put years ahead.
        counted: told the events that the state has just counted (none, if only items or users
            changed), and the newest one's offset.
    """

    def __init__(
        self,
        events: EventLog,
        rolled: Rolled,
        live: LiveFeatures,
        *,
        gap_minutes: float = 30,
        new_users: int = 1_000_000,
        poll_s: float = 0.05,
        ahead_ms: int | None = None,
        counted: Counted | None = None,
        snapshots: Snapshots | None = None,
    ) -> None:
        self._counted = counted
        self._log, self._rolled = events, rolled
        self._incoming = Incoming(live, gap_minutes, new_users)
        self._items = ItemUpdates(live)
        self._users = UserUpdates(live, self._incoming.number_told)
        self._live, self._ahead_ms = live, ahead_ms
        self._since = live.as_of
        self._snapshots = snapshots
        self.restored = 0  # offset that the state stood at when it was restored; 0: the bundle's
        self._poll_s = poll_s
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self.followed = Followed()

    def start(self) -> None:
        """Count what happened since the bundle was trained, then follow.

        Raises:
            LogUnavailable: the log cannot be read.
        """
        began = time.monotonic()
        self._incoming.warm_up()
        with self._lock:
            if self._snapshots is not None:
                at = self._snapshots.restore(self._live, self._log.end())
                self.followed.position = self.followed.copied = self.restored = at
            self._take_updates_so_far()
            first = self._log.first()
            if first > self.followed.position + 1:
                self._count_rolled(first)
                self.followed.position = first - 1
        self.catch_up()
        if self.followed.events:
            seconds = time.monotonic() - began
            log.info("counted %d events that it missed, in %.1f s", self.followed.events, seconds)
        self._thread = threading.Thread(target=self._follow, name="event follower", daemon=True)
        self._thread.start()

    def catch_up(self, until: int | None = None) -> None:
        """Count what is in the log, up to an offset or its present end.

        Raises:
            LogUnavailable: the log cannot be read.
        """
        until = self._log.end() if until is None else until
        while self.followed.position < until:
            with self._lock:
                if self.followed.position >= until:
                    return
                entries = self._log.read(self.followed.position, _AT_ONCE)
                if not entries:
                    if self._log.end() >= until:  # what there was is damaged, and said to be
                        self._count_rolled(until + 1)
                        self.followed.position = until
                    return
                if entries[0].offset > self.followed.position + 1:  # the log forgot some meanwhile
                    self._count_rolled(entries[0].offset)
                self._count(entries)
                self.followed.position = entries[-1].offset

    def copy(self) -> None:
        """Leave a copy of the state for the next replica to start; answers wait for the copying
        in memory, not for the disk.

        Raises:
            OSError: no space.
        """
        if self._snapshots is None:
            return
        with self._lock:
            changing, position = self._live.changing(), self.followed.position
        self._snapshots.write(changing, position)
        self.followed.copied = position

    def stop(self) -> None:
        """End the thread."""
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def _take_updates_so_far(self) -> None:
        """What was said of items and users up to where the state stands: neither bundle nor copy
        has it.

        The files may say more; what they say too early comes again when it is its turn.
        """
        at = self._rolled.last()
        self._take_rolled_updates()
        while at < self.followed.position:
            entries = self._log.read(at, _AT_ONCE)
            if not entries:
                return
            self._take_updates([e for e in entries if e.offset <= self.followed.position])
            at = entries[-1].offset

    def _take_rolled_updates(self) -> None:
        if (rows := self._rolled.told_items()) is not None:
            self.followed.items += self._items.take_rows(rows)
        if (rows := self._rolled.told_users()) is not None:
            self.followed.users += self._users.take_rows(rows)

    def _take_updates(self, entries: Sequence[Entry]) -> int:
        """How many items and users changed."""
        told: dict[str, list[dict[str, Any]]] = {"item": [], "user": []}
        for entry in entries:
            if entry.kind in told and entry.quarantined is None:
                told[entry.kind].append(entry.body)
        items = self._items.take(told["item"]) if told["item"] else 0
        users = self._users.take(told["user"]) if told["user"] else 0
        self.followed.items += items
        self.followed.users += users
        return items + users

    def _count_rolled(self, before: int) -> None:
        """Count what the log does not hold, up to an offset; half of it is not counted again."""
        self._take_rolled_updates()
        for read in self._rolled.read(self.followed.position, self._since):
            if missed := [entry for entry in read if entry.offset < before]:
                self._count(missed)
                self.followed.position = missed[-1].offset

    def _count(self, entries: Sequence[Entry]) -> None:
        used = [e for e in entries if e.kind == "event" and e.quarantined is None]
        fresh = [e.body for e in used if e.body["timestamp"] > self._since]
        if self._ahead_ms is not None:
            fresh = self._near(fresh, self._ahead_ms)
        self.followed.skipped += len(used) - len(fresh)
        changed = self._take_updates(entries)
        if fresh:
            self._incoming.apply(fresh)
            self.followed.events += len(fresh)
        if (fresh or changed) and self._counted is not None:
            self._counted(fresh, entries[-1].offset)
        if entries:
            came = entries[-1].received
            self.followed.lag_ms = max(0, time.time_ns() // 1_000_000 - came)
            self.followed.received = max(self.followed.received, came)

    def _near(self, events: Sequence[dict[str, Any]], ahead_ms: int) -> list[dict[str, Any]]:
        """Events that are not too far ahead of the state as it is when their turn comes."""
        newest, near = self._live.as_of, []
        for event in events:
            if event["timestamp"] - newest <= ahead_ms + 1:
                newest = max(newest, event["timestamp"])
                near.append(event)
        return near

    def _follow(self) -> None:
        complained = False
        while not self._done.is_set():
            try:
                if self._log.wait(self.followed.position, self._poll_s):
                    self.catch_up()
                complained = False
            except LogUnavailable as error:
                if not complained:
                    log.warning("the event log cannot be read, answers go on without it: %s", error)
                complained = True
                self._done.wait(_PAUSE_S)
            except Exception:  # an answer from older state beats none; the next event is a new try
                log.exception("events could not be counted")
                self._done.wait(_PAUSE_S)
