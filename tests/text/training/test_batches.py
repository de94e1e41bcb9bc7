from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raysys.text.training.batches import AHEAD, Feed, Order
from tests.text.training.tasks import FindsWord

sizes = st.integers(1, 60)


@given(n=sizes, batch=st.integers(1, 9), window=st.integers(1, 4), epoch=st.integers(0, 3))
def test_an_epoch_has_every_example_once(n: int, batch: int, window: int, epoch: int) -> None:
    order = Order(np.arange(n) % 7 + 1, batch, window, seed=3)
    first = epoch * order.per_epoch
    seen = [order.of_step(step) for step in range(first, first + order.per_epoch)]
    assert sorted(np.concatenate(seen)) == list(range(n))
    assert max(map(len, seen)) <= batch


@given(
    n=sizes, batch=st.integers(1, 9), workers=st.integers(1, 4), micro=st.integers(1, 9),
    step=st.integers(0, 8),
)  # fmt: skip
def test_workers_share_a_step(n: int, batch: int, workers: int, micro: int, step: int) -> None:
    lengths = np.arange(n) % 5 + 1
    parts = [
        Order(lengths, batch, 50, 0, rank, workers).micro_batches(step, micro)
        for rank in range(workers)
    ]
    whole = Order(lengths, batch * workers, 50, 0).of_step(step)
    counted = [rows for part in parts for rows, counts in part if counts]
    assert sorted(np.concatenate(counted)) == sorted(whole)
    assert len({len(part) for part in parts}) == 1  # collective calls need as many of each
    assert all(1 <= len(rows) <= micro for part in parts for rows, _ in part)


def test_examples_of_like_length_lie_together() -> None:
    lengths = np.random.default_rng(0).integers(1, 500, 4000)

    def padded(window: int) -> int:
        order = Order(lengths, 32, window, seed=0)
        steps = [lengths[order.of_step(step)] for step in range(order.per_epoch)]
        return sum(len(each) * int(each.max()) for each in steps)

    assert padded(50) < 1.1 * lengths.sum() < 1.7 * lengths.sum() < padded(1)
    # yet batches come in no order of length
    order = Order(lengths, 32, 50, seed=0)
    means = [lengths[order.of_step(step)].mean() for step in range(50)]
    assert abs(np.corrcoef(means, np.arange(50))[0, 1]) < 0.4


def test_the_order_follows_seed_and_epoch() -> None:
    lengths = np.arange(50) % 6

    def steps(seed: int, epoch: int) -> list[Any]:
        order = Order(lengths, 8, 2, seed)
        first = epoch * order.per_epoch
        return np.concatenate([order.of_step(first + at) for at in range(order.per_epoch)]).tolist()

    assert steps(1, 0) == steps(1, 0)
    assert steps(1, 0) != steps(2, 0)
    assert steps(1, 0) != steps(1, 1)


class _NoGpu(Feed):
    """Collates in its thread, as for a GPU, without pinning."""

    def __init__(self, objective: FindsWord, order: Order) -> None:
        super().__init__(objective, order, torch.device("cpu"), 0)
        self.asked: list[int] = []

    def step(self, step: int, size: int) -> Any:
        self.asked.append(step)
        return super().step(step, size)


@pytest.mark.parametrize("taken", [1, 4])
def test_collating_ahead_gives_the_same_and_stays_near(taken: int) -> None:
    objective = FindsWord()
    order = Order(objective.lengths(), 8, 50, 0)
    plain = list(Feed(objective, order, torch.device("cpu"), 0).steps(1, 5, 4))
    feed = _NoGpu(objective, Order(objective.lengths(), 8, 50, 0))
    feed._ahead = True
    steps = feed.steps(1, 5, 4)
    found = [next(steps) for _ in range(taken)]
    steps.close()
    for one, other in zip(plain, found, strict=False):
        assert [each.rows.tolist() for each in one] == [each.rows.tolist() for each in other]
        assert all(torch.equal(a.tensors["ids"], b.tensors["ids"])
                   for a, b in zip(one, other, strict=True))  # fmt: skip
    assert feed.asked == sorted(feed.asked)
    assert max(feed.asked) <= min(4, taken + AHEAD)
