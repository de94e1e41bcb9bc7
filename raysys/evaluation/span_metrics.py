"""Precision, recall and F1 of exact spans, with bootstrap intervals over texts.

A span is found if start, end and label are all right (the measure of CoNLL: Tjong Kim Sang and De
Meulder 2003). Texts are drawn whole, as the spans of one text err together.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from raysys.evaluation.intervals import Bootstrap, Float64, Interval

Texts: TypeAlias = Sequence[Collection[tuple[Hashable, ...]]]


@dataclass(frozen=True)
class Scores:
    """Precision, recall and F1; NaN where nothing was found, or there was nothing to find.

    Attributes:
        precision: share of what was found that is right.
        recall: share of what there is that was found.
        f1: their harmonic mean.
        spans: how many there are.
        found: how many were found, right or wrong.
    """

    precision: Interval
    recall: Interval
    f1: Interval
    spans: int
    found: int


@dataclass(frozen=True)
class SpanReport:
    """How well spans are found.

    Attributes:
        micro: over all spans alike.
        macro: mean over labels that occur, each with equal weight.
        by_label: of each label.
    """

    micro: Scores
    macro: Scores
    by_label: dict[str, Scores]


def span_report(
    truth: Texts,
    found: Texts,
    *,
    labels: Collection[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> SpanReport:
    """Judge found spans.

    Args:
        truth: of each text its spans: tuples of which the last entry is the label, such as
            (start, end, label), or (value, label) to judge values wherever they stand. What is
            given twice counts once.
        found: of each text, in the same order.
        labels: count these only; None: all.
        resamples: bootstrap draws of texts; 0: no intervals (their ends are NaN), nor
            of a single text.
        seed: of the draws.

    Raises:
        ValueError: not as many texts in one as in the other.
    """
    names, counts = _counts(truth, found, labels)
    total = counts.sum(0)
    drawn = np.zeros((0, len(names), 3))
    if resamples and len(truth) > 1:
        draws = Bootstrap(np.arange(len(truth)), resamples=resamples, seed=seed)
        drawn = draws.replicate(counts)
    by_label = {name: _scores(total[at], drawn[:, at]) for at, name in enumerate(names)}
    occurs = total[:, 2] > 0
    macro = _macro(total[occurs], drawn[:, occurs])
    return SpanReport(_scores(total.sum(0), drawn.sum(1)), macro, by_label)


def span_gain(
    truth: Texts, found: Texts, other: Texts, *, resamples: int = 1000, seed: int = 0
) -> Interval:
    """Micro F1 of `found` minus that of `other`, paired: both are judged on the same draws.

    Raises:
        ValueError: not as many texts in one as in the other.
    """
    both = [_counts(truth, each, None)[1].sum(1) for each in (found, other)]
    mine, theirs = (_three(each.sum(0))[2] for each in both)
    draws = Bootstrap(np.arange(len(truth)), resamples=resamples, seed=seed)
    one, two = (_three(draws.replicate(each))[:, 2] for each in both)
    return draws.interval(float(mine - theirs), one - two)


def _counts(
    truth: Texts, found: Texts, labels: Collection[str] | None
) -> tuple[list[str], Float64]:
    """Labels; and by text and label how many are right, were found, there are."""
    if len(truth) != len(found):
        raise ValueError(f"{len(truth)} texts with spans, {len(found)} with found ones")
    names = sorted(
        {str(span[-1]) for spans in (*truth, *found) for span in spans}
        if labels is None
        else set(labels)
    )
    number = {name: at for at, name in enumerate(names)}
    counts = np.zeros((len(truth), len(names), 3))
    for row, (there, here) in enumerate(zip(truth, found, strict=True)):
        gold, said = set(there), set(here)
        for place, some in enumerate((gold & said, said, gold)):
            for span in some:
                at = number.get(str(span[-1]))
                if at is not None:
                    counts[row, at, place] += 1
    return names, counts


def _three(counts: Float64) -> Float64:
    """Precision, recall, F1 of (right, found, there are): float64[…, 3]."""
    right, said, gold = counts[..., 0], counts[..., 1], counts[..., 2]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([right / said, right / gold, 2 * right / (said + gold)], axis=-1)


def _scores(total: Float64, drawn: Float64) -> Scores:
    precision, recall, f1 = _intervals(_three(total), _three(drawn))
    return Scores(precision, recall, f1, int(total[2]), int(total[1]))


def _macro(total: Float64, drawn: Float64) -> Scores:
    """Means over labels; a label that occurs and is never found has precision 0."""
    if not len(total):
        return _scores(np.zeros(3), np.zeros((0, 3)))
    here, there = np.nan_to_num(_three(total)).mean(0), np.nan_to_num(_three(drawn)).mean(1)
    precision, recall, f1 = _intervals(here, there)
    return Scores(precision, recall, f1, int(total[:, 2].sum()), int(total[:, 1].sum()))


def _intervals(value: Float64, drawn: Float64) -> tuple[Interval, Interval, Interval]:
    def one(at: int) -> Interval:
        some = drawn[:, at][~np.isnan(drawn[:, at])]
        low, high = np.quantile(some, [0.025, 0.975]) if len(some) else (np.nan, np.nan)
        return Interval(float(value[at]), float(low), float(high))

    return one(0), one(1), one(2)
