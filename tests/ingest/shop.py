"""A small shop's log in files, and a way to take it in without a cluster."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import polars as pl

from raysys.datasets.mapping import EventFiles, ItemFiles, UserFiles
from raysys.datasets.source import Source
from raysys.ingest import pipeline
from raysys.ingest.impressions import ImpressionSettings
from raysys.ingest.rule_settings import RuleSettings
from raysys.ingest.rules import Limits
from raysys.ingest.sessions import SessionSettings
from raysys.ingest.spread import InProcess
from raysys.ingest.store import Store

DATA = Path(
    os.environ.get("RAYSYS_DATA") or Path(__file__).parents[3] / "shared" / "data"
).resolve()
START = 1_511_658_000  # 2017-11-26 01:00:00 UTC, seconds
HEADER = "event,user,item,what,time,price,quantity,query"
COLUMNS = {
    "event_id": "event",
    "user_id": "user",
    "item_id": "item",
    "event_type": "what",
    "timestamp": "time",
    "price": "price",
    "quantity": "quantity",
    "query": "query",
}


def good_rows(n: int = 20) -> list[str]:
    """Lines of the log without fault: four users, one event a minute."""
    return [f"e{i},u{i % 4},i{i % 7},view,{START + 60 * i},9.5,1," for i in range(n)]


def mapping(path: Path | str, **more: Any) -> EventFiles:
    """The mapping of the shop's log; keywords override."""
    content = {"paths": str(path), "columns": COLUMNS, "time": {"unit": "seconds"}, **more}
    return EventFiles.model_validate(content)


class Taken:
    """What ingest made of a log: counts, tables, quarantine."""

    def __init__(self, outcome: pipeline.Outcome, folder: Path) -> None:
        self.outcome = outcome
        self.folder = folder
        self.tally = outcome.tallies["events"]

    @property
    def events(self) -> pl.DataFrame:
        return pl.read_parquet(self.folder / "events/**/*.parquet", hive_partitioning=False)

    @property
    def items(self) -> pl.DataFrame:
        return pl.read_parquet(self.folder / "items.parquet")

    @property
    def quarantine(self) -> pl.DataFrame:
        return pl.read_parquet(self.folder / "quarantine/*.parquet")


def take(
    folder: Path,
    *events: EventFiles,
    items: tuple[ItemFiles, ...] = (),
    users: tuple[UserFiles, ...] = (),
    limits: Limits | None = None,
    sessions: SessionSettings | None = None,
    impressions: ImpressionSettings | None = None,
    rules: RuleSettings | None = None,
) -> Taken:
    """Run all passes in this process into a new folder; checks that all counts add up."""
    treatment = pipeline.Treatment(
        limits or Limits(),
        rules or RuleSettings(),
        sessions or SessionSettings(),
        impressions or ImpressionSettings(),
    )
    return take_source(folder, Source("A shop", events, items, users), treatment)


def take_source(folder: Path, source: Source, treatment: pipeline.Treatment | None = None) -> Taken:
    """The same for any source."""
    out = folder / "out"
    out.mkdir()
    outcome = pipeline.ingest(
        source,
        pipeline.inspect(source),
        treatment or pipeline.Treatment(),
        out,
        InProcess(),
        Store(folder / "pieces"),
    )
    taken = Taken(outcome, out)
    for tally in outcome.tallies.values():
        assert tally.rows_in == tally.rows_out + tally.quarantined
    assert taken.events.height == taken.tally.rows_out + sum(taken.tally.added.values())
    total = sum(tally.quarantined for tally in outcome.tallies.values())
    assert (taken.quarantine.height if total else 0) == total
    return taken
