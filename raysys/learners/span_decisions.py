"""From probabilities of spans to the spans that are said: one temperature, a threshold a label.

Both are chosen on validation texts. Temperature: Guo et al. (ICML 2017), here of a whole chain, so
that the spans' own probabilities mean what they say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raysys.learners.text_protocol import PREDICTIONS
from raysys.text.spans import Span

THRESHOLDS = tuple(round(0.1 + 0.05 * step, 2) for step in range(17))
PSEUDO_SPANS = 20.0
"""A label with few spans leans on what is best for all: as if it had so many more, of all kinds."""


@dataclass(frozen=True)
class FoundSpan:
    """A span that may be said.

    Attributes:
        span: where, and what.
        probability: that it is exactly right.
    """

    span: Span
    probability: float


@dataclass(frozen=True)
class Thresholds:
    """From which probability spans are said.

    Attributes:
        general: for labels that have none of their own.
        by_label: of labels seen on validation.
    """

    general: float
    by_label: Mapping[str, float]

    def of(self, label: str) -> float:
        """The threshold of one label."""
        return self.by_label.get(label, self.general)

    def said(self, found: Sequence[FoundSpan]) -> list[FoundSpan]:
        """Those that reach the threshold of their label."""
        return [each for each in found if each.probability >= self.of(each.span.label)]

    def to_json(self) -> dict[str, object]:
        """For `from_json`."""
        return {"general": self.general, "by_label": dict(sorted(self.by_label.items()))}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Thresholds:
        """What `to_json` made."""
        return cls(content["general"], content["by_label"])

    @classmethod
    def choose(
        cls, truth: Sequence[Collection[Span]], found: Sequence[Sequence[FoundSpan]]
    ) -> Thresholds:
        """The thresholds with the best F1, see `PSEUDO_SPANS`; of equal ones the nearest to 0.5.

        Args:
            truth: spans of the validation texts.
            found: candidates in them, none overlapping another.
        """
        gold = Counter(span.label for spans in truth for span in spans)
        total = sum(gold.values())
        if not total:
            return cls(0.5, {})
        values = np.array([each.probability for spans in found for each in spans])
        names = np.array([each.span.label for spans in found for each in spans], dtype=object)
        right = np.array(
            [each.span in set(there) for there, spans in zip(truth, found, strict=True)
             for each in spans], dtype=bool,
        )  # fmt: skip
        order = sorted(THRESHOLDS, key=lambda each: (abs(each - 0.5), each))

        def counts(mine: npt.NDArray[np.bool_], threshold: float) -> npt.NDArray[np.float64]:
            said = mine & (values >= threshold - 1e-9)
            return np.array([float((said & right).sum()), float(said.sum())])

        everything = np.ones(len(values), dtype=bool)
        overall = {each: counts(everything, each) for each in THRESHOLDS}
        general = max(order, key=lambda each: _f1(overall[each], total))
        by_label = {}
        for label, there in gold.items():
            mine, weight = names == label, PSEUDO_SPANS / total
            by_label[label] = max(
                order,
                key=lambda each: _f1(
                    counts(mine, each) + weight * overall[each], there + PSEUDO_SPANS
                ),
            )
        return cls(general, by_label)


def _f1(counts: npt.NDArray[np.float64], gold: float) -> float:
    right, said = counts
    return float(2 * right / max(said + gold, 1.0))


def span_log_loss(truth: Sequence[Collection[Span]], found: Sequence[Sequence[FoundSpan]]) -> float:
    """Mean negative log likelihood of whether candidates are right, in nats; NaN without any."""
    losses = [
        -np.log(np.clip(each.probability if each.span in set(there) else 1 - each.probability,
                        1e-6, None))
        for there, spans in zip(truth, found, strict=True)
        for each in spans
    ]  # fmt: skip
    return float(np.mean(losses)) if losses else float("nan")


def predictions(texts: Sequence[str], said: Sequence[Sequence[FoundSpan]]) -> pa.Table:
    """Spans as `PREDICTIONS["entities"]`, one row a text."""
    rows = [
        [
            {
                "start": each.span.start,
                "end": each.span.end,
                "label": each.span.label,
                "text": text[each.span.start : each.span.end],
                "probability": each.probability,
            }
            for each in spans
        ]
        for text, spans in zip(texts, said, strict=True)
    ]
    return pa.table({"spans": rows}, schema=PREDICTIONS["entities"])
