"""Orders as sets of items, in memory or as mapped files: what co-visitation counts pairs in."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from raysys.storage import is_full_disk

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Baskets:
    """Distinct items of orders, listed by order and by item, with the epoch each came in.

    An epoch is a stretch of time: what lies in baskets by epoch e came in epochs up to e. The
    arrays may be views of mapped files.

    Attributes:
        order_ends: int64[o], where the items of each order end.
        items, epochs: int32[n], uint16[n], order by order.
        item_ends: int64[n_items], where the orders of each item end.
        orders, item_epochs: int32[n], uint16[n], item by item.
    """

    order_ends: npt.NDArray[np.int64]
    items: Int32
    epochs: npt.NDArray[np.uint16]
    item_ends: npt.NDArray[np.int64]
    orders: Int32
    item_epochs: npt.NDArray[np.uint16]

    @classmethod
    def of(cls, orders: npt.NDArray[Any], items: Int32, n_items: int) -> Baskets:
        """In memory, of one epoch; see `CoVisitation.fit`."""
        pairs = distinct_pairs(orders, items, np.zeros(len(items), dtype=np.uint16))
        return cls.by_item(*pairs, n_items, np.empty)

    @classmethod
    def by_item(
        cls,
        order_ends: npt.NDArray[np.int64],
        items: Int32,
        epochs: npt.NDArray[np.uint16],
        n_items: int,
        empty: Callable[..., npt.NDArray[Any]],
    ) -> Baskets:
        """List baskets by item too; `empty(shape, dtype)` gives the arrays to do it in."""
        counts = count_items(items, epochs, np.iinfo(np.uint16).max, n_items)
        item_ends = np.cumsum(counts)
        orders, item_epochs = empty(len(items), np.int32), empty(len(items), np.uint16)
        _transpose(order_ends, items, epochs, item_ends, orders, item_epochs)
        return cls(order_ends, items, epochs, item_ends, orders, item_epochs)

    @classmethod
    def load(cls, folder: Path) -> Baskets:
        """Map what `BasketWriter` wrote."""
        names = [field.name for field in fields(cls)]
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in names))


def distinct_pairs(
    orders: npt.NDArray[Any], items: Int32, epochs: npt.NDArray[np.uint16]
) -> tuple[npt.NDArray[np.int64], Int32, npt.NDArray[np.uint16]]:
    """Each item of each order once, in the epoch in which it came first.

    Args:
        orders, items, epochs: of n events; items below 0 are skipped.

    Returns:
        order_ends, items, epochs as in `Baskets`; orders and items rising.
    """
    known = items >= 0
    orders, items, epochs = _in_order(orders[known], items[known], epochs[known])
    fresh = np.ones(len(orders), dtype=bool)
    fresh[1:] = (np.diff(orders) != 0) | (np.diff(items) != 0)
    orders, items, epochs = orders[fresh], items[fresh], epochs[fresh]
    ends = np.flatnonzero(np.append(np.diff(orders) != 0, True)) + 1 if len(orders) else np.empty(0)
    return ends.astype(np.int64), items.astype(np.int32), epochs


def _in_order(*columns: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Rows by their first column, those equal in it by the second, and so on.

    Columns that fit side by side into 64 bits are sorted as one number a row: four times as fast.
    """
    bits = [int(column.max(initial=0)).bit_length() for column in columns]
    if sum(bits) > 64 or any(column.min(initial=0) < 0 for column in columns):
        place = np.lexsort(columns[::-1])
        return [column[place] for column in columns]
    packed = np.zeros(len(columns[0]), dtype=np.uint64)
    for column, width in zip(columns, bits, strict=True):
        packed = packed << np.uint64(width) | column.astype(np.uint64)
    packed.sort()
    found = []
    for column, width in zip(columns[::-1], bits[::-1], strict=True):
        found.append((packed & np.uint64((1 << width) - 1)).astype(column.dtype))
        packed >>= np.uint64(width)
    return found[::-1]


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

    def add(self, orders: npt.NDArray[Any], items: Int32, epochs: npt.NDArray[np.uint16]) -> None:
        """Events of orders that come in no other call: see `distinct_pairs`."""
        ends, items, epochs = distinct_pairs(orders, items, epochs)
        self._sizes.append(ends + self._count)
        self._count += len(items)
        self._files["items"].write(items.tobytes())
        self._files["epochs"].write(epochs.tobytes())

    def close(self) -> None:
        """Nothing more comes: list them by item too."""
        arrays: list[npt.NDArray[Any]] = []
        for name, kind in (("items", np.int32), ("epochs", np.uint16)):
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
            mapped = np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=(size,))
            _take_room(path)
            return mapped

        baskets = Baskets.by_item(ends, arrays[0], arrays[1], self._n_items, empty)
        for name in ("order_ends", "items", "epochs", "item_ends"):
            fresh = self._folder / f"{name}.tmp.npy"
            np.save(fresh, getattr(baskets, name))
            fresh.replace(self._folder / f"{name}.npy")  # the last one says that all are there
        for name in ("items", "epochs"):
            (self._folder / f"{name}.raw").unlink()


def _take_room(path: Path) -> None:
    """Take a mapped file's room on the disk: a full one would kill the process at some page.

    Raises:
        OSError: the disk is full.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if is_full_disk(error):  # any other: a file system that knows no such call
                raise


@njit(cache=True)
def count_items(items, epochs, epoch, n_items):  # type: ignore[no-untyped-def]
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
