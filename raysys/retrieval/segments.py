"""What sells among users like one: those whose favourite kind of item is the same."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from raysys.retrieval.allowed import Allowed

Int32 = npt.NDArray[np.int32]
Part = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]
"""Users, items (or kinds of items) and how much each user took of each."""


class Segments:
    """Items in order of popularity within segments of users.

    Args:
        segment_of_user: int32[n_users], -1 where nothing is known.
        bought: users, items and amounts, in parts that fit in memory.
        n_items: rows of the catalogue.
        keep: items kept a segment.
    """

    def __init__(
        self, segment_of_user: Int32, bought: Iterable[Part], n_items: int, *, keep: int = 200
    ) -> None:
        self.segment_of_user = segment_of_user
        keys: npt.NDArray[np.int64] = np.empty(0, np.int64)
        sums: npt.NDArray[np.float64] = np.empty(0)
        for users, items, amounts in bought:
            segment = segment_of_user[users].astype(np.int64)
            known = segment >= 0
            keys = np.concatenate([keys, segment[known] * n_items + items[known]])
            keys, place = np.unique(keys, return_inverse=True)
            amounts = np.concatenate([sums, amounts[known]])
            sums = np.bincount(place, amounts, len(keys)).astype(np.float64)
        order = np.lexsort((keys % n_items, -sums, keys // n_items))
        order = order[sums[order] > 0]
        segment = keys[order] // n_items
        item: Int32 = (keys[order] % n_items).astype(np.int32)
        starts = np.flatnonzero(np.diff(segment, prepend=-1))
        ends = np.append(starts, len(segment))[1:]
        self._items: dict[int, Int32] = {
            int(segment[start]): item[start : min(end, start + keep)]
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        }

    def top(self, user: int, allowed: Allowed | None = None) -> Int32:
        """What sells in the segment of a user (-1: unknown), most wanted first: int32[m]."""
        if not 0 <= user < len(self.segment_of_user):
            return np.empty(0, dtype=np.int32)
        items = self._items.get(int(self.segment_of_user[user]))
        if items is None:
            return np.empty(0, dtype=np.int32)
        return items if allowed is None else allowed.keep(items)


def favourites(taken: Iterable[Part], n_users: int) -> Int32:
    """The kind that each user took most of, the lower of equals: int32[n_users], -1: none."""
    best = np.full(n_users, -1, dtype=np.int32)
    most = np.zeros(n_users)
    for users, kinds, amounts in taken:
        order = np.lexsort((kinds, -amounts, users))
        first = order[np.flatnonzero(np.diff(users[order], prepend=-1))]
        user, amount = users[first], amounts[first]
        better = (amount > most[user]) | ((amount == most[user]) & (kinds[first] < best[user]))
        better &= amount > 0
        best[user[better]] = kinds[first][better]
        most[user[better]] = amount[better]
    return best
