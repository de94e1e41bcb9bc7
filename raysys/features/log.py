"""The event log as columns of numbers, in time order: what tables are fed with."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl


@dataclass(frozen=True)
class EventColumns:
    """n events in time order.

    Attributes:
        user: int32[n]; item: int32[n], -1 where unknown; kind: int8[n], index into EVENT_TYPES;
        time: int64[n], UTC ms; quantity, price: float64[n], NaN where unknown;
        store: int32[n], -1 where unknown; order: int64[n], equal for one basket or session;
        session: int32[n], numbered by first moment, -1 where unknown; query: int32[n], number of
        the normalised text, -1 where there was none; position: int32[n], 1-based rank at which the
        item was shown, 0 where unknown. The last three may be left out: nothing is known then.
    """

    user: npt.NDArray[np.int32]
    item: npt.NDArray[np.int32]
    kind: npt.NDArray[np.int8]
    time: npt.NDArray[np.int64]
    quantity: npt.NDArray[np.float64]
    price: npt.NDArray[np.float64]
    store: npt.NDArray[np.int32]
    order: npt.NDArray[np.int64]
    session: npt.NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    query: npt.NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    position: npt.NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))

    def __post_init__(self) -> None:
        for name, unknown in (("session", -1), ("query", -1), ("position", 0)):
            if len(getattr(self, name)) != len(self.user):  # left out
                object.__setattr__(self, name, np.full(len(self.user), unknown, np.int32))

    def __len__(self) -> int:
        return len(self.user)

    def slice(self, start: int, stop: int) -> EventColumns:
        """Events start … stop-1, as views."""
        return EventColumns(*(getattr(self, each.name)[start:stop] for each in fields(self)))

    def take(self, rows: npt.NDArray[np.int64]) -> EventColumns:
        """The events of the given rows, in the given order, as copies."""
        return EventColumns(*(_taken(getattr(self, each.name), rows) for each in fields(self)))

    def only(self, names: Collection[str]) -> EventColumns:
        """The same events without what no one asks for: other columns are unknown in every row.

        These take no memory, and `slice`, `take` and `concat` do not touch their rows.

        Args:
            names: of the columns that stay as they are.
        """
        return EventColumns(
            **{
                name: getattr(self, name) if name in names else np.broadcast_to(what, len(self))
                for name, what in _UNKNOWN.items()
            }
        )

    @classmethod
    def nothing(cls) -> EventColumns:
        """No event at all."""
        whole, real = np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float64)
        long, kind = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int8)
        return cls(whole, whole, kind, long, real, real, whole, long)

    @classmethod
    def concat(cls, parts: Sequence[EventColumns]) -> EventColumns:
        """Several one after the other."""
        return cls(*(_joined([getattr(p, each.name) for p in parts]) for each in fields(cls)))


_UNKNOWN: Final[dict[str, Any]] = {
    "user": np.int32(-1),
    "item": np.int32(-1),
    "kind": np.int8(0),
    "time": np.int64(0),
    "quantity": np.float64("nan"),
    "price": np.float64("nan"),
    "store": np.int32(-1),
    "order": np.int64(0),
    "session": np.int32(-1),
    "query": np.int32(-1),
    "position": np.int32(0),
}
"""What a column of `EventColumns` has that is left out, in their order."""


def _left_out(column: npt.NDArray[Any]) -> bool:
    """Whether all rows are one place in memory, as `only` has it."""
    return column.strides == (0,)


def _taken(column: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    if _left_out(column) and len(column):
        return np.broadcast_to(column[0], len(rows))
    taken: npt.NDArray[Any] = column[rows]
    return taken


def _joined(columns: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    left_out = all(_left_out(column) and len(column) for column in columns)
    if left_out and len({column[:1].tobytes() for column in columns}) == 1:
        return np.broadcast_to(columns[0][0], sum(len(column) for column in columns))
    return np.concatenate(columns)


def normalised(query: pl.Expr) -> pl.Expr:
    """Texts of queries by which they are one: Unicode NFKC, lower case, single spaces.

    A text without anything but space is none: null.
    """
    text = query.str.normalize("NFKC").str.to_lowercase().str.replace_all(r"\s+", " ")
    text = text.str.strip_chars()
    return pl.when(text.str.len_bytes() > 0).then(text)


def normalised_text(query: str) -> str | None:
    """One text as `normalised` has it."""
    text: str | None = pl.select(normalised(pl.lit(query))).item()
    return text
