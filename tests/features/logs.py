"""Small logs on disk as ingest leaves them, and the stage run over them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from raysys import schema
from raysys.features.log import EventColumns
from raysys.schema import EVENT_TYPES
from raysys.storage import Manifest, Workspace
from tests.features import every


def write_events(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Rows with a `timestamp` in ms as one Parquet file a date; what they lack is null."""
    lists = {field.name: [row.get(field.name) for row in rows] for field in schema.EVENTS}
    kinds = {"timestamp": pl.Int64, "week": pl.Int32, "position": pl.Int32, "inferred": pl.Boolean}
    real = dict.fromkeys(("quantity", "price", "rating", "sampling_probability"), pl.Float64)
    frame = pl.DataFrame(lists, schema={n: {**kinds, **real}.get(n, pl.String) for n in lists})
    day = (pl.col("timestamp") // every.DAY).alias("day")
    for (number,), part in frame.group_by(day, maintain_order=True):
        table = part.sort("timestamp", maintain_order=True).to_arrow()
        columns = [table[f.name].cast(f.type) for f in schema.EVENTS]
        date = np.datetime64(number, "D")
        path = folder / f"date={date}" / "part-0.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_arrays(columns, schema=schema.EVENTS), path)


def as_rows(events: EventColumns, answers: list[str | None] | None = None) -> list[dict[str, Any]]:
    """Events of `every` with the names that its live state knows them by."""
    return [
        {
            "event_id": f"e{at:04d}",
            "event_type": EVENT_TYPES[events.kind[at]],
            "user_id": f"u{events.user[at]}",
            "item_id": None if events.item[at] < 0 else f"i{events.item[at]:03d}",
            "timestamp": int(events.time[at]),
            "quantity": None if np.isnan(events.quantity[at]) else float(events.quantity[at]),
            "price": None if np.isnan(events.price[at]) else float(events.price[at]),
            "store_id": None if events.store[at] < 0 else f"s{events.store[at]}",
            "session_id": None if events.session[at] < 0 else f"x{events.session[at]}",
            "query": None if events.query[at] < 0 else f"q{events.query[at]}",
            "position": None if events.position[at] < 1 else int(events.position[at]),
            "order_id": f"o{events.order[at]}",
            "request_id": answers[at] if answers else None,
            "inferred": False,
        }
        for at in range(len(events))
    ]


def workspace(root: Path, rows: list[dict[str, Any]]) -> Workspace:
    """What ingest and whoever made the vectors left."""
    made = Workspace(root)
    write_events(made.ingest / "events", rows)
    every.catalogue().save(made.ingest / "items.parquet")
    pq.write_table(every.told_of_users(), made.ingest / "users.parquet")
    Manifest(stage="ingest", inputs={"log": str(len(rows))}).write(made.ingest)
    every.resources().save(made.root)
    (made.root / "vectors-title.safetensors").rename(made.root / "title.safetensors")
    return made
