from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raysys.evaluation.span_metrics import span_gain, span_report

span = st.tuples(st.integers(0, 3), st.integers(4, 5), st.sampled_from(["a", "b", "c"]))
texts = st.lists(st.tuples(st.lists(span, max_size=4), st.lists(span, max_size=4)), max_size=8)


def test_counts_by_hand() -> None:
    truth = [[(0, 4, "brand"), (5, 9, "model")], [(0, 2, "brand")], []]
    found = [[(0, 4, "brand"), (5, 8, "model")], [(0, 2, "model")], [(1, 2, "brand")]]
    report = span_report(truth, found, resamples=0)
    assert report.micro.precision.value == 1 / 4 and report.micro.recall.value == 1 / 3
    assert report.by_label["brand"].f1.value == 0.5
    assert report.by_label["model"].f1.value == 0.0
    assert report.macro.f1.value == 0.25
    assert (report.micro.spans, report.micro.found) == (3, 4)
    only = span_report(truth, found, labels=["brand"], resamples=0)
    assert only.micro.f1.value == 0.5 and set(only.by_label) == {"brand"}
    assert np.isnan(report.micro.f1.low)


@pytest.mark.long
@given(texts)
def test_figures_stay_within_bounds_and_agree(rows: list) -> None:
    truth, found = [t for t, _ in rows], [f for _, f in rows]
    report = span_report(truth, found, resamples=50)
    p, r, f = report.micro.precision.value, report.micro.recall.value, report.micro.f1.value
    if p + r > 0:
        assert f == pytest.approx(2 * p * r / (p + r)) and 0 < f <= 1
    assert sum(s.spans for s in report.by_label.values()) == report.micro.spans
    swapped = span_report(found, truth, resamples=50).micro
    assert np.isclose(swapped.precision.value, r, equal_nan=True)
    if np.isfinite(report.micro.f1.low):
        assert 0 <= report.micro.f1.low <= report.micro.f1.high <= 1


def test_the_interval_is_as_wide_as_chance_makes_it() -> None:
    """F1 of 400 texts with one span each, right with 0.8: near the binomial interval."""
    rng = np.random.default_rng(0)
    truth = [[(0, 1, "a")]] * 400
    found = [[(0, 1 if rng.random() < 0.8 else 2, "a")] for _ in range(400)]
    f1 = span_report(truth, found).micro.f1
    expected = 2 * 1.96 * np.sqrt(0.8 * 0.2 / 400)
    assert f1.low < f1.value < f1.high
    assert f1.high - f1.low == pytest.approx(expected, rel=0.2)


def test_a_gain_is_paired() -> None:
    """The other model is right on the same texts but for some: less is left to chance."""
    rng = np.random.default_rng(0)
    right, lost = rng.random(400) < 0.7, rng.random(400) < 0.05
    truth = [[(0, 1, "a")]] * 400
    found = [[(0, 1 if one else 2, "a")] for one in right]
    other = [
        [(0, 1 if one and not gone else 2, "a")] for one, gone in zip(right, lost, strict=True)
    ]
    gain = span_gain(truth, found, other)
    assert gain.value == pytest.approx((right & lost).mean())
    assert 0 < gain.low < gain.value < gain.high
    alone = span_report(truth, found).micro.f1
    assert gain.high - gain.low < 0.5 * (alone.high - alone.low)


def test_texts_must_be_the_same() -> None:
    with pytest.raises(ValueError, match="2 texts with spans, 1 with found ones"):
        span_report([[], []], [[]])
