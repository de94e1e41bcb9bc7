"""A baseline for entities: what was labelled in the training texts, found again.

Values as they were, with other numbers in them, and of the same shape (see `Gazetteer`): what one
would otherwise write by hand as lists and regular expressions. Fits in a second.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path

import pyarrow as pa
from pydantic import Field

from raysys.config import Settings
from raysys.learners.span_decisions import FoundSpan, Thresholds, predictions
from raysys.learners.text_protocol import SpanModel, TextContext, TextLearner
from raysys.text.gazetteer import Gazetteer, Match
from raysys.text.reader import labelled, require_spans, spans_in_units
from raysys.text.spans import Span, spans_of
from raysys.text.units import Splitter, Units

FILE = "gazetteer.json"


class GazetteerTaggerSettings(Settings):
    """How values are kept.

    Attributes:
        longest: units (words, numbers, signs) of the longest value.
    """

    longest: int = Field(10, ge=1, le=50)


class GazetteerModel(SpanModel):
    """Known values, and from which trust on they are said.

    Args:
        splitter: cuts texts into units.
        gazetteer: known values.
        thresholds: of the trust, by label.
    """

    def __init__(self, splitter: Splitter, gazetteer: Gazetteer, thresholds: Thresholds) -> None:
        self.splitter = splitter
        self.gazetteer = gazetteer
        self.thresholds = thresholds
        self._labels = gazetteer.labels()

    @property
    def labels(self) -> tuple[str, ...]:
        """See `SpanModel`."""
        return self._labels

    def predict(self, table: pa.Table, labels: Collection[str] | None = None) -> pa.Table:
        """See `SpanModel.predict`; the probability is the trust in the value."""
        texts = table["text"].to_pylist()
        return predictions(texts, [self._said(text, self.thresholds, labels) for text in texts])

    def candidates(self, texts: Sequence[str]) -> list[list[FoundSpan]]:
        """Every known value, whatever the trust; none overlaps another."""
        return [self._said(text, Thresholds(0.0, {})) for text in texts]

    def _said(
        self, text: str, thresholds: Thresholds, labels: Collection[str] | None = None
    ) -> list[FoundSpan]:
        units = self.splitter(text)
        trusted = [
            match
            for match in self.gazetteer.matches(units)
            if match.trust >= thresholds.of(match.label)
            and (labels is None or match.label in labels)
        ]
        return [_found(units, match) for match in longest_first(trusted)]

    def save(self, folder: Path) -> None:
        """See `TextModel.save`."""
        content = {
            "splitter": self.splitter.to_json(),
            "gazetteer": self.gazetteer.to_json(),
            "thresholds": self.thresholds.to_json(),
        }
        (folder / FILE).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> GazetteerModel:
        """See `TextModel.load`."""
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return cls(
            Splitter.from_json(content["splitter"]),
            Gazetteer.from_json(content["gazetteer"]),
            Thresholds.from_json(content["thresholds"]),
        )


class GazetteerTagger(TextLearner[GazetteerTaggerSettings]):
    """Values of the training texts, longest match first."""

    name = "gazetteer_tagger"
    tasks = ("entities",)
    family = "baseline"
    settings_model = GazetteerTaggerSettings
    model_class = GazetteerModel

    def fit(self, train: pa.Table, validation: pa.Table, context: TextContext) -> GazetteerModel:
        """See `TextLearner.fit`."""
        texts = labelled(train)
        require_spans(texts, where=f"learners.{self.name}")
        splitter = Splitter.of(texts)
        cut = [(splitter(text), spans) for text, spans in texts]
        known = [(units, spans_in_units(units, spans)) for units, spans in cut]
        gazetteer = Gazetteer.fit(known, self.settings.longest)
        model = GazetteerModel(splitter, gazetteer, Thresholds(0.5, {}))
        truth = [set(spans) for spans in spans_of(validation)]
        found = model.candidates(validation["text"].to_pylist())
        model.thresholds = Thresholds.choose(truth, found)
        return model


def longest_first(matches: Sequence[Match]) -> list[Match]:
    """Matches of which no two share a unit: the longest, of equal ones the most trusted."""
    order = sorted(matches, key=lambda m: (m.first - m.last, -m.trust, m.first, m.way, m.label))
    kept: list[Match] = []
    for match in order:
        if all(match.last <= other.first or other.last <= match.first for other in kept):
            kept.append(match)
    return sorted(kept, key=lambda m: m.first)


def _found(units: Units, match: Match) -> FoundSpan:
    start, end = units.pieces[match.first][0], units.pieces[match.last - 1][1]
    return FoundSpan(Span(start, end, match.label), match.trust)
