"""Metrics of labels against scikit-learn and against plain resampling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

from raysys.evaluation.intervals import Bootstrap
from raysys.evaluation.text_metrics import (
    LabelJudgement,
    confusion,
    label_scores,
    squared_errors,
)

LABELS = ["a", "b", "c"]
PAIRS = st.lists(st.tuples(st.sampled_from([*LABELS, None]), st.sampled_from(LABELS)), min_size=1)


@pytest.mark.long
@settings(deadline=None)
@given(PAIRS)
def test_they_are_scikit_learns(pairs) -> None:
    said, truth = zip(*pairs, strict=True)
    judgement = LabelJudgement.of(said, truth)
    names = list(judgement.names)
    told = [label if label in names else "none" for label in said]
    assert judgement.macro_f1().value == pytest.approx(
        f1_score(truth, told, labels=names, average="macro", zero_division=0)
    )
    assert judgement.micro_f1() == pytest.approx(
        f1_score(truth, told, labels=names, average="micro", zero_division=0)
    )
    assert judgement.right.mean() == np.mean([a == b for a, b in pairs])
    table = confusion_matrix(truth, told, labels=[*names, "none"])[:-1]
    np.testing.assert_array_equal(confusion(judgement), table)
    scores = precision_recall_fscore_support(truth, told, labels=names, zero_division=np.nan)
    found = label_scores(judgement)
    for at, name in enumerate(names):
        mine = (found[name].precision, found[name].recall)
        np.testing.assert_allclose(mine, (scores[0][at], scores[1][at]))
        assert found[name].support == scores[3][at]


def drawn(n: int, right: float, seed: int) -> LabelJudgement:
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(99).choice(LABELS, n, p=(0.6, 0.3, 0.1))
    said = np.where(rng.random(n) < right, truth, rng.choice(LABELS, n))
    return LabelJudgement.of(said.tolist(), truth.tolist())


@pytest.mark.long
def test_intervals_are_those_of_plain_resampling() -> None:
    judgement = drawn(400, 0.7, 0)
    found = judgement.macro_f1(Bootstrap(np.arange(400), resamples=2000))
    rng = np.random.default_rng(5)
    values = []
    for _ in range(600):
        rows = rng.integers(0, 400, 400)
        values.append(f1_score(judgement.truth[rows], judgement.said[rows], average="macro"))
    low, high = np.quantile(values, [0.025, 0.975])
    assert found.low == pytest.approx(low, abs=0.012) and found.high == pytest.approx(
        high, abs=0.012
    )
    assert found.low < found.value < found.high


def test_a_paired_gain_is_narrower_than_its_parts() -> None:
    good, same = drawn(2000, 0.8, 1), drawn(2000, 0.8, 1)
    said = good.said.copy()
    said[:60] = -1
    worse = LabelJudgement(good.names, said, good.truth)
    bootstrap = Bootstrap(np.arange(2000))
    gain = good.macro_f1_gain(worse, bootstrap)
    assert 0 < gain.low < gain.value < gain.high < 0.05
    part = good.macro_f1(bootstrap)
    assert gain.high - gain.low < part.high - part.low
    nothing = good.macro_f1_gain(same, bootstrap)
    assert nothing.low == nothing.value == nothing.high == 0


def test_groups_are_drawn_whole() -> None:
    """Ten texts of one mind are no ten witnesses."""
    judgement = drawn(50, 0.7, 3)
    tenfold = LabelJudgement(
        judgement.names, np.repeat(judgement.said, 10), np.repeat(judgement.truth, 10)
    )
    alone = judgement.macro_f1(Bootstrap(np.arange(50)))
    grouped = tenfold.macro_f1(Bootstrap(np.repeat(np.arange(50), 10)))
    assert (grouped.low, grouped.high) == pytest.approx((alone.low, alone.high), abs=1e-6)


def test_a_label_is_missing() -> None:
    with pytest.raises(ValueError, match="true label"):
        LabelJudgement.of(["a"], [None])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="each text"):
        LabelJudgement.of(["a"], ["a", "b"])


def test_squared_errors() -> None:
    errors = squared_errors(np.array([1.0, 4.0], np.float32), np.array([2.0, np.nan]))
    assert errors[0] == 1 and np.isnan(errors[1])
