"""Sessions and users' sequences as numbers: tens of millions of events in two arrays."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from raysys.datasets.sequence_names import Task
from raysys.datasets.sequence_rows import Events
from raysys.datasets.times import latest

log = logging.getLogger("raysys")

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

PAUSE: Final = 30 * 60_000
"""Milliseconds after which a user's next event begins another session."""
DAY: Final = 86_400_000
_FEW: Final = 100  # sessions: fewer tell little as a test


@dataclass(frozen=True)
class Lists:
    """s lists of n items in all, one after the other (CSR).

    Attributes:
        items: int32[n], numbers in the order in which items first come up.
        offsets: int64[s + 1]; items of list i are offsets[i] : offsets[i + 1].
        names: of the items, as the file calls them.
        ends: int64[s], UTC milliseconds of the last event of each; None where the file has none.
        counts: of rows that were left out, by the reason.
        read_as: what the file was taken for.
    """

    items: Int32
    offsets: Int64
    names: Sequence[str]
    ends: Int64 | None = None
    counts: dict[str, int] = field(default_factory=dict)
    read_as: str = ""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def sizes(self) -> Int64:
        """Items of each list: int64[s]."""
        return np.diff(self.offsets)

    @classmethod
    def of(
        cls, lists: Sequence[Sequence[str]], read_as: str = "", counts: dict[str, int] | None = None
    ) -> Lists:
        """Lists, in the same order."""
        numbers: dict[str, int] = {}
        sizes = np.fromiter((len(each) for each in lists), dtype=np.int64, count=len(lists))
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        flat = (numbers.setdefault(item, len(numbers)) for each in lists for item in each)
        items = np.fromiter(flat, np.int32, int(offsets[-1]))
        return cls(items, offsets, list(numbers), None, counts or {}, read_as)

    def to_lists(self) -> list[list[str]]:
        """Each list by the names of its items."""
        flat = [self.names[item] for item in self.items.tolist()]
        ends = self.offsets.tolist()
        return [flat[start:stop] for start, stop in pairwise(ends)]

    def take(self, which: Int64) -> Lists:
        """The given lists, in the given order; items are numbered anew."""
        sizes = self.sizes[which]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        rows = np.repeat(self.offsets[which] - offsets[:-1], sizes) + np.arange(offsets[-1])
        items, order = renumbered(self.items[rows], len(self.names))
        names = [self.names[number] for number in order.tolist()]
        ends = None if self.ends is None else self.ends[which]
        return replace(self, items=items, offsets=offsets, names=names, ends=ends)


def renumbered(items: Int32, n: int) -> tuple[Int32, Int64]:
    """Items by numbers in the order in which they first come up, and which had each number.

    Args:
        items: int32[m], 0 … n - 1.
        n: bound of the old numbers.
    """
    first = np.full(n, -1, dtype=np.int64)
    first[items[::-1]] = np.arange(len(items) - 1, -1, -1)  # the last one written is the first
    known = np.flatnonzero(first >= 0)
    order = known[np.argsort(first[known])]
    number = np.full(n, -1, dtype=np.int32)
    number[order] = np.arange(len(order), dtype=np.int32)
    return number[items], order


def grouped(events: Events, task: Task, *, cut: bool, read_as: str = "") -> Lists:
    """Events that belong together, in the order of time; equal times as the file has them.

    Sessions are in the order of their last events, as what is learned from one is known when it
    has ended. Sequences are in the order in which the file first tells of their users.

    Args:
        events: of a file.
        task: what the lists are.
        cut: begin another list after a pause.
        read_as: what the file was taken for.
    """
    frame = events.frame.with_row_index("row")
    frame = frame.sort("key", "time", maintain_order=True)
    key, row = frame["key"].to_numpy(), frame["row"].to_numpy()
    time = frame["time"].to_numpy() if events.timed else row
    starts = np.ones(len(key), dtype=bool)
    starts[1:] = key[1:] != key[:-1]
    if cut:
        starts[1:] |= np.diff(time) > PAUSE
    begin = np.flatnonzero(starts)
    offsets = np.append(begin, len(key)).astype(np.int64)
    last = offsets[1:] - 1
    if task == "sessions":
        order = np.lexsort((row[last], time[last]))
    else:
        order = np.argsort(np.minimum.reduceat(row, begin), kind="stable")
    codes = frame["item"].to_physical().to_numpy().astype(np.int32)
    named = frame.select(pl.col("item").unique())
    names = np.empty(int(codes.max()) + 1, dtype=object)
    names[named["item"].to_physical().to_numpy()] = named["item"].cast(pl.String).to_list()
    ends = time[last].astype(np.int64) if events.clock else None
    whole = Lists(codes, offsets, names.tolist(), ends, events.counts, read_as)
    return whole.take(order)


def last_days(lists: Lists, ends: Int64, days: float) -> tuple[Lists, Lists]:
    """Lists that ended before the last days, and those that ended within them.

    Args:
        lists: sessions.
        ends: int64[s], UTC milliseconds.
        days: before the last event of all; where there are only dates, as many of these.

    A session that ends in the future has a wrong clock: it is left out of both, and said.
    """
    believable = ends <= latest()
    if not believable.any():
        believable[:] = True
    if not believable.all():
        log.warning(
            "%d sessions end in the future and are left out: their clock is wrong",
            int((~believable).sum()),
        )
    since = ends[believable].max() - days * DAY
    dates = not (ends[believable] % DAY).any()
    late = ends > since if dates else ends >= since
    early = lists.take(np.flatnonzero(believable & ~late))
    last = lists.take(np.flatnonzero(believable & late))
    if len(last) < min(_FEW, 0.01 * len(lists)):
        log.warning(
            "only %d of %d sessions end in the last %g days: --test-days takes more of them",
            len(last), len(lists), days,
        )  # fmt: skip
    return early, last
