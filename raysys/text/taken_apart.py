"""Texts taken apart for comparison, and how much two of them share: words, letters, numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Final

from raysys.text.shop_words import UNITS, is_number, stems

PREPOSITIONS: Final = frozenset(("for", "with", "in", "by", "of", "and", "on", "to", "from"))


@dataclass(frozen=True)
class Said:
    """A text taken apart.

    Attributes:
        line: its plain words in one line.
        stems: of its words, in order.
        place: where each distinct stem first is.
        pairs: neighbouring stems.
        letters: 3-grams of the words without spaces.
        numbers: words with a digit.
        sizes: pairs of a number and a unit.
        head: how many stems come before a preposition.
        changed: words that were put right.
        typed: stems as typed.
    """

    line: str
    stems: tuple[str, ...]
    place: dict[str, int]
    pairs: frozenset[tuple[str, str]]
    letters: frozenset[str]
    numbers: frozenset[str]
    sizes: frozenset[tuple[str, str]]
    head: int
    changed: int = 0
    typed: frozenset[str] = frozenset()


def take_apart(words: Sequence[str], language: str, typed: Sequence[str] | None = None) -> Said:
    """See `Said`; `typed`: the words before their spelling was put right."""
    found = tuple(stems(words, language))
    joined = "".join(words)
    place: dict[str, int] = {}
    for at, stem in enumerate(found):
        place.setdefault(stem, at)
    head = next((at for at, word in enumerate(words) if at and word in PREPOSITIONS), len(words))
    before = list(words) if typed is None else list(typed)
    return Said(
        line=" ".join(words),
        stems=found,
        place=place,
        pairs=frozenset(pairwise(found)),
        letters=frozenset(joined[at : at + 3] for at in range(max(1, len(joined) - 2))),
        numbers=frozenset(word for word in words if is_number(word)),
        sizes=frozenset((a, b) for a, b in pairwise(words) if is_number(a) and b in UNITS),
        head=head,
        changed=len(set(before) - set(words)),
        typed=frozenset(found if typed is None else stems(before, language)),
    )


def share(part: float, whole: float) -> float:
    """A part of the whole; NaN where there is nothing."""
    return part / whole if whole else math.nan


def longest_run(few: Sequence[str], many: Sequence[str]) -> int:
    """Length of the longest common stretch."""
    best, before = 0, [0] * (len(many) + 1)
    for word in few:
        here = [0] * (len(many) + 1)
        for at, other in enumerate(many, start=1):
            if word == other:
                here[at] = before[at - 1] + 1
                best = max(best, here[at])
        before = here
    return best


def nearest(stem: str, others: tuple[str, ...]) -> float:
    """Likeness 0 … 1 to the nearest of other words; numbers are alike only when equal."""
    if stem in others:
        return 1.0
    if is_number(stem):
        return 0.0
    return max((_alike(stem, other) for other in others), default=0.0)


@lru_cache(maxsize=2_000_000)
def _alike(one: str, other: str) -> float:
    from rapidfuzz.distance import OSA

    return float(OSA.normalized_similarity(one, other))
