"""What is kept of each user beside the state by key: last store, last moment, last session."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raysys.features.log import EventColumns

_NEVER: Final = -(1 << 62)  # ms
_EMPTY: Final[dict[str, tuple[type, int]]] = {
    "store": (np.int32, -1),
    "store_time": (np.int64, 0),
    "seen": (np.int64, _NEVER),
    "session": (np.int32, -1),
}


class OfUsers:
    """Arrays over users, with room for new ones.

    Args:
        n: users.

    Attributes:
        store: int32[n], number of the store that a user was in last, -1 unknown.
        seen: int64[n], UTC ms of a user's newest event.
        session: int32[n], number of the session of that event, -1 unknown.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._arrays: dict[str, npt.NDArray[Any]] = {
            name: np.full(n, empty, dtype=dtype) for name, (dtype, empty) in _EMPTY.items()
        }

    @property
    def store(self) -> npt.NDArray[np.int32]:
        """See above."""
        return self._arrays["store"]

    @property
    def seen(self) -> npt.NDArray[np.int64]:
        """See above."""
        return self._arrays["seen"]

    @property
    def session(self) -> npt.NDArray[np.int32]:
        """See above."""
        return self._arrays["session"]

    def met(self, user: int) -> bool:
        """Whether there was an event of a user."""
        return 0 <= user < self._n and bool(self.seen[user] > _NEVER)

    def grow(self, n: int) -> None:
        """Make room for so many users."""
        held = len(self.store)
        if n > held:
            for name, (dtype, empty) in _EMPTY.items():
                room: npt.NDArray[Any] = np.full(max(n, 2 * held, 64), empty, dtype=dtype)
                room[:held] = self._arrays[name]
                self._arrays[name] = room
        self._n = n

    def note(self, events: EventColumns) -> None:
        """Take note of events; of one moment, the one that came later counts."""
        known = np.flatnonzero((events.store >= 0) & (events.user >= 0))
        self._newest(events, known, "store_time", {"store": events.store})
        self._newest(events, np.flatnonzero(events.user >= 0), "seen", {"session": events.session})

    def _newest(
        self,
        events: EventColumns,
        rows: npt.NDArray[np.intp],
        clock: str,
        told: dict[str, npt.NDArray[Any]],
    ) -> None:
        times = self._arrays[clock]
        rows = rows[events.time[rows] >= times[events.user[rows]]]
        rows = rows[np.argsort(events.time[rows], kind="stable")]
        times[events.user[rows]] = events.time[rows]
        for name, values in told.items():
            self._arrays[name][events.user[rows]] = values[rows]

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """To save, as copies."""
        return {f"last_{name}": array[: self._n].copy() for name, array in self._arrays.items()}

    def take(self, table: pa.Table) -> None:
        """Take over what was saved; what an older version did not save is unknown."""
        for name in _EMPTY:
            if f"last_{name}" in table.column_names:
                self._arrays[name] = table[f"last_{name}"].to_numpy().copy()
