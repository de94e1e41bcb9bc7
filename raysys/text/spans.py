"""Spans of characters: made of a shop's attribute values, put in order, read from tables."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from raysys.errors import UserError
from raysys.text.units import joined

ABSENT = ("n/a", "na", "none", "null", "-", "unknown")
"""What shops write where an attribute has no value; compared in lower case."""


@dataclass(frozen=True, order=True)
class Span:
    """A part of a text that means something.

    Attributes:
        start: its first character, from 0.
        end: the character after its last.
        label: what it is: brand, model, size, …
    """

    start: int
    end: int
    label: str


@dataclass(frozen=True)
class Located:
    """Where a text says the values of its attributes.

    Attributes:
        spans: in the order of the text; they may overlap.
        missed: (attribute, value) of values that the text does not say.
        within_words: values found only as a part of a word ("Men" in "Mens").
    """

    spans: tuple[Span, ...]
    missed: tuple[tuple[str, str], ...] = ()
    within_words: int = 0


def attributes_to_spans(
    text: str,
    attributes: Mapping[str, str | Sequence[str] | None],
    *,
    absent: Iterable[str] = ABSENT,
    occurrences: Literal["all", "first"] = "all",
) -> Located:
    """Find attribute values in a text: labels for free, for shops that have values but no spans.

    A value is found whatever its case and white space. Where it stands as whole words, only those
    places count; else where it begins a word; else anywhere, and there its own case is preferred.

    Args:
        text: a title, a description.
        attributes: attribute → value or values; null and `absent` values are passed over.
        absent: what stands for no value, in lower case.
        occurrences: label every place that says the value, or the first one.
    """
    nothing = frozenset(absent)
    spans: set[Span] = set()
    missed: list[tuple[str, str]] = []
    within = 0
    for name, given in attributes.items():
        values = [given] if isinstance(given, str) else list(given or ())
        for value in values:
            if not value.strip() or value.strip().lower() in nothing:
                continue
            places, whole = _places(text, value)
            if not places:
                missed.append((name, value))
                continue
            within += not whole
            chosen = places if occurrences == "all" else places[:1]
            spans.update(Span(start, end, name) for start, end in chosen)
    return Located(tuple(sorted(spans)), tuple(missed), within)


def _places(text: str, value: str) -> tuple[list[tuple[int, int]], bool]:
    """Where a value stands, at the best of the levels at which it does; whether as whole words."""
    pattern = re.compile(r"\s+".join(re.escape(part) for part in value.split()), re.IGNORECASE)
    levels: dict[tuple[int, bool], list[tuple[int, int]]] = {}
    wanted = " ".join(value.split())
    for match in pattern.finditer(text):
        start, end = match.span()
        begins = start == 0 or not joined(text[start - 1], text[start])
        ends = end == len(text) or not joined(text[end - 1], text[end])
        level = 0 if begins and ends else 1 if begins else 2
        other_case = level == 2 and " ".join(match.group().split()) != wanted
        levels.setdefault((level, other_case), []).append((start, end))
    if not levels:
        return [], False
    best = min(levels)
    return levels[best], best[0] == 0


def without_overlaps(spans: Iterable[Span], counts: Mapping[str, int]) -> tuple[list[Span], int]:
    """Spans of which no two share a character, and how many others were dropped for it.

    The longer wins; of equal ones the first in the text; of two labels of one span the more
    frequent, then the first of the alphabet.

    Args:
        spans: of one text.
        counts: how often each label occurs in all texts.
    """
    order = sorted(
        set(spans), key=lambda s: (s.start - s.end, s.start, -counts.get(s.label, 0), s.label)
    )
    taken = Taken()
    kept = [span for span in order if taken.takes(span.start, span.end)]
    return sorted(kept), len(order) - len(kept)


class Taken:
    """Places of a text that are taken, none of them twice; found by bisection."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []  # in the same order: places do not overlap

    def takes(self, start: int, end: int) -> bool:
        """Take the places from start to before end (start < end), if all of them are free."""
        at = bisect_left(self._starts, end)  # those from here on begin behind it
        if at and self._ends[at - 1] > start:
            return False
        self._starts.insert(at, start)
        self._ends.insert(at, end)
        return True


def label_counts(texts: Iterable[Sequence[Span]]) -> Counter[str]:
    """How often each label occurs."""
    return Counter(span.label for spans in texts for span in spans)


def spans_of(table: pa.Table, *, where: str = "spans") -> list[list[Span]]:
    """The spans of every row of a table of labelled texts; null is none.

    Raises:
        UserError: the column is missing, or a span lies outside its text or is empty.
    """
    if "spans" not in table.column_names:
        raise UserError(
            f"no column 'spans' among {', '.join(table.column_names)}",
            where=where,
            mend="label the texts, or make spans of attributes with attributes_to_spans",
        )
    rows: list[list[Span]] = []
    lists, texts = table["spans"].to_pylist(), table["text"].to_pylist()
    for row, (found, text) in enumerate(zip(lists, texts, strict=True)):
        spans = [Span(each["start"], each["end"], each["label"]) for each in found or ()]
        for span in spans:
            if not 0 <= span.start < span.end <= len(text):
                raise UserError(
                    f"span {span.start}–{span.end} ({span.label}) of row {row} does not lie in its "
                    f"text of {len(text)} characters",
                    where=where,
                    mend="count characters (not bytes) from 0; `end` is the one after the last",
                )
        rows.append(spans)
    return rows
