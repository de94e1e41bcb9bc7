"""What long work says of itself: stages with a count and the time left.

Code that works calls `task`; who listens is the CLI's business. Without a listener the steps are
logged, so that `ray job logs` shows them too.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Protocol

log = logging.getLogger("raysys")


class Listener(Protocol):
    """Shows progress: the rich display of the CLI, or a plain log."""

    def start(self, name: str, total: int | None) -> int:
        """A task begins; returns its key."""

    def advance(self, key: int, done: int, total: int | None) -> None:
        """So much of the task is done."""

    def finish(self, key: int, note: str) -> None:
        """The task ended; `note` says what came of it."""


class LogListener:
    """Writes a line when a task begins and ends, and at most every ten seconds between."""

    def __init__(self) -> None:
        self._tasks: dict[int, tuple[str, float, float]] = {}

    def start(self, name: str, total: int | None) -> int:
        """See `Listener.start`."""
        key = len(self._tasks)
        now = time.monotonic()
        self._tasks[key] = (name, now, now)
        log.info("%s …", name)
        return key

    def advance(self, key: int, done: int, total: int | None) -> None:
        """See `Listener.advance`."""
        name, began, said = self._tasks[key]
        now = time.monotonic()
        if now - said < 10:
            return
        self._tasks[key] = (name, began, now)
        if total and done:
            left = (now - began) * (total - done) / done
            log.info("%s: %s of %s, about %.0f s left", name, f"{done:,}", f"{total:,}", left)
        else:
            log.info("%s: %s", name, f"{done:,}")

    def finish(self, key: int, note: str) -> None:
        """See `Listener.finish`."""
        name, began, _ = self._tasks[key]
        log.info("%s: done in %.1f s%s", name, time.monotonic() - began, note and f" ({note})")


class Task:
    """One piece of long work; `advance` as it goes, set `note` to say what came of it."""

    def __init__(self, listener: Listener, key: int, total: int | None) -> None:
        self._listener = listener
        self._key = key
        self.total = total
        self.done = 0
        self.note = ""

    def advance(self, amount: int = 1) -> None:
        """`amount` more is done."""
        self.reach(self.done + amount)

    def reach(self, done: int) -> None:
        """So much is done in all."""
        self.done = done
        self._listener.advance(self._key, done, self.total)


_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)
_default = LogListener()


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send the progress of everything inside to `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextlib.contextmanager
def task(name: str, total: int | None = None) -> Iterator[Task]:
    """Announce a piece of work with `total` steps (None: unknown)."""
    listener = _listener.get() or _default
    current = Task(listener, listener.start(name, total), total)
    yield current
    listener.finish(current._key, current.note)
