"""Mappings: what they accept, what they refuse and how they say it, and what drafts hold."""

import polars as pl
import pytest

from raysys import schema
from raysys.config import parse_settings
from raysys.datasets.drafting import draft_events, draft_items, draft_users
from raysys.datasets.files import find, read
from raysys.datasets.mapping import UNPARSED, EventFiles, UserFiles, check_columns
from raysys.errors import UserError

COLUMNS = {"user_id": "u", "item_id": "i", "event_type": "what", "timestamp": "t"}


def events(**more):
    return EventFiles(paths="log.csv", columns=COLUMNS, time={"unit": "seconds"}, **more)


def test_a_draft_has_every_column_of_the_vocabulary():
    rows = pl.DataFrame({"u": ["1"], "i": ["2"], "what": ["buy"], "t": ["1511658000"]})
    files = events(event_types={"buy": "purchase"}, constants={"currency": "EUR"})
    draft = draft_events(rows, files, where="log.csv")
    assert draft.columns[: len(schema.LOGGED_EVENTS)] == schema.LOGGED_EVENTS.names
    one = draft.row(0, named=True)
    assert one["event_type"] == "purchase"
    assert one["timestamp"] == 1_511_658_000_000
    assert one["currency"] == "EUR"
    assert one[UNPARSED] is None


def test_values_that_cannot_be_read_are_named():
    files = EventFiles(
        paths="log.csv",
        columns={**COLUMNS, "price": "p", "week": "w"},
        time={"unit": "seconds"},
    )
    rows = pl.DataFrame(
        {
            "u": ["1"] * 4,
            "i": ["2"] * 4,
            "what": ["view"] * 4,
            "t": ["1511658000", "1511658000", "yesterday", "1511658000"],
            "p": ["9.5", "cheap", "1", ""],
            "w": ["7.0", "7", "7", "seven"],
        }
    )
    draft = draft_events(rows, files, where="log.csv")
    assert draft[UNPARSED].to_list() == [None, "price", "timestamp", "week"]
    assert draft["week"].to_list() == [7, 7, 7, None]
    assert draft["price"].to_list() == [9.5, None, 1.0, None]


def test_ids_are_text_whatever_they_were():
    rows = pl.DataFrame({"a": [1.0, None, 3.0], "b": [1, 2, 3], "c": ["x", "", " y"]})
    items = draft_items(rows, {"item_id": "a", "title": "c", "brand": "b"})
    assert items["item_id"].to_list() == ["1", None, "3"]
    assert items["brand"].to_list() == ["1", "2", "3"]
    assert items["title"].to_list() == ["x", None, " y"]


def test_users_keep_only_attributes_that_say_something():
    files = UserFiles(paths="users.csv", columns={"user_id": "id"})
    rows = pl.DataFrame({"id": ["1", "2"], "age": ["30", ""], "city": [None, "Bonn"]})
    listed = draft_users(rows, files)["attributes"].to_list()
    assert listed == [[{"key": "age", "value": "30"}], [{"key": "city", "value": "Bonn"}]]


@pytest.mark.parametrize(
    ("name", "content"),
    [("users.csv", ",id,age\n0,1,30\n"), ("users.jsonl", '{"": 0, "id": "1", "age": 30}\n')],
)
def test_a_column_without_a_name_is_no_attribute(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    files = UserFiles(paths=str(tmp_path / name), columns={"user_id": "id"})
    (block,) = read(find(files)[0], files)
    (listed,) = draft_users(block.rows, files)["attributes"].to_list()
    assert listed == [{"key": "age", "value": "30"}]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"columns": {"user_id": "u", "item_id": "i", "timestamp": "t"}}, "event_type"),
        ({"columns": {**COLUMNS, "pricee": "p"}}, "did you mean 'price'"),
        ({"event_types": {"pv": "veiw"}}, "'veiw', which is none of impression"),
        ({"constants": {"event_type": "purchase"}}, "both columns and constants"),
        ({"paths": []}, "at least 1"),
        ({"format": "xlsx"}, "'csv', 'jsonl' or 'parquet'"),
        ({"header": ["a", "a"]}, "must differ"),
        ({"time": {"unit": "minutes"}}, "'seconds'"),
        ({"items": {"colour": "c"}}, "'colour' is no column here"),
        ({"delimeter": ";"}, "did you mean 'delimiter'"),
    ],
)
def test_impossible_mappings_are_refused_in_words(change, says):
    content = {"paths": "log.csv", "columns": COLUMNS, **change}
    with pytest.raises(UserError, match=r"ingest\.yaml") as refusal:
        parse_settings(EventFiles, content, where="ingest.yaml")
    assert says in str(refusal.value)


def test_a_missing_column_is_told_with_the_nearest_name():
    with pytest.raises(UserError) as refusal:
        check_columns(events(), ["u", "i", "whatt", "t"], where="log.csv")
    assert "no column 'what'; the file has: u, i, whatt, t" in str(refusal.value)
    assert "did you mean 'whatt'" in str(refusal.value)
