"""Dynamic batches: calls of many requests go through a model together, as far as none is late.

A model takes hardly longer for several inputs than for one, so calls are held for `wait_ms` in
the hope of company. But never beyond the moment at which the most urgent one has to begin: what a
batch of so many takes is known from the last ones of its size. The most urgent go first, a batch
is no larger than its most urgent call can bear, and what cannot be done in time is not begun.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, TypeVar

from pydantic import Field

from raysys.config import Settings
from raysys.serving.members import Costs

log = logging.getLogger("raysys")
Given = TypeVar("Given")
Made = TypeVar("Made")

WAY_BACK_S = 0.001
"""What an answer needs from a batch's end to whoever asked; a hop between processes."""


class BatchArgs(Settings):
    """How calls are put together.

    Attributes:
        max_batch: inputs that go through a model at once.
        wait_ms: that a call is held for more to come; one whose deadline is near is not.
        max_waiting: inputs that wait; beyond that calls are refused at once.
    """

    max_batch: Annotated[int, Field(ge=1, le=4096)] = 16
    wait_ms: Annotated[float, Field(ge=0, le=1000)] = 2.0
    max_waiting: Annotated[int, Field(ge=1, le=100_000)] = 256


class LateError(Exception):
    """The call could not have been done in time, and was not begun."""


class FullError(Exception):
    """Too many wait already."""


@dataclass(eq=False)
class Call(Generic[Given]):
    """One that waits.

    Attributes:
        given: what the model is given.
        size: how many inputs that is.
        arrived: `time.perf_counter()` when it came.
        until: when the outcome has to be there; infinity: at no time.
        future: of the outcome.
    """

    given: Given
    size: int
    arrived: float
    until: float
    future: Future[Any] = field(default_factory=Future)


Expected = Callable[[int], float]
"""Seconds that a batch of so many inputs takes, as measured; 0 where nothing is known."""


def start_at(calls: Sequence[Call[Any]], args: BatchArgs, expected: Expected) -> float:
    """When the next batch has to start: when it is full, has waited long enough, or is urgent."""
    size = sum(call.size for call in calls)
    if size >= args.max_batch:
        return -float("inf")
    held = min(call.arrived for call in calls) + args.wait_ms / 1000
    urgent = min(call.until for call in calls) - expected(size) - WAY_BACK_S
    return min(held, urgent)


def choose(
    calls: Sequence[Call[Given]], now: float, max_batch: int, expected: Expected
) -> tuple[list[Call[Given]], list[Call[Given]]]:
    """The next batch, most urgent first, and who cannot be served in time any more.

    A call larger than `max_batch` goes alone.
    """
    late = [call for call in calls if now + expected(call.size) > call.until]
    batch: list[Call[Given]] = []
    size = 0
    for call in sorted(calls, key=lambda call: call.until):  # stable: equals in their order
        if call in late:
            continue
        size += call.size
        if batch and (size > max_batch or now + expected(size) + WAY_BACK_S > batch[0].until):
            break
        batch.append(call)
    return batch, late


class Batcher(Generic[Given, Made]):
    """Puts calls together and has them done by a thread of its own.

    Args:
        name: of the thread, and of its costs.
        run: takes what several calls gave, returns what each gets.
        args: how.
        told: of every batch, how many inputs it had and how many seconds each call had waited.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[list[Given]], Sequence[Made]],
        args: BatchArgs,
        told: Callable[[int, list[float]], None] = lambda size, waits: None,
    ) -> None:
        self.name, self.args = name, args
        self.costs = Costs()
        self._run_batch, self._told = run, told
        self._calls: list[Call[Given]] = []
        self._changed = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, given: Given, size: int = 1, until: float = float("inf")) -> Future[Made]:
        """Have it done.

        Args:
            given: what the model is given.
            size: how many inputs that is.
            until: `time.perf_counter()` at which the outcome has to be there.

        Raises:
            FullError: too many wait, or it has been closed; the future may raise `LateError`.
        """
        call = Call(given, size, time.perf_counter(), until)
        with self._changed:
            waiting = sum(other.size for other in self._calls)
            if not self._open or (self._calls and waiting + size > self.args.max_waiting):
                raise FullError(self.name)
            self._calls.append(call)
            self._changed.notify()
        return call.future

    def warm_up(self, examples: Sequence[Given], size: int = 1) -> None:
        """Run batches of all sizes, twice each, so that what they take is known.

        Args:
            examples: calls to repeat; each of them is of `size` inputs.
            size: see `submit`.
        """
        most = max(1, self.args.max_batch // size)
        n = 1
        while True:
            some = [examples[at % len(examples)] for at in range(n)]
            self._timed(some, n * size)
            self._timed(some, n * size)
            if n >= most:
                return
            n = min(2 * n, most)

    def close(self) -> None:
        """End the thread; who still waits is told."""
        with self._changed:
            self._open = False
            left, self._calls = self._calls, []
            self._changed.notify()
        for call in left:
            call.future.cancel()

    def _expected(self, size: int) -> float:
        return self.costs.expected(self.name, size)

    def _timed(self, given: list[Given], size: int) -> Sequence[Made]:
        began = time.perf_counter()
        made = self._run_batch(given)
        self.costs.took(self.name, size, time.perf_counter() - began)
        return made

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._open and not self._calls:
                    self._changed.wait()
                if not self._open:
                    return
                wait = start_at(self._calls, self.args, self._expected) - time.perf_counter()
                if wait > 0:
                    self._changed.wait(wait)
                    continue
                now = time.perf_counter()
                batch, late = choose(self._calls, now, self.args.max_batch, self._expected)
                gone = set(map(id, batch + late))
                self._calls = [call for call in self._calls if id(call) not in gone]
            for call in late:
                self.costs.skipped(self.name, call.size)
                if call.future.set_running_or_notify_cancel():
                    call.future.set_exception(LateError(self.name))
            self._do([call for call in batch if call.future.set_running_or_notify_cancel()])

    def _do(self, batch: list[Call[Given]]) -> None:
        if not batch:
            return
        began, size = time.perf_counter(), sum(call.size for call in batch)
        try:
            made = self._timed([call.given for call in batch], size)
            self._told(size, [began - call.arrived for call in batch])
        except Exception as error:  # belongs to whoever asked, not to this thread
            log.exception("a batch of %s failed", self.name)
            for call in batch:
                call.future.set_exception(error)
            return
        for call, each in zip(batch, made, strict=True):
            call.future.set_result(each)
