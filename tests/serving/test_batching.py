"""Calls are put together, the urgent are not held, and nothing is begun that would be late."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.serving.batching import (
    WAY_BACK_S,
    BatchArgs,
    Batcher,
    Call,
    FullError,
    LateError,
    choose,
    start_at,
)

ARGS = BatchArgs(max_batch=8, wait_ms=10, max_waiting=20)
INF = float("inf")


def takes(size: int) -> float:
    """A batch takes 4 ms and 1 ms more for each input."""
    return 0.004 + 0.001 * size


def calls(*untils: float, arrived: float = 0.0, size: int = 1) -> list[Call[str]]:
    return [Call(f"c{n}", size, arrived, until) for n, until in enumerate(untils)]


def test_a_batch_is_held_for_company_and_starts_when_it_is_full() -> None:
    assert start_at(calls(INF), ARGS, takes) == pytest.approx(0.010)
    assert start_at(calls(*[INF] * 7), ARGS, takes) == pytest.approx(0.010)
    assert start_at(calls(*[INF] * 8), ARGS, takes) == -INF
    assert start_at(calls(INF, size=9), ARGS, takes) == -INF


def test_a_call_whose_deadline_is_near_is_not_held() -> None:
    """It starts when it has to, by what a batch of this size takes; the earlier, the larger."""
    near = start_at(calls(INF, 0.012), ARGS, takes)
    assert near == pytest.approx(0.012 - takes(2) - WAY_BACK_S)
    assert start_at(calls(INF, INF, INF, 0.012), ARGS, takes) < near < 0.010
    assert start_at(calls(INF, 5.0), ARGS, takes) == pytest.approx(0.010)


def test_the_urgent_go_first_and_no_batch_is_larger_than_they_can_bear() -> None:
    batch, late = choose(calls(INF, 0.0085, 9.0, INF), 0.0, 8, takes)
    assert [call.given for call in batch] == ["c1", "c2", "c0"] and not late
    batch, late = choose(calls(INF, 0.0062, INF), 0.0, 8, takes)
    assert [call.given for call in batch] == ["c1"]  # with another one it would be late
    batch, late = choose(calls(0.001, INF, 0.004), 0.0, 8, takes)
    assert [call.given for call in batch] == ["c1"]
    assert [call.given for call in late] == ["c0", "c2"]


@given(
    st.lists(st.tuples(st.integers(1, 12), st.floats(0.0, 0.1) | st.just(INF)), min_size=1),
    st.integers(1, 16),
)
def test_whoever_is_chosen_is_done_in_time_and_nobody_is_lost(
    given: list[tuple[int, float]], max_batch: int
) -> None:
    waiting = [Call(n, size, 0.0, until) for n, (size, until) in enumerate(given)]
    batch, late = choose(waiting, 0.0, max_batch, takes)
    size = sum(call.size for call in batch)
    assert all(takes(size) <= call.until for call in batch)
    assert size <= max_batch or len(batch) == 1
    assert not {id(call) for call in batch} & {id(call) for call in late}
    assert batch or len(late) == len(waiting)
    assert all(takes(call.size) > call.until for call in late)


class Held:
    """A model that waits to be let go, and notes what came together."""

    def __init__(self, **more: float) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.batches: list[list[int]] = []
        self.seen: list[tuple[int, int]] = []
        args = BatchArgs(**{"max_batch": 4, "wait_ms": 0, "max_waiting": 5, **more})
        self.batcher = Batcher("held", self.run, args, self.told)

    def run(self, given: list[int]) -> list[int]:
        self.batches.append(given)
        self.begun.set()
        assert self.go.wait(20)
        if 13 in given:
            raise ValueError("13")
        return [2 * each for each in given]

    def told(self, size: int, waits: list[float]) -> None:
        assert min(waits) >= 0
        self.seen.append((size, len(waits)))


def test_what_comes_meanwhile_goes_together_and_beyond_the_queue_it_is_refused() -> None:
    held = Held()
    first = held.batcher.submit(0)
    assert held.begun.wait(20)
    more = [held.batcher.submit(n) for n in range(1, 6)]
    with pytest.raises(FullError):
        held.batcher.submit(6)
    gone = more[1]
    assert gone.cancel()
    held.go.set()
    assert first.result(20) == 0
    assert [more[n].result(20) for n in (0, 2, 3, 4)] == [2, 6, 8, 10]
    assert held.batches == [[0], [1, 3, 4], [5]]
    held.batcher.close()
    assert held.seen[0] == (1, 1) and held.seen[1] == (3, 3)
    with pytest.raises(FullError):
        held.batcher.submit(1)


def test_who_would_be_late_is_told_and_a_fault_is_the_askers() -> None:
    held = Held()
    held.go.set()
    with pytest.raises(LateError):
        held.batcher.submit(1, until=time.perf_counter() - 1).result(20)
    with pytest.raises(ValueError, match="13"):
        held.batcher.submit(13).result(20)
    assert held.batcher.submit(4).result(20) == 8
    held.batcher.close()


def test_the_warm_up_measures_batches_of_every_size() -> None:
    held = Held(max_batch=6)
    held.go.set()
    held.batcher.warm_up([1, 2])
    assert [len(batch) for batch in held.batches] == [1, 1, 2, 2, 4, 4, 6, 6]
    assert all(held.batcher.costs.expected("held", size) > 0 for size in range(1, 7))
    held.batcher.close()
