"""The event log as columns of numbers, in time order: what tables are fed with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

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
        return EventColumns(*(getattr(self, each.name)[rows] for each in fields(self)))

    @classmethod
    def nothing(cls) -> EventColumns:
        """No event at all."""
        whole, real = np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float64)
        long, kind = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int8)
        return cls(whole, whole, kind, long, real, real, whole, long)

    @classmethod
    def concat(cls, parts: Sequence[EventColumns]) -> EventColumns:
        """Several one after the other."""
        return cls(
            *(np.concatenate([getattr(p, each.name) for p in parts]) for each in fields(cls))
        )


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
