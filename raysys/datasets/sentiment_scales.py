"""What the numbers in a column of sentiments or ratings stand for, told by all rows together."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from raysys.datasets import files
from raysys.datasets.labelled_files import LabelledFiles
from raysys.datasets.labelled_values import IN_WORDS, SENTIMENT_WORDS, labels, rating
from raysys.errors import UserError

log = logging.getLogger("raysys")

NUMBERED: Final = (
    {"0": "negative", "1": "positive"},
    {"-1": "negative", "1": "positive"},
    {"-1": "negative", "0": "neutral", "1": "positive"},
    {"0": "negative", "1": "neutral", "2": "positive"},
    {"0": "negative", "4": "positive"},
    {"0": "negative", "2": "neutral", "4": "positive"},
    {"1": "negative", "2": "positive"},
    {"false": "negative", "true": "positive"},
)
"""What numbers stand for in public sets of sentiments; of these only what all labels fit."""

STARS: Final = {"negative": 2.0, "neutral": 3.0, "positive": 5.0}
_FROM_ZERO: Final = {"negative": 1.0, "neutral": 2.0, "positive": 4.0}
_TEN: Final = {"negative": 4.0, "neutral": 6.0, "positive": 10.0}
_TENS: Final = 7  # a scale whose highest is above this is one to 10; Likert's end at 7
_NEARLY: Final = 0.99  # of ratings that are within their scale: slips above it go aside
_SHOWN: Final = 12


def with_classes(source: LabelledFiles, where: str, *, of_label: bool) -> LabelledFiles:
    """The classes that ratings are of, by the scale that all of them are on.

    Args:
        source: its `rating` is the label.
        where: it stands in the settings.
        of_label: its column is called a label, not a rating: numbers of 1 to 3 may be any classes.

    Raises:
        UserError: a scale that is not known.
    """
    assert source.rating
    whole = source.table()
    table = whole.model_copy(
        update={
            "columns": {"rating": source.rating},
            "keys": (),
            "optional": tuple(name for name in whole.optional if name == "rating"),
        }
    )
    counts = Counter[float]()
    for part in files.find(table):
        for block in files.read(part, table):
            if block.rows.height:
                rows = block.rows
                said = rows.select(rating(rows, source.rating).alias("n"))["n"].drop_nulls()
                counts.update(dict(said.value_counts().iter_rows()))
    if not counts:
        return source  # that there is none is said where the rows are read
    told = scale_of(counts)
    if told is None or (of_label and max(counts) < min(4, told[1]["positive"])):
        first = sorted(counts)[:_SHOWN]
        shown = ", ".join(f"{value:g} ({counts[value]:,})" for value in first)
        more = f", … {max(counts):g}" if len(counts) > _SHOWN else ""
        raise UserError(
            f"ratings of no known scale (1 to 5, 0 to 4, 1 to 10): {shown}{more}",
            where=f"{where}.rating",
            mend="say the highest rating of each class, `rating_classes: {negative: x, neutral: "
            f"y, positive: z}}`, or what each stands for: `label: {source.rating}` and "
            "`label_names: {x: negative, y: positive}`",
        )
    scale, classes = told
    bounds = ", ".join(f"{name} up to {highest:g}" for name, highest in classes.items())
    log.info(
        "text: %s: ratings are read as %s: %s; `rating_classes` may say others",
        *(where, scale, bounds),
    )
    return source.model_copy(update={"rating_classes": classes})


def scale_of(counts: Mapping[float, int]) -> tuple[str, dict[str, float]] | None:
    """What a scale is called, and the highest rating of each of its classes; None: it is unknown.

    Args:
        counts: rating → how often it was given; not empty.
    """
    least, most = min(counts), max(counts)
    if least == 0 and most == _FROM_ZERO["positive"]:
        return "0 to 4", dict(_FROM_ZERO)
    within = sum(n for value, n in counts.items() if value <= STARS["positive"])
    if least >= 0.5 and within >= _NEARLY * sum(counts.values()):
        return "1 to 5", dict(STARS)
    if least >= 0 and _TENS < most <= _TEN["positive"]:
        return f"{min(least, 1):g} to 10", dict(_TEN)
    return None


def sentiments_of(names: Sequence[str]) -> list[str] | None:
    """The sentiments that classes are by their names, words or stars; None: some say no such."""
    words = [SENTIMENT_WORDS.get(name.strip().lower()) for name in names]
    if None not in words:
        return [word for word in words if word]
    numbers = [re.match(IN_WORDS, name.strip()) for name in names]
    values = [float(found[1].replace(",", ".")) for found in numbers if found]
    told = scale_of(Counter(values)) if values and len(values) == len(names) else None
    if told is None:
        return None
    return [next(name for name, top in told[1].items() if value <= top) for value in values]


def with_names(source: LabelledFiles, where: str) -> LabelledFiles:
    """Names for labels that are numbers, if all of them are of one of the usual codes.

    Raises:
        UserError: labels that stand for no sentiment.
    """
    table, counts = source.table(), Counter[str]()
    for part in files.find(table):
        for block in files.read(part, table):
            if block.rows.height:
                counts.update(labels(source, block.rows, "sentiment", Counter()).drop_nulls())
    unknown = {label for label in counts if label not in SENTIMENT_WORDS}
    if not unknown:
        return source
    for names in NUMBERED:
        if {label.lower() for label in counts} == {*names}:
            said = {label: names[label.lower()] for label in counts}
            log.info("text: %s: labels are read so: %s; `label_names` may say it", where, said)
            return source.model_copy(update={"label_names": {**source.label_names, **said}})
    shown = ", ".join(f"{label!r} {counts[label]:,}" for label in sorted(unknown)[:10])
    raise UserError(
        f"labels that are no sentiment: {shown}",
        where=f"{where}.label",
        mend="say what they stand for, `label_names: {x: negative, y: neutral, z: positive}`, or "
        "give numbers of stars as `rating`",
    )
