"""Which items are promoted where and when: one sorted array, looked up by binary search."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

DISPLAY, MAILER = 1, 2


class Promotions:
    """Promotion flags by (week, store, item).

    Args:
        keys: int64[n], sorted, distinct: (week · n_stores + store) · n_items + item.
        flags: uint8[n], bits DISPLAY and MAILER.
        n_stores: stores that keys are built with.
        n_items: items that keys are built with.
    """

    def __init__(
        self,
        keys: npt.NDArray[np.int64],
        flags: npt.NDArray[np.uint8],
        n_stores: int,
        n_items: int,
    ) -> None:
        self.keys, self.flags = keys, flags
        self.n_stores, self.n_items = n_stores, n_items
        self._per_week = n_stores * n_items
        bounds = keys[[0, -1]] // self._per_week if len(keys) else np.array([0, -1])
        self.first_week, self.last_week = int(bounds[0]), int(bounds[1])

    @classmethod
    def empty(cls) -> Promotions:
        """For shops that tell of none."""
        return cls(np.empty(0, np.int64), np.empty(0, np.uint8), 1, 1)

    @classmethod
    def of_columns(
        cls,
        week: npt.NDArray[np.int64],
        store: npt.NDArray[np.int64],
        item: npt.NDArray[np.int64],
        flags: npt.NDArray[np.uint8],
        n_stores: int,
        n_items: int,
    ) -> Promotions:
        """From columns of equal length; rows with a negative number anywhere are left out."""
        known = (week >= 0) & (store >= 0) & (item >= 0)
        keys = ((week * n_stores + store) * n_items + item)[known]
        order = np.argsort(keys, kind="stable")
        keys, flags = keys[order], flags[known][order]
        first = np.ones(len(keys), dtype=bool)
        first[1:] = keys[1:] != keys[:-1]
        merged = np.bitwise_or.reduceat(flags, np.flatnonzero(first)) if len(keys) else flags
        return cls(keys[first], merged, n_stores, n_items)

    @cached_property
    def _weeks(self) -> npt.NDArray[np.int64]:
        """Weeks of which anything is known, rising."""
        weeks = np.arange(self.first_week, self.last_week + 1)
        ends = np.searchsorted(self.keys, np.append(weeks, weeks[-1:] + 1) * self._per_week)
        return weeks[np.diff(ends) > 0]

    def newest(self, weeks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The newest week of which anything is known, up to each of some: int64[n], -1 for none."""
        place = np.searchsorted(self._weeks, weeks, side="right") - 1
        found: npt.NDArray[np.int64] = np.append(self._weeks, -1)[place]
        return found

    def of(self, items: npt.NDArray[np.int32], store: int, week: int) -> npt.NDArray[np.int16]:
        """Flags of items in one store and week: int16[n], -1 where nothing is known."""
        if store < 0 or not self.first_week <= week <= self.last_week:
            return np.full(len(items), -1, dtype=np.int16)
        base = (week * self.n_stores + store) * self.n_items
        low, high = np.searchsorted(self.keys, [base, base + self.n_items])
        here = self.keys[low:high]
        if not len(here):  # a store whose promotions nobody recorded
            return np.full(len(items), -1, dtype=np.int16)
        wanted = base + items.astype(np.int64)
        at = np.minimum(np.searchsorted(here, wanted), len(here) - 1)
        return np.where(here[at] == wanted, self.flags[low:high][at], 0).astype(np.int16)

    def of_rows(
        self,
        items: npt.NDArray[np.int32],
        stores: npt.NDArray[np.int32],
        weeks: npt.NDArray[np.int32],
    ) -> npt.NDArray[np.int16]:
        """Flags of items, each in its own store and week: int16[n]; see `of`."""
        place = weeks.astype(np.int64) * self.n_stores + stores
        places, inverse = np.unique(place, return_inverse=True)
        ends = np.searchsorted(self.keys, np.concatenate([places, places + 1]) * self.n_items)
        told = ends[: len(places)] < ends[len(places) :]  # stores whose promotions were recorded
        known = (stores >= 0) & (weeks >= self.first_week) & (weeks <= self.last_week)
        out = np.full(len(items), -1, dtype=np.int16)
        rows = np.flatnonzero(known & told[inverse])
        wanted = place[rows] * self.n_items + items[rows]
        at = np.minimum(np.searchsorted(self.keys, wanted), max(0, len(self.keys) - 1))
        out[rows] = np.where(self.keys[at] == wanted, self.flags[at], 0) if len(rows) else 0
        return out

    def between(self, first_week: int, last_week: int) -> Promotions:
        """Only the given weeks, both included."""
        ends = np.array([first_week, last_week + 1]) * self._per_week
        low, high = np.searchsorted(self.keys, ends)
        return Promotions(self.keys[low:high], self.flags[low:high], self.n_stores, self.n_items)

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        sizes = np.array([self.n_stores, self.n_items], dtype=np.int64)
        arrays = {"keys": self.keys, "flags": self.flags, "sizes": sizes}
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)

    @classmethod
    def load(cls, path: Path) -> Promotions:
        """Read what `save` wrote."""
        arrays = load_file(path)
        return cls(arrays["keys"], arrays["flags"], *(int(n) for n in arrays["sizes"]))
