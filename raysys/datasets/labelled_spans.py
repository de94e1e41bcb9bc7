"""Spans of labelled texts: read from a file's notation, checked against the text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from raysys.datasets.labelled_files import TextColumns
from raysys.datasets.layouts import parsed
from raysys.datasets.span_notations import placed, told_spans
from raysys.datasets.tagged_tokens import as_text, join_of
from raysys.errors import UserError

_NAMES = ("name", "key", "attribute", "attribute_name", "label")
_SAID = ("value", "values", "attribute_value")

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
                found = _checked(content or [], text or "", reader.notes)
            else:
                values = named_values(content or {})
                if values is None:
                    raise ValueError("attributes without names")
                values |= {name: column[at] for name, column in columns.items()}
                found = reader.located(text or "", _values(values, source.no_value))
        except _OutsideError:
            spans.append(None)
            bad.append("span_outside_text")
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError):
            spans.append(None)
            bad.append("spans_unreadable")
        else:
            spans.append(found)
            bad.append(None)
    return spans, bad


def tagged(
    source: TextColumns, rows: pl.DataFrame
) -> tuple[list[str | None], list[list[dict[str, Any]] | None], list[str | None]]:
    """Texts and spans that tokens and their tags make, and why they cannot be used.

    Raises:
        UserError: tags are numbers, and nothing says what they are called.
    """
    assert source.tokens
    tokens = [_listed(value) for value in rows[source.tokens].to_list()]
    tags = (
        [_listed(v) for v in rows[source.tags].to_list()] if source.tags else [None] * len(tokens)
    )
    join = join_of([each or [] for each in tokens])
    join = join if source.token_join is None else source.token_join
    texts: list[str | None] = []
    spans: list[list[dict[str, Any]] | None] = []
    bad: list[str | None] = []
    for said, given in zip(tokens, tags, strict=True):
        texts.append(None if said is None else join.join(said))
        spans.append(None)
        bad.append(None)
        if said is None or not source.tags:
            continue
        try:
            spans[-1] = as_text(said, _named(given or [], source), join)[1]
        except (ValueError, IndexError):
            bad[-1] = "tags_do_not_fit_tokens"
    return texts, spans, bad


def _listed(value: object) -> list[str] | None:
    """A list of texts, also where a file holds it as text; None: it is none."""
    value = parsed(value) if isinstance(value, str) else value
    if not isinstance(value, list | tuple):
        return None
    return [str(one) for one in value]


def _named(tags: list[str], source: TextColumns) -> list[str]:
    """Tags by their names.

    Raises:
        UserError: they are numbers, and nothing says what these are called.
        IndexError: a number has no name.
    """
    if not tags or not all(tag.isdigit() for tag in tags):
        return tags
    if not source.tag_names:
        shown = ", ".join(sorted(set(tags), key=int)[:10])
        raise UserError(
            f"tags are numbers ({shown}), and nothing says what they are called",
            where=f"column {source.tags}",
            mend="add `tag_names: [O, B-brand, I-brand, …]`, in the order of the numbers from 0",
        )
    return [source.tag_names[int(tag)] for tag in tags]


class _OutsideError(Exception):
    """A span is not within its text."""


def _parsed(value: object) -> Any:
    """JSON where a file holds text; Parquet has lists and mappings of its own.

    Raises:
        ValueError: the text is neither JSON nor what Python prints.
    """
    if not isinstance(value, str):
        return value
    found = parsed(value)
    if found is None and value.strip() not in ("", "null"):
        raise ValueError(f"no JSON: {value[:50]!r}")
    return found


def _checked(content: Any, text: str, notes: Counter[str]) -> list[dict[str, Any]]:
    found = []
    for told in told_spans(content):
        start, end, mended = placed(told, text)
        if not 0 <= start < end <= len(text):
            raise _OutsideError
        if mended:
            notes[mended] += 1
        found.append({"start": start, "end": end, "label": told.label})
    return sorted(found, key=lambda span: (span["start"], span["end"]))


def named_values(content: Any) -> dict[str, Any] | None:
    """Attribute → what is told of it, also of a list of names and values; else None."""
    if isinstance(content, Mapping):
        return dict(content)
    if not isinstance(content, list | tuple):
        return None
    found: dict[str, list[Any]] = {}
    for one in content:
        if isinstance(one, Mapping):
            name = next((one[key] for key in _NAMES if isinstance(one.get(key), str)), None)
            value = next((one[key] for key in _SAID if one.get(key) is not None), None)
        elif isinstance(one, list | tuple) and len(one) == 2:
            name, value = one
        else:
            return None
        if not isinstance(name, str):
            return None
        listed = [value] if isinstance(value, str) or not isinstance(value, list) else value
        found.setdefault(name, []).extend(listed)
    return found


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
