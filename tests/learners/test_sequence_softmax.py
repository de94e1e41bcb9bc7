"""The softmax on the processor against torch's own, and what a sample of negatives may cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raysys.learners.full_ranking import NOWHERE, survey
from raysys.learners.sequence_softmax import Sampler, seen_before, softmax_loss


def plain_loss(hidden, items, again, competitors, smoothing):
    """By the book: dense corrections, log-softmax."""
    scores = hidden @ items.T
    extra = torch.zeros_like(scores)
    extra[competitors.row, competitors.column] = again
    scores = scores + extra
    correction = torch.from_numpy(competitors.correction).repeat(len(hidden), 1)
    correction[competitors.row, competitors.column] = 0
    target = torch.from_numpy(competitors.target)
    correction[torch.arange(len(hidden)), target] = 0
    mass = (scores + correction).logsumexp(1)
    right = scores[torch.arange(len(hidden)), target]
    return (mass - (1 - smoothing) * right - smoothing * scores.mean(1)).mean()


@pytest.mark.parametrize("negatives", [0, 12])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradients_are_those_of_torch(negatives: int, smoothing: float) -> None:
    rng = np.random.default_rng(1)
    n_items, places, width = 40, 9, 6
    targets = rng.integers(0, n_items, places)
    row, seen, _ = seen_before(
        rng.integers(0, n_items, places).astype(np.int32), np.array([0, 4, 4, 9]), True
    )
    sampler = Sampler(rng.random(n_items) * 9, negatives, 0.5)
    competitors = sampler.draw(targets, row, seen, rng)
    size = n_items if competitors.items is None else len(competitors.items)
    torch.manual_seed(0)
    leaves = [torch.randn(places, width), torch.randn(size, width), torch.randn(len(row))]
    found = []
    for function in (softmax_loss, plain_loss):
        inputs = [leaf.clone().requires_grad_() for leaf in leaves]
        loss = function(*inputs, competitors, smoothing)
        loss.backward()
        found.append([loss.detach(), *(each.grad for each in inputs)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_sample_estimates_the_whole_sum() -> None:
    """The corrected sum over a sample is that over all items, up to chance and little bias."""
    rng = np.random.default_rng(0)
    n_items = 400
    counts = rng.pareto(1.0, n_items) * 10
    scores = rng.standard_normal(n_items)
    sampler = Sampler(counts, 100, 0.5)
    share = counts / counts.sum()
    nothing = np.zeros(0, dtype=np.int64)
    sums = []
    for _ in range(2000):
        targets = rng.choice(n_items, 30, p=share)
        drawn = sampler.draw(targets, nothing, nothing, rng)
        sums.append(np.exp(scores[drawn.items] + drawn.correction).sum())
    assert np.mean(sums) == pytest.approx(np.exp(scores).sum(), rel=0.02)


def test_what_was_seen_is_named_once_by_its_latest_time() -> None:
    items = np.array([5, 7, 5, 9], dtype=np.int32)
    row, seen, back = seen_before(items, np.array([0, 3, 3, 4]), True)
    assert list(zip(row.tolist(), seen.tolist(), back.tolist(), strict=True)) == [
        (0, 5, 0),
        (1, 7, 0),
        (1, 5, 1),
        (2, 5, 0),
        (2, 7, 1),
        (3, 9, 0),
    ]
    row, seen, back = seen_before(items, np.array([0, 3, 3, 4]), False)
    assert list(zip(row.tolist(), seen.tolist(), back.tolist(), strict=True)) == [
        (0, 5, 0),
        (0, 7, 1),
        (2, 9, 0),
    ]


def test_first_places_and_ranks_agree_with_a_sort() -> None:
    rng = np.random.default_rng(2)
    scores = rng.integers(0, 6, (30, 20)).astype(np.float32)  # many equals
    targets = rng.integers(-1, 20, 30).astype(np.int32)
    items, best, rank, total = survey(scores, targets, 7)
    order = np.argsort(-scores, axis=1, kind="stable")
    np.testing.assert_array_equal(items, order[:, :7])
    np.testing.assert_array_equal(best, np.take_along_axis(scores, order, 1)[:, :7])
    np.testing.assert_allclose(total, scores.sum(axis=1))
    for i, target in enumerate(targets):
        expected = NOWHERE if target < 0 else order[i].tolist().index(target) + 1
        assert rank[i] == expected


def test_what_is_no_number_is_nowhere() -> None:
    nan = np.float32(np.nan)
    scores = np.array([[nan, nan, nan], [2, nan, 3], [nan, 1, 2]], dtype=np.float32)
    items, best, rank, _ = survey(scores, np.array([1, 1, 1], dtype=np.int32), 2)
    assert rank.tolist() == [NOWHERE, NOWHERE, 2]
    assert items[1:].tolist() == [[2, 0], [2, 1]]
    assert not np.isnan(best).any()
