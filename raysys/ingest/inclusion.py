"""Samples of distinct items whose every inclusion probability is known.

A draw of size m takes m independent picks from a pool, each with probability q (in proportion to
a weight), and what is picked twice counts once. So P(drawn) is 1 - (1 - q)^m exactly, and which
items come together is chance. A pool of at most m items is drawn whole. Schemes of fixed size are
not used: those with closed probabilities (systematic sampling, Madow 1949) let few items come
together at all, which tells a contrastive loss the positive, and those without (sorting random
keys, Efraimidis and Spirakis 2006) have no closed form for P(drawn).

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
UInt64 = npt.NDArray[np.uint64]


def split(total: int, shares: tuple[float, float, float]) -> tuple[int, int, int]:
    """Whole numbers in proportion to shares, adding up to `total` (largest remainder)."""
    exact = np.array(shares) / np.sum(shares) * total
    sizes = np.floor(exact + 1e-9).astype(int)
    rest = np.argsort(-(exact - sizes), kind="stable")[: total - sizes.sum()]
    sizes[rest] += 1
    return int(sizes[0]), int(sizes[1]), int(sizes[2])


@dataclass(frozen=True)
class Pools:
    """What can be drawn, in g pools side by side, n items in all.

    Attributes:
        item: int64[n], rising within each pool.
        starts: int64[g + 1]; pool i is starts[i] : starts[i + 1].
        probability: float64[n], in (0, 1], of being in a draw from its pool.
        ends: float64[n], cumulative q within each pool; the last of each is 1.
    """

    item: Int64
    starts: Int64
    probability: Float64
    ends: Float64

    @classmethod
    def of(cls, pool: Int64, item: Int64, weight: Float64, n_pools: int, size: int) -> Pools:
        """Pools for draws of `size` picks.

        Args:
            pool: int64[n], rising, number of each row's pool; item: int64[n], rising within
                each; weight: float64[n], above 0.
            n_pools: how many there are, empty ones too.
            size: picks a draw; 0: nothing is ever drawn.
        """
        starts = np.searchsorted(pool, np.arange(n_pools + 1)).astype(np.int64)
        count = np.diff(starts)
        of = np.repeat(np.arange(n_pools), count)
        weight = weight.astype(np.float64)
        q = weight / np.bincount(of, weights=weight, minlength=n_pools)[of]
        probability = -np.expm1(size * np.log1p(-np.minimum(q, 1 - 1e-16)))
        probability[(count <= size)[of]] = 1.0
        return cls(item.astype(np.int64), starts, probability, _lay_out(q, starts))


@njit(cache=True)
def _lay_out(q, starts):  # type: ignore[no-untyped-def]
    """Cumulative q within each pool."""
    ends = np.empty(len(q))
    for pool in range(len(starts) - 1):
        total = 0.0
        for at in range(starts[pool], starts[pool + 1]):
            total += q[at]
            ends[at] = total
        if starts[pool + 1] > starts[pool]:
            ends[starts[pool + 1] - 1] = 1.0  # but for rounding
    return ends


def mix_each(a: UInt64, b: UInt64) -> UInt64:
    """`mix` of two uint64[n]: uint64[n].

    Arithmetic of NumPy's, and no ufunc of numba's: that one is compiled, or loaded, wherever this
    module is imported, which took every process of an ingest more than a second.
    """
    with np.errstate(over="ignore"):
        mixed: UInt64 = mix.py_func(a, b)
    return mixed


@njit(cache=True)
def mix(a, b):  # type: ignore[no-untyped-def]
    """A hash of two uint64 (the finaliser of splitmix64, Steele et al., OOPSLA 2014): uint64."""
    x = a + np.uint64(0x9E3779B97F4A7C15) * (b + np.uint64(1))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True)
def uniform(hashed):  # type: ignore[no-untyped-def]
    """A hash as a number in [0, 1): its upper 53 bits."""
    return np.float64(np.uint64(hashed) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@njit(cache=True)
def draw(key, ends, low, high, size, out):  # type: ignore[no-untyped-def]
    """Draw from the pool low : high; distinct rows into `out`, their number back.

    Args:
        key: uint64, names the draw.
        ends: of the pools; size: picks; out: int64[≥ size].
    """
    if high - low <= size:
        for at in range(low, high):
            out[at - low] = at
        return high - low
    count = 0
    for pick in range(size):
        u = uniform(mix(key, np.uint64(pick)))
        at = low + np.searchsorted(ends[low:high], u, side="right")
        known = False
        for other in range(count):
            known = known or out[other] == at
        if not known:
            out[count] = at
            count += 1
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
    """Draw `size` of the first `count` distinct candidates, each as likely.

    The smallest hashes win, so exactly `size` are drawn, each with probability size / count.

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
        if filled == size and (size == 0 or hashed >= best[size - 1]):
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
