"""What a shop says anew of its users while they are served: it counts in their next answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raysys.features.live import LiveFeatures


class UserUpdates:
    """Takes updates into a live state.

    Args:
        live: whose users' attributes change.
        number: gives a user_id its number, a new one where there is room; -1: there is none.
    """

    def __init__(self, live: LiveFeatures, number: Callable[[str], int]) -> None:
        self._live, self._number = live, number

    def take(self, updates: Sequence[Mapping[str, Any]]) -> int:
        """Count updates (`user_id`, `attributes`: texts by name) in the order of the log.

        Of several on one user the last one counts, as it takes the place of all before.

        Returns:
            of how many users a feature changed.
        """
        names = self._live.attributes.names
        if not names:
            return 0
        newest = {update["user_id"]: update.get("attributes", {}) for update in updates}
        columns = {
            name: pa.array([told.get(name) for told in newest.values()], pa.string())
            for name in names
        }
        return self._take(list(newest), columns)

    def take_rows(self, rows: pa.Table) -> int:
        """The same of a table: `user_id`, once each, and a column of texts for each attribute."""
        names = self._live.attributes.names
        if not names:
            return 0
        columns = {name: rows[name] for name in names if name in rows.column_names}
        return self._take(rows["user_id"].to_pylist(), columns)

    def _take(self, ids: Sequence[str], columns: Mapping[str, Any]) -> int:
        said = np.zeros(len(ids), dtype=np.bool_)
        for column in columns.values():
            said |= column.is_valid().to_numpy(zero_copy_only=False)
        live = self._live
        with live.lock:
            # of whom nothing is said that matters nobody need know, unless something was
            users = np.array(
                [
                    self._number(name) if tells else live.user_number(name)
                    for name, tells in zip(ids, said.tolist(), strict=True)
                ],
                dtype=np.int32,
            )
            known = np.flatnonzero(users >= 0)
            place = pa.array(known)
            told = {name: column.take(place) for name, column in columns.items()}
            return live.attributes.take(users[known], told)
