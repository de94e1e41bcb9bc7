"""Folds over any rows: by time, by group (query, user, session), purged where labels overlap.

A label is known only when its window is over. A row of the fitted side whose window reaches into
the time of the scored side has heard of it, and so has one in the other direction; such rows are
left out of the fit (López de Prado, "Advances in Financial Machine Learning", 2018, chapter 7).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def folds_by_time(moment: Int64, folds: int) -> Int64:
    """The fold 0 … folds-1 of every row, int64[n]: blocks of time of about equal size.

    Rows of one moment share a fold; there are fewer folds than asked for where there are fewer
    moments, and none of those there are is empty.

    Args:
        moment: int64[n], in any order and any unit.
        folds: how many.

    Raises:
        ValueError: fewer than one fold.
    """
    if folds < 1:
        raise ValueError(f"{folds} folds")
    if not len(moment):
        return np.zeros(0, dtype=np.int64)
    order = np.argsort(moment, kind="stable")
    place = np.empty(len(moment), dtype=np.int64)
    place[order] = np.arange(len(moment)) * folds // len(moment)
    _, same = np.unique(moment, return_inverse=True)
    earliest = np.full(same.max() + 1, folds, dtype=np.int64)
    np.minimum.at(earliest, same, place)
    return np.unique(earliest[same], return_inverse=True)[1].astype(np.int64)


def folds_by_group(group: npt.NDArray[np.integer], folds: int, seed: int = 0) -> Int64:
    """The fold 0 … folds-1 of every row, int64[n]: all rows of a group in one, sizes alike.

    Groups come in random order, the large ones first, each into the fold that is smallest so far;
    so no fold is larger than the smallest by more than the largest group.

    Args:
        group: int[n], the query, user or session of each row; a negative number is a group of
            its own, as for users that nobody knows.
        folds: how many.
        seed: of the order of groups.

    Raises:
        ValueError: fewer groups than folds.
    """
    group = group.astype(np.int64)
    strangers = group < 0
    own = group.max(initial=0) + 1 + np.arange(len(group))
    names, member, sizes = np.unique(
        np.where(strangers, own, group), return_inverse=True, return_counts=True
    )
    if not 1 <= folds <= len(names):
        raise ValueError(f"{len(names)} groups cannot be cut into {folds} folds")
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    filled = np.zeros(folds, dtype=np.int64)
    fold = np.empty(len(names), dtype=np.int64)
    for name in order.tolist():
        smallest = int(np.argmin(filled))
        fold[name] = smallest
        filled[smallest] += sizes[name]
    return fold[member]


def clear_of(scored: Mask, start: Int64, end: Int64, embargo: int = 0) -> Mask:
    """Rows that may be fitted on when those of `scored` are scored: bool[n].

    Args:
        scored: bool[n].
        start: int64[n], when each row happened.
        end: int64[n], when its label was settled; not before `start`.
        embargo: rows that begin no later than this after the end of a scored row are left out as
            well: what is slow to fade would tell of it.

    Raises:
        ValueError: a label that is settled before its row happened.
    """
    if (end < start).any():
        raise ValueError("a label cannot be settled before its row")
    fitted = ~scored
    if not scored.any():
        return fitted
    order = np.argsort(start[scored], kind="stable")
    begins, ends = start[scored][order], np.maximum.accumulate((end + embargo)[scored][order])
    # of the scored rows that begin before this one is settled: does any last until it begins?
    before = np.searchsorted(begins, end, side="right") - 1
    overlap = (before >= 0) & (ends[np.maximum(before, 0)] >= start)
    return fitted & ~overlap


def cross_folds(
    fold: Int64, start: Int64 | None = None, window: int = 0, embargo: int = 0
) -> Iterator[tuple[Int64, Int64]]:
    """For every fold the rows to fit on and those to score, int64 each, purged.

    Args:
        fold: int64[n], from `folds_by_time` or `folds_by_group`.
        start: int64[n], when each row happened; None: rows have no time, nothing is purged.
        window: how long after its moment a label may still change; 0: it is settled at once, and
            nothing is purged but what happened in the scored rows' embargo.
        embargo: see `clear_of`.
    """
    for number in np.unique(fold):
        scored = fold == number
        kept = ~scored
        if start is not None and (window or embargo):
            kept = clear_of(scored, start, start + window, embargo)
        yield np.flatnonzero(kept), np.flatnonzero(scored)
