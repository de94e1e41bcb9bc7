"""Side tables (promotions, campaigns, …): converted batch by batch, kept like pieces of the log."""

from __future__ import annotations

from typing import Any, Final

import pyarrow.parquet as pq

from raysys.datasets.source import SideTable
from raysys.ingest.store import Store

TABLES: Final = "tables"
TABLE: Final = "table.parquet"


def write_table(table: SideTable, key: str, store: Store) -> int:
    """Convert a side table into the store; its result says the rows in and out, and why.

    Returns:
        rows read.
    """
    result: dict[str, Any] = {"name": table.name, "reason": table.left_out}
    rows_in = rows_out = 0
    with store.doing(TABLES, key, result) as folder:
        with pq.ParquetWriter(folder / TABLE, table.schema, compression="zstd") as writer:
            for count, converted in table.batches():
                rows_in += count
                rows_out += converted.num_rows
                writer.write_table(converted)
        result |= {"rows_in": rows_in, "rows_out": rows_out}
    return rows_in
