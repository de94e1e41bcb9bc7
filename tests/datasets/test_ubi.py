"""OpenSearch's queries and events into events."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysys.config import parse_settings
from raysys.datasets.ubi import UbiSource, source
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

QUERIES = str(FIXTURES / "ubi_queries.jsonl")
EVENTS = str(FIXTURES / "ubi_events.jsonl")
BROWSER = "USER-eeed-43de-959d-90e6040e84f9"
LAPTOP = "d194b734-70a4-40df-8a8a-a5b5ad1ecb7a"


def ubi(**given):
    return source(UbiSource(**given))


def test_a_query_is_a_search_and_impressions_of_what_it_returned():
    events, ignored, faults = events_of(ubi(queries=QUERIES))
    assert table(
        events, "event_type", "user_id", "item_id", "request_id", "position", "query", "timestamp"
    ) == [
        ("search", BROWSER, None, LAPTOP, None, "laptop", 1717236000120),
        ("impression", BROWSER, "B07XLFYN6S", LAPTOP, 1, "laptop", 1717236000120),
        ("impression", BROWSER, "B013UFPODY", LAPTOP, 2, "laptop", 1717236000120),
        ("impression", BROWSER, "4711", LAPTOP, 3, "laptop", 1717236000120),
        ("search", "USER-2", None, "q-2", None, "nothing like this", 1717236060000),
        ("impression", "USER-2", "B013UFPODY", "q-3", 1, None, 1717236120000),
        ("search", None, None, "q-4", None, "phone", 1717236180000),
        ("impression", None, "B0001", "q-4", 1, "phone", 1717236180000),
        (None, "USER-3", None, "q-5", None, None, 1717236240000),  # neither words nor hits
    ]
    assert table(events.head(3), "event_id") == [
        ("dGhpc2lzYXF1ZXJ5",), ("dGhpc2lzYXF1ZXJ5#1",), ("dGhpc2lzYXF1ZXJ5#2",),
    ]  # fmt: skip
    assert ignored == {"not_an_event: (bulk action)": 1}
    assert faults == []


def test_events_carry_the_query_they_react_to():
    events, ignored, faults = events_of(ubi(events=EVENTS))
    assert table(
        events, "event_type", "user_id", "item_id", "request_id", "position", "timestamp"
    ) == [
        ("impression", BROWSER, "B07XLFYN6S", LAPTOP, 1, 1717236000500),
        ("click", BROWSER, "B013UFPODY", LAPTOP, 2, 1717236004000),
        ("cart", "alice", "4711", LAPTOP, None, 1717236060000),
        ("purchase", "alice", "i1", None, None, 1717236300000),
        ("click", "USER-2", None, "q-3", None, 1717236420000),
        (None, "USER-2", "B013UFPODY", "q-3", None, 1717236421000),
        ("purchase", "alice", "B0001", None, None, 1717409100000),
    ]
    assert table(
        events.filter(event_type="purchase"), "quantity", "price", "currency", "order_id"
    ) == [(2.0, 399.0, "EUR", "o-1"), (-1.0, None, None, "o-1")]
    assert set(events["session_id"]) == {"84266fdb", None}
    assert ignored == {"not_an_event: product_hover": 1}
    assert [fault.row for fault in faults] == [8]


def test_impressions_come_from_one_of_the_two():
    both = {"queries": QUERIES, "events": EVENTS}
    events, ignored, _ = events_of(ubi(**both))
    assert events["event_type"].value_counts(name="n").filter(event_type="impression")["n"][0] == 5
    assert ignored["told_by_the_query: impression"] == 1
    events, ignored, _ = events_of(ubi(**both, impressions="events"))
    shown = events.filter(event_type="impression")
    assert table(shown, "event_id", "item_id", "position") == [("e1", "B07XLFYN6S", 1)]
    assert events.filter(event_type="search").height == 3
    assert ignored["told_by_the_events: query"] == 1  # recommendations, which have no words


def test_both_indices_may_lie_in_one_file(tmp_path):
    lines = [line for path in (QUERIES, EVENTS) for line in Path(path).read_text().splitlines()]
    mixed = write(tmp_path / "ubi.ndjson", lines)
    apart, ignored, _ = events_of(ubi(queries=QUERIES, events=EVENTS))
    together, as_well, _ = events_of(ubi(queries=mixed, events=mixed))
    ordered = ["timestamp", "event_type", "item_id"]
    left, right = (rows.drop("_record").sort(ordered) for rows in (apart, together))
    assert left.equals(right)
    assert ignored == as_well


def test_settings_change_who_acts_what_words_mean_and_where_prices_are(tmp_path):
    path = write(
        tmp_path / "e.jsonl",
        [
            '{"action_name": "product_hover", "client_id": "c", "user_id": "u",'
            ' "timestamp": "2024-06-01T10:00:00Z", "event_attributes": {"object":'
            ' {"object_id": "a", "cost": {"amount": 3.5}}, "position": {"ordinal": 0}}}',
            '{"action_name": "search", "client_id": "c", "message": "shoes",'
            ' "timestamp": "2024-06-01T10:00:00Z"}',
        ],
    )
    events, _, _ = events_of(
        ubi(
            events=path,
            user="device",
            first_position=0,
            event_types={"product_hover": "view", "search": "search"},
            attributes={"price": "object.cost.amount"},
        )
    )
    assert table(events, "event_type", "user_id", "price", "position", "query") == [
        ("view", "c", 3.5, 1, None),
        ("search", "c", None, None, "shoes"),
    ]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "say where events, queries or both lie"),
        ({"events": "x", "attributes": {"price": "object"}}, "it holds others"),
        ({"events": "x", "attributes": {"item_id": "sku"}}, "'item_id' cannot be filled here"),
        ({"events": "x", "attributes": {"price": "a", "rating": "a.b"}}, "'a' cannot be a value"),
    ],
)
def test_mistakes_in_the_settings(wrong, message):
    with pytest.raises(UserError, match=message):
        parse_settings(UbiSource, wrong, where="ingest.yaml")


DOCUMENT = {
    "query_id": st.text(max_size=3),
    "client_id": st.text(max_size=3),
    "user_id": st.text(max_size=3),
    "timestamp": MOMENTS,
    "user_query": st.text(max_size=3),
    "query_response_hit_ids": st.lists(st.text(max_size=3) | JSON, max_size=3),
    "action_name": st.sampled_from(["impression", "click", "refund", "other"]),
    "event_attributes": st.fixed_dictionaries(
        {},
        optional={
            "object": st.fixed_dictionaries({}, optional={"object_id": st.text(max_size=3) | JSON}),
            "position": st.fixed_dictionaries({}, optional={"ordinal": st.integers() | JSON}),
            "quantity": JSON,
            "price": JSON,
        },
    ),
}


@pytest.mark.long
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        records(**DOCUMENT, index=JSON)
        | records(_id=st.text(max_size=3), _source=st.fixed_dictionaries({}, optional=DOCUMENT))
        | LINES,
        max_size=6,
    ),
    st.sampled_from(["queries", "events"]),
)
def test_whatever_records_say_every_one_is_accounted_for(tmp_path, lines, shown):
    path = write(tmp_path / "x.jsonl", lines)
    made = ubi(queries=path, impressions=shown)
    try:
        events, ignored, faults = events_of(made)
    except UserError:
        return  # no believable moment
    assert all_of(path, events, ignored, faults)
