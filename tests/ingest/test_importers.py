"""Other systems' logs from file to events: every record is an event, quarantined or left out."""

import json

import polars as pl
import pyarrow.parquet as pq
import pytest

from raysys.config import find_config, load_settings
from raysys.datasets import ga4, metarank, snowplow, ubi
from raysys.errors import UserError
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


def test_a_list_of_ids_leaves_the_words_of_later_events_to_describe_its_items(tmp_path):
    def event(name, second, **item):
        return {"event_name": name, "event_timestamp": (1717200000 + second) * 10**6,
                "user_pseudo_id": "u", "event_params": [], "items": [item]}  # fmt: skip

    lines = [
        event("view_item_list", 0, item_id="s1"),
        event("view_item_list", 0, item_id="s2"),
        event("view_item", 9, item_id="s1", item_name="Mug", item_category="Kitchen"),
    ]
    (tmp_path / "ga4.jsonl").write_text("\n".join(map(json.dumps, lines)))
    taken = take_source(tmp_path, ga4.source(ga4.GA4Source(paths=(str(tmp_path / "ga4.jsonl"),))))
    told = taken.items.select("item_id", "title", "category").rows()
    assert told == [("s1", "Mug", "Kitchen"), ("s2", None, None)]


def test_two_variants_of_an_item_in_an_order_are_two_lines(tmp_path):
    item = {"item_id": "s1", "price": 5.0, "quantity": 1}
    order = {"event_name": "purchase", "event_timestamp": 1717200000000000,
             "user_pseudo_id": "u", "event_params": [], "items": [item, item],
             "ecommerce": {"transaction_id": "T1"}}  # fmt: skip
    for name in ("a", "b"):  # the same export once more
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(order) + "\n")
    taken = take_source(tmp_path, ga4.source(ga4.GA4Source(paths=(str(tmp_path / "*.jsonl"),))))
    assert taken.tally.reasons == {"duplicate": 2}
    assert taken.events["event_id"].n_unique() == taken.events.height == 2
    assert taken.events["event_id"].str.split("-").list.first().n_unique() == 1


def test_a_wrong_unit_is_told_with_a_mend_that_importers_have(tmp_path):
    lines = [
        {"event_name": "view_item", "event_timestamp": 1717200000 + n, "user_pseudo_id": "u",
         "event_params": [], "items": [{"item_id": "s1"}]}
        for n in range(9)
    ]  # fmt: skip
    (tmp_path / "ga4.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = ga4.source(ga4.GA4Source(paths=(str(tmp_path / "ga4.jsonl"),)))
    with pytest.raises(UserError, match="the time is not in microseconds") as refusal:
        take_source(tmp_path, source)
    assert "in microseconds: write them so" in refusal.value.mend
    assert "kind: files" in refusal.value.mend
    assert "set time.unit" not in refusal.value.mend


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


def test_metarank_s_words_on_one_item_and_user_are_put_together_wherever_they_are(tmp_path):
    def item(event_id, **fields):
        told = [{"name": name, "value": value} for name, value in fields.items()]
        return {"event": "item", "id": event_id, "timestamp": "1599391467000", "item": "p1",
                "fields": told}  # fmt: skip

    def user(event_id, **fields):
        return {**item(event_id, **fields), "event": "user", "user": "u1"}

    clicked = {"event": "interaction", "id": "c", "timestamp": "1599391467000", "item": "p1",
               "user": "u1", "session": "s", "type": "click"}  # fmt: skip
    for name, lines in (
        ("a", [item("1", title="Toy story"), user("2", age="33"), clicked]),
        ("b", [item("3", price=7.5, title="later"), user("4", age="34", city="Ulm")]),
    ):
        content = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"{name}.jsonl").write_text(content)
    settings = metarank.MetarankSource(paths=(str(tmp_path / "*.jsonl"),))
    taken = take_source(tmp_path, metarank.source(settings))
    (row,) = taken.items.to_dicts()
    assert row["title"] == "Toy story" and row["price"] == 7.5
    (told,) = pq.read_table(taken.folder / "users.parquet").to_pylist()
    assert dict(told["attributes"]) == {"age": "33", "city": "Ulm"}
    tallies = taken.outcome.tallies
    for table in ("items", "users"):
        assert tallies[table].rows_in == tallies[table].rows_out == 1
        assert tallies[table].quarantined == 0
    assert tallies["items"].ignored["more_of_the_same_item"] == 1


def test_an_export_without_a_single_event_is_told(tmp_path):
    line = {"event_name": "session_start", "event_timestamp": 1717200000000000,
            "user_pseudo_id": "u", "event_params": []}  # fmt: skip
    (tmp_path / "ga4.jsonl").write_text(json.dumps(line) + "\n")
    source = ga4.source(ga4.GA4Source(paths=(str(tmp_path / "ga4.jsonl"),)))
    with pytest.raises(UserError, match=r"no record is an event \(.*session_start: 1\)"):
        take_source(tmp_path, source)
