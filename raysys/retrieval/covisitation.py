"""Items bought together: the nearest neighbours of each item by cosine over orders.

Item-based collaborative filtering (Sarwar et al. 2001) with the shrinkage of Bell and Koren
(2007): cos(i, j) = n_ij / sqrt(n_i n_j) · n_ij / (n_ij + shrinkage).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit
from safetensors.numpy import load_file, save_file

from raysys.retrieval.allowed import Allowed
from raysys.retrieval.baskets import Baskets, count_items
from raysys.retrieval.sorting import ascending, largest

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]


class CoVisitation:
    """Neighbours of every item, best first.

    Attributes:
        neighbours: int32[n_items, k], -1 beyond the last.
        scores: float32[n_items, k], in (0, 1].
    """

    def __init__(self, neighbours: Int32, scores: Float32) -> None:
        self.neighbours = neighbours
        self.scores = scores

    @classmethod
    def fit(
        cls,
        orders: npt.NDArray[Any],
        items: Int32,
        n_items: int,
        *,
        k: int = 30,
        min_count: int = 4,
        shrinkage: float = 5.0,
        max_order: int = 200,
    ) -> CoVisitation:
        """Count pairs within orders.

        Args:
            orders: int[n], the order (or session) of each event.
            items: int32[n], its item; below 0 is skipped.
            n_items: rows of the result.
            k: neighbours kept an item.
            min_count: orders an item needs to have neighbours or be one.
            shrinkage: pairs seen this often count half.
            max_order: items beyond this in one order are skipped (wholesale buyers, robots).
        """
        baskets = Baskets.of(orders, items, n_items)
        return cls.fit_baskets(
            baskets, 0, k=k, min_count=min_count, shrinkage=shrinkage, max_order=max_order
        )

    @classmethod
    def fit_baskets(
        cls,
        baskets: Baskets,
        epoch: int,
        *,
        k: int = 30,
        min_count: int = 4,
        shrinkage: float = 5.0,
        max_order: int = 200,
    ) -> CoVisitation:
        """Count pairs within the baskets as they were by an epoch; see `fit`."""
        n_items = len(baskets.item_ends)
        neighbours = np.full((n_items, k), -1, dtype=np.int32)
        scores = np.zeros((n_items, k), dtype=np.float32)
        count = count_items(baskets.items, baskets.epochs, epoch, n_items)
        _count_pairs(
            *(baskets.order_ends, baskets.items, baskets.epochs),
            *(baskets.item_ends, baskets.orders, baskets.item_epochs),
            *(epoch, count, min_count, shrinkage, max_order, neighbours, scores),
        )
        return cls(neighbours, scores)

    def near(
        self, seeds: Int32, limit: int, allowed: Allowed | None = None
    ) -> tuple[Int32, Float32]:
        """Items near several seeds, best first, seeds left out.

        Args:
            seeds: int32[s].
            limit: most items.
            allowed: the only items that may be found; None: all.

        Returns:
            int32[m] and their summed scores float32[m], m ≤ limit.
        """
        if not len(seeds):
            return np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32)
        seeds = np.asarray(seeds, dtype=np.int32)
        if allowed is None:
            return _near(seeds, self.neighbours, self.scores, limit)
        every = len(seeds) * self.neighbours.shape[1]
        items, scores = _near(seeds, self.neighbours, self.scores, every)
        kept = allowed.items[items]
        return items[kept][:limit], scores[kept][:limit]

    def offer_requests(
        self,
        seeds: Int32,
        seed_ends: npt.NDArray[np.int64],
        requests: npt.NDArray[np.int64],
        fill: Int32,
        out: Int32,
    ) -> None:
        """What some requests would be offered, best first: items `near` theirs, then the `fill`.

        Args:
            seeds: int32[s], items of all requests; seed_ends: int64[r], where those of each end.
            requests: int64[q], those to do.
            fill: int32[f], what follows the neighbours, as far as it is neither of them nor a seed.
            out: int32[r, limit], -1 in the rows of these requests.
        """
        _offer_requests(seeds, seed_ends, requests, self.neighbours, self.scores, fill, out)

    def score(self, seeds: Int32, items: Int32) -> Float32:
        """Summed score of each item with the seeds (its own neighbourhood left out): float32[n]."""
        return _score(seeds, items, self.neighbours, self.scores)

    def score_requests(
        self,
        seeds: Int32,
        seed_ends: npt.NDArray[np.int64],
        items: Int32,
        row_ends: npt.NDArray[np.int64],
        first: int,
        last: int,
        out: Float32,
    ) -> None:
        """`score` for the rows of many requests, into `out`.

        Args:
            seeds: int32[s]; seed_ends: int64[r], where those of each request end;
            items: int32[n]; row_ends: int64[r], where the rows of each request end;
            first, last: score requests first … last - 1.
            out: float32[n], 0 in the rows of these requests.
        """
        _score_requests(
            seeds, seed_ends, items, row_ends, first, last, self.neighbours, self.scores, out
        )

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        save_file({"neighbours": self.neighbours, "scores": self.scores}, path)

    @classmethod
    def load(cls, path: Path) -> CoVisitation:
        """Read what `save` wrote."""
        arrays = load_file(path)
        return cls(arrays["neighbours"], arrays["scores"])


@njit(cache=True)
def keep_best(  # type: ignore[no-untyped-def]
    i, touched, together, count, shrinkage, neighbours, scores
):
    """Write the nearest of an item's partners, and clear their counts.

    Args:
        i: the item.
        touched: int64[m], its partners in any order, at least one.
        together: int32[n_items], orders that held both; 0 at the partners afterwards.
        count: int[n_items], orders that held each.
        shrinkage: see `CoVisitation.fit`.
        neighbours, scores: int32 and float32[n_items, k], row i is written.
    """
    k = neighbours.shape[1]
    cosine = np.empty(len(touched), dtype=np.float32)
    for t in range(len(touched)):
        both = together[touched[t]]
        together[touched[t]] = 0
        cosine[t] = both / np.sqrt(count[i] * count[touched[t]]) * both / (both + shrinkage)
    found = touched
    if len(touched) > k:  # order only what may be among the best; of equals the first items are
        least = largest(cosine, k)
        kept = cosine >= least
        found, cosine = found[kept], cosine[kept]
    order = ascending(found)
    found, cosine = found[order], cosine[order]
    best = ascending(-cosine)[:k]
    for place in range(len(best)):
        neighbours[i, place] = found[best[place]]
        scores[i, place] = cosine[best[place]]


@njit(cache=True)
def _count_pairs(  # type: ignore[no-untyped-def]
    order_ends,
    items,
    epochs,
    item_ends,
    orders,
    item_epochs,
    epoch,
    count,
    min_count,
    shrinkage,
    max_order,
    neighbours,
    scores,
):
    n_items = len(neighbours)
    together = np.zeros(n_items, dtype=np.int32)
    often = count >= min_count  # bytes: they stay in the cache
    touched = np.empty(n_items, dtype=np.int64)
    for i in range(n_items):
        n_touched = 0
        if not often[i]:
            continue
        for at in range(item_ends[i - 1] if i else 0, item_ends[i]):
            if item_epochs[at] > epoch:
                continue
            order = orders[at]
            start, end = order_ends[order - 1] if order else 0, order_ends[order]
            taken = 0
            if end - start > max_order:  # few are: does it count for this item itself?
                for row in range(start, end):
                    if items[row] == i or taken == max_order:
                        break
                    taken += epochs[row] <= epoch and often[items[row]]
                if taken == max_order:
                    continue
                taken = 0
            for row in range(start, end):
                j = items[row]
                if epochs[row] > epoch or not often[j]:
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


@njit(cache=True)
def _score(seeds, items, neighbours, scores):  # type: ignore[no-untyped-def]
    out = np.zeros(len(items), dtype=np.float32)
    order = ascending(items)
    ranked = items[order]
    for seed in seeds:
        for place in range(neighbours.shape[1]):
            j = neighbours[seed, place]
            if j < 0:
                break
            at = np.searchsorted(ranked, j)
            while at < len(ranked) and ranked[at] == j:
                out[order[at]] += scores[seed, place]
                at += 1
    return out


@njit(cache=True)
def _score_requests(  # type: ignore[no-untyped-def]
    seeds, seed_ends, items, row_ends, first, last, neighbours, scores, out
):
    for request in range(first, last):
        low = row_ends[request - 1] if request else 0
        begin = seed_ends[request - 1] if request else 0
        high, end = row_ends[request], seed_ends[request]
        out[low:high] = _score(seeds[begin:end], items[low:high], neighbours, scores)


@njit(cache=True)
def _near(seeds, neighbours, scores, limit):  # type: ignore[no-untyped-def]
    size = 0
    found = np.empty(len(seeds) * neighbours.shape[1], dtype=np.int32)
    given = np.empty(len(found), dtype=np.float32)
    for seed in seeds:
        for place in range(neighbours.shape[1]):
            if neighbours[seed, place] >= 0:
                found[size] = neighbours[seed, place]
                given[size] = scores[seed, place]
                size += 1
    order = ascending(found[:size])  # scores of an item add up in seed order
    items = np.empty(size, dtype=np.int32)
    sums = np.empty(size, dtype=np.float64)
    n = 0
    for at in order:
        if n and items[n - 1] == found[at]:
            sums[n - 1] += given[at]
        else:
            items[n] = found[at]
            sums[n] = given[at]
            n += 1
    fresh = np.ones(n, dtype=np.bool_)
    for seed in seeds:
        at = np.searchsorted(items[:n], seed)
        if at < n and items[at] == seed:
            fresh[at] = False
    kept_items, kept = items[:n][fresh], sums[:n][fresh]
    best = ascending(-kept)[:limit]
    return kept_items[best], kept[best].astype(np.float32)


@njit(cache=True)
def _offer_requests(  # type: ignore[no-untyped-def]
    seeds, seed_ends, requests, neighbours, scores, fill, out
):
    limit = out.shape[1]
    taken = np.full(len(neighbours), -1, dtype=np.int64)  # the last request that has the item
    for request in requests:
        mine = seeds[seed_ends[request - 1] if request else 0 : seed_ends[request]]
        near, _ = _near(mine, neighbours, scores, limit)
        n = len(near)
        out[request, :n] = near
        taken[near] = request
        for seed in mine:
            taken[seed] = request
        for item in fill:
            if n == limit:
                break
            if taken[item] != request:
                out[request, n] = item
                n += 1
