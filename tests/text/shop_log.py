"""The log of the synthetic shop's search: who asks for `oat milk` clicks on it, if they see it.

A list holds items of the kind asked for, of its category, and others, in random order; position k
is looked at with a probability of 1 / k.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysys import schema
from raysys.catalogue import Catalogue
from raysys.storage import Manifest, Workspace
from tests.synthetic import CATEGORIES, make_catalogue

START = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
DAYS = 60
WORTH = {3: 0.7, 2: 0.2, 1: 0.03}
"""How likely a click is once an item is looked at, by its grade."""


def grade(query: str, text: str) -> int:
    """3: kind and category, 2: the category, 1: neither."""
    kind, category = query.split()
    words = text.replace(",", "").split()
    return 1 if category not in words else 3 if kind in words else 2


def search_log(catalogue: Catalogue, requests: int = 1500, seed: int = 0) -> pa.Table:
    """`schema.EVENTS`: impressions with query and position, and the clicks of their requests."""
    rng = np.random.default_rng(seed)
    known = [f"{kind} {c}" for c, (_, kinds) in CATEGORIES.items() for kind in kinds.split()]
    fits = {q: np.array([grade(q, text) for text in catalogue.texts]) for q in known}
    rows: list[dict[str, Any]] = []
    for number in range(requests):
        query = known[int(rng.integers(len(known)))]
        moment = START + dt.timedelta(days=DAYS * number / requests)
        near = np.flatnonzero(fits[query] > 1)
        shown = np.union1d(rng.choice(near, 4, replace=False), rng.choice(len(catalogue), 3))
        for place, item in enumerate(rng.permutation(shown), start=1):
            row = {"item_id": catalogue.ids[item], "request_id": f"r{number}", "user_id": "u"}
            rows.append(
                {**row, "event_id": f"{number}-{place}", "event_type": "impression",
                 "query": query, "position": place, "timestamp": moment, "inferred": False}
            )  # fmt: skip
            if rng.random() < WORTH[int(fits[query][item])] / place:
                rows.append(
                    {**row, "event_id": f"{number}-{place}c", "event_type": "click",
                     "timestamp": moment + dt.timedelta(seconds=20), "inferred": False}
                )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=schema.EVENTS)


def write_ingested(workspace: Workspace, catalogue: Catalogue, events: pa.Table) -> None:
    """As `raysys ingest` leaves them."""
    folder = workspace.ingest / "events" / "date=2024-01-01"
    folder.mkdir(parents=True)
    pq.write_table(events, folder / "part-0.parquet")
    catalogue.save(workspace.ingest / "items.parquet")
    Manifest(stage="ingest", counts={"events": events.num_rows}).write(workspace.ingest)


def shop(root: Path, **log: Any) -> Workspace:
    """A workspace with the log of a shop of 200 items."""
    workspace = Workspace(root)
    catalogue = make_catalogue(200)
    write_ingested(workspace, catalogue, search_log(catalogue, **log))
    return workspace
