"""Nested records as columns: drift of single values, broken lines, and both readers alike."""

import json

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.datasets import records
from raysys.datasets.records import conform, decode
from tests.datasets.importing import JSON

TYPES = {
    "a": pl.String,
    "b": pl.Struct({"x": pl.String, "y": pl.Struct({"z": pl.String})}),
    "c": pl.List(pl.Struct({"x": pl.String})),
}


def rows(lines, types=TYPES, screen=None):
    frame, broken = decode(pl.Series(lines, dtype=pl.String), types, screen)
    assert frame.schema == pl.Schema(types)
    assert frame.height == broken.len() == len(lines)
    return frame.rows(), broken.to_list()


def test_a_value_of_another_type_is_its_own_matter():
    told, broken = rows(
        [
            '{"a": 1, "c": [{"x": 2.5}, {"x": "two", "more": []}], "unknown": {"a": [1]}}',
            '{"a": {"k": [1]}, "b": 7, "c": [{"x": true}, 3, null]}',
            '{"a": ["p", 1], "b": {"x": null, "y": "no"}, "c": {"x": 1}}',
            "{}",
        ]
    )
    assert told == [
        ("1", None, [{"x": "2.5"}, {"x": "two"}]),
        ('{"k": [1]}', None, [{"x": "true"}, None, None]),
        ('["p", 1]', {"x": None, "y": None}, None),
        (None, None, None),
    ]
    assert broken == [False] * 4


def test_only_text_that_is_no_object_is_broken():
    lines = [
        '{"a": "first"}', "", None, "null", "[1]", '{"a": 1', '{"a": 1},{"a": 2}', '{"a": "x}',
        '{y"}', '{"a": NaN}', '{"a": "tab\t"}', '{"a": "x"}\n{"a": "y"}', ' {"a": "last"}\r',
    ]  # fmt: skip
    told, broken = rows(lines)
    assert broken == [False, *[True] * 11, False]
    assert [row[0] for row in told] == ["first", *[None] * 11, "last"]


def test_a_few_broken_lines_among_many_cost_only_themselves():
    lines = [json.dumps({"a": n, "c": [{"x": n}]}) for n in range(3000)]
    for at in (0, 255, 256, 1500, 2999):
        lines[at] = lines[at][:-3]
    lines[700] = json.dumps({"a": 700, "c": "drifted"})
    told, broken = rows(lines)
    assert [at for at, lost in enumerate(broken) if lost] == [0, 255, 256, 1500, 2999]
    assert told[700] == ("700", None, None)
    assert told[701] == ("701", None, [{"x": "701"}])


def test_nesting_without_end_is_a_broken_line():
    deep = '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"
    assert rows([deep, '{"a": 1}']) == ([(None, None, None), ("1", None, None)], [True, False])


def test_lists_of_texts_take_no_lone_text_for_one():
    types = {"a": pl.String, "c": pl.List(pl.String)}
    told, _ = rows(['{"a": 1, "c": ["x", 2, null]}', '{"a": 2, "c": "x"}'], types)
    assert told == [("1", ["x", "2", None]), ("2", None)]


def test_of_records_without_interest_only_the_word_is_read():
    lines = ['{"a": "in", "b": {"x": 1}}', '{"a": "out", "b": {"x": 2}}', "{", '{"b": {"x": 3}}']
    told, broken = rows(lines, screen=("a", ("in",)))
    assert broken == [False, False, True, False]
    assert [(a, b and b["x"]) for a, b, _ in told] == [
        ("in", "1"), ("out", None), (None, None), (None, "3"),
    ]  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "a": JSON,
            "b": st.fixed_dictionaries({}, optional={"x": JSON, "y": JSON}) | JSON,
            "c": st.lists(st.fixed_dictionaries({}, optional={"x": JSON}), max_size=3) | JSON,
        },
    )
)
def test_both_readers_say_the_same(record):
    line = pl.Series([json.dumps(record)])
    strictly = records._read_strictly(line, TYPES)
    if strictly is not None:
        assert strictly.equals(records._read_loosely(line, TYPES))


def test_columns_of_a_file_are_made_to_fit():
    frame = pl.DataFrame(
        {
            "c": [[{"y": 1, "x": 5}, None], [], None],
            "b": [{"x": 1.5, "y": "no"}, None, {"x": 2.5, "y": None}],
        }
    )
    fitted = conform(frame, {**TYPES, "d": pl.List(pl.String)})
    assert fitted.rows() == [
        (None, {"x": "1.5", "y": None}, [{"x": "5"}, None], None),
        (None, None, [], None),
        (None, {"x": "2.5", "y": None}, None, None),
    ]
