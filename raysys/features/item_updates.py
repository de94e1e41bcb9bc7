"""What a shop says anew of its items while they are served: price and texts count at once.

Labels (category, brand …), vectors and the search index stay what the bundle was trained on: they
follow with the next one, as the state by key is counted under them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raysys import schema
from raysys.features.live import LiveFeatures

Mask = npt.NDArray[np.bool_]

_TEXTS: Final = ("title", "description", "size")
_READ: Final = pa.schema(
    [schema.ITEMS.field(name) for name in ("item_id", *_TEXTS, "price", "currency")]
)


class ItemUpdates:
    """Takes updates into a live state; those of items that its catalogue lacks wait for the next.

    Args:
        live: whose prices and shown texts change.
    """

    def __init__(self, live: LiveFeatures) -> None:
        self._live = live

    def take(self, updates: Sequence[Mapping[str, Any]]) -> int:
        """Count updates (columns of `schema.ITEMS` that hold something) in the order of the log.

        Of several on one item the last one counts, as it takes the place of all that was said
        before; where it gives no price, or one in another currency than the catalogue's, that of
        the catalogue counts: `raysys ingest` sees to those.

        Returns:
            How many items changed.
        """
        newest = {update["item_id"]: update for update in updates}
        rows = [{name: row.get(name) for name in _READ.names} for row in newest.values()]
        return self.take_rows(pa.Table.from_pylist(rows, schema=_READ))

    def take_rows(self, rows: pa.Table) -> int:
        """The same of a table in `schema.ITEMS`, one row an item."""
        catalogue = self._live.catalogue
        numbers = catalogue.numbers(rows["item_id"])
        known = numbers >= 0
        rows, numbers = rows.select(_READ.names).filter(pa.array(known)), numbers[known]
        if not len(numbers):
            return 0
        listed = catalogue.table.select(_READ.names).take(numbers)
        same = pc.fill_null(pc.equal(rows["currency"], listed["currency"]), True)
        given = pc.and_(same, pc.is_valid(rows["price"]))
        counts = pc.if_else(given, rows["price"], listed["price"])
        price = pc.fill_null(counts, np.nan).to_numpy().astype(np.float32)
        with self._live.lock:
            before = self._live.of_items.price[numbers]
            moved = (price != before) & ~(np.isnan(price) & np.isnan(before))
            self._live.of_items.reprice(numbers[moved], price[moved])
            for row in np.flatnonzero(moved | self._retold(rows, listed, numbers)).tolist():
                words = {name: rows[name][row].as_py() for name in _TEXTS}
                words["price"] = counts[row].as_py()
                moved[row] |= catalogue.tell(int(numbers[row]), words)
        return int(moved.sum())

    def _retold(self, rows: pa.Table, listed: pa.Table, numbers: npt.NDArray[np.int32]) -> Mask:
        """Rows whose texts are not the catalogue's, or that were told before: bool[n]."""
        told = np.isin(numbers, self._live.catalogue.told())
        for name in _TEXTS:
            one, other = rows[name], listed[name]
            differ = pc.fill_null(pc.not_equal(one, other), False).to_numpy()
            told |= differ | (one.is_null().to_numpy() != other.is_null().to_numpy())
        return told
