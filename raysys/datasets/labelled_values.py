"""What a cell of a labelled file means: labels of any type and shape, ratings in words."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import polars as pl

from raysys.datasets.labelled_files import LEVELS, TextColumns
from raysys.datasets.layouts import parsed
from raysys.datasets.records import json_text

SENTIMENTS: Final = ("negative", "neutral", "positive")
SENTIMENT_WORDS: Final = {
    **dict.fromkeys(("neg", "bad", "负面", "消极", "差评", "负向"), "negative"),
    **dict.fromkeys(("neu", "中性", "中立", "中评"), "neutral"),
    **dict.fromkeys(("pos", "good", "正面", "积极", "好评", "正向"), "positive"),
    **dict.fromkeys(("very negative", "somewhat negative"), "negative"),
    **dict.fromkeys(("very positive", "somewhat positive"), "positive"),
    **{name: name for name in SENTIMENTS},
}
"""What data sets call the sentiments, in lower case."""

_FEW: Final = 4  # labels that are too few to see a hierarchy in them

IN_WORDS: Final = (
    r"(?i)^(\d+(?:[.,]\d+)?)\s*(?:(?:/|out of)\s*\d+(?:\.0)?)?\s*(?:stars?|points?|星|★|⭐)?$"
)
"""How a rating is written in words; the first group is its number."""


def as_text(rows: pl.DataFrame, name: str) -> pl.Expr:
    """A column as text; whole floats lose their `.0`, so that ids and classes match."""
    kind = rows.schema[name]
    text = pl.col(name).cast(pl.String, strict=False)
    if kind.is_float():
        whole = pl.col(name).cast(pl.Int64, strict=False)
        return pl.when(whole == pl.col(name)).then(whole.cast(pl.String)).otherwise(text)
    if kind.is_nested():
        return pl.col(name).map_batches(json_text, return_dtype=pl.String)
    return text


def as_prose(rows: pl.DataFrame, name: str, separator: str) -> pl.Expr:
    """A column of texts; one that is a list of texts, as descriptions may be, is joined."""
    text = as_text(rows, name)
    if not rows.schema[name].is_nested() and rows.schema[name] != pl.String:
        return text
    return text.map_batches(lambda told: _prose(told, separator), return_dtype=pl.String)


def _prose(told: pl.Series, separator: str) -> pl.Series:
    listed = told.str.contains(r"""(?s)^\[["'].*["']\]$""").fill_null(value=False)
    if not listed.any():
        return told
    joined = {}
    for text in told.filter(listed).unique().to_list():
        found = parsed(text)
        if isinstance(found, list) and all(isinstance(one, str) for one in found):
            joined[text] = separator.join(found)
    return told.replace(joined) if joined else told


def unsayable(text: pl.Expr) -> pl.Expr:
    """Whether a text says nothing: null or blank."""
    return text.is_null() | (text.str.strip_chars() == "")


def rating(rows: pl.DataFrame, name: str | None) -> pl.Expr:
    """A rating: a number, also in words such as `4.0 out of 5 stars`; null where there is none."""
    if not name:
        return pl.lit(None, dtype=pl.Float32)
    said = as_text(rows, name).str.strip_chars()
    in_words = said.str.extract(IN_WORDS).str.replace(",", ".", literal=True)
    value = pl.coalesce(
        said.cast(pl.Float32, strict=False), in_words.cast(pl.Float32, strict=False)
    )
    return pl.when(value.is_finite()).then(value)


def labels(source: TextColumns, rows: pl.DataFrame, task: str, notes: Counter[str]) -> pl.Series:
    """Labels with `LEVELS` between their levels; a label ends before the first that is empty.

    A list is levels from the top, of a list of lists the first; `5.0`, which pandas makes of whole
    numbers with gaps, is `5`; of sentiments the usual words are known. Lists of several are counted
    in `notes`, as they might be labels side by side.
    """
    if not source.label:
        return pl.Series([None], dtype=pl.String).new_from_index(0, rows.height)
    told = rows.select(
        as_text(rows, name).str.strip_chars().str.replace(r"^(-?\d+)\.0+$", "${1}").alias(str(at))
        for at, name in enumerate(source.label)
    )
    first = told["0"]
    listed = first.str.starts_with("[") & first.str.ends_with("]")
    if listed.any():
        paths = {text: _path(text, source) for text in first.filter(listed).unique().to_list()}
        notes["label_list_taken_for_levels"] += sum(
            LEVELS in paths[text] for text in first.filter(listed).to_list()
        )
        told = told.with_columns(first.replace(paths).alias("0"))
    label = told.select(_joined(source).alias("label"))["label"]
    if source.label_names:
        label = label.replace(source.label_names)
    if task == "sentiment":
        lower = label.str.to_lowercase()
        label = lower.replace_strict(SENTIMENT_WORDS, default=label, return_dtype=pl.String)
    return label


def _joined(source: TextColumns) -> pl.Expr:
    levels = [pl.col(str(at)) for at in range(len(source.label))]
    if source.label_separator:
        path = levels[0].str.split(source.label_separator)
        path = path.list.eval(pl.element().str.strip_chars())
        path = path.list.eval(pl.element().filter(pl.element() != ""))
        label = path.list.join(LEVELS)
    else:
        label, ended = levels[0], unsayable(levels[0])
        for level in levels[1:]:
            ended = ended | unsayable(level)
            label = pl.when(ended).then(label).otherwise(label + LEVELS + level)
    return pl.when(~unsayable(label)).then(label)


def _path(text: str, source: TextColumns) -> str:
    """The levels of a label that a list says; what is no list stays as it is."""
    found: Any = parsed(text)
    while isinstance(found, list | tuple) and found and isinstance(found[0], list | tuple):
        found = found[0]
    if not isinstance(found, list | tuple):
        return text
    levels = [str(level) for level in found if level is not None]
    if source.label_separator:
        levels = [each for level in levels for each in level.split(source.label_separator)]
    return LEVELS.join(level.strip() for level in levels if level.strip())


def path_hint(found: pl.Series) -> str | None:
    """What seems to part the levels of labels that nothing parts; None: nothing does."""
    distinct = found.drop_nulls().unique()
    if distinct.len() < _FEW or distinct.str.contains(LEVELS, literal=True).any():
        return None
    for sign in (">>", "->", "::", ">", "|", "/"):
        parted = distinct.filter(distinct.str.contains(sign, literal=True))
        tops = parted.str.split(sign).list.first().n_unique()
        if parted.len() >= distinct.len() / 2 and tops <= parted.len() / 2:
            return sign
    return None
