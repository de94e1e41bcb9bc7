"""Keys of state: up to three numbers of an event or a candidate as one int64.

A key is a number in mixed radix: `(first · n₂ + second) · n₃ + third`, where n is how many numbers
the column can have. A table keyed by nothing has one record, key 0: everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from raysys.errors import UserError

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

CODES = ("department", "category", "subcategory", "brand", "manufacturer")
"""Columns of the catalogue that keys can have: the item's code stands for it."""

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
_EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday; Monday is 0
_LARGEST = np.iinfo(np.int64).max
_MANY = 1 << 31  # sessions never end: as many as an int32 can number


def made_of(column: str) -> str:
    """The column of an event or candidate that a column of keys is made of."""
    if column in CODES:
        return "item"
    return "time" if column in ("hour", "weekday") else column


class Rows(Protocol):
    """What keys are made of: `EventColumns`, or the candidates of requests.

    Each array has a number for every row, or one that all rows share.
    """

    @property
    def user(self) -> Int32:
        """Number, -1 unknown."""
        ...

    @property
    def item(self) -> Int32:
        """Number, -1 unknown."""
        ...

    @property
    def time(self) -> Int64:
        """UTC ms."""
        ...

    @property
    def store(self) -> Int32:
        """Number, -1 unknown."""
        ...

    @property
    def session(self) -> Int32:
        """Number, -1 unknown."""
        ...

    @property
    def query(self) -> Int32:
        """Number, -1 unknown."""
        ...


class KeySpace:
    """Makes the keys of all state of a plan.

    Args:
        codes: int32[n_items] by column of the catalogue, -1 where missing.
        sizes: how many users, items, stores and queries there are.
    """

    def __init__(self, codes: Mapping[str, Int32], sizes: Mapping[str, int]) -> None:
        self.codes = codes
        fans = {name: int(code.max(initial=-1)) + 1 for name, code in codes.items()}
        fans |= {**sizes, "session": _MANY, "weekday": 7, "hour": 24}
        # two at least, as a table whose keys have one part cannot list their members
        self.fans = {name: max(2, fan) for name, fan in fans.items()}

    def check(self, name: str, columns: Sequence[str]) -> None:
        """Raise UserError where the keys of state `name` do not fit into an int64."""
        many = 1
        for column in columns:
            many *= self.fans[column]
        if many - 1 > _LARGEST:
            sizes = " × ".join(f"{self.fans[column]:,} ({column})" for column in columns)
            raise UserError(
                f"keys [{', '.join(columns)}] would need {sizes} numbers, more than 63 bits hold",
                where=f"plan: {name}",
                mend="key by fewer columns; a session has one user already",
            )

    def of(
        self, columns: Sequence[str], rows: Rows, parts: dict[str, Int64] | None = None
    ) -> Int64:
        """Keys of rows: int64[n], or int64[1] where all rows share it; -1 where a part is unknown.

        Args:
            columns: of the key.
            rows: n of them.
            parts: of the same rows that are made already, by column; grows.

        Raises:
            OverflowError: a number beyond those that keys were made for.
        """
        if not columns:
            return np.zeros(1, dtype=np.int64)
        parts = {} if parts is None else parts
        for column in columns:
            if column not in parts:
                parts[column] = self.part(column, rows)
        keys = lowest = parts[columns[0]]
        for column in columns[1:]:
            part = parts[column]
            beyond = column not in self.codes and int(part.max(initial=-1)) >= self.fans[column]
            if beyond:  # codes are what the fans were counted from
                raise OverflowError(f"{column} {int(part.max())} of {self.fans[column]}")
            keys = keys * self.fans[column] + part
            lowest = np.minimum(lowest, part)
        return np.where(lowest >= 0, keys, -1)

    def part(self, column: str, rows: Rows) -> Int64:
        """One column of keys: int64[n] or int64[1], -1 where unknown."""
        if column in self.codes:
            codes = self.codes[column]
            if not len(codes):
                return np.full(len(rows.item), -1, dtype=np.int64)
            return np.where(rows.item >= 0, codes[rows.item], -1).astype(np.int64)
        if column == "hour":
            return rows.time // _HOUR_MS % 24
        if column == "weekday":
            return (rows.time // _DAY_MS + _EPOCH_WEEKDAY) % 7
        number: Int32 = getattr(rows, column)
        return number.astype(np.int64)
