"""Files of sessions and sequences: read packed or not, and lines that say something else."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysys.datasets.sequences import (
    Case,
    numbered,
    read_attributes,
    read_cases,
    read_sessions,
    read_user_sequences,
)
from raysys.errors import UserError


def written(folder: Path, text: str, name: str = "file") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_sessions_are_lists_or_objects(tmp_path: Path) -> None:
    path = written(tmp_path, '[1, 2]\n\n{"session": ["a", 7]}\r\n[]\n')
    assert read_sessions(path) == [["1", "2"], ["a", "7"], []]
    packed = tmp_path / "packed.anything"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert read_sessions(packed) == read_sessions(path)


def test_cases_have_a_label(tmp_path: Path) -> None:
    path = written(tmp_path, '{"session": [1, 2], "label": 3}\n{"session": [], "label": "x"}\n')
    assert read_cases(path) == [Case(["1", "2"], "3"), Case([], "x")]


def test_a_users_further_lines_go_on(tmp_path: Path) -> None:
    path = written(tmp_path, "﻿u1 a b\nu2\tc\n\nu1 d\n")
    assert read_user_sequences(path) == {"u1": ["a", "b", "d"], "u2": ["c"]}


def test_attributes_of_items(tmp_path: Path) -> None:
    path = written(tmp_path, '{"4": [1, "red"],\n "5": "blue"}')
    assert read_attributes(path) == {"4": ["1", "red"], "5": ["blue"]}


@pytest.mark.parametrize(
    ("read", "text", "where", "what"),
    [
        (read_sessions, "[1]\n[2, 3\n", "file:2", "no JSON"),
        (read_sessions, "[1]\n[2.5]\n", "file:2", "no list of numbers or texts"),
        (read_sessions, "[true]\n", "file:1", "no list of numbers or texts"),
        (read_sessions, '{"clicks": [1]}\n', "file:1", "no list"),
        (read_sessions, "\n \n", "file", "holds no session"),
        (read_cases, '{"session": [1]}\n', "file:1", "no test case"),
        (read_cases, "[1, 2]\n", "file:1", "no test case"),
        (read_cases, '{"session": 1, "label": 2}\n', "file:1", "no list"),
        (read_cases, '{"session": [1], "label": null}\n', "file:1", "no list"),
        (read_cases, "", "file", "holds no test case"),
        (read_user_sequences, "u1 a\nu2\n", "file:2", "user 'u2' without an item"),
        (read_user_sequences, "", "file", "holds no sequence"),
        (read_attributes, "[1]", "file:1", "no JSON object"),
        (read_attributes, '{"a": [[1]]}', "file", "item 'a'"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, read, text, where, what) -> None:  # type: ignore[no-untyped-def]
    path = written(tmp_path, text)
    with pytest.raises(UserError) as caught:
        read(path)
    assert caught.value.where.endswith(where)
    assert what in caught.value.what
    assert caught.value.mend


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_sessions(tmp_path / "nowhere")
    with pytest.raises(UserError, match="cannot be read"):
        read_sessions(tmp_path)
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(b"[1, 2]\n" * 5000)[:-20])
    with pytest.raises(UserError, match="damaged or ends in the middle"):
        read_sessions(cut)
    latin = tmp_path / "latin"
    latin.write_bytes(b"u1 a\nu2 caf\xe9\n")
    with pytest.raises(UserError, match="not UTF-8") as caught:
        read_user_sequences(latin)
    assert caught.value.where.endswith(":2")


ITEM = st.integers() | st.text(min_size=1)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sessions=st.lists(st.lists(ITEM, max_size=5), min_size=1, max_size=5))
def test_what_is_written_is_read(tmp_path: Path, sessions: list[list[int | str]]) -> None:
    path = tmp_path / "file"
    path.write_text("\n".join(json.dumps(session) for session in sessions), encoding="utf-8")
    assert read_sessions(path) == [[str(item) for item in session] for session in sessions]


def test_items_are_numbered_as_they_come() -> None:
    assert numbered([["b", "a"], ["b", "c"]]) == {"b": 0, "a": 1, "c": 2}
