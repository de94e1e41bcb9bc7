"""Values that training texts were labelled with, and how far a match can be trusted.

Three ways to match, from strict to loose: the words themselves; with every number alike
("20 oz" is like "8.5 oz"); by shape alone, for words with digits in them ("YA180" is like "YA332").
They take the place of lists and regular expressions that somebody would have to write.
"""

from __future__ import annotations

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


class _Readings:
    """A text's units as they are compared, in each way."""

    def __init__(self, units: Units) -> None:
        words = units.words
        self.lower = [word.lower() for word in words]
        self.shapes = [_shape(word) for word in words]
        self.digits = [word[:1].isdigit() for word in words]
        self.numbers_to = [0]  # how many of the units before each are numbers
        self.gaps_to = [0]  # and how many have white space before them
        for at, (start, _) in enumerate(units.pieces):
            self.numbers_to.append(self.numbers_to[-1] + self.digits[at])
            self.gaps_to.append(self.gaps_to[-1] + (start > 0 and units.text[start - 1].isspace()))

    def begins(self, at: int) -> tuple[str, str, str]:
        """The first part of every key that begins with a unit, by way."""
        lower = self.lower[at]
        return lower, "0" if self.digits[at] else lower, self.shapes[at]

    def key(self, way: int, first: int, last: int) -> Key | None:
        """What stands for some units; None: that way does not apply to them."""
        if way == 0:
            return tuple(self.lower[first:last])
        if self.numbers_to[first] == self.numbers_to[last]:
            return None
        if way == 2:  # a shape is of one word of several units
            one_word = self.gaps_to[first + 1] == self.gaps_to[last] and last - first > 1
            return tuple(self.shapes[first:last]) if one_word else None
        numbers: list[str] = []
        for at in range(first, last):
            one = "0" if self.digits[at] else self.lower[at]
            if one == "0" and numbers[-2:] == ["0", "."]:
                numbers.pop()  # a decimal is one number
            else:
                numbers.append(one)
        return tuple(numbers)


def _shape(word: str) -> str:
    if word[:1].isdigit():
        return "0"
    if not word[:1].isalpha():
        return word
    return "A" if word.isupper() else "a"


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

    def labels(self) -> tuple[str, ...]:
        """Of all values, in order."""
        counts = (count for way in self.labelled for count in way.values())
        return tuple(sorted({label for count in counts for label in count}))

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
            readings = _Readings(units)
            for first, last, label in spans:
                if last - first > longest:
                    continue
                made.longest = max(made.longest, last - first)
                for way in range(len(WAYS)):
                    key = readings.key(way, first, last)
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
        begins, readings, n = self._begins(), _Readings(units), len(units)
        for first in range(n):
            alike = readings.begins(first)
            ways = [way for way, begin in enumerate(alike) if begin in begins[way]]
            for last in range(first + 1, min(n, first + self.longest) + 1) if ways else ():
                for way in ways:
                    key = readings.key(way, first, last)
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
            readings = _Readings(units)
            for first, last, label in own:
                for way in range(len(WAYS)):
                    key = readings.key(way, first, last)
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
