"""Metarank's JSON events into events and items."""

import json

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysys.config import parse_settings
from raysys.datasets.drafting import draft_items, draft_users
from raysys.datasets.files import find, read
from raysys.datasets.mapping import UNPARSED
from raysys.datasets.metarank import MetarankSource, source
from raysys.errors import UserError
from tests.datasets.importing import (
    FIXTURES,
    JSON,
    LINES,
    MOMENTS,
    accounted_for,
    all_of,
    events_of,
    records,
    table,
    write,
)

LOG = str(FIXTURES / "metarank.jsonl")


def metarank(**more):
    return source(MetarankSource(paths=more.pop("paths", LOG), **more))


def test_rankings_are_impressions_and_interactions_what_followed():
    events, ignored, faults = events_of(
        metarank(fields={"quantity": "count"}, event_types={"return": "refund"})
    )
    assert table(events, "event_id", "event_type", "user_id", "item_id", "request_id", "position",
                 "query") == [
        ("r1#1", "impression", "user1", "item3", "r1", 1, "cat"),
        ("r1#2", "impression", "user1", "item1", "r1", 2, "cat"),
        ("r1#3", "impression", "user1", "item2", "r1", 3, "cat"),
        ("i1", "click", "user1", "item1", "r1", None, None),
        ("i2", "purchase", "user1", "item1", "r1", None, None),
        ("i3", "favorite", "session2", "4711", None, None, None),
        ("i5", "purchase", "user1", "item1", None, None, None),
        ("r2", "impression", "user2", None, "r2", None, None),  # for the rules: nothing was shown
        ("r3#1", "impression", None, "item1", "r3", 1, None),  # … and nobody saw it
        ("r3#2", "impression", None, "item2", "r3", 2, None),
        ("i6", "click", "user3", "item1", None, None, None),
        ("x1", None, "user1", None, None, None, None),
    ]  # fmt: skip
    bought = events.filter(event_type="purchase")
    assert table(bought, "quantity", "price", "session_id") == [
        (2.0, 12.5, "session1"), (-1.0, None, None),
    ]  # fmt: skip
    assert ignored == {
        "not_an_event: item": 3,
        "not_an_event: user": 1,
        "not_an_event: feedback": 1,
        "not_an_event: interaction: dislike": 1,
    }
    assert [(fault.row, fault.reason) for fault in faults] == [(12, "line_does_not_parse")]


def test_moments_are_milliseconds_as_text_or_number_or_iso():
    events, _, _ = events_of(metarank())
    moments = dict(table(events, "event_id", "timestamp"))
    assert moments["i1"] == 1599391475000
    assert moments["i2"] == 1599391480000
    assert moments["i3"] == 1599391490000
    assert table(events.filter(event_id="i6"), "timestamp", UNPARSED) == [(None, "timestamp")]


def test_item_events_make_the_catalogue_with_the_first_word_on_each():
    made = metarank()
    (part,) = find(made.items[0])
    (block,) = read(part, made.items[0])
    told = made.expand_items(block.rows)
    accounted_for(block.rows, told)
    items = draft_items(told.rows, made.items[0].columns)
    assert table(items, "item_id", "title", "category", "price") == [
        ("item1", "You favourite cat", "toys, pets", 12.5),
        ("item2", "Blue jeans", None, 39.9),
    ]
    assert told.ignored["more_of_the_same_item"] == 1


def test_user_events_are_what_is_known_of_users(tmp_path):
    said = [
        {"event": "user", "user": "u1", "fields": [{"name": "age", "value": 33},
                                                   {"name": "likes", "value": ["cats", "tea"]},
                                                   {"name": "age", "value": 34},
                                                   {"name": "gone", "value": None}]},
        {"event": "user", "user": "u2"},
        {"event": "user", "user": "u1", "fields": [{"name": "age", "value": 40},
                                                   {"name": "city", "value": "Ulm"}]},
        {"event": "user", "fields": [{"name": "age", "value": 1}]},
        {"event": "item", "item": "i"},
        {"id": "x"},
    ]  # fmt: skip
    lines = [*(json.dumps(each) for each in said), ""]  # a line that does not end is read apart
    made = metarank(paths=write(tmp_path / "x.jsonl", lines))
    (block,) = read(find(made.users[0])[0], made.users[0])
    told = made.expand_users(block.rows)
    accounted_for(block.rows, told)
    users = draft_users(told.rows, made.users[0])
    known = {user: {e["key"]: e["value"] for e in entries} for user, entries, _ in users.rows()}
    assert known == {
        "u1": {"age": "33", "likes": "cats, tea", "city": "Ulm"},
        "u2": {},
        None: {},  # for the rules: nobody is named
    }
    assert told.ignored == {
        "not_a_user: item": 1,
        "not_a_user: (nothing)": 1,
        "more_of_the_same_user": 1,
    }


def test_fields_may_have_other_names():
    made = metarank(item_fields={"category": "color", "title": "name"})
    (block,) = read(find(made.items[0])[0], made.items[0])
    items = made.expand_items(block.rows).rows
    assert items["title"].null_count() == items.height


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"event_types": {"like": "love"}}, "like means 'love', which is none of impression"),
        ({"fields": {"colour": "color"}}, "'colour' cannot be filled here"),
        ({"item_fields": {"item_id": "id"}}, "'item_id' cannot be filled here"),
        ({"pahts": "x"}, "did you mean 'paths'"),
    ],
)
def test_mistakes_in_the_settings(wrong, message):
    with pytest.raises(UserError, match=message):
        parse_settings(MetarankSource, {"paths": LOG, **wrong}, where="ingest.yaml")


def test_a_file_of_something_else_is_refused(tmp_path):
    path = write(tmp_path / "x.jsonl", ['{"user": "u", "product": 1}'])
    with pytest.raises(
        UserError, match="no column 'event', 'timestamp'; the file has: user, product"
    ):
        events_of(metarank(paths=path))


NAMED = st.fixed_dictionaries({"name": st.sampled_from(["query", "title", "price"]), "value": JSON})
SHOWN = st.fixed_dictionaries({}, optional={"id": st.text(max_size=3) | JSON, "relevancy": JSON})


@pytest.mark.long
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        records(
            event=st.sampled_from(["item", "user", "ranking", "interaction", "other"]),
            id=st.text(max_size=3),
            timestamp=MOMENTS,
            user=st.text(max_size=2),
            session=st.text(max_size=2),
            type=st.sampled_from(["click", "purchase", "refund", "dislike"]),
            item=st.text(max_size=2),
            ranking=st.text(max_size=2),
            fields=st.lists(NAMED | JSON, max_size=3),
            items=st.lists(SHOWN | JSON, max_size=3),
        )
        | LINES,
        max_size=6,
    )
)
def test_whatever_records_say_every_one_is_accounted_for(tmp_path, lines):
    path = write(tmp_path / "x.jsonl", lines)
    made = metarank(paths=path)
    try:
        events, ignored, faults = events_of(made)
        for block in read(find(made.items[0])[0], made.items[0]):
            if block.rows.height:
                accounted_for(block.rows, made.expand_items(block.rows))
        for block in read(find(made.users[0])[0], made.users[0]):
            if block.rows.height:
                accounted_for(block.rows, made.expand_users(block.rows))
    except UserError:
        return  # no field that the format needs, or no believable moment
    assert all_of(path, events, ignored, faults)
    assert events is None or events.schema["timestamp"] == pl.Int64
