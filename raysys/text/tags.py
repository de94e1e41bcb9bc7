"""Spans as one tag a unit, and back (BIO: Ramshaw and Marcus 1995; BIOES: Ratinov and Roth 2009).

Tag 0 is outside of everything. A label's tags follow each other: B I, or B I E S.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from raysys.text.spans import Span, without_overlaps
from raysys.text.units import Units

Scheme = Literal["bio", "bioes"]


@dataclass
class Lost:
    """What tags could not say of the spans they were made of.

    Attributes:
        spans: how many there were.
        overlapping: dropped, as they share characters with a longer one or a more frequent label.
        widened: begin or end within a unit and were made to cover it.
        blank: dropped, as there is nothing but white space in them.
    """

    spans: int = 0
    overlapping: int = 0
    widened: int = 0
    blank: int = 0


@dataclass(frozen=True)
class Tags:
    """The tags of some labels.

    Attributes:
        labels: in the order of their tags.
        scheme: `bio` or `bioes`.
    """

    labels: tuple[str, ...]
    scheme: Scheme = "bioes"
    _number: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_number", {each: at for at, each in enumerate(self.labels)})

    @property
    def per_label(self) -> int:
        """Tags of one label."""
        return 2 if self.scheme == "bio" else 4

    def __len__(self) -> int:
        return 1 + self.per_label * len(self.labels)

    def path(self, label: int, length: int) -> list[int]:
        """The tags of a span of so many units."""
        begin = 1 + self.per_label * label
        if self.scheme == "bio":
            return [begin] + [begin + 1] * (length - 1)
        if length == 1:
            return [begin + 3]
        return [begin] + [begin + 1] * (length - 2) + [begin + 2]

    def allowed(self) -> npt.NDArray[np.bool_]:
        """Which tag may follow which: bool[tags + 1, tags + 1].

        The last row is the beginning of a text, the last column its end.
        """
        n = len(self)
        may = np.zeros((n + 1, n + 1), dtype=bool)
        starts = [0, *(self.path(at, 1)[0] for at in range(len(self.labels)))]
        stops = list(starts)
        for at in range(len(self.labels)):
            begin, inside, last = self.path(at, 3)
            starts.append(begin)
            stops.append(last)
            if self.scheme == "bio":
                stops.append(begin)
            may[begin, [inside, last]] = True
            may[inside, [inside, last]] = True
            if self.scheme == "bioes":
                may[begin, self.path(at, 2)[1]] = True
        may[np.ix_([*stops, n], [*starts, n])] = True
        may[n, n] = False
        return may

    def encode(
        self, units: Units, spans: Iterable[Span], counts: Mapping[str, int], lost: Lost
    ) -> npt.NDArray[np.int64]:
        """One tag a unit: int64[units].

        Args:
            units: of the text.
            spans: of the text; labels that are not ours are passed over.
            counts: how often each label occurs, see `without_overlaps`.
            lost: is told what tags cannot say.
        """
        tags = np.zeros(len(units), dtype=np.int64)
        starts, ends = [a for a, _ in units.pieces], [b for _, b in units.pieces]
        ours = [span for span in spans if span.label in self._number]
        kept, dropped = without_overlaps(ours, counts)
        lost.spans += len(kept) + dropped
        lost.overlapping += dropped
        taken = 0
        for span in kept:
            first, last = bisect_right(ends, span.start), bisect_left(starts, span.end)
            if first >= last:
                lost.blank += 1
                continue
            if first < taken:  # its neighbour was widened over its first unit
                lost.overlapping += 1
                continue
            text = units.text[span.start : span.end]
            begins = span.start + len(text) - len(text.lstrip())
            stops = span.end - len(text) + len(text.rstrip())
            lost.widened += (starts[first], ends[last - 1]) != (begins, stops)
            tags[first:last] = self.path(self._number[span.label], last - first)
            taken = last
        return tags

    def part(self, tags: npt.NDArray[np.int64], first: int, last: int) -> npt.NDArray[np.int64]:
        """Tags of some units of a text: int64[last - first].

        A span that reaches beyond them is told as if it began or ended with them.
        """
        found = tags[first:last].copy()
        if not len(found):
            return found
        place = self._place(int(found[0]))
        if place == 1:  # inside: begin
            found[0] -= 1
        elif place == 2:  # end: single
            found[0] += 1
        place = self._place(int(found[-1]))
        if self.scheme == "bioes" and place in (0, 1):  # begin: single; inside: end
            found[-1] += 3 if place == 0 else 1
        return found

    def _place(self, tag: int) -> int:
        """Which of its label's tags it is, from 0; -1: outside."""
        return (tag - 1) % self.per_label if tag else -1

    def decode(self, units: Units, tags: Sequence[int]) -> list[Span]:
        """The spans that tags say; a span whose tags break off is as long as they last."""
        found: list[Span] = []
        first, label = -1, -1
        for at in range(len(units) + 1):
            tag = int(tags[at]) if at < len(units) else 0
            this, part = divmod(tag - 1, self.per_label) if tag else (-1, -1)
            goes_on = tag and this == label and first >= 0 and part in (1, 2)
            if first >= 0 and not goes_on:
                found.append(self.span(units, first, at, label))
                first = -1
            if tag and not goes_on:
                first, label = at, this
            if self.scheme == "bioes" and tag and part in (2, 3):
                found.append(self.span(units, first, at + 1, label))
                first, label = -1, -1
        return found

    def span(self, units: Units, first: int, last: int, label: int) -> Span:
        """The span from one unit up to another (exclusive)."""
        return Span(units.pieces[first][0], units.pieces[last - 1][1], self.labels[label])
