"""Google Analytics' BigQuery export into events."""

import json
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysys.datasets.drafting import draft_items
from raysys.datasets.files import find, read
from raysys.datasets.ga4 import GA4Source, source
from raysys.datasets.mapping import UNPARSED
from raysys.errors import UserError
from tests.datasets.importing import FIXTURES, JSON, LINES, all_of, events_of, records, table, write

LOG = str(FIXTURES / "ga4_events_20240601.jsonl")
DEVICE = "1234567.890"
SESSION = f"{DEVICE}.1717235990"
LIST = f"{DEVICE}.1717236002000000.3.search"
EVENTS = [
    ("search", DEVICE, None, None, "blue mug", None),
    ("impression", DEVICE, "SKU-1", 1, "blue mug", LIST),
    ("impression", DEVICE, "SKU-2", 2, "blue mug", LIST),
    ("impression", DEVICE, "SKU-3", 3, "blue mug", LIST),  # index "Slide 3": its place counts
    ("click", DEVICE, "SKU-2", 2, None, None),
    ("view", DEVICE, "SKU-2", None, None, None),
    ("favorite", DEVICE, None, None, None, None),  # item "(not set)"
    ("cart", "alice", "SKU-2", None, None, None),
    ("purchase", "alice", "SKU-2", None, None, None),
    ("purchase", "alice", "SKU-3", None, None, None),
    ("purchase", "alice", None, None, None, None),  # no items
    ("purchase", "alice", "SKU-3", None, None, None),  # refunds
    ("purchase", "alice", None, None, None, None),
    ("view", None, "SKU-1", None, None, None),  # nobody
    ("view", DEVICE, None, None, None, None),  # items that are none
    ("view", "9", "77", None, None, None),
    (None, "9", None, None, None, None),  # no name
]
SHOWN = ("event_type", "user_id", "item_id", "position", "query", "request_id")


def ga4(paths=LOG, **more):
    return source(GA4Source(paths=paths, **more))


def test_each_item_of_an_event_is_one_of_ours():
    events, ignored, faults = events_of(ga4())
    assert table(events, *SHOWN) == EVENTS
    assert ignored == {
        "not_an_event: scroll": 2,
        "not_an_event: session_start": 1,
        "not_an_event: page_view": 1,
    }
    assert [(fault.row, fault.reason) for fault in faults] == [(10, "line_does_not_parse")]


def test_orders_have_prices_and_refunds_are_negative():
    events, _, _ = events_of(ga4())
    moved = events.filter(pl.col("quantity").is_not_null())
    assert table(moved, "event_type", "quantity", "price", "currency", "order_id") == [
        ("cart", 2.0, 8.0, "EUR", None),
        ("purchase", 2.0, 8.0, "EUR", "T-1"),
        ("purchase", 1.0, 20.0, "EUR", "T-1"),
        ("purchase", -1.0, 20.0, "EUR", "T-1"),
        ("purchase", -1.0, None, "EUR", "T-9"),
    ]


def test_moments_are_microseconds_and_sessions_belong_to_a_device():
    events, _, _ = events_of(ga4())
    assert events["timestamp"][0] == 1717236001000
    assert table(events.filter(item_id="77"), "timestamp", UNPARSED) == [(None, "timestamp")]
    assert set(events["session_id"]) == {SESSION, None}


def test_settings_change_who_acts_what_words_mean_and_how_lists_count():
    events, ignored, _ = events_of(
        ga4(user="device", first_index=1, event_types={"scroll": "view", "refund": None})
    )
    assert "alice" not in events["user_id"]
    assert events.filter(event_type="click")["position"].to_list() == [1]
    assert ignored["not_an_event: refund"] == 2
    assert "not_an_event: scroll" not in ignored


def test_items_describe_the_catalogue():
    made = ga4()
    (block,) = read(find(made.events[0])[0], made.events[0])
    rows = made.expand_events(block.rows).rows
    items = draft_items(rows, made.events[0].items).with_columns(item_id=rows["item_id"])
    told = items.drop_nulls("item_id").unique("item_id", keep="first", maintain_order=True)
    assert table(told, "item_id", "title", "category", "brand", "price")[:3] == [
        ("SKU-1", "Blue mug", "Mugs", None, 9.9),
        ("SKU-2", "Red mug", "Mugs", None, 8.0),
        ("SKU-3", "Jug", "Mugs", None, 20.0),
    ]


def export(path):
    """The log as BigQuery writes Parquet: typed, with columns that nobody reads."""
    value = pa.struct(
        [("string_value", pa.string()), ("int_value", pa.int64()), ("float_value", pa.float64()),
         ("double_value", pa.float64())]
    )  # fmt: skip
    texts = ("item_id", "item_name", "item_brand", "item_category", "item_list_id",
             "item_list_index", "promotion_id")  # fmt: skip
    item = pa.struct(
        [*((name, pa.string()) for name in texts), ("price", pa.float64()),
         ("quantity", pa.int64())]
    )  # fmt: skip
    rows = []
    for line in Path(LOG).read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["event_timestamp"] == "yesterday" or row.get("items") == "none today":
            continue
        rows.append(
            {
                "event_date": row["event_date"],
                "event_timestamp": int(row["event_timestamp"]),
                "event_name": row.get("event_name"),
                "event_params": [
                    {"key": pair["key"], "value": {
                        kind: int(told) if kind == "int_value" else told
                        for kind, told in pair["value"].items()
                    }} for pair in row.get("event_params", ())
                ],
                "user_pseudo_id": row["user_pseudo_id"],
                "user_id": row.get("user_id"),
                "batch_event_index": row.get("batch_event_index") and 3,
                "ecommerce": row.get("ecommerce"),
                "items": [
                    {**one, "quantity": one.get("quantity") and int(one["quantity"]),
                     "price": one.get("price") and float(one["price"])}
                    for one in row.get("items", ())
                ],
            }
        )  # fmt: skip
    schema = pa.schema(
        [
            ("event_date", pa.string()),
            ("event_timestamp", pa.int64()),
            ("event_name", pa.string()),
            ("event_params", pa.list_(pa.struct([("key", pa.string()), ("value", value)]))),
            ("user_pseudo_id", pa.string()),
            ("user_id", pa.string()),
            ("batch_event_index", pa.int64()),
            ("ecommerce", pa.struct([("transaction_id", pa.string()), ("tax", pa.float64())])),
            ("items", pa.list_(item)),
        ]
    )
    return pa.Table.from_pylist(rows, schema)


def test_parquet_says_the_same_as_json(tmp_path):
    pq.write_table(export(LOG), tmp_path / "events_20240601.parquet")
    typed, ignored, faults = events_of(ga4(str(tmp_path / "events_20240601.parquet")))
    assert faults == []
    assert sum(ignored.values()) == 4
    events, _, _ = events_of(ga4())
    strange = (pl.col("event_type") == "view") & (
        pl.col("item_id").is_null() | (pl.col("item_id") == "77")
    )
    as_json = events.filter(~strange.fill_null(False))  # two that no typed file could hold
    dropped = ("_record", "event_id")
    assert typed.drop(dropped).equals(as_json.drop(dropped))


def test_parquet_may_lack_what_is_not_needed(tmp_path):
    path = tmp_path / "events.parquet"
    few = export(LOG).select(["event_name", "event_timestamp", "user_pseudo_id"])
    pq.write_table(few, path)
    events, _, _ = events_of(ga4(str(path)))
    assert events["item_id"].null_count() == events.height
    pq.write_table(export(LOG).select(["event_name", "user_pseudo_id"]), path)
    with pytest.raises(UserError, match="no column 'event_timestamp'"):
        events_of(ga4(str(path)))


def test_nested_text_that_is_not_utf8_is_marked(tmp_path):
    item = pa.StructArray.from_arrays(
        [pa.array([b"caf\xe9", b"ok"]).view(pa.string())], ["item_id"]
    )
    columns = {
        "event_name": ["view_item", "view_item"],
        "event_timestamp": [1717236000000000] * 2,
        "user_pseudo_id": ["u", "u"],
        "items": pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), item),
    }
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    events, _, _ = events_of(ga4(str(tmp_path / "x.parquet")))
    assert events["item_id"].to_list() == ["caf\ufffd", "ok"]


ITEM = st.fixed_dictionaries(
    {}, optional={name: st.text(max_size=3) | JSON for name in
                  ("item_id", "price", "quantity", "item_list_index", "item_list_id")}
)  # fmt: skip
NAMES = ["view_item_list", "purchase", "refund", "search", "scroll"]
VALUES = ["string_value", "int_value", "double_value"]
PARAM = st.fixed_dictionaries(
    {"key": st.sampled_from(["search_term", "currency", "ga_session_id", "transaction_id"])},
    optional={
        "value": st.dictionaries(st.sampled_from(["string_value", "int_value"]), JSON) | JSON
    },
)


@pytest.mark.long
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        records(
            event_name=st.sampled_from(
                ["view_item_list", "purchase", "refund", "search", "scroll"]
            ),
            event_timestamp=st.sampled_from(["1717236000000000", 1717236000000000]) | JSON,
            user_pseudo_id=st.text(max_size=3),
            user_id=st.text(max_size=3),
            event_params=st.lists(PARAM | JSON, max_size=3),
            items=st.lists(ITEM | JSON, max_size=3),
            ecommerce=st.fixed_dictionaries({}, optional={"transaction_id": JSON}),
        )
        | LINES,
        max_size=6,
    )
)
def test_whatever_records_say_every_one_is_accounted_for(tmp_path, lines):
    path = write(tmp_path / "x.jsonl", lines)
    made = ga4(path)
    try:
        events, ignored, faults = events_of(made)
    except UserError:
        return  # no field that the format needs, or no believable moment
    assert all_of(path, events, ignored, faults)
