"""Samples without replacement whose every inclusion probability is known.

Systematic sampling with probabilities proportional to size (Madow, Annals of Mathematical
Statistics 1949): weights are scaled to inclusion probabilities π that add up to the sample's
size m, laid end to end on a line of length m, and one uniform number u picks what lies at
u, u + 1, …, u + m - 1. Nothing is longer than 1, so nothing is picked twice, and P(picked) is π
exactly. One number and m binary searches a draw; weighted sampling by sorting random keys would
cost a pass over the pool a draw, and its inclusion probabilities have no closed form.

Random numbers are hashes of names (an event's id, a seed), so a draw depends neither on the order
of rows nor on what else is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pools:
    """What can be drawn, in g pools side by side, n items in all.

    Attributes:
        item: int64[n], rising within each pool.
        starts: int64[g + 1]; pool i is starts[i] : starts[i + 1].
        probability: float64[n], in (0, 1], of being in a draw from its pool.
        ends: float64[n], where each item's stretch of its pool's line ends.
    """

    item: Int64
    starts: Int64
    probability: Float64
    ends: Float64

    @classmethod
    def of(cls, pool: Int64, item: Int64, weight: Float64, n_pools: int, size: int) -> Pools:
        """Pools for draws of `size` items; those that have no more are drawn whole.

        Args:
            pool: int64[n], rising, number of each row's pool; item: int64[n], rising within
                each; weight: float64[n], above 0.
            n_pools: how many there are, empty ones too.
            size: items a draw.
        """
        starts = np.searchsorted(pool, np.arange(n_pools + 1)).astype(np.int64)
        probability, ends = _lay_out(weight.astype(np.float64), starts, size)
        return cls(item.astype(np.int64), starts, probability, ends)


@njit(cache=True)
def _lay_out(weight, starts, size):  # type: ignore[no-untyped-def]
    """Inclusion probabilities and the ends of their stretches; what would exceed 1 is certain."""
    probability = np.zeros(len(weight))
    ends = np.zeros(len(weight))
    for g in range(len(starts) - 1):
        low, high = starts[g], starts[g + 1]
        if size == 0:
            continue
        if high - low <= size:
            probability[low:high] = 1.0
        else:
            order = np.argsort(-weight[low:high]) + low
            # the heaviest are certain as long as their share of what is left is more than one;
            # summed from the lightest on, so that nothing is lost to rounding
            left = np.zeros(len(order) + 1)
            for at in range(len(order) - 1, -1, -1):
                left[at] = left[at + 1] + weight[order[at]]
            certain = 0
            while certain < size and (size - certain) * weight[order[certain]] >= left[certain]:
                probability[order[certain]] = 1.0
                certain += 1
            for at in range(certain, len(order)):
                if certain < size:
                    share = weight[order[at]] / left[certain]
                    probability[order[at]] = (size - certain) * share
        total = 0.0
        for at in range(low, high):
            total += probability[at]
            ends[at] = total
        if high > low:
            ends[high - 1] = np.rint(total)  # a whole number but for rounding
    return probability, ends


@njit(cache=True)
def mix(a, b):  # type: ignore[no-untyped-def]
    """A hash of two uint64 (the finaliser of splitmix64, Steele et al., OOPSLA 2014): uint64."""
    x = np.uint64(a) + np.uint64(0x9E3779B97F4A7C15) * (np.uint64(b) + np.uint64(1))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True)
def uniform(hashed):  # type: ignore[no-untyped-def]
    """A hash as a number in [0, 1): its upper 53 bits."""
    return np.float64(np.uint64(hashed) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@njit(cache=True)
def draw(u, ends, low, high, out):  # type: ignore[no-untyped-def]
    """Draw from the pool low : high with one uniform number; rows into `out`, their number back.

    `out` needs room for the size that the pools were made for.
    """
    count = 0
    if high <= low:
        return count
    size = np.int64(np.rint(ends[high - 1]))
    at = low
    for step in range(size):
        at = at + np.searchsorted(ends[at:high], u + step, side="right")
        if at >= high:  # u + step fell into what rounding left of the last stretch
            at = high - 1
        out[count] = at
        count += 1
        at += 1
        if at >= high:
            break
    return count


@njit(cache=True)
def probability_of(item, items, probability, low, high):  # type: ignore[no-untyped-def]
    """Inclusion probability of an item in the pool low : high, 0 where it is not in it."""
    at = low + np.searchsorted(items[low:high], item)
    if at < high and items[at] == item:
        return probability[at]
    return 0.0


@njit(cache=True)
def draw_evenly(key, candidates, names, count, size, out):  # type: ignore[no-untyped-def]
    """Draw `size` of the first `count` candidates, each as likely: the smallest hashes win.

    Args:
        key: uint64, names the draw.
        candidates: int64, numbers of items.
        names: uint64[n_items], hash of each item's name: what the draw is by, not its number.
        out: receives which of the candidates (0 … count-1); returns how many.
    """
    if count <= size:
        for at in range(count):
            out[at] = at
        return count
    best = np.empty(size, dtype=np.uint64)
    filled = 0
    for at in range(count):
        hashed = mix(key, names[candidates[at]])
        if filled == size and hashed >= best[size - 1]:
            continue
        place = filled if filled < size else size - 1
        while place > 0 and best[place - 1] > hashed:
            best[place] = best[place - 1]
            out[place] = out[place - 1]
            place -= 1
        best[place] = hashed
        out[place] = at
        filled = min(filled + 1, size)
    return filled
