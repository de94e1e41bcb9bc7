"""The items of a shop as columns, numbered densely: item number i is row i."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysys import schema

_TEXT = ("title", "department", "category", "subcategory", "brand", "size", "description")


class Catalogue:
    """Items with dense numbers 0 … n-1, sorted by item_id so that numbers are reproducible.

    Args:
        items: a table in `schema.ITEMS`; the first of several rows with one item_id counts.
    """

    def __init__(self, items: pa.Table) -> None:
        order = pc.sort_indices(items["item_id"])
        items = items.take(order)
        ids = items["item_id"].to_numpy(zero_copy_only=False).astype(object)
        first = np.ones(len(ids), dtype=bool)
        first[1:] = ids[1:] != ids[:-1]
        self.table = items.filter(pa.array(first)).select(schema.ITEMS.names).combine_chunks()
        self._codes: dict[str, tuple[npt.NDArray[np.int32], list[str]]] = {}
        self._told: dict[int, dict[str, object]] = {}

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def ids(self) -> npt.NDArray[np.object_]:
        """item_id of every item: str[n]."""
        return self.table["item_id"].to_numpy(zero_copy_only=False).astype(object)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {item_id: number for number, item_id in enumerate(self.ids)}

    def number(self, item_id: str) -> int | None:
        """The dense number of an item, None if the shop does not have it."""
        return self._numbers.get(item_id)

    def numbers(self, item_ids: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.int32]:
        """Dense numbers of many ids: int32[n], -1 where unknown or null."""
        found = pc.index_in(item_ids, value_set=self.table["item_id"])
        return pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int32)

    def codes(self, column: str) -> tuple[npt.NDArray[np.int32], list[str]]:
        """A categorical column as codes int32[n] (-1: missing) and its sorted labels.

        They are made once, and not to be written to.
        """
        if column not in self._codes:
            values = self.table[column]
            labels = pc.unique(values).drop_null()
            labels = labels.take(pc.sort_indices(labels))
            codes = pc.fill_null(pc.index_in(values, value_set=labels), -1)
            numbers = codes.to_numpy(zero_copy_only=False).astype(np.int32)
            self._codes[column] = numbers, labels.to_pylist()
        return self._codes[column]

    def values(self, column: str) -> npt.NDArray[np.float64]:
        """A numeric column: float64[n], NaN where missing."""
        return self.table[column].to_numpy(zero_copy_only=False).astype(np.float64)

    def row(self, number: int) -> dict[str, object]:
        """Everything known of one item."""
        row: dict[str, object] = self.table.slice(number, 1).to_pylist()[0]
        return row | self._told.get(number, {})

    def tell(self, number: int, words: Mapping[str, object]) -> bool:
        """Let `row` say something else of an item from now on; whether it said otherwise before.

        Columns, codes and texts stay, and so does what `save` writes.
        """
        before = self.row(number)
        self._told[number] = dict(words)
        return before != self.row(number)

    def told(self) -> npt.NDArray[np.int64]:
        """Numbers of the items of which `tell` was told: int64[≤ n]."""
        return np.fromiter(self._told, dtype=np.int64, count=len(self._told))

    @cached_property
    def texts(self) -> list[str]:
        """Each item as one line of text, lower case, most telling words first: str[n]."""
        columns = [self.table[name].to_pylist() for name in _TEXT]
        return [_join(row) for row in zip(*columns, strict=True)]

    def text(self, number: int) -> str:
        """One of `texts`; they need not be made for it."""
        return _join([self.table[name][number].as_py() for name in _TEXT])

    def save(self, path: Path) -> None:
        """Write as one Parquet file."""
        pq.write_table(self.table, path, compression="zstd")

    @classmethod
    def load(cls, path: Path) -> Catalogue:
        """Read what `save` wrote."""
        return cls(pq.read_table(path))


def _join(parts: Sequence[str | None]) -> str:
    """Parts joined by commas without repeating what an earlier part already says."""
    line: list[str] = []
    for part in parts:
        text = " ".join((part or "").lower().split())
        if text and not any(text in earlier for earlier in line):
            line.append(text)
    return ", ".join(line)
