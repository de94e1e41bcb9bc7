"""What a tagger reads of a text: units, what they look like, known values, tokens, windows."""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from raysys.errors import UserError
from raysys.text.entity_network import Pooling, Window, tokenize, windows_of
from raysys.text.gazetteer import Gazetteer
from raysys.text.spans import Span, spans_of
from raysys.text.surface import features
from raysys.text.units import Splitter, Units

FILE = "reader.json"
LONGEST_UNIT = 64
"""Characters of a unit that the tokenizer is shown; longer ones are no words."""

LabelledText = tuple[str, list[Span]]
UnitSpan = tuple[int, int, str]


def labelled(table: pa.Table) -> list[LabelledText]:
    """Texts of a table with their spans, see `spans_of`."""
    return list(zip(table["text"].to_pylist(), spans_of(table), strict=True))


def require_spans(texts: Sequence[LabelledText], *, where: str) -> None:
    """Look for one span.

    Raises:
        UserError: there is none, so nothing can be learned.
    """
    if not any(spans for _, spans in texts):
        raise UserError(
            f"no span in {len(texts)} training texts",
            where=where,
            mend="label some texts, or make spans of attributes with attributes_to_spans",
        )


def spans_in_units(units: Units, spans: Sequence[Span]) -> list[UnitSpan]:
    """Spans that begin and end with units: first unit, the one after the last, label."""
    starts = [start for start, _ in units.pieces]
    ends = [end for _, end in units.pieces]
    found = []
    for span in spans:
        first, last = bisect_right(ends, span.start), bisect_left(starts, span.end)
        if first < last and starts[first] >= span.start and ends[last - 1] <= span.end:
            found.append((first, last, span.label))
    return found


@dataclass(frozen=True)
class Reader:
    """Turns texts into windows for the network.

    Attributes:
        splitter: cuts texts into units.
        gazetteer: known values; None: not looked for.
        tokenizer: of the transformer, a fast one; None: there is no transformer.
        pooling: which tokens of a unit count.
        window: units the network reads at once.
        overlap: units that neighbouring windows share.
        most_tokens: tokens a window.
    """

    splitter: Splitter
    gazetteer: Gazetteer | None
    tokenizer: Any | None
    pooling: Pooling = "first"
    window: int = 96
    overlap: int = 24
    most_tokens: int = 512

    def windows(
        self, texts: Sequence[Units], own: Sequence[Sequence[UnitSpan]] | None = None
    ) -> list[Window]:
        """Windows of all texts, in their order; a text without units has none.

        Args:
            texts: in units.
            own: what the gazetteer learned from each, if it was fitted on them.
        """
        parts: list[tuple[int, int, list[list[int]], list[str]]] = []
        for number, units in enumerate(texts):
            if not len(units):
                continue
            known = []
            if self.gazetteer is not None:
                known = self.gazetteer.matches(units, None if own is None else own[number])
            rows = features(units, known)
            words = [word[:LONGEST_UNIT] for word in units.words]
            for first, last in windows_of(len(units), self.window, self.overlap):
                parts.append((number, first, rows[first:last], words[first:last]))
        tokens: list[tuple[list[int], list[int]]] = [([], [])] * len(parts)
        if self.tokenizer is not None and parts:
            words_of = [words for *_, words in parts]
            tokens = tokenize(self.tokenizer, words_of, self.pooling, self.most_tokens)
        return [
            Window(number, first, rows, ids, unit)
            for (number, first, rows, _), (ids, unit) in zip(parts, tokens, strict=True)
        ]

    def owned(self, window: Window, units: int) -> tuple[int, int]:
        """The units of the text whose spans a window decides: where it sees both sides."""
        half = self.overlap // 2
        last = window.first + len(window)
        return (
            window.first + half if window.first else 0,
            last if last == units else last - (self.overlap - half),
        )

    @property
    def pad(self) -> int:
        """The token that fills up batches."""
        if self.tokenizer is None or self.tokenizer.pad_token_id is None:
            return 0
        return int(self.tokenizer.pad_token_id)

    def save(self, folder: Path) -> None:
        """Write all but the tokenizer, as JSON."""
        content = {
            "splitter": self.splitter.to_json(),
            "gazetteer": None if self.gazetteer is None else self.gazetteer.to_json(),
            "pooling": self.pooling,
            "window": self.window,
            "overlap": self.overlap,
            "most_tokens": self.most_tokens,
        }
        (folder / FILE).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, tokenizer: Any | None) -> Reader:
        """What `save` wrote."""
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        splitter = Splitter.from_json(content.pop("splitter"))
        known = content.pop("gazetteer")
        gazetteer = None if known is None else Gazetteer.from_json(known)
        return cls(splitter, gazetteer, tokenizer, **content)
