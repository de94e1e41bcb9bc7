"""The guard of a canary: ends what is worse, and seldom what is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.serving.guard import Arm, ArmCounts, Guard, GuardArgs
from raysys.serving.rollout import CanaryArgs
from raysys.stages.learn_settings import LearnedCanary

ARMS: tuple[Arm, Arm] = ("champion", "challenger")


def stream(
    seed: int,
    n: int,
    share: float = 0.5,
    errors: tuple[float, float] = (0.02, 0.02),
    slower: float = 1.0,
    rates: tuple[float, float] = (0.1, 0.1),
    guard: Guard | None = None,
) -> tuple[str | None, int]:
    """Play answers until the guard objects: its reason, and after how many."""
    guard = guard or Guard(GuardArgs())
    rng = np.random.default_rng(seed)
    which = (rng.random(n) < share).astype(int)
    failed = rng.random(n) < np.take(errors, which)
    milliseconds = rng.lognormal(2, 0.5, n) * np.where(which, slower, 1)
    acted = rng.random(n) < np.take(rates, which)
    for i in range(n):
        arm = ARMS[which[i]]
        guard.answer(arm, float(milliseconds[i]), failed=bool(failed[i]))
        if acted[i]:
            guard.outcome(arm)
        if i % 50 == 0 and (reason := guard.verdict()):
            return reason, i
    return None, n


@pytest.mark.parametrize(
    ("worse", "said", "within"),
    [
        ({"errors": (0.01, 0.2)}, "error rate", 1500),
        ({"errors": (0.0, 0.1)}, "error rate", 2500),
        ({"slower": 3.0}, "latency", 1500),
        ({"rates": (0.3, 0.15)}, "online metric", 3000),
        ({"rates": (0.2, 0.0)}, "online metric", 2000),
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_what_is_worse_is_ended_soon(seed: int, worse: dict, said: str, within: int) -> None:
    reason, after = stream(seed, 6000, **worse)
    assert reason is not None and reason.startswith(said), reason
    assert after <= within


@pytest.mark.parametrize("better", [{"errors": (0.2, 0.0)}, {"slower": 0.3}, {"rates": (0.1, 0.3)}])
def test_what_is_better_goes_on(better: dict) -> None:
    assert stream(1, 5000, **better) == (None, 5000)


def test_equal_arms_are_seldom_told_apart() -> None:
    """Looking every 50 answers for 4,000 answers: of 60 canaries that are no worse, 1 may end."""
    ended = [stream(seed, 4000, share=0.2)[0] for seed in range(60)]
    assert sum(reason is not None for reason in ended) <= 1


def test_nothing_is_said_before_there_is_something_to_say() -> None:
    guard = Guard(GuardArgs(min_answers=100))
    assert guard.verdict() is None
    for _ in range(99):
        guard.answer("challenger", 1e6, failed=True)
        guard.answer("champion", 1)
    assert guard.verdict() is None
    guard.answer("challenger", 1e6, failed=True)
    assert guard.verdict() is None  # the champion has 99
    guard.answer("champion", 1)
    assert guard.verdict()


def test_the_window_forgets() -> None:
    guard = Guard(GuardArgs(window=200, min_answers=100))
    for failed in (True, False):
        for _ in range(200):
            guard.answer("challenger", 5, failed=failed)
            guard.answer("champion", 5)
    assert guard.arms["challenger"].error_rate == 0 and guard.verdict() is None


def test_without_outcomes_the_metric_is_not_watched() -> None:
    assert stream(0, 3000, rates=(0.0, 0.0))[0] is None
    off = Guard(GuardArgs(metric_drop=None))
    assert stream(0, 3000, rates=(0.5, 0.0), guard=off)[0] is None


times = st.lists(st.tuples(st.floats(0, 1e4), st.booleans()), min_size=1, max_size=300)


@settings(max_examples=60, deadline=None)
@given(answers=times, window=st.integers(50, 120), limit=st.floats(0, 1e4))
def test_counts_are_those_of_the_last_window(
    answers: list[tuple[float, bool]], window: int, limit: float
) -> None:
    arm = ArmCounts(window)
    for milliseconds, failed in answers:
        arm.answer(milliseconds, failed=failed)
    last = answers[-window:]
    took = sorted(milliseconds for milliseconds, _ in last)
    assert arm.answers == len(answers) and arm.n == len(last)
    assert math.isclose(arm.error_rate, sum(failed for _, failed in last) / len(last))
    assert arm.slower_than(limit) == sum(ms > limit for ms in took)
    assert arm.quantile(0.95) == took[math.ceil(0.95 * len(took)) - 1]
    assert arm.quantile(0.0) == took[0] and arm.quantile(1.0) == took[-1]


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(20, 200),
    failed=st.tuples(st.integers(0, 200), st.integers(0, 200)),
    more=st.integers(1, 50),
)
def test_a_worse_canary_is_never_safer(n: int, failed: tuple[int, int], more: int) -> None:
    """If so many failures end it, more of them do as well; and the same on both sides end none."""

    def verdict(champion: int, challenger: int) -> bool:
        guard = Guard(GuardArgs(min_answers=20, window=200))
        for arm, count in zip(ARMS, (champion, challenger), strict=True):
            for i in range(n):
                guard.answer(arm, 1.0, failed=i < count)
        return guard.verdict() is not None

    if verdict(min(failed[0], n), min(failed[1], n)):
        assert verdict(min(failed[0], n), min(failed[1] + more, n))
    assert not verdict(min(failed[0], n), min(failed[0], n))


def test_a_guard_that_could_never_speak_says_so() -> None:
    assert "would say nothing" in GuardArgs(window=100, min_answers=200).silent
    assert not GuardArgs(window=200, min_answers=200).silent and not GuardArgs().silent
    for canary, setting in (
        (CanaryArgs(bundle="x", share=0.5), None),
        (CanaryArgs(bundle="x", shadow=True), None),
        (CanaryArgs(bundle="x", share=1), "share"),  # the champion has no answers
        (CanaryArgs(bundle="x", share=0.5, guard=GuardArgs(window=100)), "guard"),
    ):
        assert (canary.silent and canary.silent[0]) == setting
    with pytest.raises(ValueError, match="share: with all users"):  # of `raysys learn`
        LearnedCanary(share=1)
