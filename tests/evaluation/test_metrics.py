"""Ranking metrics against scikit-learn and by their properties."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from raysys.evaluation.metrics import (
    Judgements,
    auc,
    average_precision,
    brier,
    coverage,
    distinct,
    entropy,
    hit_rate,
    log_losses,
    ndcg,
    novelty,
    personalisation,
    quantile_bins,
    ranking_metrics,
    recall,
    reciprocal_rank,
    reliability,
    top_items,
)


def judgements(labels: list[list[float]], missed: list[int] | None = None) -> Judgements:
    """Lists whose items are numbered from 0 in each."""
    missed = missed or [0] * len(labels)
    return Judgements(
        item=np.concatenate([np.arange(len(row)) for row in labels]).astype(np.int32),
        label=np.concatenate([np.asarray(row) for row in labels]).astype(np.float32),
        offsets=np.cumsum([0, *map(len, labels)]).astype(np.int64),
        n_relevant=np.array(
            [sum(x > 0 for x in row) + m for row, m in zip(labels, missed, strict=True)], np.int32
        ),
    )


@st.composite
def judged_scores(draw: st.DrawFn) -> tuple[Judgements, np.ndarray]:
    """A few lists of any length, some empty, with ties among the scores."""
    lists = draw(st.lists(st.lists(st.sampled_from([0.0, 1.0]), max_size=12), min_size=1))
    missed = draw(st.lists(st.integers(0, 3), min_size=len(lists), max_size=len(lists)))
    found = judgements(lists, missed)
    n = len(found.item)
    scores = draw(st.lists(st.integers(-5, 5), min_size=n, max_size=n))
    return found, np.asarray(scores, dtype=np.float32)


def test_worked_example() -> None:
    """Second and third of four are relevant, one more was missed."""
    found = judgements([[0, 1, 1, 0]], missed=[1])
    ranks = found.ranks(np.array([4, 3, 2, 1], np.float32))
    assert ranks.tolist() == [2, 3]
    ideal = 1 + 1 / np.log2(3) + 1 / 2
    assert ndcg(found, ranks, 10)[0] == pytest.approx((1 / np.log2(3) + 1 / 2) / ideal)
    assert reciprocal_rank(found, ranks)[0] == 1 / 2
    assert recall(found, ranks, 2)[0] == pytest.approx(1 / 3)
    assert average_precision(found, ranks, 10)[0] == pytest.approx((1 / 2 + 2 / 3) / 3)
    assert hit_rate(found, ranks, 1)[0] == 0
    assert hit_rate(found, ranks, 2)[0] == 1


def test_equal_scores_are_ordered_by_item_not_by_row() -> None:
    """Else putting relevant rows first in a file would make a constant scorer perfect."""
    label = np.array([1, 0, 0, 1, 0, 0], np.float32)
    item = np.array([9, 1, 2, 0, 5, 6], np.int32)
    found = Judgements(item, label, np.array([0, 3, 6]), np.array([1, 1], np.int32))
    assert found.ranks(np.zeros(6, np.float32)).tolist() == [3, 1]
    assert top_items(found, np.zeros(6, np.float32), 2).tolist() == [[1, 2], [0, 5]]


def test_a_request_without_anything_relevant_has_no_value() -> None:
    found = judgements([[0, 0], [0, 1], []], missed=[0, 0, 2])
    values = ranking_metrics(found, found.ranks(np.array([1, 0, 0, 1], np.float32)))
    for name, value in values.items():
        assert np.isnan(value[0]), name
        assert value[1] == 1, name
        assert value[2] == 0, name  # all relevant items were missed


def test_graded_gains_against_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        label = rng.integers(1, 4, 12).astype(np.float32)  # all relevant: nothing is missed
        scores = rng.normal(size=12).astype(np.float32)
        found = judgements([label.tolist()])
        value = ndcg(found, found.ranks(scores), 5)[0]
        assert value == pytest.approx(sk.ndcg_score([label], [scores], k=5))


def test_against_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = [(rng.random(rng.integers(2, 60)) < 0.3).astype(float).tolist() for _ in range(80)]
    labels = [row for row in labels if sum(row)]
    found = judgements(labels)
    scores = rng.permutation(len(found.item)).astype(np.float32)
    values = ranking_metrics(found, found.ranks(scores))
    whole = average_precision(found, found.ranks(scores), 60)
    for i, row in enumerate(labels):
        mine = scores[found.offsets[i] : found.offsets[i + 1]]
        assert values["ndcg@10"][i] == pytest.approx(sk.ndcg_score([row], [mine], k=10))
        assert whole[i] == pytest.approx(sk.average_precision_score(row, mine))
        if sum(row) == 1:
            lrap = sk.label_ranking_average_precision_score([row], [mine])
            assert values["mrr"][i] == pytest.approx(lrap)


def test_probability_metrics_against_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    p = rng.beta(1, 5, 5000).round(2).astype(np.float32).clip(0.01, 0.99)  # with ties
    label = (rng.random(5000) < p).astype(np.float32)
    assert auc(p, label) == pytest.approx(sk.roc_auc_score(label, p))
    losses = log_losses(p, label)
    assert losses.mean() == pytest.approx(sk.log_loss(label, p.astype(np.float64)))
    assert brier(p, label).mean() == pytest.approx(sk.brier_score_loss(label, p))
    curve = reliability(quantile_bins(p, 10), p, label)
    assert curve.count.sum() == 5000
    assert curve.error < 0.03  # the labels follow the promises
    assert reliability(quantile_bins(p, 10), np.minimum(p + 0.3, 1), label).error > 0.25
    assert np.isnan(auc(p, np.zeros(5000, np.float32)))


@pytest.mark.long
@given(judged_scores())
@settings(max_examples=150, deadline=None)
def test_bounds_and_order(case: tuple[Judgements, np.ndarray]) -> None:
    found, scores = case
    for name, value in ranking_metrics(found, found.ranks(scores)).items():
        kept = value[found.judged]
        assert ((kept >= 0) & (kept <= 1 + 1e-9)).all(), name
        assert np.isnan(value[~found.judged]).all(), name
    ranks = found.ranks(scores)
    assert (recall(found, ranks, 3) <= recall(found, ranks, 5))[found.judged].all()


@given(judged_scores())
@settings(max_examples=100, deadline=None)
def test_a_rising_transform_changes_nothing(case: tuple[Judgements, np.ndarray]) -> None:
    found, scores = case
    assert np.array_equal(found.ranks(scores), found.ranks(np.exp(scores) * 3 + 7))


@pytest.mark.long
@given(judged_scores(), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_the_order_of_rows_changes_nothing(case: tuple[Judgements, np.ndarray], random) -> None:
    found, scores = case
    rows: list[int] = []
    for start, stop in pairwise(found.offsets.tolist()):
        rows += random.sample(range(start, stop), stop - start)
    other = Judgements(found.item[rows], found.label[rows], found.offsets, found.n_relevant)
    mine = ranking_metrics(found, found.ranks(scores))
    theirs = ranking_metrics(other, other.ranks(scores[rows]))
    for name in mine:
        np.testing.assert_allclose(mine[name], theirs[name], err_msg=name)
    assert np.array_equal(top_items(found, scores, 5), top_items(other, scores[rows], 5))


@given(judged_scores())
@settings(max_examples=100, deadline=None)
def test_ranks_agree_with_the_lists(case: tuple[Judgements, np.ndarray]) -> None:
    found, scores = case
    top = top_items(found, scores, 12)
    for row, owner, rank in zip(found.relevant, found.owner, found.ranks(scores), strict=True):
        assert top[owner, rank - 1] == found.item[row]


def test_scores_that_are_not_finite_are_refused() -> None:
    found = judgements([[0, 1]])
    with pytest.raises(ValueError, match="finite"):
        found.ranks(np.array([0, np.nan], np.float32))
    with pytest.raises(ValueError, match="candidates"):
        found.ranks(np.zeros(3, np.float32))


def test_what_the_lists_hold() -> None:
    top = np.array([[0, 1], [0, 2], [3, -1], [-1, -1]], np.int32)
    kind = np.array([0, 0, 1, -1, 1], np.int32)
    assert coverage(top, 5) == 4 / 5
    np.testing.assert_allclose(distinct(top, kind), [0.5, 1, 1, np.nan])
    np.testing.assert_allclose(entropy(top, kind), [0, 1, 0, np.nan], atol=1e-12)
    bits = novelty(top, np.array([3.0, 0, 0, 0, 0]))
    np.testing.assert_allclose(bits, [(1 + 3) / 2, (1 + 3) / 2, 3, np.nan])


def test_personalisation_is_the_mean_over_all_pairs() -> None:
    rng = np.random.default_rng(0)
    top = np.stack([rng.permutation(30)[:10] for _ in range(25)]).astype(np.int32)
    overlaps = [
        len(np.intersect1d(top[i], top[j])) / 10 for i in range(25) for j in range(i + 1, 25)
    ]
    assert personalisation(top) == pytest.approx(1 - np.mean(overlaps))
    assert personalisation(np.repeat(top[:1], 4, axis=0)) == 0
    assert np.isnan(personalisation(top[:1]))
