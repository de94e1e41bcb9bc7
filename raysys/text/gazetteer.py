"""Values that training texts were labelled with, and how far a match can be trusted.

Three ways to match, from strict to loose: the words themselves; with every number alike
("20 oz" is like "8.5 oz"); by shape alone, for words with digits in them ("YA180" is like "YA332").
They take the place of lists and regular expressions that somebody would have to write.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from raysys.text.units import Units

Key = tuple[str, ...]
WAYS = ("words", "numbers", "shape")
DECIMALS = 2
DOUBT = 1.0
"""A value seen n times and always labelled is trusted n / (n + DOUBT)."""


@dataclass(frozen=True)
class Match:
    """A known value in a text.

    Attributes:
        first: its first unit.
        last: the unit after its last.
        label: what it was labelled.
        trust: share of the places it was seen at that were labelled so, with doubt: 0 … 1.
        way: which of `WAYS`, by number.
    """

    first: int
    last: int
    label: str
    trust: float
    way: int


def keys(words: Sequence[str], spaced: bool) -> list[Key | None]:
    """What stands for some units, in each of the ways; None: that way does not apply.

    Args:
        words: the units.
        spaced: whether there is white space between them: a shape is of one word.
    """
    lower = tuple(word.lower() for word in words)
    digits = any(word[:1].isdigit() for word in words)
    numbers: list[str] = []
    for word in lower:
        one = "0" if word[:1].isdigit() else word
        if one == "0" and numbers[-2:] == ["0", "."]:
            numbers.pop()  # a decimal is one number
        else:
            numbers.append(one)
    shape: Key | None = None
    if digits and not spaced and len(words) > 1:
        shape = tuple(_shape(word) for word in words)
    return [lower, tuple(numbers) if digits else None, shape]


def _shape(word: str) -> str:
    if word[:1].isdigit():
        return "0"
    return re.sub(r"[^\W\d_]+", "A" if word.isupper() else "a", word)


@dataclass
class Gazetteer:
    """Known values of all labels.

    Attributes:
        longest: units of the longest stretch that is looked up.
        labelled: in each way: key → label → how often it was labelled so.
        seen: in each way: key → at how many places it stands in the training texts.
    """

    longest: int = 0
    labelled: list[dict[Key, Counter[str]]] = field(default_factory=lambda: [{}, {}, {}])
    seen: list[Counter[Key]] = field(default_factory=lambda: [Counter(), Counter(), Counter()])
    _index: tuple[tuple[int, ...], tuple[set[str], ...]] | None = field(
        default=None, repr=False, compare=False
    )

    @classmethod
    def fit(
        cls, texts: Iterable[tuple[Units, Sequence[tuple[int, int, str]]]], longest: int = 10
    ) -> Gazetteer:
        """Count values and the places where they stand.

        Args:
            texts: units and their spans: first unit, the one after the last, label.
            longest: longer values are left out.
        """
        made, all_texts = cls(), list(texts)
        for units, spans in all_texts:
            for first, last, label in spans:
                if last - first > longest:
                    continue
                made.longest = max(made.longest, last - first)
                for way, key in enumerate(_keys(units, first, last)):
                    if key is not None:
                        made.labelled[way].setdefault(key, Counter())[label] += 1
        if made.longest:
            made.longest += DECIMALS  # "8.5 oz" is as "20 oz", and longer
        for units, _ in all_texts:
            made._see(units, made.seen)
        return made

    def _see(self, units: Units, into: list[Counter[Key]]) -> None:
        for _, _, way, key in self._known(units):
            into[way][key] += 1

    def _known(self, units: Units) -> Iterable[tuple[int, int, int, Key]]:
        """Every stretch of a text that some label has had: first, last, way, key."""
        begins = self._begins()
        words, n = units.words, len(units)
        for first, word in enumerate(words):
            lower = word.lower()
            alike = (lower, "0" if word[:1].isdigit() else lower, _shape(word))
            ways = [way for way, begin in enumerate(alike) if begin in begins[way]]
            if not ways:
                continue
            for last in range(first + 1, min(n, first + self.longest) + 1):
                found = _keys(units, first, last)
                for way in ways:
                    key = found[way]
                    if key is not None and key in self.labelled[way]:
                        yield first, last, way, key

    def _begins(self) -> tuple[set[str], ...]:
        """What the keys of each way begin with: most units of a text begin none."""
        sizes = tuple(map(len, self.labelled))
        if self._index is None or self._index[0] != sizes:
            self._index = sizes, tuple({key[0] for key in keys} for keys in self.labelled)
        return self._index[1]

    def matches(
        self, units: Units, own: Sequence[tuple[int, int, str]] | None = None
    ) -> list[Match]:
        """Known values in a text, the likeliest label of each, in order; they may overlap.

        Args:
            units: of the text.
            own: spans of the text if it is one of those fitted on: then what it told itself is
                taken off the counts, so that matches are as they would be in a new text.
        """
        self_said: Counter[tuple[int, Key, str]] = Counter()
        self_seen: list[Counter[Key]] = [Counter(), Counter(), Counter()]
        if own is not None:
            self._see(units, self_seen)
            for first, last, label in own:
                for way, key in enumerate(_keys(units, first, last)):
                    if key is not None:
                        self_said[way, key, label] += 1
        found = []
        for first, last, way, key in self._known(units):
            places = self.seen[way][key] - self_seen[way][key]
            said = {
                label: count - self_said[way, key, label]
                for label, count in self.labelled[way][key].items()
            }
            label, count = max(said.items(), key=lambda item: (item[1], item[0]))
            if count > 0:
                found.append(Match(first, last, label, count / (places + DOUBT), way))
        return found

    def to_json(self) -> dict[str, object]:
        """For `from_json`; values in order, so that equal gazetteers are equal files."""
        return {
            "longest": self.longest,
            "ways": [
                [
                    [list(key), self.seen[way][key], dict(sorted(labels.items()))]
                    for key, labels in sorted(self.labelled[way].items())
                ]
                for way in range(len(WAYS))
            ],
        }

    @classmethod
    def from_json(cls, content: dict[str, object]) -> Gazetteer:
        """What `to_json` made."""
        made = cls(longest=int(content["longest"]))  # type: ignore[call-overload]
        for way, entries in enumerate(content["ways"]):  # type: ignore[arg-type, var-annotated]
            for key, places, labels in entries:
                made.labelled[way][tuple(key)] = Counter(labels)
                made.seen[way][tuple(key)] = places
        return made


def _keys(units: Units, first: int, last: int) -> list[Key | None]:
    words = [units.text[start:end] for start, end in units.pieces[first:last]]
    start, end = units.pieces[first][0], units.pieces[last - 1][1]
    return keys(words, spaced=any(map(str.isspace, units.text[start:end])))
