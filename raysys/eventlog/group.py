"""Group commit: one thread writes what several requests brought, with one sync for all of them."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Final

from raysys.eventlog.entries import Appended, LogBusy, LogUnavailable, NewEntry

MOST_AT_ONCE: Final = 5_000  # events of one commit: more would make the first ones wait

Write = Callable[[Sequence[Sequence[NewEntry]]], list[Appended]]


class GroupCommit:
    """A bounded queue and the thread that empties it.

    Args:
        write: commits some batches, durably; may raise.
        most: entries that may wait.
    """

    def __init__(self, write: Write, most: int) -> None:
        self._write, self._most = write, most
        self._waiting: deque[tuple[Sequence[NewEntry], Future[Appended]]] = deque()
        self._entries = 0
        self._closed = False
        self._more = threading.Condition()
        self._thread: threading.Thread | None = None

    def submit(self, batch: Sequence[NewEntry]) -> Future[Appended]:
        """See `EventLog.submit`."""
        done: Future[Appended] = Future()
        with self._more:
            if self._closed:
                raise LogUnavailable("the log is closed")
            # a batch that is larger than the queue may pass through an empty one
            if self._entries and self._entries + len(batch) > self._most:
                raise LogBusy(f"{self._entries:,} events are waiting to be written")
            self._waiting.append((batch, done))
            self._entries += len(batch)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="event log", daemon=True)
                self._thread.start()
            self._more.notify()
        return done

    def close(self) -> None:
        """Write what waits and end the thread."""
        with self._more:
            self._closed = True
            self._more.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._more:
                while not self._waiting and not self._closed:
                    self._more.wait()
                if not self._waiting:
                    return
                group = [self._waiting.popleft()]
                size = len(group[0][0])
                while self._waiting and size + len(self._waiting[0][0]) <= MOST_AT_ONCE:
                    group.append(self._waiting.popleft())
                    size += len(group[-1][0])
            self._commit(group)
            with self._more:
                self._entries -= size

    def _commit(self, group: Sequence[tuple[Sequence[NewEntry], Future[Appended]]]) -> None:
        try:
            outcomes = self._write([batch for batch, _ in group])
        except BaseException as error:  # whoever waits must hear of it, whatever it was
            for _, done in group:
                with contextlib.suppress(InvalidStateError):
                    done.set_exception(error)
            return
        for (_, done), outcome in zip(group, outcomes, strict=True):
            with contextlib.suppress(InvalidStateError):  # cancelled: nobody waits any more
                done.set_result(outcome)
