"""Ingest takes what a deployment rolled: alone, beside files, beside an adapter; day by day."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from raysys import schema
from raysys.config import parse_settings
from raysys.datasets import event_log
from raysys.datasets.mapping import ItemFiles
from raysys.datasets.metarank import MetarankSource
from raysys.datasets.metarank import source as metarank
from raysys.datasets.source import Source
from raysys.errors import UserError
from raysys.eventlog.entries import NewEntry
from raysys.eventlog.local import LocalLog
from raysys.eventlog.rolled import Rolled, roll
from raysys.eventlog.settings import LogSettings
from raysys.ingest import pipeline
from raysys.ingest.spread import InProcess
from raysys.ingest.store import Store
from raysys.stages.ingest import IngestSettings
from tests.ingest.shop import HEADER, START, good_rows, mapping

MINUTE, DAY = 60_000, 86_400_000
BEGAN = START * 1000


@pytest.fixture
def log(tmp_path: Path) -> LocalLog:
    return LocalLog(tmp_path / "log", LogSettings(segment_mb=1))


def add(log: LocalLog, *events: dict) -> None:
    log.append([
        NewEntry(e["event_id"], e["timestamp"], e.pop("kind", "event"), e) for e in events
    ])  # fmt: skip


def view(number: int, moment: int, **told: object) -> dict:
    return {
        "event_id": f"live-{number}", "event_type": "view", "user_id": f"u{number % 3}",
        "item_id": f"i{number}", "timestamp": moment, **told,
    }  # fmt: skip


class Taking:
    """Ingest, again and again, over one store."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs, self.store = folder, 0, Store(folder / "pieces")

    def __call__(self, source: Source) -> tuple[pipeline.Outcome, pl.DataFrame]:
        self.runs += 1
        out = self.folder / f"out{self.runs}"
        out.mkdir()
        outcome = pipeline.ingest(
            source, pipeline.inspect(source), pipeline.Treatment(), out, InProcess(), self.store
        )
        events = pl.read_parquet(out / "events/**/*.parquet", hive_partitioning=False)
        return outcome, events.sort("timestamp", "event_id")


def own(path: Path) -> Source:
    return event_log.source(event_log.EventLogSource(path=str(path)))


def test_every_row_is_taken_once_and_as_it_was(log: LocalLog, tmp_path: Path) -> None:
    told = view(
        1, BEGAN, event_type="purchase", session_id="s", quantity=2.0, price=3.5, currency="EUR",
        order_id="o", store_id="st", week=3, request_id="r", position=4, query="tea",
    )  # fmt: skip
    add(log, dict(told), view(2, BEGAN + MINUTE), view(2, BEGAN + MINUTE))
    roll(log, Rolled(log.folder))
    outcome, events = Taking(tmp_path)(own(log.folder))
    tally = outcome.tallies["events"]
    assert (tally.rows_in, tally.rows_out, tally.quarantined) == (2, 2, 0)
    row = events.row(0, named=True)
    told["timestamp"] = row["timestamp"]
    assert {k: v for k, v in row.items() if v is not None and k in told} == told
    assert row["timestamp"].timestamp() * 1000 == BEGAN
    assert set(events.columns) == set(schema.EVENTS.names)
    assert events["session_id"][1] == f"u2@{BEGAN + MINUTE}"  # as live state calls it too


def test_new_stretches_cost_their_own_days_alone(log: LocalLog, tmp_path: Path) -> None:
    taking = Taking(tmp_path)
    total = 0
    for day in range(4):
        add(log, *(view(10 * day + n, BEGAN + day * DAY + n * MINUTE) for n in range(10)))
        roll(log, Rolled(log.folder))
        outcome, events = taking(own(log.folder))
        total += 10
        assert outcome.reused["pieces"] == day  # the files of before are not read again
        assert events.height == total == events["event_id"].n_unique()
    scratch, fresh = Taking(tmp_path / "log")(own(log.folder))
    assert fresh.equals(events) and scratch.reused["pieces"] == 0


def test_beside_a_shops_files_they_are_one_history(log: LocalLog, tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text("\n".join([HEADER, *good_rows(20)]))
    shop = Source("A shop", (mapping(tmp_path / "old.csv"),))
    assert event_log.beside(shop, str(log.folder)) is shop  # nothing was rolled yet
    add(
        log, view(1, BEGAN + 20 * MINUTE), view(2, BEGAN + DAY),
        {"kind": "item", "event_id": "a", "timestamp": BEGAN, "item_id": "i1", "title": "one"},
        {"kind": "user", "event_id": "b", "timestamp": BEGAN, "user_id": "u1",
         "attributes": {"city": "Ulm"}},
    )  # fmt: skip
    roll(log, Rolled(log.folder))
    outcome, events = Taking(tmp_path)(event_log.beside(shop, str(log.folder)))
    assert events.height == 22 and outcome.tallies["events"].quarantined == 0
    late = events.filter(pl.col("event_id") == "live-1")
    before = events.filter((pl.col("user_id") == "u1") & (pl.col("event_id") == "e17"))
    assert late["session_id"].item() == before["session_id"].item()  # a session goes on
    items = pl.read_parquet(tmp_path / "out1/items.parquet")
    assert items.filter(pl.col("item_id") == "i1")["title"].item() == "one"
    users = pl.read_parquet(tmp_path / "out1/users.parquet")
    assert "Ulm" in str(users.filter(pl.col("user_id") == "u1")["attributes"].to_list())


def test_an_update_without_a_price_leaves_the_catalogues(log: LocalLog, tmp_path: Path) -> None:
    (tmp_path / "old.csv").write_text("\n".join([HEADER, *good_rows(20)]))
    columns = ("item_id", "title", "brand", "price", "currency")
    rows = [f"i{n},old,Acme,{n + 3}.5,EUR" for n in range(4)]
    (tmp_path / "items.csv").write_text("\n".join([",".join(columns), *rows]))
    files = ItemFiles(paths=(str(tmp_path / "items.csv"),), columns={n: n for n in columns})
    shop = Source("A shop", (mapping(tmp_path / "old.csv"),), (files,))
    told = (
        {"title": "new"}, {"currency": "USD"}, {"price": 2.0, "currency": "USD"},
    )  # fmt: skip
    add(log, view(1, BEGAN + 20 * MINUTE), *(
        {"kind": "item", "event_id": f"a{n}", "timestamp": BEGAN, "item_id": f"i{n}", **one}
        for n, one in enumerate(told)
    ))  # fmt: skip
    roll(log, Rolled(log.folder))
    Taking(tmp_path)(event_log.beside(shop, str(log.folder)))
    items = pl.read_parquet(tmp_path / "out1/items.parquet").select(columns)
    assert items.filter(pl.col("item_id") < "i4").rows() == [
        ("i0", "new", None, 3.5, "EUR"),  # the rest takes the row's place
        ("i1", None, None, 4.5, "EUR"),
        ("i2", None, None, 2.0, "USD"),
        ("i3", "old", "Acme", 6.5, "EUR"),
    ]


def test_an_adapters_mends_are_for_its_own_files(log: LocalLog, tmp_path: Path) -> None:
    """Metarank's records are expanded, and the log's rows, which are none, are not."""
    records = tmp_path / "events.jsonl"
    records.write_text(
        f'{{"event":"interaction","id":"m1","timestamp":"{BEGAN}","user":"u1","session":"s",'
        f'"type":"click","item":"i1"}}\n'
    )
    settings = MetarankSource(kind="metarank", paths=(str(records),))
    add(log, view(1, BEGAN + MINUTE), view(2, BEGAN + 2 * MINUTE))
    roll(log, Rolled(log.folder))
    _, events = Taking(tmp_path)(event_log.beside(metarank(settings), str(log.folder)))
    assert events["event_id"].to_list() == ["m1", "live-1", "live-2"]


def test_settings_name_the_log(log: LocalLog, tmp_path: Path) -> None:
    content = {"source": {"kind": "event_log", "path": str(log.folder)}}
    settings = parse_settings(IngestSettings, content, where="ingest.yaml")
    with pytest.raises(UserError, match="raysys events roll"):
        event_log.source(settings.source)
    content = {"source": {"kind": "complete_journey"}, "event_log": "runs/shop/eventlog"}
    parse_settings(IngestSettings, content, where="ingest.yaml")
    with pytest.raises(UserError, match="no such folder"):
        event_log.beside(Source("A shop", ()), str(tmp_path / "nowhere"))
