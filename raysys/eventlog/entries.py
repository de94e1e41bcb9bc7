"""What goes into an event log and what comes out, and the protocol of a log."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

KINDS: Final = ("event", "item", "user")
"""Kinds of entry: a thing that a user did, and what a shop says anew of an item or a user."""

Outcome = Literal["accepted", "duplicate"]
Held = Callable[[], bool]
"""Asks whether a lock is still held: one that expires may be lost while a process is frozen."""


@dataclass(frozen=True, slots=True)
class NewEntry:
    """What is appended.

    Attributes:
        event_id: by which it is applied once.
        timestamp: UTC ms; its id is remembered by this moment.
        kind: one of `KINDS`.
        body: columns of `schema.LOGGED_EVENTS` (`ITEMS`, `USERS`) that hold something, as JSON can
            say them, `event_id` and `timestamp` (UTC ms) among them.
        quarantined: why it is kept but not used; None: it is used.
    """

    event_id: str
    timestamp: int
    kind: str
    body: dict[str, Any]
    quarantined: str | None = None

    @property
    def digest(self) -> bytes:
        """16 bytes that stand for the id in an index."""
        return hashlib.blake2b(self.event_id.encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Entry:
    """What is read.

    Attributes:
        offset: place in the log, from 1, rising; a number may be missing.
        received: UTC ms by the clock of the machine that appended it.
        kind, body, quarantined: see `NewEntry`.
    """

    offset: int
    received: int
    kind: str
    body: dict[str, Any]
    quarantined: str | None = None


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of a batch.

    Attributes:
        outcomes: of each entry, in order.
        last: offset up to which the log must be read to have met all of them, duplicates included.
    """

    outcomes: list[Outcome]
    last: int


class LogBusy(Exception):  # noqa: N818  a state, like Problem
    """More is waiting to be written than may wait; nothing of the batch was written."""


class LogUnavailable(Exception):  # noqa: N818
    """The log cannot be written now: a full disk, Redis gone. Whether the batch was is unknown;
    sending it again is safe."""


class EventLog(Protocol):
    """An event log; safe to use from several threads."""

    def submit(self, entries: Sequence[NewEntry]) -> Future[Appended]:
        """Append a batch, in its order; done when it is durable.

        An id that the log has is a duplicate; of two equal ids in a batch the second one is.
        The future may raise `LogUnavailable`.

        Raises:
            LogBusy: too much is waiting.
        """
        ...

    def append(self, entries: Sequence[NewEntry]) -> Appended:
        """`submit`, waited for.

        Raises:
            LogBusy, LogUnavailable: see there.
        """
        ...

    def end(self) -> int:
        """Offset of the newest durable entry; 0: there is none.

        Raises:
            LogUnavailable: it cannot be asked.
        """
        ...

    def first(self) -> int:
        """Offset of the oldest entry that `read` still gives; `end() + 1`: there is none.

        Raises:
            LogUnavailable: it cannot be asked.
        """
        ...

    def read(self, after: int, limit: int = 10_000) -> list[Entry]:
        """Durable entries whose offset is above `after`, at most about `limit`, in order.

        Raises:
            LogUnavailable: it cannot be read.
        """
        ...

    def wait(self, after: int, timeout_s: float) -> bool:
        """Wait until there is an entry above `after`; whether there is.

        Raises:
            LogUnavailable: it cannot be asked.
        """
        ...

    def position(self, consumer: str) -> int:
        """How far a consumer has come, by what it committed; 0: it has not begun."""
        ...

    def commit(self, consumer: str, offset: int) -> None:
        """Note durably how far a consumer has come."""
        ...

    def drop(self, until: int) -> int:
        """Forget entries up to an offset, of which the rolled files hold a copy; ids stay known.

        Returns:
            how many were dropped; a log may keep some of them for now.
        """
        ...

    def exclusively(self, name: str) -> AbstractContextManager[Held | None]:
        """Hold a lock that only one process of all that share the log can; None: it is not free.

        What it gives asks whether the lock is still held, and may raise `LogUnavailable`.
        """
        ...

    def close(self) -> None:
        """Write what waits, end the threads."""
        ...
