"""The threads that answer, and who waits for them: a short queue, the urgent first."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from raysys.serving.problems import Problem

T = TypeVar("T")

URGENT, NORMAL, BACKGROUND = 0, 1, 2
"""Search, since somebody is typing; other lists; what nobody looks at while it is made."""

PATIENCE_S = 1.0
"""Beyond its deadline nobody waits for an answer any more."""


def overloaded(retry_after_s: int) -> Problem:
    """The 503 for want of room."""
    detail = "more requests than this server can answer; try again after Retry-After seconds"
    return Problem(503, "overloaded", detail, retry_after_s=retry_after_s)


@dataclass(order=True)
class _Waiting:
    priority: int
    number: int
    work: Callable[[], Any] = field(compare=False)
    future: Future[Any] = field(compare=False)
    until: float = field(compare=False)


class Workers:
    """Runs work in threads, at most so many pieces at once and so many waiting.

    Args:
        threads: pieces at once.
        max_waiting: beyond this many the least urgent one is refused, at best the newest.
    """

    def __init__(self, threads: int, max_waiting: int) -> None:
        self._threads, self._max_waiting = threads, max_waiting
        self._waiting: list[_Waiting] = []
        self._changed = threading.Condition()
        self._number = 0
        self._open = True
        self._seconds = 0.05  # what a piece took lately
        self.shed = 0
        self._running = [
            threading.Thread(target=self._run, name=f"answer-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._running:
            thread.start()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def refusal(self, priority: int = NORMAL) -> int | None:
        """Seconds after which to try again, where `submit` would refuse for want of room.

        To be asked before a request is read: under load most of a refusal's cost is the reading.

        Returns:
            None: there is room, or was at this moment, as nothing is locked.
        """
        if len(self._waiting) < self._max_waiting:
            return None
        waiting = self._waiting[:]  # at once, as a thread may take one out
        if len(waiting) < self._max_waiting or any(each.priority > priority for each in waiting):
            return None
        with self._changed:
            self.shed += 1
            return self._wait_s()

    def submit(
        self, work: Callable[[], T], priority: int = NORMAL, until: float = math.inf
    ) -> Future[T]:
        """Have it done.

        Args:
            work: what to do.
            priority: 0 is served first; among equals who came first.
            until: `time.perf_counter()` until which somebody waits for it.

        Raises:
            Problem: 503, there are too many; the future may raise it as well, later.
        """
        future: Future[T] = Future()
        with self._changed:
            if not self._open:
                raise Problem(503, "closing", "this replica is about to end", retry_after_s=1)
            if len(self._waiting) >= self._max_waiting:
                last = max(self._waiting)
                if last.priority <= priority:
                    raise self._overloaded()
                self._waiting.remove(last)
                if last.future.set_running_or_notify_cancel():
                    last.future.set_exception(self._overloaded())
            self._number += 1
            self._waiting.append(_Waiting(priority, self._number, work, future, until))
            self._changed.notify()
        return future

    def close(self) -> None:
        """End the threads; who still waits is told."""
        with self._changed:
            self._open = False
            left, self._waiting = self._waiting, []
            self._changed.notify_all()
        for waiting in left:
            waiting.future.cancel()

    def _overloaded(self) -> Problem:
        self.shed += 1
        return overloaded(self._wait_s())

    def _wait_s(self) -> int:
        """Until those who wait now have their answers."""
        return max(1, math.ceil(len(self._waiting) * self._seconds / self._threads))

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._open and not self._waiting:
                    self._changed.wait()
                if not self._open:
                    return
                next_one = min(self._waiting)
                self._waiting.remove(next_one)
            if next_one.future.set_running_or_notify_cancel():  # else the caller has gone
                self._do(next_one)

    def _do(self, waiting: _Waiting) -> None:
        began = time.perf_counter()
        if began > waiting.until + PATIENCE_S:
            waiting.future.set_exception(self._overloaded())
            return
        try:
            result = waiting.work()
        except BaseException as error:  # belongs to whoever asked, not to this thread
            waiting.future.set_exception(error)
        else:
            waiting.future.set_result(result)
        self._seconds += 0.1 * (time.perf_counter() - began - self._seconds)
