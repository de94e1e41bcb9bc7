"""Words of shop texts, the same thing written one way: units, sizes, endings, spelling."""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

_UNITS: Final = {
    "inch": ("inches", "inch", "in"),
    "ft": ("feet", "foot", "ft"),
    "yd": ("yards", "yard", "yd"),
    "mm": ("millimeters", "millimetres", "millimeter", "millimetre", "mm"),
    "cm": ("centimeters", "centimetres", "centimeter", "centimetre", "cm"),
    "sqft": ("square feet", "square foot", "square ft", "sq ft", "sqft"),
    "cuft": ("cubic feet", "cubic foot", "cubic ft", "cu ft", "cuft"),
    "lb": ("pounds", "pound", "lbs", "lb"),
    "oz": ("ounces", "ounce", "oz"),
    "kg": ("kilograms", "kilogram", "kilos", "kilo", "kg"),
    "gal": ("gallons", "gallon", "gals", "gal"),
    "qt": ("quarts", "quart", "qt"),
    "l": ("liters", "litres", "liter", "litre"),
    "ml": ("milliliters", "millilitres", "milliliter", "millilitre", "ml"),
    "v": ("volts", "volt"),
    "w": ("watts", "watt"),
    "a": ("amperes", "ampere", "amps", "amp"),
    "hp": ("horsepower", "hp"),
    "gb": ("gigabytes", "gigabyte", "gb"),
    "tb": ("terabytes", "terabyte", "tb"),
    "mb": ("megabytes", "megabyte", "mb"),
}
_UNIT_OF: Final = {each: unit for unit, names in _UNITS.items() for each in names}
_LONGEST_FIRST: Final = sorted(_UNIT_OF, key=len, reverse=True)
_NUMBER: Final = r"\d+(?:[.,/]\d+)*"
_QUOTES: Final = str.maketrans({"”": '"', "“": '"', "″": '"', "’": "'", "′": "'", "×": "x"})
_INCH: Final = re.compile(r"(?<=\d)\s?(?:\"|'')")
_FOOT: Final = re.compile(r"(?<=\d)\s?'(?!\w)")
_TIMES: Final = re.compile(rf"({_NUMBER})(\s*(?:[a-z]{{1,11}}\.?\s+)?)(?:x|by|\*)\s*(?=\d)")
_AFTER_NUMBER: Final = re.compile(
    rf"({_NUMBER})[\s-]?({'|'.join(_LONGEST_FIRST).replace(' ', r'[.]?[ ]')})\b[.]?"
)
_LETTERS_AFTER: Final = re.compile(r"(?<=\d)(?=[a-z]{2})|(?<=[a-z]{2})(?=\d)")
_CJK: Final = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # written without spaces: a sign is a word
_WORD: Final = re.compile(rf"{_NUMBER}|[{_CJK}]|[^\W\d_{_CJK}]+")
_DIGIT: Final = re.compile(r"\d")
UNITS: Final = frozenset(_UNITS)


@lru_cache(maxsize=4)
def _stemmer(language: str) -> Any:
    import Stemmer

    return Stemmer.Stemmer(language)


def plain_words(text: str) -> list[str]:
    """Words and numbers in lower case, units written one way after their number.

    >>> plain_words('3/4" x 8-ft. MDF Casing (4-Pack), 1.9 cu. ft.')
    ['3/4', 'inch', 'x', '8', 'ft', 'mdf', 'casing', '4', 'pack', '1.9', 'cuft']
    >>> plain_words("8x10 rug")
    ['8', 'x', '10', 'rug']
    """
    text = html.unescape(text).lower().translate(_QUOTES)
    text = _FOOT.sub(" ft ", _INCH.sub(" inch ", text))
    text = _TIMES.sub(r"\1\2 x ", text)
    text = _AFTER_NUMBER.sub(_with_unit, text)
    text = _LETTERS_AFTER.sub(" ", text)
    return _WORD.findall(text)


def _with_unit(found: re.Match[str]) -> str:
    unit = " ".join(found[2].replace(".", " ").split())
    return f"{found[1]} {_UNIT_OF.get(unit, unit)} "


def stems(words: Sequence[str], language: str = "english") -> list[str]:
    """Words without their endings (Snowball: Porter 2001); numbers stay as they are.

    >>> stems(["deck", "coatings", "3/4"])
    ['deck', 'coat', '3/4']
    """
    found: list[str] = _stemmer(language).stemWords(list(words))
    return found


def is_number(word: str) -> bool:
    """Whether a word has a digit."""
    return bool(_DIGIT.search(word))


class Spelling:
    """Puts words of queries right by the words that the shop's texts use; needs no dictionary.

    A word that no text uses becomes the most frequent one within an edit of it (two for longer
    words; a swap of neighbours is one edit, Damerau 1964), or two known words that were joined.
    First letters are nearly always typed right, so only words with the same first letter count.

    Args:
        counts: how often each word is used in the shop's texts.
        least: times a word must be used to be a correction.
    """

    def __init__(self, counts: Mapping[str, int], least: int = 3) -> None:
        self.counts = dict(counts)
        self.least = least
        self._by_initial: dict[str, list[str]] = {}
        for word, count in self.counts.items():
            if count >= least and len(word) >= 3 and not is_number(word):
                self._by_initial.setdefault(word[0], []).append(word)
        self._known: dict[str, tuple[str, ...]] = {}

    @classmethod
    def of(cls, texts: Iterable[Sequence[str]], least: int = 3) -> Spelling:
        """Learned from the words of each text."""
        counts: Counter[str] = Counter()
        for words in texts:
            counts.update(words)
        return cls({word: count for word, count in sorted(counts.items()) if count >= 2}, least)

    def corrected(self, words: Sequence[str]) -> list[str]:
        """The words, those that the shop does not know put right where that is possible.

        >>> spelling = Spelling({"mower": 9, "gas": 9, "deck": 5, "over": 5})
        >>> spelling.corrected(["gas", "mowre", "deckover", "qqq", "x12"])
        ['gas', 'mower', 'deck', 'over', 'qqq', 'x12']
        """
        return [right for word in words for right in self._right(word)]

    def _right(self, word: str) -> tuple[str, ...]:
        found = self._known.get(word)
        if found is None:
            found = self._known[word] = self._find(word)
        return found

    def _find(self, word: str) -> tuple[str, ...]:
        if len(word) < 4 or is_number(word) or self.counts.get(word, 0) >= self.least:
            return (word,)
        parts = [
            (word[:at], word[at:])
            for at in range(3, len(word) - 2)
            if min(self.counts.get(word[:at], 0), self.counts.get(word[at:], 0)) >= self.least
        ]
        if parts:
            return max(parts, key=lambda pair: min(self.counts[each] for each in pair))
        near = self._near(word)
        return (near,) if near else (word,)

    def _near(self, word: str) -> str | None:
        """The nearest word that is used; of equally near ones the most frequent."""
        from rapidfuzz.distance import OSA

        most = 1 if len(word) < 7 else 2
        best: tuple[int, int, str] | None = None
        for other in self._by_initial.get(word[0], ()):
            if abs(len(other) - len(word)) <= most:
                distance = OSA.distance(word, other, score_cutoff=most)
                if distance <= most:
                    key = (distance, -self.counts[other], other)
                    best = key if best is None else min(best, key)
        return best[2] if best else None
