"""Texts with labels out of files: every row is read or put aside with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.config import parse_settings
from raysys.datasets import labelled
from raysys.datasets.labelled import Labelled
from raysys.datasets.labelled_files import CompleteJourneyProducts, LabelledFiles, TextColumns
from raysys.errors import UserError


def source(path: Path, **columns: Any) -> LabelledFiles:
    return parse_settings(LabelledFiles, {"paths": str(path), **columns}, where="test")


def read(task: str, *sources: TextColumns, **more: Any) -> Labelled:
    return labelled.read(sources, labelled.find(sources), task, **more)  # type: ignore[arg-type]


def csv(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_bad_rows_go_aside_with_their_reason_and_the_rest_is_read(tmp_path: Path) -> None:
    path = csv(
        tmp_path / "reviews.csv", "title,review,stars", "good,shoe,5", ",,4", "bad,shoe,1",
        "odd,shoe,many", "high,shoe,9", '"a, b",,3', "too,many,4,columns",
    )  # fmt: skip
    found = read("sentiment", source(path, text=["title", "review"], rating="stars"))
    assert found.rows["text"].to_list() == ["good shoe", "bad shoe", "a, b"]
    assert found.rows["label"].to_list() == ["positive", "negative", "neutral"]
    assert found.rows["rating"].to_list() == [5, 1, 3]
    assert found.reasons == {
        "empty_text": 1,
        "rating_not_a_number": 1,
        "rating_above_all_classes": 1,
        "line_does_not_parse": 1,
    }
    assert found.read == 7 == found.rows.height + found.aside.height
    odd = found.aside.filter(pl.col("reason") == "rating_not_a_number").row(0, named=True)
    assert odd["row"] == 4 and odd["source"] == "reviews.csv" and "odd" in odd["raw"]


def test_levels_of_a_label_end_before_the_first_that_is_empty(tmp_path: Path) -> None:
    path = csv(tmp_path / "a.csv", "t,d,c,s", "x,food,milk,oat", "y,food,,oat", "z,,milk,oat")
    found = read("classify", source(path, text="t", label=["d", "c", "s"]))
    assert found.rows["label"].to_list() == ["food > milk > oat", "food"]
    assert found.reasons == {"label_missing": 1}


def test_one_column_may_hold_a_path_and_labels_may_be_renamed(tmp_path: Path) -> None:
    path = csv(tmp_path / "a.csv", "t,l", "x,food / milk/", "y,0")
    found = read(
        "classify", source(path, text="t", label="l", label_separator="/", label_names={"0": "no"})
    )
    assert found.rows["label"].to_list() == ["food > milk", "no"]


def test_whole_numbers_of_parquet_are_labels_without_a_fraction(tmp_path: Path) -> None:
    pl.DataFrame({"t": ["a", "b", "c"], "l": [1.0, None, 2.0]}).write_parquet(tmp_path / "a.pq")
    found = read("classify", source(tmp_path / "a.pq", text="t", label="l"))
    assert found.rows["label"].to_list() == ["1", "2"]
    assert found.reasons == {"label_missing": 1}


def test_spans_outside_their_text_go_aside(tmp_path: Path) -> None:
    rows = [
        {"t": "Acme X1 mill", "s": [{"start": 5, "end": 7, "label": "model"}]},
        {"t": "Acme", "s": [{"start": 2, "end": 9, "label": "brand"}]},
        {"t": "Acme", "s": [{"start": -1, "end": 2, "label": "brand"}]},
        {"t": "nothing", "s": []},
        {"t": "Acme", "s": "no list"},
        {"t": "Acme", "s": [{"start": 0, "label": "brand"}]},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read("entities", source(tmp_path / "a.jsonl", text="t", spans="s"))
    assert found.rows["spans"].to_list() == [[{"start": 5, "end": 7, "label": "model"}], []]
    assert found.reasons == {"span_outside_text": 2, "spans_unreadable": 2}


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_attributes_of_any_shape_are_located(tmp_path: Path, form: str) -> None:
    asked: list[tuple[str, dict[str, list[str]]]] = []

    def locate(text: str, values: Any) -> tuple[list[dict[str, Any]], int]:
        asked.append((text, {name: list(found) for name, found in values.items()}))
        return [], sum(value not in text for found in values.values() for value in found)

    rows = [
        {"t": 'Acme 17" "Max"', "a": {"size": {'17"': 1}, "brand": {"Acme": 1}, "x": {"n/a": 1}}},
        {"t": "Valley", "a": {"size": None, "brand": {"North": 1}, "x": None}},
    ]
    path = tmp_path / f"a.{form}"
    if form == "jsonl":
        path.write_text("\n".join(json.dumps(row, ensure_ascii=True) for row in rows))
    else:
        pl.DataFrame(rows).write_parquet(path)
    found = read("entities", source(path, text="t", attributes="a"), locate=locate)
    assert asked[0][1] == {"size": ['17"'], "brand": ["Acme"]}
    assert asked[1][1] == {"brand": ["North"]}
    assert found.notes == {"attribute_value_not_in_text": 1} and not found.aside.height


def test_judgements_may_name_items_whose_texts_are_elsewhere(tmp_path: Path) -> None:
    csv(tmp_path / "items.csv", "id,title,brand", "1,mill,Acme", "2,pan,", "3,,")
    judged = csv(tmp_path / "j.csv", "q,i,g", "mill,1,3", "pan,2,x", "pot,9,1", ",1,1", "pot,3,2")
    found = read(
        "relevance",
        source(
            judged, query="q", item="i", grade="g",
            items={"paths": str(tmp_path / "items.csv"), "id": "id", "text": ["title", "brand"]},
        ),
    )  # fmt: skip
    assert found.rows["text"].to_list() == ["mill Acme"]
    assert found.rows["weight"].to_list() == [1.0]
    assert found.reasons == {
        "unknown_item": 2,
        "grade_not_a_number": 1,
        "empty_query": 1,
    }


def test_a_file_that_lacks_the_label_column_is_told_not_fatal(tmp_path: Path) -> None:
    csv(tmp_path / "a.csv", "t,l", "x,1")
    csv(tmp_path / "b.csv", "t", "y")
    csv(tmp_path / "c.csv", "u,l", "y,1")
    found = read("classify", source(tmp_path / "*.csv", text="t", label="l"))
    assert found.rows["text"].to_list() == ["x"]
    assert found.reasons == {"label_missing": 1, "missing_columns": 1}


@pytest.mark.parametrize(
    ("task", "columns", "said"),
    [
        ("classify", {"text": "t"}, "which column is the label"),
        ("classify", {}, "text: say which column"),
        ("relevance", {"text": "t", "grade": "l"}, "which column is the query"),
        ("entities", {"text": "t"}, "attribute_columns"),
        ("classify", {"text": "txt", "label": "l"}, "no column 'txt'"),
        ("classify", {"text": "empty", "label": "l"}, "all were put aside"),
    ],
)
def test_what_cannot_work_is_said_at_once(
    tmp_path: Path, task: str, columns: dict[str, Any], said: str
) -> None:
    path = csv(tmp_path / "a.csv", "t,l,empty", "x,1,", "y,2,")
    with pytest.raises(UserError, match=said):
        read(task, source(path, **columns))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"tokens": "t", "text": "u"}, "tokens and tags say text and spans"),
        ({"text": "t", "tags": "u"}, "give `tokens`"),
        ({"text": "t", "spans": "s", "attributes": "a"}, "not both"),
        ({"text": ["t", "u"], "spans": "s"}, "a single text"),
        ({"text": "t", "rating": "r", "rating_classes": {"good": 5, "bad": 2}}, "higher bound"),
        ({"text": "t", "optional": ["text"]}, "may lack"),
        ({"text": "t", "lable": "l"}, "did you mean 'label'"),
    ],
)
def test_a_mapping_that_contradicts_itself_is_refused(columns: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        source(Path("a.csv"), **columns)


def test_the_packaged_products_are_a_hierarchy_and_know_their_type() -> None:
    products = CompleteJourneyProducts()
    found = read("classify", products)
    assert found.rows.height == found.read > 90_000
    first = found.rows.row(0, named=True)
    assert first["text"] == "Ice - crushed/cubed, 22 lb, National"
    assert first["label"] == "GROCERY > FRZN ICE" and first["group"] == "ICE - CRUSHED/CUBED"


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=6),
            st.one_of(st.none(), st.text("ab ", max_size=2)),
            st.one_of(st.none(), st.floats(), st.sampled_from(["x", "3"])),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_no_row_is_lost_and_no_kept_row_is_bad(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Any, Any, Any]]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    lines = [json.dumps({"t": t, "q": q, "g": g, "k": 1}) for t, q, g in rows]
    path.write_text("\n".join(lines))
    columns = source(path, text="t", query="q", grade="g", optional=["query", "grade"])
    if not any(t.strip() for t, _, _ in rows):
        return  # nothing to learn from at all is an error, tested above
    try:
        found = read("relevance", columns)
    except UserError as error:
        assert "all were put aside" in str(error)
        return
    assert found.read == len(rows) == found.rows.height + found.aside.height
    for row in found.rows.iter_rows(named=True):
        assert row["text"].strip() and row["query"].strip() and row["grade"] == row["grade"]
        assert row["text"] == rows[row["row"] - 1][0]


def test_texts_without_a_label_are_kept_where_they_are_put_to_use(tmp_path: Path) -> None:
    path = csv(
        tmp_path / "a.csv", "t,l,stars", "x,food,5", "y, ,", "z,,4", "w,toys,many", ",,", "v,,9"
    )
    told = source(path, text="t", label="l")
    assert read("classify", told).reasons == {"label_missing": 3, "empty_text": 1}
    found = read("classify", told, unlabelled=True)
    assert found.rows["label"].to_list() == ["food", None, None, "toys", None]
    assert found.reasons == {"empty_text": 1}
    rated = source(path, text="t", rating="stars")
    found = read("sentiment", rated, unlabelled=True)
    assert found.rows["label"].to_list() == ["positive", None, "positive"]
    assert found.reasons == {
        **{"rating_not_a_number": 1, "empty_text": 1, "rating_above_all_classes": 1}
    }
    # a rating teaches the rating, whether or not a label is known
    found = read("sentiment", source(path, text="t", label="l", rating="stars"))
    assert found.rows["text"].to_list() == ["x", "z", "w", "v"]
    csv(tmp_path / "a.csv", "t,l", "x,", "y,")
    with pytest.raises(UserError, match="none of 2 texts has a label"):
        read("classify", told, unlabelled=True)
