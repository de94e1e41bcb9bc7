"""Grades in words as numbers: scales that judged data sets use, and such as a user spells out.

Case, punctuation and blanks do not tell words apart. Of several scales that know all words of a
file the one that tells most of them apart is taken, of equal ones that with the fewest levels:
`good` and `bad` alone are 1 and 0.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from raysys.errors import UserError

MISSING: Final = ("", "nan", "null", "n/a", "na", "none", "\\n", "-", "--")
"""What a label says where there is none, in lower case; `none` may be a grade, too."""

_SIGNS: Final = re.compile(r"[\W_]+")
_NUMBERED: Final = re.compile(r"\s*(-?\d+(?:\.\d+)?)\s*[-–:=.)(]\s*[^\W\d]")
_SHOWN: Final = 12  # words of a file that an error lists

_NOT: Final = (
    *("irrelevant", "not relevant", "non relevant", "nonrelevant", "unrelated", "not related"),
    *("no match", "mismatch", "off topic"),
)
_ADVERBS: Final = ("partially", "partly", "somewhat", "marginally", "slightly", "moderately")
_PARTLY: Final = (
    *(f"{how} relevant" for how in _ADVERBS),
    *("partial", "partially", "related", "partial match", "partially related"),
)
_RELEVANT: Final = ("relevant", "exact", "match", "exact match", "full match", "fully relevant")
_HIGHLY: Final = ("highly relevant", "very relevant", "strongly relevant")
_PERFECTLY: Final = ("perfectly relevant", "perfect match", "perfect")
_MEDIUM: Final = ("medium", "mid", "middle", "moderate", "average")


@dataclass(frozen=True)
class Scale:
    """Words in an order, each with its number.

    Attributes:
        name: how reports call it.
        levels: words that mean the same, from the lowest; case and punctuation left out.
        gains: the number of each level; rising.
    """

    name: str
    levels: tuple[tuple[str, ...], ...]
    gains: tuple[float, ...]

    def numbers(self) -> dict[str, float]:
        """Word → number."""
        pairs = zip(self.levels, self.gains, strict=True)
        return {word: gain for words, gain in pairs for word in words}


def _ordered(name: str, *levels: tuple[str, ...]) -> Scale:
    return Scale(name, levels, tuple(map(float, range(len(levels)))))


ESCI: Final = Scale(
    "ESCI: exact 1, substitute 0.1, complement 0.01, irrelevant 0, the gains of its NDCG task",
    (("irrelevant", "i"), ("complement", "c"), ("substitute", "s"), ("exact", "e")),
    (0.0, 0.01, 0.1, 1.0),
)
"""Gains as in KDD Cup 2022, task 1 (Reddy et al. 2022)."""

SCALES: Final = (
    _ordered("no < yes", ("no", "false", "n", "f"), ("yes", "true", "y", "t")),
    _ordered("irrelevant < relevant", _NOT, _RELEVANT),
    _ordered("bad < good", ("bad", "poor"), ("good",)),
    _ordered("low < high", ("low",), ("high",)),
    _ordered("irrelevant < partial < exact", _NOT, _PARTLY, (*_RELEVANT, *_HIGHLY, *_PERFECTLY)),
    _ordered("irrelevant < relevant < highly relevant", _NOT, ("relevant",), _HIGHLY),
    _ordered("low < medium < high", ("low",), _MEDIUM, ("high",)),
    _ordered("bad < fair < good", ("bad", "poor"), ("fair", "ok", "okay", "average"), ("good",)),
    _ordered(
        "irrelevant < partial < relevant < highly relevant",
        *(_NOT, _PARTLY, ("relevant",), (*_HIGHLY, *_PERFECTLY)),
    ),
    _ordered("irrelevant < related < highly < perfectly", _NOT, _PARTLY, _HIGHLY, _PERFECTLY),
    _ordered("none < low < medium < high", ("none", "no"), ("low",), _MEDIUM, ("high",)),
    _ordered(
        "bad < fair < good < excellent",
        *(("bad", "poor"), ("fair", "ok", "okay", "average"), ("good",), ("excellent",)),
    ),
    ESCI,
    _ordered(
        "irrelevant < partial < relevant < highly < perfectly",
        *(_NOT, _PARTLY, ("relevant",), _HIGHLY, _PERFECTLY),
    ),
    _ordered(
        "very low < low < medium < high < very high",
        *(("very low",), ("low",), _MEDIUM, ("high",), ("very high",)),
    ),
    _ordered(
        "bad < fair < good < excellent < perfect",
        *(("bad", "poor"), ("fair", "ok", "okay"), ("good",), ("excellent",), ("perfect",)),
    ),
    _ordered(
        "bad < fair < good < very good < excellent",
        *(("bad", "poor", "very bad", "very poor"), ("fair", "ok", "okay", "average"), ("good",)),
        *(("very good",), ("excellent",)),
    ),
)
"""Known scales, those with fewer levels first."""


@dataclass(frozen=True)
class Grades:
    """What the words of a file were taken for.

    Attributes:
        scale: its name.
        numbers: word, as the file spells it → number.
    """

    scale: str
    numbers: dict[str, float]


def plain(word: str) -> str:
    """A word without what does not tell words apart; a number as numbers are printed."""
    word = word.strip().lower()
    try:
        return f"{float(word):g}"
    except ValueError:
        return _SIGNS.sub(" ", word).strip()


def spelled_out(grades: Sequence[str]) -> Scale:
    """A scale as a user writes it: `Irrelevant < Partial < Exact`, in one text or several.

    A word may name its number, `Partial = 0.5`; words without one are counted from 0.

    Raises:
        UserError: fewer than two words, a word twice, numbers that fall, or some words with and
            some without.
    """
    where = "--grades"
    words, told = [], []
    for part in (part for text in grades for part in text.split("<")):
        word, _, number = part.partition("=")
        words.append(plain(word))
        told.append(number.strip())
    if len(words) < 2 or "" in words:
        raise UserError(
            f"{' < '.join(grades)!r} is no order of words",
            where=where,
            mend='give the words from the lowest, such as "Irrelevant < Partial < Exact"',
        )
    twice = [word for word in words if words.count(word) > 1]
    if twice:
        raise UserError(f"{twice[0]!r} is there twice", where=where, mend="name each word once")
    if not any(told):
        return _ordered(" < ".join(words), *((word,) for word in words))
    try:
        gains = tuple(map(float, told))
    except ValueError:
        raise UserError(
            "a word has no number, or one that cannot be read",
            where=where,
            mend='give every word one, "Irrelevant = 0 < Partial = 0.5 < Exact = 1", or none',
        ) from None
    if list(gains) != sorted(gains) or not all(map(math.isfinite, gains)):
        raise UserError("numbers fall", where=where, mend="name the words from the lowest number")
    return Scale(" < ".join(words), tuple((word,) for word in words), gains)


def grades_of(counts: Mapping[str, int], scale: Scale | None = None, *, where: str) -> Grades:
    """The numbers of a file's words.

    Args:
        counts: words of the file, with how many rows each has.
        scale: that the user spelled out; None: a known one that has all words.
        where: file and column, for errors.

    Raises:
        UserError: no scale has all words; tells them with their counts.
    """
    seen = {word: plain(word) for word in counts}
    known = (scale,) if scale else SCALES
    found = [each for each in known if set(seen.values()) <= each.numbers().keys()]
    if found:  # the first of equal ones
        best = max(found, key=lambda each: len({each.numbers()[said] for said in seen.values()}))
        numbers = best.numbers()
        return Grades(best.name, _rising({word: numbers[said] for word, said in seen.items()}))
    if scale is None and all(map(_NUMBERED.match, counts)):
        numbers = {word: float(_NUMBERED.match(word)[1]) for word in counts}  # type: ignore[index]
        return Grades("the numbers before the words", _rising(numbers))
    told = sorted(counts.items(), key=lambda each: -each[1])
    shown = ", ".join(f"{word!r} {n:,}" for word, n in told[:_SHOWN])
    if len(told) > _SHOWN:
        shown += f", and {len(told) - _SHOWN:,} others"
    names = {word for each in known for word in each.numbers()}
    unknown = [(word, said) for word, said in seen.items() if said not in names]
    near = difflib.get_close_matches(unknown[0][1], sorted(names), n=1) if unknown else []
    hint = f"; is {unknown[0][0]!r} {near[0]!r}?" if near else ""
    what = "labels are no numbers, nor words of a known scale"
    if scale:
        what = "--grades does not name all labels"
    raise UserError(
        f"{what}: {shown}{hint}",
        where=where,
        mend='give grades as numbers, or name the words from the lowest: --grades "A < B < C"',
    )


def _rising(numbers: Mapping[str, float]) -> dict[str, float]:
    """From the lowest, equal ones by their words: the same however a file's rows lie."""
    return dict(sorted(numbers.items(), key=lambda each: (each[1], each[0])))
