"""Texts cut into units, the smallest pieces that can be tagged, with exact character offsets.

Words of a tokenizer are too coarse for that: "500ml" is a number and its measure, "Mens" may be
labelled "Men". So a text is cut by kind of character first, then where labels of the training
texts are seen to end within a word; the tokenizer of the transformer reads the units.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

LEAST_STEM = 3
SCRIPTS_WITHOUT_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO", "THAI", "LAO", "KHMER")

Piece = tuple[int, int]
"""First character and the one after the last."""


@lru_cache(maxsize=1 << 16)
def _kind(character: str) -> str:
    """L letter, N number, M mark, W writes words without spaces, blank, . anything else."""
    if character.isspace():
        return " "
    category = unicodedata.category(character)[0]
    if category == "L" and ord(character) > 0xE00:
        script = unicodedata.name(character, "").split(" ", 1)[0]
        if script.startswith(SCRIPTS_WITHOUT_SPACES):
            return "W"
    return category if category in "LNM" else "."


def joined(before: str, after: str) -> bool:
    """Whether two neighbouring characters belong to one word."""
    return _kind(before) in "LNM" and _kind(after) in "LNM"


def pieces(text: str) -> list[Piece]:
    """Runs of letters, runs of digits, and every other visible character for itself.

    Marks stay with what they stand on. Every character but white space is in exactly one piece.
    """
    found: list[Piece] = []
    start, last = 0, " "
    for at, character in enumerate(text):
        kind = _kind(character)
        if kind == "M" and last != " ":
            continue
        if not (kind == last and kind in "LN"):
            if last != " ":
                found.append((start, at))
            start = at
        last = kind
    if last != " ":
        found.append((start, len(text)))
    return found


@dataclass(frozen=True)
class Units:
    """A text in units.

    Attributes:
        text: the whole.
        pieces: where each unit begins and ends.
    """

    text: str
    pieces: tuple[Piece, ...]

    def __len__(self) -> int:
        return len(self.pieces)

    @property
    def words(self) -> list[str]:
        """The units themselves."""
        return [self.text[start:end] for start, end in self.pieces]


@dataclass(frozen=True)
class Splitter:
    """Cuts texts into units; knows at which endings labels part a word.

    Attributes:
        stems: beginnings of words that were labelled without the rest, in lower case.
        endings: the rests, the longest first, in lower case.
    """

    stems: frozenset[str] = frozenset()
    endings: tuple[str, ...] = ()

    @classmethod
    def fit(cls, texts: Iterable[tuple[str, Sequence[Piece]]], least: int = 2) -> Splitter:
        """Learn from texts and the spans labelled in them.

        Args:
            texts: each with the first and last characters of its spans.
            least: how often an ending must be seen.
        """
        stems: Counter[str] = Counter()
        endings: Counter[str] = Counter()
        for text, spans in texts:
            units = pieces(text)
            for _, end in spans:
                for start, stop in units:
                    if start + LEAST_STEM <= end < stop and text[start].isalpha():
                        stems[text[start:end].lower()] += 1
                        endings[text[end:stop].lower()] += 1
        often = [ending for ending, count in endings.items() if count >= least]
        if not often:
            return cls()
        return cls(frozenset(stems), tuple(sorted(often, key=lambda each: (-len(each), each))))

    @classmethod
    def of(cls, texts: Iterable[tuple[str, Sequence[Any]]]) -> Splitter:
        """Learn from texts and their spans, see `spans.Span`."""
        return cls.fit((text, [(each.start, each.end) for each in spans]) for text, spans in texts)

    def to_json(self) -> dict[str, list[str]]:
        """For `from_json`."""
        return {"stems": sorted(self.stems), "endings": list(self.endings)}

    @classmethod
    def from_json(cls, content: dict[str, list[str]]) -> Splitter:
        """What `to_json` made."""
        return cls(frozenset(content["stems"]), tuple(content["endings"]))

    def __call__(self, text: str) -> Units:
        """The units of a text; an empty text has none."""
        cut: list[Piece] = []
        for start, end in pieces(text):
            at = self._cut(text[start:end]) if self.endings else 0
            cut.extend([(start, start + at), (start + at, end)] if at else [(start, end)])
        return Units(text, tuple(cut))

    def _cut(self, word: str) -> int:
        """Where a word is cut; 0: nowhere."""
        for ending in self.endings:
            at = len(word) - len(ending)
            if at >= LEAST_STEM and word[at:].lower() == ending and word[:at].lower() in self.stems:
                return at
        return 0
