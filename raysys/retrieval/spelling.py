"""What a word of a query may mean among the words that texts hold.

A known word means itself and, at a discount, words of the same stem. One that is not known means,
in this order, words of its stem, words that it begins (a query being typed), two known words
written as one, or known words that differ by a slip: one letter added, left out, changed or swapped
with its neighbour, two in words of six letters and more (as Elasticsearch's fuzziness AUTO).
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
import Stemmer
from rapidfuzz import process
from rapidfuzz.distance import OSA

log = logging.getLogger("raysys")

SAME_STEM: Final = 0.7
BEGINS: Final = 0.8
TWO_WORDS: Final = 0.9
SLIP: Final = 0.6
"""How much the text of such a word counts beside that of the word itself; of a slip, at most."""

_MOST: Final = 8  # words that one word may mean
_SHORTEST_SLIP: Final = 4
_SHORTEST_PART: Final = 3

Meanings = tuple[tuple[tuple[int, float], ...], ...]
"""Groups of (number of a word, weight): of each group a text counts its best word."""


class Spelling:
    """Known words by stem, beginning and length; safe to use from several threads.

    Args:
        numbers: number of every known word.
        counts: int[n], texts that hold each.
        language: of the stems, one of Snowball's.
    """

    def __init__(
        self, numbers: Mapping[str, int], counts: npt.NDArray[np.int64], language: str = "english"
    ) -> None:
        self._numbers = {word: number for word, number in numbers.items() if word}
        self._counts = counts
        self._words = {number: word for word, number in self._numbers.items()}
        self._sorted = sorted(self._numbers)
        self._language = language
        self._of_stem: dict[str, list[str]] = defaultdict(list)
        self._of_length: dict[int, list[str]] = defaultdict(list)
        stems = Stemmer.Stemmer(language).stemWords(self._sorted)
        for word, stem in zip(self._sorted, stems, strict=True):
            if word.isalpha() and word.isascii():
                self._of_stem[stem].append(word)
            if word.isalpha() and len(word) >= _SHORTEST_SLIP - 1:
                self._of_length[len(word)].append(word)
        self.meant = lru_cache(maxsize=20_000)(self._meant)

    def words_of(self, meanings: Meanings) -> list[str]:
        """The known words among meanings, in their order."""
        return [self._words[number] for group in meanings for number, _ in group]

    def _meant(self, word: str) -> Meanings:
        """What a word means; nothing where there is not even a slip's way to a known one."""
        number = self._numbers.get(word)
        kin = self._kin(word)
        if number is not None:
            return (((number, 1.0), *self._weigh(kin, SAME_STEM)),)
        if kin:
            return (tuple(self._weigh(kin, SAME_STEM)),)
        if not word.isalpha():
            return ()
        begun = self._begun(word)
        if begun:
            return (tuple(self._weigh(begun, BEGINS)),)
        two = self._two(word)
        if two:
            return tuple(((self._numbers[part], TWO_WORDS),) for part in two)
        slips = self._slips(word)
        return (tuple(slips),) if slips else ()

    def _kin(self, word: str) -> list[str]:
        """Other words of the same stem, the most frequent first."""
        if not (word.isalpha() and word.isascii()):
            return []
        # a stemmer keeps a buffer: one of its own for every thread costs less than a lock
        stem = Stemmer.Stemmer(self._language).stemWord(word)
        return self._frequent(kin for kin in self._of_stem.get(stem, ()) if kin != word)

    def _begun(self, word: str) -> list[str]:
        if len(word) < _SHORTEST_PART:
            return []
        start = bisect_left(self._sorted, word)
        end = bisect_left(self._sorted, word + "\U0010ffff")
        return self._frequent(self._sorted[start:end])

    def _two(self, word: str) -> tuple[str, str] | None:
        """The split into known words whose rarer part is the most frequent."""
        parts = [
            (word[:at], word[at:]) for at in range(_SHORTEST_PART, len(word) - _SHORTEST_PART + 1)
        ]
        known = [pair for pair in parts if all(part in self._numbers for part in pair)]
        return max(known, key=lambda pair: min(map(self._count, pair)), default=None)

    def _slips(self, word: str) -> list[tuple[int, float]]:
        if len(word) < _SHORTEST_SLIP:
            return []
        most = 1 if len(word) <= 5 else 2
        lengths = range(len(word) - most, len(word) + most + 1)
        near = [
            (distance, -self._count(known), known)
            for length in lengths
            for known, distance, _ in process.extract(
                word,
                self._of_length.get(length, ()),
                scorer=OSA.distance,
                score_cutoff=most,
                limit=50,
            )
        ]
        if not near:
            return []
        nearest = min(near)[0]  # two slips only where no word is one slip away
        chosen = sorted(found for found in near if found[0] == nearest)[:_MOST]
        return [(self._numbers[known], SLIP / nearest) for _, _, known in chosen]

    def _frequent(self, words: Iterable[str]) -> list[str]:
        return sorted(words, key=lambda word: (-self._count(word), word))[:_MOST]

    def _weigh(self, words: Iterable[str], weight: float) -> list[tuple[int, float]]:
        return [(self._numbers[word], weight) for word in words]

    def _count(self, word: str) -> int:
        return int(self._counts[self._numbers[word]])
