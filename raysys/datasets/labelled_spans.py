"""Spans of labelled texts: read from a file's notation, checked against the text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from raysys.datasets.labelled_files import TextColumns

Locate = Callable[[str, Mapping[str, Sequence[str]]], tuple[list[dict[str, Any]], int]]
"""Spans {start, end, label} of a text from attribute → values, and how many values it lacks."""


@dataclass(frozen=True)
class Reader:
    """What is the same for all files of a task."""

    task: str
    locate: Locate | None
    notes: Counter[str]
    unlabelled: bool = False

    def located(self, text: str, values: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
        """Spans of attribute values; counts those that the text does not hold."""
        if self.locate is None:
            raise TypeError("no way to locate values was given")
        spans, missed = self.locate(text, values)
        self.notes["attribute_value_not_in_text"] += missed
        return spans


def spans_of(
    source: TextColumns, rows: pl.DataFrame, texts: list[str | None], reader: Reader
) -> tuple[list[list[dict[str, Any]] | None], list[str | None]]:
    """Spans of every row, and why they cannot be used."""
    n = rows.height
    columns = {name: rows[column].to_list() for name, column in source.attribute_columns.items()}
    whole = source.spans or source.attributes
    told = rows[whole].to_list() if whole else [None] * n
    spans: list[list[dict[str, Any]] | None] = []
    bad: list[str | None] = []
    for at, text in enumerate(texts):
        try:
            content = _parsed(told[at])
            if source.spans:
                found = _checked(content or [], text or "")
            else:
                values = dict(content or {})
                values |= {name: column[at] for name, column in columns.items()}
                found = reader.located(text or "", _values(values, source.no_value))
        except _OutsideError:
            spans.append(None)
            bad.append("span_outside_text")
        except (ValueError, TypeError, KeyError, AttributeError):
            spans.append(None)
            bad.append("spans_unreadable")
        else:
            spans.append(found)
            bad.append(None)
    return spans, bad


class _OutsideError(Exception):
    """A span is not within its text."""


def _parsed(value: object) -> Any:
    """JSON where a file holds text; Parquet has lists and mappings of its own."""
    if isinstance(value, str):
        return json.loads(value) if value.strip() else None
    return value


def _checked(content: Iterable[Mapping[str, Any]], text: str) -> list[dict[str, Any]]:
    found = []
    for span in content:
        start, end, label = int(span["start"]), int(span["end"]), str(span["label"]).strip()
        if not 0 <= start < end <= len(text):
            raise _OutsideError
        if not label:
            raise ValueError("a span without a label")
        found.append({"start": start, "end": end, "label": label})
    return sorted(found, key=lambda span: (span["start"], span["end"]))


def _values(attributes: Mapping[str, Any], none: Sequence[str]) -> dict[str, list[str]]:
    """Attribute → its values: of a text, a list, or a mapping whose keys they are."""
    found: dict[str, list[str]] = {}
    for name, told in attributes.items():
        listed = [told] if isinstance(told, str) else list(told) if told is not None else []
        if isinstance(told, Mapping):  # Parquet gives every row all keys, most of them null
            listed = [value for value, weight in told.items() if weight is not None]
        values = [str(value) for value in listed if value is not None]
        kept = [value for value in values if value.strip().lower() not in none]
        if kept:
            found[str(name)] = kept
    return found
