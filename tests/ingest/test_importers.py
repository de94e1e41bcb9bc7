"""Other systems' logs from file to events: every record is an event, quarantined or left out."""

import polars as pl
import pyarrow.parquet as pq
import pytest

from raysys.config import find_config, load_settings
from raysys.datasets import ga4, metarank, snowplow, ubi
from raysys.stages.ingest import IngestSettings, _source
from tests.datasets.importing import FIXTURES
from tests.ingest.shop import take_source

SOURCES = {
    "ubi": lambda: ubi.source(
        ubi.UbiSource(
            events=(str(FIXTURES / "ubi_events.jsonl"),),
            queries=(str(FIXTURES / "ubi_queries.jsonl"),),
        )
    ),
    "ga4": lambda: ga4.source(ga4.GA4Source(paths=(str(FIXTURES / "ga4_events_20240601.jsonl"),))),
    "snowplow": lambda: snowplow.source(
        snowplow.SnowplowSource(paths=(str(FIXTURES / "snowplow.tsv"),))
    ),
    "metarank": lambda: metarank.source(
        metarank.MetarankSource(paths=(str(FIXTURES / "metarank.jsonl"),))
    ),
}
SHOWN = {"ubi", "ga4", "snowplow", "metarank"}


@pytest.mark.parametrize("kind", SOURCES)
def test_an_export_becomes_events(tmp_path, kind):
    taken = take_source(tmp_path, SOURCES[kind]())
    events, tally = taken.events, taken.tally
    assert events.height > 5
    assert events["event_id"].n_unique() == events.height
    assert events["session_id"].null_count() == 0
    assert sum(tally.ignored.values()) > 0
    assert tally.quarantined > 0  # the fixtures hold broken lines
    assert taken.quarantine["row"].min() >= 1
    shown = events.filter(pl.col("event_type") == "impression")
    assert shown.height > 1
    assert shown["position"].min() == 1
    assert shown["request_id"].null_count() == 0
    assert {"click", "purchase"} <= set(events["event_type"])


def test_records_that_make_several_rows_without_ids_get_an_id_each(tmp_path):
    events = take_source(tmp_path, SOURCES["ga4"]()).events
    made = events.filter(pl.col("event_id").str.contains("#"))
    assert made.height > 0
    assert made["event_id"].str.contains(r"^[0-9a-f]{8}-\d+#[1-9]\d*$").all()


def test_metarank_brings_its_catalogue(tmp_path):
    taken = take_source(tmp_path, SOURCES["metarank"]())
    assert taken.items.filter(pl.col("title").is_not_null()).height > 0
    assert taken.outcome.tallies["items"].ignored
    told = pq.read_table(taken.folder / "users.parquet").to_pylist()
    assert {user["user_id"]: dict(user["attributes"]) for user in told}["user1"] == {"age": "33"}


@pytest.mark.parametrize("kind", SOURCES)
def test_the_preset_names_its_importer(monkeypatch, kind):
    monkeypatch.setenv("RAYSYS_DATA", "/data")
    settings = load_settings(IngestSettings, find_config(kind, "ingest"))
    assert settings.source.kind == kind
    assert _source(settings).expand_events is not None
