"""A real day through serving and through the offline replay: are the features the same?

The grocer's log is cut at a midnight: weeks before it make a state, as a bundle has it. The day
itself is sent over HTTP, event by event as it happened, and before every n-th basket the features
of its customer's candidates are read. The offline replay reads the same rows out of the log.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from fastapi import FastAPI
from fastapi.testclient import TestClient

from raysys.catalogue import Catalogue
from raysys.config import find_config, load_settings
from raysys.datasets import complete_journey
from raysys.features.columns import replay_in_memory
from raysys.features.live import LiveFeatures
from raysys.features.log import EventColumns
from raysys.features.numbered import NumberedLog
from raysys.features.numbering import number_log
from raysys.features.read import CandidateRows, feature_columns
from raysys.ingest import pipeline
from raysys.ingest.spread import InProcess
from raysys.ingest.store import Store
from raysys.retrieval.covisitation import CoVisitation
from raysys.schema import LOGGED_EVENTS
from raysys.serving.events import EventService
from raysys.serving.events_args import EventsArgs
from raysys.serving.events_routes import add_event_routes
from raysys.serving.metrics import Metrics
from raysys.stages.features_settings import FeaturesSettings

DAY_MS = 86_400_000
ZONE = pl.Datetime("ms", "UTC")


@dataclass(frozen=True)
class Compared:
    """What came of it.

    Attributes:
        events: of the day, sent over HTTP.
        baskets, rows, features: before how many baskets, of how many candidates, how many features
            were read both ways.
        difference: largest absolute difference of any two values; infinite where only one of
            them is NaN.
    """

    events: int
    baskets: int
    rows: int
    features: int
    difference: float


def compare(folder: Path, day: date, weeks: int = 4, every: int = 5, batch: int = 100) -> Compared:
    """Send one day of the grocer's log and compare.

    Args:
        folder: empty; gets all that is made on the way.
        day: UTC.
        weeks: of the log before it that make the state.
        every: of so many baskets one is looked at.
        batch: most events of one request.
    """
    told = _ingested(folder, day, weeks)
    catalogue = Catalogue.load(told / "items.parquet")
    settings = load_settings(FeaturesSettings, find_config("complete_journey", "features"))
    log = number_log(told / "events", catalogue, ["order_id"], folder / "log", InProcess())
    midnight = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)

    def state() -> LiveFeatures:
        live = LiveFeatures(
            settings.plan, catalogue, log.users, log.stores, settings.candidates,
            queries=log.queries,
        )  # fmt: skip
        past = EventColumns.concat([s.events for s in log.between(log.first, midnight)])
        live.apply(past)
        live.covisitation = CoVisitation.fit(past.order, past.item, len(catalogue))
        return live

    served, offline = state(), state()
    events = EventColumns.concat([s.events for s in log.between(midnight, midnight + DAY_MS)])
    reads, live_values = _serve(folder, served, log, told, events, day, every, batch)
    stats = replay_in_memory(offline, events, reads)
    rows = CandidateRows(
        user=reads.user, item=reads.item, time=reads.time, store=reads.store,
        session=reads.session, query=reads.query,
    )  # fmt: skip
    asked_of_request: list[str] = []

    def of_request(feature: Any) -> float:
        asked_of_request.append(feature.name)
        return np.nan

    values = feature_columns(offline, rows, stats, of_request)
    kept = [n for n, name in enumerate(offline.names) if name not in asked_of_request]
    ours, theirs = live_values[:, kept], values[:, kept]
    nothing = np.isnan(ours) & np.isnan(theirs)
    difference = np.where(nothing, 0, np.abs(ours - theirs))
    difference = np.where(np.isnan(difference), np.inf, difference)
    baskets = len(np.unique(np.stack([reads.user, reads.time]), axis=1).T)
    return Compared(len(events), baskets, len(reads), len(kept), float(difference.max(initial=0)))


def _ingested(folder: Path, day: date, weeks: int) -> Path:
    """Clean events of the weeks and the day, and the whole catalogue, as ingest writes them."""
    source = complete_journey.source()
    moment = pl.col("transaction_timestamp").dt.date()
    rows = pl.read_parquet(complete_journey.folder() / "transactions.parquet")
    rows = rows.filter(moment.is_between(day - timedelta(weeks=weeks), day))
    rows.write_parquet(folder / "transactions.parquet")
    part = source.events[0].model_copy(update={"paths": (str(folder / "transactions.parquet"),)})
    source = replace(source, events=(part,), tables=())
    out = folder / "ingest"
    out.mkdir()
    pipeline.ingest(
        source, pipeline.inspect(source), pipeline.Treatment(), out, InProcess(),
        Store(folder / "pieces"),
    )  # fmt: skip
    return out


def _serve(
    folder: Path,
    live: LiveFeatures,
    log: NumberedLog,
    told: Path,
    events: EventColumns,
    day: date,
    every: int,
    batch: int,
) -> tuple[EventColumns, np.ndarray]:
    """Send the day over HTTP; the rows that were read on the way, and what they said."""
    frame = pl.read_parquet(told / "events" / f"date={day}" / "*.parquet").sort("timestamp")
    columns = [name for name in LOGGED_EVENTS.names if name in frame.columns]
    rows = frame.select(columns).with_columns(pl.col("timestamp").dt.epoch("ms")).to_dicts()
    assert len(rows) == len(events)
    service = EventService(
        EventsArgs(roll_events=0, max_ahead_minutes=1440), folder / "eventlog", live, wall=False
    )
    app = FastAPI()
    add_event_routes(app, type("Only", (), {"events": service, "metrics": Metrics()})())  # type: ignore[arg-type]
    client = TestClient(app)
    service.start()
    reads: list[EventColumns] = []
    values: list[np.ndarray] = []
    moments = np.unique(events.time)
    for number, time in enumerate(moments):
        at, until = np.searchsorted(events.time, [time, time + 1])
        if number % every == 0:
            asked, read = _read(live, log, rows[at], events.slice(int(at), int(at) + 1))
            reads.append(asked)
            values.append(read)
        for low in range(int(at), int(until), batch):
            sent = [
                {name: value for name, value in row.items() if value is not None}
                for row in rows[low : min(low + batch, int(until))]
            ]
            answer = client.post("/v1/events", json={"events": sent})
            assert answer.json()["accepted"] == len(sent), answer.text
    service.close()
    return EventColumns.concat(reads), np.concatenate(values)


def _read(
    live: LiveFeatures, log: NumberedLog, row: dict[str, Any], event: EventColumns
) -> tuple[EventColumns, np.ndarray]:
    """A customer's candidates just before a basket, and their features as serving has them."""
    user, time = int(event.user[0]), int(event.time[0])
    items = live.candidates(user, time).items[:60]
    batch = live.batch(user, items, time, row["store_id"], session=-1)
    n = len(items)
    nothing = np.full(n, np.nan)
    asked = EventColumns(
        user=np.full(n, user, np.int32), item=items, kind=np.zeros(n, np.int8),
        time=np.full(n, time, np.int64), quantity=nothing, price=nothing,
        store=np.full(n, live.store_number(row["store_id"]), np.int32),
        order=np.zeros(n, np.int64),
    )  # fmt: skip
    return asked, batch.features


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        print(compare(Path(place), date(2017, 11, 15)))
