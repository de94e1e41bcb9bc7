from __future__ import annotations

import numpy as np
import pytest

from raysys.learners.span_decisions import FoundSpan, Thresholds, predictions, span_log_loss
from raysys.text.spans import Span


def drawn(n: int, label: str, least: float, seed: int) -> tuple[list[set[Span]], list[list]]:
    """Texts with one candidate each, which is right if its probability is above `least`."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(n):
        probability = float(rng.random())
        truth.append({Span(0, 2, label)} if probability > least else set())
        found.append([FoundSpan(Span(0, 2, label), probability)])
    return truth, found


def test_a_threshold_is_put_where_spans_begin_to_be_right() -> None:
    a, b = drawn(300, "a", 0.3, 0), drawn(300, "b", 0.7, 1)
    chosen = Thresholds.choose(a[0] + b[0], a[1] + b[1])
    assert chosen.of("a") == pytest.approx(0.3, abs=0.06)
    assert chosen.of("b") == pytest.approx(0.7, abs=0.06)
    assert chosen.general <= chosen.of("b") and chosen.of("unheard of") == chosen.general
    assert Thresholds.from_json(chosen.to_json()) == chosen
    said = chosen.said(
        b[1][0] + [FoundSpan(Span(3, 4, "b"), 0.99), FoundSpan(Span(5, 6, "a"), 0.1)]
    )
    assert [each.span.start for each in said if each.span.start] == [3]


def test_a_label_seen_twice_leans_on_all_labels() -> None:
    many, few = drawn(400, "a", 0.4, 0), drawn(2, "rare", 0.0, 1)
    few[1][0] = [FoundSpan(Span(0, 2, "rare"), 0.11)]
    chosen = Thresholds.choose(many[0] + few[0], many[1] + few[1])
    assert abs(chosen.of("rare") - chosen.of("a")) <= 0.1


def test_without_spans_there_is_nothing_to_choose() -> None:
    assert Thresholds.choose([set()], [[]]) == Thresholds(0.5, {})
    assert np.isnan(span_log_loss([set()], [[]]))


def test_log_loss_by_hand() -> None:
    span = Span(0, 1, "a")
    found = [[FoundSpan(span, 0.8)], [FoundSpan(span, 0.8)], []]
    expected = -(np.log(0.8) + np.log(0.2)) / 2
    assert span_log_loss([{span}, set(), {span}], found) == pytest.approx(expected)


def test_a_table_tells_what_its_spans_say() -> None:
    table = predictions(["🙂 Ünique", ""], [[FoundSpan(Span(2, 8, "brand"), 0.5)], []])
    assert table["spans"].to_pylist() == [
        [{"start": 2, "end": 8, "label": "brand", "text": "Ünique", "probability": 0.5}],
        [],
    ]
