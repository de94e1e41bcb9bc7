"""Snowplow's enriched events, TSV and JSON, into events."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysys.config import parse_settings
from raysys.datasets.files import find, read
from raysys.datasets.snowplow import TSV_COLUMNS, SnowplowSource, source
from raysys.errors import UserError
from tests.datasets.importing import (
    FIXTURES,
    JSON,
    LINES,
    MOMENTS,
    all_of,
    events_of,
    records,
    table,
    write,
)

LOGS = {"tsv": str(FIXTURES / "snowplow.tsv"), "json": str(FIXTURES / "snowplow.jsonl")}
COOKIE = "bc2e92ec6c204a14"
LIST = "pv-1:search results"
SELF = "c6ef3124-b53a-4b13-a233-000000000019"
EVENTS = [
    ("impression", COOKIE, "P1", LIST, 1, None),
    ("impression", COOKIE, "P2", LIST, 2, None),
    ("impression", COOKIE, "P3", LIST, 3, None),  # tells no position: its place counts
    ("click", COOKIE, "P2", LIST, 2, None),
    ("view", "alice", "P2", None, None, None),
    ("cart", "alice", "P2", None, None, None),
    ("purchase", "alice", "P2", None, None, None),
    ("purchase", "alice", "P1", None, None, None),
    ("purchase", "alice", "P1", None, None, None),  # refunds
    ("purchase", "alice", None, None, None, None),
    ("search", COOKIE, None, None, None, "red boots"),
    ("purchase", COOKIE, "P9", None, None, None),  # as older trackers say it
    ("cart", COOKIE, "P9", None, None, None),
    ("impression", COOKIE, None, "pv-4:empty", None, None),  # no products
    ("view", None, "P4", None, None, None),  # nobody
    ("view", COOKIE, "P8", None, None, None),  # a page view with a product
    (None, COOKIE, None, None, None, None),  # an action without a type
    ("impression", "n-1", "P5", SELF, 1, None),  # position 0, no page view
    ("impression", "n-1", "P6", SELF, 2, None),
]
SHOWN = ("event_type", "user_id", "item_id", "request_id", "position", "query")


def snowplow(form, paths=None, **more):
    return source(SnowplowSource(paths=paths or LOGS[form], format=form, **more))


both_forms = pytest.mark.parametrize("form", ["tsv", "json"])


def test_the_columns_are_those_of_the_canonical_event():
    assert len(TSV_COLUMNS) == len(set(TSV_COLUMNS)) == 131
    assert TSV_COLUMNS.index("contexts") == 52
    assert TSV_COLUMNS.index("unstruct_event") == 58
    assert TSV_COLUMNS[-1] == "true_tstamp"


@both_forms
def test_each_product_of_an_action_is_an_event(form):
    events, ignored, faults = events_of(snowplow(form))
    assert table(events, *SHOWN) == EVENTS
    assert ignored == {
        "not_an_event: page_ping": 1,
        "not_an_event: remove_from_cart": 1,
        "not_an_event: page_view": 2,
    }
    assert [(fault.row, fault.reason) for fault in faults] == [(11, "line_does_not_parse")]
    assert events["event_id"].is_unique().all()
    assert events["event_id"][1] == "c6ef3124-b53a-4b13-a233-000000000002#2"


@both_forms
def test_orders_have_prices_and_refunds_are_negative(form):
    events, _, _ = events_of(snowplow(form))
    moved = events.filter(events["quantity"].is_not_null())
    assert table(moved, "event_type", "quantity", "price", "currency", "order_id") == [
        ("cart", 2.0, 59.99, "EUR", None),
        ("purchase", 2.0, 59.99, "EUR", "T-1"),
        ("purchase", 1.0, 100.0, "EUR", "T-1"),
        ("purchase", -1.0, 100.0, "EUR", "T-1"),
        ("purchase", -1.0, None, "EUR", "T-1"),
        ("purchase", 3.0, 12.5, "USD", "old-1"),
        ("cart", 1.0, 12.5, "USD", None),
    ]


@both_forms
def test_the_truest_moment_and_the_session_count(form):
    events, _, _ = events_of(snowplow(form))
    assert events["timestamp"][0] == 1717236001100  # derived
    assert events.filter(order_id="T-1")["timestamp"][0] == 1717236060000  # true
    assert set(events["session_id"]) == {"2b15e5c8"}


@both_forms
def test_pages_may_tell_items_and_searches(form):
    made = snowplow(form, page_item="^/p/([^/]+)", page_query="q", user="device")
    events, ignored, _ = events_of(made)
    assert table(events.head(1), "event_type", "query") == [("search", "blue shoes")]
    assert events.filter(item_id="P7")["event_type"].to_list() == ["view"]
    assert "not_an_event: page_view" not in ignored
    assert "alice" not in events["user_id"]


@both_forms
def test_an_older_trackers_order_is_its_items(form, tmp_path):
    told = {"collector_tstamp": "2024-06-01T10:01:42.120Z", "domain_userid": COOKIE}
    order = {**told, "event": "transaction", "event_name": "transaction", "event_id": "o"}
    item = {**told, "event": "transaction_item", "event_name": "transaction_item"}
    rows = [order, *({**item, "event_id": sku, "ti_sku": sku, "ti_orderid": "old-2"}
                     for sku in ("P1", "P2"))]  # fmt: skip
    lines = {
        "tsv": ["\t".join(row.get(name, "") for name in TSV_COLUMNS) for row in rows],
        "json": [json.dumps(row) for row in rows],
    }[form]
    ending = {"tsv": "tsv", "json": "jsonl"}[form]
    events, ignored, _ = events_of(snowplow(form, write(tmp_path / f"x.{ending}", lines)))
    assert table(events, "event_type", "item_id", "order_id") == [
        ("purchase", "P1", "old-2"),
        ("purchase", "P2", "old-2"),
    ]
    assert ignored == {"not_an_event: transaction": 1}


@both_forms
def test_words_may_mean_something_else(form):
    events, ignored, _ = events_of(
        snowplow(form, event_types={"page_view": None, "remove_from_cart": "refund"})
    )
    assert ignored["not_an_event: page_view"] == 3
    assert events.filter(quantity=-1.0).height == 3


@both_forms
def test_products_describe_the_catalogue(form):
    made = snowplow(form)
    (block,) = read(find(made.events[0])[0], made.events[0])
    rows = made.expand_events(block.rows).rows
    told = made.events[0].items
    third = rows.filter(item_id="P3").select(told.values()).row(0)
    assert dict(zip(told, third, strict=True)) == {
        "title": "Shoe P3", "category": "Mens/Shoes", "brand": None, "size": "42", "price": "100",
    }  # fmt: skip


def test_quotation_marks_in_tsv_are_characters(tmp_path):
    line = Path(LOGS["tsv"]).read_text().splitlines()[3]
    fields = line.split("\t")
    fields[TSV_COLUMNS.index("page_title")] = '"Best" shoes"'
    path = write(tmp_path / "x.tsv", ["\t".join(fields), line])
    events, _, faults = events_of(snowplow("tsv", path))
    assert faults == []
    assert events["item_id"].to_list() == ["P2", "P2"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"page_item": "/p/"}, "needs a group"),
        ({"page_item": "/p/("}, "no regular expression"),
        ({"format": "csv"}, "'tsv' or 'json'"),
        ({"event_types": {"list_view": "shown"}}, "list_view means 'shown'"),
    ],
)
def test_mistakes_in_the_settings(wrong, message):
    with pytest.raises(UserError, match=message):
        parse_settings(SnowplowSource, {"paths": "x", **wrong}, where="ingest.yaml")


PRODUCT = st.fixed_dictionaries(
    {}, optional={name: st.text(max_size=3) | JSON for name in
                  ("id", "price", "quantity", "position", "currency")}
)  # fmt: skip
ECOMMERCE = "com_snowplowanalytics_snowplow_ecommerce"
ACTION = st.fixed_dictionaries(
    {}, optional={"type": st.sampled_from(["list_view", "refund", "other"]) | JSON, "terms": JSON}
)
NAMES = st.sampled_from(["snowplow_ecommerce_action", "site_search", "page_view", "page_ping"])


@pytest.mark.long
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        records(
            event_id=st.text(max_size=3),
            event_name=NAMES,
            collector_tstamp=MOMENTS,
            domain_userid=st.text(max_size=3),
            page_urlquery=st.sampled_from(["q=a%20b&q=2", "%", ""]),
            **{
                f"unstruct_event_{ECOMMERCE}_snowplow_ecommerce_action_1": ACTION,
                f"contexts_{ECOMMERCE}_product_1": st.lists(PRODUCT | JSON, max_size=3),
                f"contexts_{ECOMMERCE}_transaction_1": st.lists(JSON, max_size=2),
            },
        )
        | LINES,
        max_size=6,
    )
)
def test_whatever_json_says_every_record_is_accounted_for(tmp_path, lines):
    path = write(tmp_path / "x.jsonl", lines)
    try:
        events, ignored, faults = events_of(snowplow("json", path, page_query="q"))
    except UserError:
        return  # no field that the format needs, or no believable moment
    assert all_of(path, events, ignored, faults)


WORDS = st.text(st.characters(exclude_characters="\t\r\n", codec="utf-8"), max_size=4)
IGLU = st.sampled_from(
    [f"iglu:com.snowplowanalytics.snowplow.ecommerce/{name}/jsonschema/1-0-0" for name in
     ("product", "transaction", "refund")]
)  # fmt: skip
CONTEXTS = st.builds(
    lambda entities: json.dumps({"data": entities}),
    st.lists(st.fixed_dictionaries({"schema": IGLU, "data": PRODUCT | JSON}) | JSON, max_size=3),
)
UNSTRUCT = st.builds(lambda done: json.dumps({"data": {"data": done}}), ACTION | JSON)


@st.composite
def tsv_lines(draw):
    told = {
        "event_id": draw(WORDS),
        "event_name": draw(NAMES | WORDS),
        "collector_tstamp": draw(st.sampled_from(["2024-06-01 10:00:00.000", "soon", ""])),
        "domain_userid": draw(WORDS),
        "contexts": draw(CONTEXTS | WORDS),
        "unstruct_event": draw(UNSTRUCT | WORDS),
        "useragent": draw(st.sampled_from(['"', 'a"b', ""])),
    }
    columns = draw(st.sampled_from([131, 131, 131, 130, 3]))
    return "\t".join(told.get(name, "") for name in TSV_COLUMNS[:columns])


@pytest.mark.long
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(tsv_lines(), max_size=5))
def test_whatever_tsv_says_every_record_is_accounted_for(tmp_path, lines):
    path = write(tmp_path / "x.tsv", lines)
    try:
        events, ignored, faults = events_of(snowplow("tsv", path))
    except UserError:
        return  # no believable moment
    assert all_of(path, events, ignored, faults, blank="\n")
