"""Losses of relevance against values worked out by hand, and what must not change them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from raysys.text import losses


def log1pexp(x: float) -> float:
    return math.log1p(math.exp(x))


def test_cross_entropy_of_soft_labels() -> None:
    # logit 0 is ½: ln 2 whatever the label; logit ln 3 is ¾: half of ln(4/3) and half of ln 4
    found = losses.cross_entropy(tensor([0.0, math.log(3)]), tensor([0.25, 0.5]))
    by_hand = (math.log(2) + 0.5 * math.log(4 / 3) + 0.5 * math.log(4)) / 2
    assert found.item() == pytest.approx(by_hand)
    weighted = losses.cross_entropy(
        tensor([0.0, math.log(3)]), tensor([0.25, 0.5]), tensor([3.0, 0.0])
    )
    assert weighted.item() == pytest.approx(math.log(2))


def test_ordinal_asks_one_question_a_threshold() -> None:
    thresholds = tensor([-1.0, 2.0])
    found = losses.ordinal(
        tensor([0.5]), tensor([1]), thresholds
    )  # above the first, not the second
    assert found.item() == pytest.approx(log1pexp(-1.5) + log1pexp(-1.5))
    expected = losses.expected_level(tensor([0.5]), thresholds, tensor([1.0, 2.0, 4.0]))
    p, q = 1 / (1 + math.exp(-1.5)), 1 / (1 + math.exp(1.5))
    assert expected.item() == pytest.approx(1 + p * 1 + q * 2)


def test_smoothed_labels_lie_nearer_to_a_half() -> None:
    scores = tensor([math.log(3), -1.0])
    found = losses.cross_entropy(scores, tensor([1.0, 0.0]), smoothing=0.2)
    assert found.item() == pytest.approx(losses.cross_entropy(scores, tensor([0.9, 0.1])).item())
    found = losses.ordinal(tensor([0.5]), tensor([1]), tensor([-1.0, 2.0]), smoothing=0.2)
    by_hand = 2 * log1pexp(-1.5) + 0.1 * 1.5 + 0.1 * 1.5
    assert found.item() == pytest.approx(by_hand)


def test_mean_squared_error_by_weight() -> None:
    found = losses.mean_squared_error(tensor([1.0, 3.0]), tensor([0.0, 1.0]), tensor([3.0, 1.0]))
    assert found.item() == pytest.approx((3 * 1 + 1 * 4) / 4)


def test_margin_in_proportion_to_the_grades() -> None:
    scores, grades = tensor([2.0, 1.5, 0.0, 9.0]), tensor([1.0, 0.0, 0.5, 0.0])
    query = tensor([0, 0, 0, 1])  # the last is alone
    # (0,1): 1 − 0.5 = 0.5; (0,2): 0.5 − 2 < 0; (2,1): 0.5 + 1.5 = 2
    assert losses.margin(scores, grades, query).item() == pytest.approx((0.5 + 0 + 2) / 3)
    assert losses.margin(scores, grades, query, size=2).item() == pytest.approx((1.5 + 0 + 2.5) / 3)
    weight = tensor([2.0, 1.0, 0.0, 1.0])
    assert losses.margin(scores, grades, query, weight).item() == pytest.approx(0.5)


def test_listwise_is_the_cross_entropy_of_two_softmaxes() -> None:
    scores = tensor([0.0, math.log(3), 5.0])
    grades = tensor([math.log(2), 0.0, 1.0])
    query = tensor([4, 4, 7])  # a list of one says nothing
    by_hand = -(2 / 3 * math.log(1 / 4) + 1 / 3 * math.log(3 / 4))
    assert losses.listwise(scores, grades, query).item() == pytest.approx(by_hand)
    sharp = losses.listwise(scores, grades, query, temperature=0.5)
    assert sharp.item() == pytest.approx(-(4 / 5 * math.log(1 / 4) + 1 / 5 * math.log(3 / 4)))


def test_listwise_weighs_lists_not_items() -> None:
    scores, grades = tensor([0.0, 0.0, 0.0, 0.0, 0.0]), torch.zeros(5)
    query, weight = tensor([0, 0, 1, 1, 1]), tensor([3.0, 3.0, 1.0, 1.0, 1.0])
    plain = losses.listwise(scores, grades, query)
    assert plain.item() == pytest.approx((math.log(2) + math.log(3)) / 2)
    weighed = losses.listwise(scores, grades, query, weight)
    assert weighed.item() == pytest.approx((3 * math.log(2) + math.log(3)) / 4)


def test_margin_mse_compares_differences() -> None:
    scores, teacher = tensor([1.0, 0.0, 3.0, 8.0]), tensor([5.0, 2.0, 2.0, 0.0])
    query = tensor([0, 0, 0, 1])
    # differences of the student 1, −2, −3; of the teacher 3, 3, 0
    by_hand = ((1 - 3) ** 2 + (-2 - 3) ** 2 + (-3 - 0) ** 2) / 3
    assert losses.margin_mse(scores, teacher, query).item() == pytest.approx(by_hand)


@pytest.mark.parametrize("loss", [losses.margin, losses.listwise, losses.margin_mse])
def test_queries_of_one_item_teach_nothing_yet_have_a_gradient(loss: object) -> None:
    scores = tensor([1.0, 2.0], requires_grad=True)
    found = loss(scores, tensor([0.0, 1.0]), tensor([0, 1]))  # type: ignore[operator]
    found.backward()
    assert found.item() == 0.0
    assert scores.grad is not None and not scores.grad.any()


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(-5, 5), st.integers(0, 3), st.integers(0, 3)), min_size=2),
    st.floats(-3, 3),
)
def test_what_compares_items_does_not_see_a_shift(
    rows: list[tuple[int, int, int]], shift: float
) -> None:
    scores, grades, query = (tensor(each) for each in zip(*rows, strict=True))
    scores, grades = scores.double(), grades.double()
    for loss in (losses.margin, losses.listwise, losses.margin_mse):
        here, there = loss(scores, grades, query), loss(scores + shift, grades, query)
        assert here.item() == pytest.approx(there.item(), abs=1e-6)
        assert here.item() >= -1e-9


def test_listwise_is_least_where_scores_are_grades() -> None:
    grades, query = tensor([0.0, 1.0, 2.0, 0.5]), tensor([0, 0, 0, 0])
    scores = grades.clone().requires_grad_()
    losses.listwise(scores, grades, query).backward()
    assert scores.grad is not None
    assert scores.grad.abs().max().item() < 1e-6


def test_expected_levels_are_exact_under_autocast() -> None:
    given = torch.linspace(-3, 3, 50), torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 2.0, 5.0])
    wanted = losses.expected_level(*given)
    with torch.autocast("cpu", torch.bfloat16):
        found = losses.expected_level(*given)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
