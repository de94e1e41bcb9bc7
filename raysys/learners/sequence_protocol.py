"""The contract of learners of the next item: fit on sequences, score every item after a prefix.

A sequence is a session or a user's history, in the order of time. Items are numbers 0 … n - 1;
names are the business of whoever reads files. Co-visitation and a transformer are the same to the
ensemble, to evaluation and to candidates.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Generic, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from raysys.config import Settings
from raysys.learners.full_ranking import survey
from raysys.storage import CheckpointFolder

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

CELLS = 16_000_000
"""Scores held at once, 64 MB of them: prefixes a batch = CELLS // items."""


@dataclass(frozen=True)
class Sequences:
    """s sequences of n items in all, one after the other (CSR).

    Attributes:
        items: int32[n], each in time order within its sequence; repeats are kept.
        offsets: int64[s + 1]; items of sequence i are offsets[i] : offsets[i + 1].
        moment: float64[s], when each sequence ended, in any unit that rises with time; None where
            sequences have no order among them.
        times: float64[n], seconds; None where unknown.
    """

    items: Int32
    offsets: Int64
    moment: Float64 | None = None
    times: Float64 | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def of(cls, lists: list[list[int]], *, ordered: bool = False) -> Sequences:
        """Sequences from lists of item numbers; `ordered`: they stand in the order of time."""
        sizes = np.fromiter((len(each) for each in lists), dtype=np.int64, count=len(lists))
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        items = np.fromiter((i for each in lists for i in each), np.int32, int(offsets[-1]))
        moment = np.arange(len(lists), dtype=np.float64) if ordered else None
        return cls(items, offsets, moment)

    @property
    def sizes(self) -> Int64:
        """Items of each sequence: int64[s]."""
        return np.diff(self.offsets)

    def __getitem__(self, i: int) -> Int32:
        return self.items[self.offsets[i] : self.offsets[i + 1]]

    def take(self, which: Int64) -> Sequences:
        """The given sequences, in the given order."""
        return self.cut(which, self.offsets[which], self.offsets[which + 1])

    def cut(self, which: Int64, start: Int64, stop: Int64) -> Sequences:
        """Pieces of sequences: items start : stop (places in `items`) of each of `which`."""
        sizes = stop - start
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        rows = np.repeat(start - offsets[:-1], sizes) + np.arange(offsets[-1])
        return Sequences(
            self.items[rows],
            offsets,
            None if self.moment is None else self.moment[which],
            None if self.times is None else self.times[rows],
        )

    def without_last(self, which: Int64, n: int = 1) -> Sequences:
        """The given sequences, each short of its last `n` items (never below none)."""
        start = self.offsets[which]
        return self.cut(which, start, np.maximum(self.offsets[which + 1] - n, start))

    def tails(self, size: int) -> Sequences:
        """The last `size` items of every sequence."""
        every = np.arange(len(self))
        start = np.maximum(self.offsets[:-1], self.offsets[1:] - size)
        return self.cut(every, start, self.offsets[1:])

    def pieces(self, size: int) -> Sequences:
        """All of every sequence in pieces of `size` (2 or more), cut from its end.

        A piece begins with the item that ends the one before: each step from an item to the next
        is in exactly one. The first of a sequence may be shorter.
        """
        count = np.maximum(-(-(self.sizes - 1) // (size - 1)), 1)
        which = np.repeat(np.arange(len(self)), count)
        last = np.cumsum(count)[which] - 1  # the number of each sequence's last piece
        stop = self.offsets[which + 1] - (last - np.arange(len(which))) * (size - 1)
        return self.cut(which, np.maximum(stop - size, self.offsets[which]), stop)

    def prefixes(
        self, which: Int64 | None = None, longest: int | None = None
    ) -> tuple[Sequences, Int32]:
        """Every prefix and the item that follows it: as many as there are items but the firsts.

        Args:
            which: numbers of some of them, as all would stand; None: all. Of very long sequences
                all are the square of their length.
            longest: items of a prefix that are kept, the last ones; None: all.
        """
        sizes = np.maximum(self.sizes - 1, 0)
        ends = np.cumsum(sizes)
        asked = np.arange(int(sizes.sum())) if which is None else which
        of = np.searchsorted(ends, asked, side="right")
        length = asked - (ends - sizes)[of] + 1
        stop = self.offsets[of] + length
        start = (
            self.offsets[of] if longest is None else np.maximum(stop - longest, self.offsets[of])
        )
        return self.cut(of, start, stop), self.items[stop]

    @property
    def owner(self) -> Int64:
        """The sequence of every item: int64[n]."""
        return np.repeat(np.arange(len(self)), self.sizes)


def joined(first: Sequences, second: Sequences) -> Sequences:
    """The sequences of both, one set behind the other."""

    def both(a: Float64 | None, b: Float64 | None) -> Float64 | None:
        return None if a is None or b is None else np.concatenate([a, b])

    return Sequences(
        np.concatenate([first.items, second.items]),
        np.concatenate([first.offsets, second.offsets[1:] + first.offsets[-1]]),
        both(first.moment, second.moment),
        both(first.times, second.times),
    )


@dataclass(frozen=True)
class ItemFacts:
    """What is known of items beside their sequences.

    Attributes:
        attributes: int32[m], numbers 0 … n_attributes - 1, one item's after another's; None: none.
        attribute_offsets: int64[n_items + 1].
        vectors: float32[n_items, d] of the items' texts, zero rows where there is none; or None.
    """

    attributes: Int32 | None = None
    attribute_offsets: Int64 | None = None
    vectors: Float32 | None = None

    @property
    def n_attributes(self) -> int:
        """Distinct attributes."""
        return 0 if self.attributes is None else int(self.attributes.max(initial=-1)) + 1


@dataclass(frozen=True)
class SequenceContext:
    """What a fit knows beside its sequences.

    Attributes:
        n_items: how many there are; scores have so many columns.
        facts: of the items.
        seed: of everything random in the fit.
        deadline: of `time.monotonic()`; a fit that goes step by step ends there with what it has.
        report: told (epoch, model so far) after every epoch; may raise to end the fit.
        checkpoint: where a fit that goes by epochs leaves its state after each that is due, and
            takes it up from; of these sequences, facts, seed and settings alone. None: it starts
            anew.
    """

    n_items: int
    facts: ItemFacts = field(default_factory=ItemFacts)
    seed: int = 0
    deadline: float = float("inf")
    report: Callable[[int, SequenceModel], None] | None = None
    checkpoint: CheckpointFolder | None = None

    @property
    def seconds_left(self) -> float:
        """Until the deadline."""
        return self.deadline - time.monotonic()


class SequenceModel(ABC):
    """A fitted learner of the next item: pure, thread-safe, no Ray inside.

    Attributes:
        n_items: columns of its scores.
        scale: `log`: scores are logarithms of probabilities up to a constant of each prefix;
            `share`: they are weights from 0 up.
        augmented: changed copies of sequences that it learned from, by method; empty if none.
    """

    n_items: int
    augmented: Mapping[str, int] = {}
    scale: ClassVar[Literal["log", "share"]] = "share"

    @abstractmethod
    def score(self, prefixes: Sequences) -> Float32:
        """Scores of every item after each prefix: float32[len(prefixes), n_items].

        Finite, higher is better, comparable within a prefix only. An empty prefix gets what is
        popular. Give few prefixes at once (`batches`): the answer is dense.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write into an existing empty folder: safetensors and JSON. No pickle."""

    @classmethod
    @abstractmethod
    def load(cls, folder: Path) -> SequenceModel:
        """Read what `save` wrote; scores are the same to the last bit."""

    def propose(self, prefixes: Sequences, k: int) -> tuple[Int32, Float32]:
        """The k best items after each prefix, best first: int32[b, k] and their scores.

        Equal scores are ordered by item number. k is at most the number of items.
        """
        k = min(k, self.n_items)
        items = np.empty((len(prefixes), k), dtype=np.int32)
        scores = np.empty((len(prefixes), k), dtype=np.float32)
        for rows in batches(len(prefixes), self.n_items):
            dense = self.score(prefixes.take(rows))
            items[rows], scores[rows], _, _ = survey(dense, np.full(len(rows), -1, np.int32), k)
        return items, scores


def damp_seen(scores: Float32, prefixes: Sequences, share: float) -> None:
    """Leave what each prefix already holds `share` of its score, in place.

    Args:
        scores: float32[len(prefixes), n_items], weights from 0 up.
        prefixes: what was asked.
        share: 1 leaves scores as they are, 0 proposes nothing twice.
    """
    if share != 1:
        scores[prefixes.owner, prefixes.items] *= np.float32(share)  # once, however often held


def batches(n: int, n_items: int) -> Iterator[Int64]:
    """Rows 0 … n - 1 in runs whose dense scores fit into `CELLS`."""
    size = max(1, min(512, CELLS // max(n_items, 1)))
    for start in range(0, n, size):
        yield np.arange(start, min(start + size, n))


S = TypeVar("S", bound=Settings)


class SequenceLearner(ABC, Generic[S]):
    """Anything that learns what comes next.

    Attributes:
        name: as YAML and reports know it.
        family: `transformer` or `baseline`.
        settings_model: its typed settings.
        model_class: what `fit` returns.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    settings_model: ClassVar[type[Settings]]
    model_class: ClassVar[type[SequenceModel]]

    def __init__(self, settings: S) -> None:
        self.settings = settings

    @abstractmethod
    def fit(self, train: Sequences, context: SequenceContext) -> SequenceModel:
        """Fit on every prefix of `train` and what follows it.

        Raises:
            UserError: data or settings that cannot work (no sequence of two items, say).
        """

    def refit(
        self, model: SequenceModel, train: Sequences, context: SequenceContext
    ) -> SequenceModel:
        """A model of `train`, of which `model` knows a part; learners that can go on override it.

        Raises:
            UserError: as `fit`.
        """
        return self.fit(train, context)
