"""What the shop tells by now of items and users, beside the events: as ingest left it."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raysys import schema
from raysys.catalogue import Catalogue
from raysys.features.grown import unknown_items
from raysys.features.live import LiveFeatures
from raysys.features.user_attributes import texts_of
from raysys.features.user_updates import UserUpdates


def told_items(ingest: Path, catalogue: Catalogue) -> pa.Table:
    """Items (`schema.ITEMS`) that a catalogue lacks."""
    path = ingest / "items.parquet"
    if not path.is_file():
        return schema.ITEMS.empty_table()
    return unknown_items(catalogue, pq.read_table(path))


def tell_users(ingest: Path, live: LiveFeatures) -> None:
    """Take what is told of users into a state whose plan reads their attributes."""
    path = ingest / "users.parquet"
    if live.attributes.names and path.is_file():
        rows = texts_of(live.plan, pq.read_table(path))
        UserUpdates(live, live.open_user).take_rows(rows)
