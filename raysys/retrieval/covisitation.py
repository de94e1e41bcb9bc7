"""Items bought together: the nearest neighbours of each item by cosine over orders.

Item-based collaborative filtering (Sarwar et al. 2001) with the shrinkage of Bell and Koren
(2007): cos(i, j) = n_ij / sqrt(n_i n_j) · n_ij / (n_ij + shrinkage).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit
from safetensors.numpy import load_file, save_file

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Baskets:
    """Distinct items of orders, listed by order and by item, with the epoch each came in.

    An epoch is a stretch of time: what lies in baskets by epoch e came in epochs up to e. The
    arrays may be views of mapped files.

    Attributes:
        order_ends: int64[o], where the items of each order end.
        items, epochs: int32[n], uint8[n], order by order.
        item_ends: int64[n_items], where the orders of each item end.
        orders, item_epochs: int32[n], uint8[n], item by item.
    """

    order_ends: npt.NDArray[np.int64]
    items: Int32
    epochs: npt.NDArray[np.uint8]
    item_ends: npt.NDArray[np.int64]
    orders: Int32
    item_epochs: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, orders: npt.NDArray[Any], items: Int32, n_items: int) -> Baskets:
        """In memory, of one epoch; see `CoVisitation.fit`."""
        pairs = distinct_pairs(orders, items, np.zeros(len(items), dtype=np.uint8))
        return cls.by_item(*pairs, n_items, np.empty)

    @classmethod
    def by_item(
        cls,
        order_ends: npt.NDArray[np.int64],
        items: Int32,
        epochs: npt.NDArray[np.uint8],
        n_items: int,
        empty: Callable[..., npt.NDArray[Any]],
    ) -> Baskets:
        """List baskets by item too; `empty(shape, dtype)` gives the arrays to do it in."""
        counts = _count_items(items, epochs, 255, n_items)
        item_ends = np.cumsum(counts)
        orders, item_epochs = empty(len(items), np.int32), empty(len(items), np.uint8)
        _transpose(order_ends, items, epochs, item_ends, orders, item_epochs)
        return cls(order_ends, items, epochs, item_ends, orders, item_epochs)

    @classmethod
    def load(cls, folder: Path) -> Baskets:
        """Map what `BasketWriter` wrote."""
        names = [field.name for field in fields(cls)]
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in names))


def distinct_pairs(
    orders: npt.NDArray[Any], items: Int32, epochs: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.int64], Int32, npt.NDArray[np.uint8]]:
    """Each item of each order once, in the epoch in which it came first.

    Args:
        orders, items, epochs: of n events; items below 0 are skipped.

    Returns:
        order_ends, items, epochs as in `Baskets`; orders and items rising.
    """
    known = items >= 0
    orders, items, epochs = orders[known], items[known], epochs[known]
    place = np.lexsort((epochs, items, orders))
    orders, items, epochs = orders[place], items[place], epochs[place]
    fresh = np.ones(len(orders), dtype=bool)
    fresh[1:] = (np.diff(orders) != 0) | (np.diff(items) != 0)
    orders, items, epochs = orders[fresh], items[fresh], epochs[fresh]
    ends = np.flatnonzero(np.append(np.diff(orders) != 0, True)) + 1 if len(orders) else np.empty(0)
    return ends.astype(np.int64), items.astype(np.int32), epochs


class BasketWriter:
    """Baskets of a log that does not fit in memory, as files that `Baskets.load` maps.

    Args:
        folder: to write into.
        n_items: rows of the catalogue.
    """

    def __init__(self, folder: Path, n_items: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._n_items = folder, n_items
        self._sizes: list[npt.NDArray[np.int64]] = []
        self._count = 0
        self._files = {name: (folder / f"{name}.raw").open("wb") for name in ("items", "epochs")}

    def add(self, orders: npt.NDArray[Any], items: Int32, epochs: npt.NDArray[np.uint8]) -> None:
        """Events of orders that come in no other call: see `distinct_pairs`."""
        ends, items, epochs = distinct_pairs(orders, items, epochs)
        self._sizes.append(ends + self._count)
        self._count += len(items)
        self._files["items"].write(items.tobytes())
        self._files["epochs"].write(epochs.tobytes())

    def close(self) -> None:
        """Nothing more comes: list them by item too."""
        arrays: list[npt.NDArray[Any]] = []
        for name, kind in (("items", np.int32), ("epochs", np.uint8)):
            self._files[name].close()
            raw = self._folder / f"{name}.raw"
            mapped = np.memmap(raw, dtype=kind, mode="r") if self._count else np.empty(0, kind)
            arrays.append(mapped)
        ends = np.concatenate([*self._sizes, np.empty(0, np.int64)])
        made = iter(("orders", "item_epochs"))

        def empty(size: int, kind: type) -> npt.NDArray[Any]:
            path = self._folder / f"{next(made)}.npy"
            if not size:
                np.save(path, np.empty(0, kind))
                return np.empty(0, kind)
            return np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=(size,))

        baskets = Baskets.by_item(ends, arrays[0], arrays[1], self._n_items, empty)
        for name in ("order_ends", "items", "epochs", "item_ends"):
            np.save(self._folder / f"{name}.npy", getattr(baskets, name))
        for name in ("items", "epochs"):
            (self._folder / f"{name}.raw").unlink()


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
        count = _count_items(baskets.items, baskets.epochs, epoch, n_items)
        _count_pairs(
            *(baskets.order_ends, baskets.items, baskets.epochs),
            *(baskets.item_ends, baskets.orders, baskets.item_epochs),
            *(epoch, count, min_count, shrinkage, max_order, neighbours, scores),
        )
        return cls(neighbours, scores)

    def near(self, seeds: Int32, limit: int) -> tuple[Int32, Float32]:
        """Items near several seeds, best first, seeds left out.

        Returns:
            int32[m] and their summed scores float32[m], m ≤ limit.
        """
        if not len(seeds):
            return np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32)
        return _near(seeds, self.neighbours, self.scores, limit)

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
def _count_items(items, epochs, epoch, n_items):  # type: ignore[no-untyped-def]
    """In how many baskets each item lies by an epoch: int64[n_items]."""
    count = np.zeros(n_items, dtype=np.int64)
    for row in range(len(items)):
        if epochs[row] <= epoch:
            count[items[row]] += 1
    return count


@njit(cache=True)
def _transpose(order_ends, items, epochs, item_ends, orders, item_epochs):  # type: ignore[no-untyped-def]
    place = np.empty(len(item_ends), dtype=np.int64)
    for i in range(len(item_ends)):
        place[i] = item_ends[i - 1] if i else 0
    row = 0
    for order in range(len(order_ends)):
        while row < order_ends[order]:
            at = place[items[row]]
            orders[at] = order
            item_epochs[at] = epochs[row]
            place[items[row]] += 1
            row += 1


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
    n_items, k = neighbours.shape
    together = np.zeros(n_items, dtype=np.int32)
    touched = np.empty(n_items, dtype=np.int64)
    for i in range(n_items):
        n_touched = 0
        if count[i] < min_count:
            continue
        for at in range(item_ends[i - 1] if i else 0, item_ends[i]):
            if item_epochs[at] > epoch:
                continue
            order = orders[at]
            taken = 0
            for row in range(order_ends[order - 1] if order else 0, order_ends[order]):
                j = items[row]
                if epochs[row] > epoch or count[j] < min_count:
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
        cosine = np.empty(n_touched, dtype=np.float32)
        for t in range(n_touched):
            both = together[touched[t]]
            together[touched[t]] = 0
            cosine[t] = both / np.sqrt(count[i] * count[touched[t]]) * both / (both + shrinkage)
        found = touched[:n_touched]
        if n_touched > k:  # order only what may be among the best; of equals the first items are
            least = np.partition(cosine, n_touched - k)[n_touched - k]
            kept = cosine >= least
            found, cosine = found[kept], cosine[kept]
        order = np.argsort(found)
        found, cosine = found[order], cosine[order]
        best = np.argsort(-cosine, kind="mergesort")[:k]
        for place in range(len(best)):
            neighbours[i, place] = found[best[place]]
            scores[i, place] = cosine[best[place]]


@njit(cache=True)
def _score(seeds, items, neighbours, scores):  # type: ignore[no-untyped-def]
    out = np.zeros(len(items), dtype=np.float32)
    order = np.argsort(items)
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
    order = np.argsort(found[:size], kind="mergesort")  # scores of an item add up in seed order
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
    best = np.argsort(-kept, kind="mergesort")[:limit]
    return kept_items[best], kept[best].astype(np.float32)
