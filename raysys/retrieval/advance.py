"""Neighbourhoods that go on with new orders, without the old ones.

A score of `CoVisitation` is c / √(n_i n_j) · c / (c + shrinkage), where c orders held both items
and n_i held one. With n_i at hand it says c, exactly, as c is whole. So the counts of all pairs
that are kept can be taken up again; new orders are added, and the best are kept once more. Only
what a pair had while it was among the best of neither of its items is lost: such a pair starts
anew, and ranks lower than it might.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from raysys.retrieval.baskets import Baskets
from raysys.retrieval.covisitation import CoVisitation, keep_best

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

_WHOLE = 0.95  # share of pairs; events that came in late change some counts a little


@dataclass(frozen=True)
class Pairs:
    """In how many orders items lay, and pairs of them: rows of items, both ways round.

    Attributes:
        ends: int64[n_items], where the partners of each item end.
        partner: int32[m], rising within an item.
        together: int32[m], orders that held both.
    """

    ends: Int64
    partner: Int32
    together: Int32


def known_pairs(near: CoVisitation, count: Int64, shrinkage: float) -> Pairs:
    """The counts that the scores of a neighbourhood stand for.

    Args:
        near: fitted with this shrinkage.
        count: int64[n_items], in how many orders each item lay then.
        shrinkage: see `CoVisitation.fit`.

    Raises:
        ValueError: counts that it was not fitted with: hardly a pair comes out whole.
    """
    item, place = np.nonzero(near.neighbours >= 0)
    other = near.neighbours[item, place].astype(np.int64)
    size = np.sqrt(count[item].astype(np.float64) * count[other])
    half = near.scores[item, place].astype(np.float64) * size
    solved = (half + np.sqrt(half * half + 4 * half * shrinkage)) / 2
    together = np.rint(solved).astype(np.int32)
    whole = (together > 0) & (np.abs(solved - together) < 0.02 + 1e-5 * solved)
    if len(whole) and whole.mean() < _WHOLE:
        raise ValueError(
            f"{1 - whole.mean():.0%} of the pairs were not counted in the orders that are there"
        )
    n_items = len(count)
    # what one item keeps of a pair the other may not
    keys = np.concatenate([item * n_items + other, other * n_items + item])
    keys, first = np.unique(keys, return_index=True)
    both = np.concatenate([together, together])[first]
    ends = np.searchsorted(keys, (np.arange(n_items, dtype=np.int64) + 1) * n_items)
    return Pairs(ends.astype(np.int64), (keys % n_items).astype(np.int32), both)


def advance(
    near: CoVisitation,
    count: Int64,
    orders: npt.NDArray[Any],
    items: Int32,
    *,
    k: int,
    min_count: int,
    shrinkage: float,
    max_order: int = 200,
) -> tuple[CoVisitation, Int64]:
    """A neighbourhood with some more orders in it.

    Args:
        near: as it was.
        count: int64[n_items], in how many orders each item lay when it was fitted.
        orders, items: int[n] and int32[n], the order (or session) of each new event and its item,
            below 0 skipped; none of these orders was counted before.
        k, min_count, shrinkage, max_order: see `CoVisitation.fit`; those it was fitted with.

    Returns:
        the new one and its counts; the old one is not changed.

    Raises:
        ValueError: see `known_pairs`.
    """
    known = known_pairs(near, count, shrinkage)
    baskets = Baskets.of(orders, items, len(count))
    fresh = np.diff(baskets.item_ends, prepend=0)
    total = count + fresh
    neighbours = np.full((len(count), k), -1, dtype=np.int32)
    scores = np.zeros((len(count), k), dtype=np.float32)
    _advance(
        *(known.ends, known.partner, known.together),
        *(baskets.order_ends, baskets.items, baskets.item_ends, baskets.orders),
        *(total, min_count, shrinkage, max_order, neighbours, scores),
    )
    return CoVisitation(neighbours, scores), total


@njit(cache=True)
def _advance(  # type: ignore[no-untyped-def]
    ends,
    partner,
    known,
    order_ends,
    items,
    item_ends,
    orders,
    count,
    min_count,
    shrinkage,
    max_order,
    neighbours,
    scores,
):
    """As `covisitation._count_pairs`, beginning with what is known."""
    n_items = len(neighbours)
    together = np.zeros(n_items, dtype=np.int32)
    touched = np.empty(n_items, dtype=np.int64)
    for i in range(n_items):
        n_touched = 0
        if count[i] < min_count:
            continue
        for at in range(ends[i - 1] if i else 0, ends[i]):
            together[partner[at]] = known[at]
            touched[n_touched] = partner[at]
            n_touched += 1
        for at in range(item_ends[i - 1] if i else 0, item_ends[i]):
            order = orders[at]
            start, end = order_ends[order - 1] if order else 0, order_ends[order]
            taken = 0
            if end - start > max_order:
                for row in range(start, end):
                    if items[row] == i or taken == max_order:
                        break
                    taken += count[items[row]] >= min_count
                if taken == max_order:
                    continue
                taken = 0
            for row in range(start, end):
                j = items[row]
                if count[j] < min_count:
                    continue
                taken += 1
                if taken > max_order:
                    break
                if j == i:
                    continue
                if together[j] == 0:
                    touched[n_touched] = j
                    n_touched += 1
                together[j] += 1
        if n_touched == 0:
            continue
        keep_best(i, touched[:n_touched], together, count, shrinkage, neighbours, scores)
