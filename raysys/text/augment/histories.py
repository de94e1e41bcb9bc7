"""Histories cut, hidden in parts, shuffled, and filled from what is bought together.

Crop, mask and reorder are those of CL4SRec (Xie et al., ICDE 2022, arXiv:2010.14395, section
III-C); substitute and insert those of CoSeRec (Liu et al. 2021, arXiv:2108.06479), with
co-visitation for the correlation of items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from raysys.errors import UserError
from raysys.retrieval.covisitation import CoVisitation
from raysys.text.augment.draws import UInt64, choose, derived, keys_of, uniform
from raysys.text.augment.settings import (
    Augmentation,
    Crop,
    HistoryMethod,
    Insert,
    Mask,
    Reorder,
    Substitute,
)

UNKNOWN = -1
"""What a masked item becomes: an item that no catalogue has."""

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Flat:
    """r histories one after the other.

    Attributes:
        items: int32[t].
        offsets: int64[r + 1].
    """

    items: Int32
    offsets: Int64

    @classmethod
    def of(cls, history: Sequence[Int32]) -> Flat:
        """Join r arrays."""
        sizes = np.fromiter((len(each) for each in history), dtype=np.int64, count=len(history))
        items = np.concatenate(history) if len(history) else np.empty(0, dtype=np.int32)
        return cls(items.astype(np.int32), np.concatenate([[0], np.cumsum(sizes)]))

    @property
    def sizes(self) -> Int64:
        """int64[r]."""
        return np.diff(self.offsets)

    @property
    def row(self) -> Int64:
        """The history that each item is in: int64[t]."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.sizes)

    @property
    def place(self) -> Int64:
        """Of each item in its history, from 0, the newest: int64[t]."""
        return np.arange(len(self.items)) - self.offsets[:-1][self.row]

    def rows(self, which: Int64) -> Flat:
        """Some of the histories, in the given order."""
        sizes = self.sizes[which]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        at = np.repeat(self.offsets[which] - offsets[:-1], sizes) + np.arange(offsets[-1])
        return Flat(self.items[at], offsets)

    def kept(self, which: npt.NDArray[np.bool_]) -> Flat:
        """The same histories with some of their items."""
        sizes = np.bincount(self.row[which], minlength=len(self.offsets) - 1)
        return Flat(self.items[which], np.concatenate([[0], np.cumsum(sizes)]))

    def arrays(self) -> list[Int32]:
        """r arrays, views of one."""
        return [self.items[a:b] for a, b in pairwise(self.offsets.tolist())]


@dataclass(frozen=True)
class HistoryCopies:
    """Changed copies of histories, without the originals.

    Attributes:
        row: int64[m], which of the histories given each is a copy of, ascending.
        history: m arrays int32, newest first; `UNKNOWN` (-1) where an item is masked.
        augmented: m names of methods.
    """

    row: Int64
    history: list[Int32]
    augmented: npt.NDArray[np.object_]

    def __len__(self) -> int:
        return len(self.row)


def augment_histories(
    history: Sequence[Int32],
    ids: Int64,
    settings: Augmentation,
    near: CoVisitation | None = None,
) -> HistoryCopies:
    """Copies of training histories by the history methods of `settings`.

    Args:
        history: r arrays int32, newest first; see `Batch.history`.
        ids: int64[r], names of the rows that do not depend on their order (`Batch.request`).
        settings: what to do; text methods are passed over.
        near: what is bought together; for substitute and insert.

    Histories of fewer than two items have no copies, and copies that came out as the original was
    (of two equal items shuffled, say) are left out.

    Raises:
        UserError: substitute or insert without `near`.
    """
    flat = Flat.of(history)
    rows: list[int] = []
    copies: list[Int32] = []
    names: list[str] = []
    for method in settings.history_methods:
        if isinstance(method, Substitute | Insert) and near is None:
            raise UserError(
                f"{method.kind} needs to know which items are bought together",
                where="augmentation.methods",
                mend="give `near`, a fitted CoVisitation",
            )
        for copy in range(settings.copies):
            keys = keys_of(ids, settings.seed, method.kind, copy)
            made = uniform(derived(keys, "made")) < method.probability
            which = np.flatnonzero(made & (flat.sizes >= 2))
            before = flat.rows(which)
            after = _apply(method, before, keys[which], near)
            for row, old, new in zip(which.tolist(), before.arrays(), after.arrays(), strict=True):
                if not np.array_equal(old, new):
                    rows.append(row)
                    copies.append(new)
                    names.append(method.kind)
    order = np.argsort(np.array(rows, dtype=np.int64), kind="stable")
    return HistoryCopies(
        np.array(rows, dtype=np.int64)[order],
        [copies[at] for at in order],
        np.array(names, dtype=object)[order],
    )


def _apply(method: HistoryMethod, flat: Flat, keys: UInt64, near: CoVisitation | None) -> Flat:
    match method:
        case Crop():
            return crop(flat, keys, method.strength)
        case Mask():
            return mask(flat, keys, method.strength)
        case Reorder():
            return reorder(flat, keys, method.strength)
        case Substitute():
            assert near is not None
            return substitute(flat, keys, method.strength, near.neighbours[:, : method.most])
        case Insert():
            assert near is not None
            return insert(flat, keys, method.strength, near.neighbours[:, : method.most])
    raise TypeError(f"no such method: {method!r}")


def crop(flat: Flat, keys: UInt64, strength: float) -> Flat:
    """A stretch of floor(strength × length) items, at least one, that begins anywhere."""
    length, start = _stretch(flat, keys, strength, least=1)
    row, place = flat.row, flat.place
    return flat.kept((place >= start[row]) & (place < start[row] + length[row]))


def mask(flat: Flat, keys: UInt64, strength: float) -> Flat:
    """About strength × length items are hidden, at least one; one at least is not."""
    row = flat.row
    every = np.ones(len(row), dtype=bool)
    hidden = choose(row, uniform(keys[row], flat.place), every, strength, spare=1)
    return Flat(np.where(hidden, np.int32(UNKNOWN), flat.items), flat.offsets)


def reorder(flat: Flat, keys: UInt64, strength: float) -> Flat:
    """A stretch of floor(strength × length) items, at least two, is shuffled."""
    length, start = _stretch(flat, keys, strength, least=2)
    row, place = flat.row, flat.place
    within = (place >= start[row]) & (place < start[row] + length[row])
    drawn = start[row] + length[row] * uniform(derived(keys, "order")[row], place)
    order = np.lexsort((np.where(within, drawn, place), row))
    return Flat(flat.items[order], flat.offsets)


def substitute(flat: Flat, keys: UInt64, strength: float, neighbours: Int32) -> Flat:
    """About strength × length items become a neighbour of theirs, at least one that has some.

    Args:
        flat: of r histories.
        keys: uint64[r].
        strength: share of the items that have neighbours.
        neighbours: int32[n_items, k], -1 beyond the last.
    """
    chosen, found = _correlated(flat, keys, strength, neighbours)
    items = flat.items.copy()
    items[chosen] = found
    return Flat(items, flat.offsets)


def insert(flat: Flat, keys: UInt64, strength: float, neighbours: Int32) -> Flat:
    """Neighbours are put before (in time) about strength × length items; see `substitute`."""
    chosen, found = _correlated(flat, keys, strength, neighbours)
    items = np.insert(flat.items, chosen + 1, found)  # newest first: what is older comes after
    sizes = flat.sizes + np.bincount(flat.row[chosen], minlength=len(flat.offsets) - 1)
    return Flat(items, np.concatenate([[0], np.cumsum(sizes)]))


def _stretch(flat: Flat, keys: UInt64, strength: float, least: int) -> tuple[Int64, Int64]:
    """Length and first place of a stretch of each history: int64[r] each."""
    length = np.floor(strength * flat.sizes + 1e-9).astype(np.int64)  # 0.6 × 5 is 3
    length = np.minimum(np.maximum(length, least), flat.sizes)
    start = np.floor(uniform(derived(keys, "start")) * (flat.sizes - length + 1))
    return length, start.astype(np.int64)


def _correlated(
    flat: Flat, keys: UInt64, strength: float, neighbours: Int32
) -> tuple[Int64, Int32]:
    """Places int64[c] of chosen items, and a neighbour int32[c] of each."""
    known = (flat.items >= 0) & (flat.items < len(neighbours))
    count = np.zeros(len(flat.items), dtype=np.int64)
    count[known] = (neighbours[flat.items[known]] >= 0).sum(axis=1)
    row, place = flat.row, flat.place
    draws = uniform(keys[row], place)
    chosen = np.flatnonzero(choose(row, draws, count > 0, strength))
    draws = uniform(derived(keys, "neighbour")[row[chosen]], place[chosen])
    pick = (draws * count[chosen]).astype(np.int64)
    return chosen, neighbours[flat.items[chosen], pick].astype(np.int32)
