"""Filling a list place by place: pins, caps, diversity and chance, each place given those above."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Explore:
    """See `policy.Exploration`; `start` counts from 0."""

    share: float
    start: int
    depth: int
    temperature: float | None


@dataclass(frozen=True)
class Filled:
    """A list.

    Attributes:
        chosen: int[≤ k], candidates in order.
        propensities: float64[≤ k], probability of each at its place, given those above it.
        notes: candidate -> why it is not where its score would put it.
    """

    chosen: npt.NDArray[np.intp]
    propensities: Float64
    notes: dict[int, list[str]] = field(default_factory=dict)


Options = tuple[npt.NDArray[np.intp], Float64]
"""Candidates that may come to a place, int[m], and each one's probability, float64[m]: in sum 1."""


@dataclass(frozen=True)
class _Place:
    """A place that is to be filled; `free` and `full` are as they stand, and will change."""

    number: int
    open_to: npt.NDArray[np.intp]
    share: Float64
    free: Mask
    full: Mask
    by_chance: bool = False
    pinned: bool = False


@dataclass(frozen=True)
class Slots:
    """Candidates, best score first, and what a list of them has to heed.

    Attributes:
        scores: float32[n], falling.
        pins: place (from 0) -> candidate.
        caps: (name, int[n] codes with -1 for missing, most of one code).
        relevance: λ of maximal marginal relevance; 1: scores alone.
        vectors: float32[n, d], unit rows, for likeness; None: by `alike`.
        alike: int[n] codes each; likeness is the share of them that are equal.
        explore: None: nothing is left to chance.
    """

    scores: npt.NDArray[np.float32]
    pins: Mapping[int, int]
    caps: Sequence[tuple[str, npt.NDArray[np.int32], int]]
    relevance: float
    vectors: npt.NDArray[np.float32] | None
    alike: Sequence[npt.NDArray[np.int32]]
    explore: Explore | None

    def fill(self, k: int, seed: int) -> Filled:
        """The first k places; the same seed gives the same list."""
        chance = np.random.default_rng(seed) if self.explore else None
        chosen: list[int] = []
        propensities: list[float] = []
        notes: dict[int, list[str]] = {}
        walk = self._walk(k)
        place = next(walk, None)
        while place is not None:
            drawn = 0
            if place.by_chance and chance is not None:
                ends = np.cumsum(place.share)
                found = np.searchsorted(ends, chance.random() * ends[-1], side="right")
                drawn = min(int(found), len(place.open_to) - 1)
            at = int(place.open_to[drawn])
            passed = int(place.free[:at].sum())
            if place.pinned:
                notes.setdefault(at, []).append(f"pinned to position {place.number + 1}")
            elif drawn:
                notes.setdefault(at, []).append("explored")
            elif passed and self.relevance < 1:
                notes.setdefault(at, []).append(f"ahead of {passed} for being different")
            elif place.full[at]:
                notes.setdefault(at, []).append("behind the others: beyond a cap")
            chosen.append(at)
            propensities.append(float(place.share[drawn]))
            place = _next(walk, at)
        return Filled(np.array(chosen, dtype=np.intp), np.array(propensities), notes)

    def given(self, shown: Sequence[int]) -> list[Options]:
        """What may come to each place, if those above it are what was shown.

        Args:
            shown: candidates from the top; -1 for what is none of the candidates.
        """
        found: list[Options] = []
        walk = self._walk(len(shown))
        place = next(walk, None)
        for at in shown:
            if place is None:
                break
            found.append((place.open_to, place.share))
            place = _next(walk, at)
        return found

    def _walk(self, k: int) -> Generator[_Place, int, None]:
        """Place by place who may come there; is sent who came, -1 for somebody else."""
        n = len(self.scores)
        gain = self._gain()
        free, full = np.ones(n, dtype=bool), np.zeros(n, dtype=bool)
        reserved = np.zeros(n, dtype=bool)
        reserved[[at for place, at in self.pins.items() if place < k]] = True
        likeness: Float64 = np.full(n, -np.inf)
        counts: dict[tuple[str, int], int] = {}
        some_above = False
        for number in range(min(k, n)):
            if not free.any():
                return
            pin = self.pins.get(number, -1)
            if pin >= 0 and free[pin]:
                at = yield _Place(number, np.array([pin]), np.ones(1), free, full, pinned=True)
            else:
                open_to = free & ~reserved
                if not open_to.any():
                    open_to = free  # a short list: whoever waits for a later place comes now
                within = open_to & ~full
                if not within.any():
                    within = open_to  # what exceeds a cap comes after everything else
                value = gain
                if self.relevance < 1 and some_above:
                    value = self.relevance * gain - (1 - self.relevance) * likeness
                options, by_chance = self._options(value, within, number)
                at = yield _Place(number, *options, free, full, by_chance=by_chance)
            if at < 0:
                continue
            free[at], reserved[at], some_above = False, False, True
            if self.relevance < 1:
                np.maximum(likeness, self._likeness(at), out=likeness)
            self._count(at, counts, full)

    def _gain(self) -> Float64:
        """Scores from 0 to 1: float64[n]."""
        scores = self.scores.astype(np.float64)
        span = float(scores[0] - scores[-1]) if len(scores) else 0.0
        return (scores - scores[-1]) / span if span else np.zeros(len(scores))

    def _options(self, value: Float64, within: Mask, place: int) -> tuple[Options, bool]:
        """Who may come to a place, the one who would without chance first; whether chance says."""
        open_to = np.flatnonzero(within)
        explore = self.explore
        if explore is None or place < explore.start:
            return (open_to[[np.argmax(value[open_to])]], np.ones(1)), False
        order = np.argsort(-value[open_to], kind="stable")[: explore.depth]
        tail = open_to[order]
        share = np.full(len(tail), explore.share / len(tail))
        if explore.temperature is not None:
            share = explore.share * _softmax(value[tail], explore.temperature)
        share[0] += 1 - explore.share
        return (tail, share), True

    def _likeness(self, at: int) -> Float64:
        """Of every candidate to one: float64[n]."""
        if self.vectors is not None:
            return (self.vectors @ self.vectors[at]).astype(np.float64)
        same = [(codes == codes[at]) & (codes >= 0) for codes in self.alike]
        likeness: Float64 = np.mean(same, axis=0)
        return likeness

    def _count(self, at: int, counts: dict[tuple[str, int], int], full: Mask) -> None:
        """Count a shown candidate, and mark those that its kinds have no room for any more."""
        for name, codes, most in self.caps:
            code = int(codes[at])
            if code < 0:  # where a column is missing nothing is known to crowd
                continue
            counts[name, code] = counts.get((name, code), 0) + 1
            if counts[name, code] == most:
                full |= codes == code


def _softmax(value: Float64, temperature: float) -> Float64:
    spread = float(value.std()) or 1.0
    weight = np.exp((value - value.max()) / (spread * temperature))
    return weight / weight.sum()


def _next(walk: Generator[_Place, int, None], at: int) -> _Place | None:
    try:
        return walk.send(at)
    except StopIteration:
        return None
