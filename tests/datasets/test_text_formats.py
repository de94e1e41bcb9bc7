"""Public formats of labelled texts, each a tiny file as it is found in the wild."""

from __future__ import annotations

import gzip
import io
import json
import logging
import zipfile
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.config import parse_settings
from raysys.datasets import files, labelled
from raysys.datasets.encodings import as_utf8, told
from raysys.datasets.labelled import Labelled
from raysys.datasets.labelled_files import LabelledFiles
from raysys.datasets.labelled_names import settled
from raysys.datasets.mapping import TableFiles
from raysys.datasets.tagged_tokens import as_text, join_of
from raysys.errors import UserError
from raysys.stages.text_sources import locate


def read(task: str, path: Path, **columns: Any) -> Labelled:
    """As `raysys text fit` reads files whose columns nothing names but `columns`."""
    one = parse_settings(LabelledFiles, {"paths": str(path), **columns}, where="test")
    sources = settled((one,), task)
    return labelled.read(sources, labelled.find(sources), task, locate)


def written(folder: Path, name: str, content: str | bytes | list[Any]) -> Path:
    """A file of text, bytes, or JSON lines."""
    if isinstance(content, list):
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
    data = content.encode() if isinstance(content, str) else content
    path = folder / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def entities(found: Labelled) -> list[tuple[str, list[tuple[str, str]]]]:
    """Texts with what their spans say, and of which label."""
    return [
        (row["text"], [(row["text"][s["start"] : s["end"]], s["label"]) for s in row["spans"]])
        for row in found.rows.rows(named=True)
    ]


MILL = ("Acme X1 mill", [("Acme", "BRAND"), ("X1", "MODEL")])
SPANS = [[0, 4, "BRAND"], [5, 7, "MODEL"]]
STUDIO = [
    {"value": {"start": a, "end": b, "text": "Acme X1 mill"[a:b], "labels": [c]}, "type": "labels"}
    for a, b, c in SPANS
]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "eng.train",
            "-DOCSTART- -X- -X- O\n\nAcme N I-NP B-BRAND\nX1 N I-NP B-MODEL\nmill N I-NP O\n",
        ),
        ("a.txt", "Acme B-BRAND\r\nX1 B-MODEL\r\nmill O\r\n\r\n"),
        ("a.tsv", "Acme\tB-BRAND\nX1\tB-MODEL\nmill\tO\n"),
        ("iob1.txt", "Acme I-BRAND\nX1 I-MODEL\nmill O\n"),
        ("a.bioes", "Acme S-BRAND\nX1 S-MODEL\nmill O\n"),
        ("mit.bio", "B-BRAND\tAcme\nB-MODEL\tX1\nO\tmill\n"),
        ("header.tsv", "token\ttag\nAcme\tB_BRAND\nX1\tB_MODEL\nmill\tO\n"),
        (
            "pairs.jsonl",
            [{"title": MILL[0], "attributes": [
                {"name": "BRAND", "value": "Acme"}, {"name": "MODEL", "value": ["X1"]}]}],
        ),
        ("germeval.tsv", "# http://x\n1\tAcme\tO\tB-BRAND\n2\tX1\tO\tB-MODEL\n3\tmill\tO\tO\n"),
        ("multiconer.conll", "# id 7\tdomain=en\nAcme _ _ B-BRAND\nX1 _ _ B-MODEL\nmill _ _ O\n\n"),
        ("doccano.jsonl", [{"id": 1, "text": MILL[0], "label": SPANS}]),
        (
            "doccano.json",
            [{"text": MILL[0], "relations": [], "entities": [
                {"id": 3, "start_offset": a, "end_offset": b, "label": c} for a, b, c in SPANS]}],
        ),
        ("spacy.jsonl", [[MILL[0], {"entities": SPANS}], ["none", {"entities": []}]]),
        ("spacy.json", json.dumps([[MILL[0], {"entities": SPANS}]], indent=1)),
        (
            "ubiai.json",
            json.dumps({"classes": ["B"], "annotations": [[MILL[0], {"entities": SPANS}], None]}),
        ),
        (
            "studio.json",
            json.dumps([{"id": 1, "data": {"text": MILL[0]}, "annotations": [
                {"was_cancelled": True, "result": []}, {"result": STUDIO}]}]),
        ),
        ("min.json", json.dumps([{"text": MILL[0], "label": [r["value"] for r in STUDIO]}])),
        (
            "studio.csv",
            'text,label\nAcme X1 mill,"[{""start"":0,""end"":4,""labels"":[""BRAND""]},'
            '{""start"":5,""end"":7,""labels"":[""MODEL""]}]"\n',
        ),
        (
            "prodigy.jsonl",
            [{"text": MILL[0], "tokens": [{"text": "Acme", "start": 0}], "answer": "accept",
              "spans": [{"start": a, "end": b, "label": c} for a, b, c in SPANS]}],
        ),
        (
            "dataturks.json",
            [{"content": MILL[0], "annotation": [
                {"label": [c], "points": [{"start": a, "end": b - 1, "text": MILL[0][a:b]}]}
                for a, b, c in SPANS]}],
        ),
        ("hf.jsonl", [{"tokens": ["Acme", "X1", "mill"], "ner_tags": ["B-BRAND", "B-MODEL", "O"]}]),
        ("hf.csv", "tokens,ner_tags\n\"['Acme', 'X1', 'mill']\",\"['B-BRAND', 'B-MODEL', 'O']\"\n"),
        (
            "oa.jsonl",
            [{"input": MILL[0], "target_scores": {"BRAND": {"Acme": 1}, "MODEL": {"X1": 1}}}],
        ),
        (
            "ae.txt",
            "".join(f"{MILL[0]}\x01{name}\x01{value}\n" for name, value in (
                ("BRAND", "Acme"), ("MODEL", "X1"), ("SIZE", "NULL"))),
        ),
        (
            "mave.jsonl",
            [{"id": "1", "category": "c", "paragraphs": [{"text": MILL[0], "source": "title"}],
              "attributes": [{"key": c, "evidences": [
                  {"value": MILL[0][a:b], "pid": 0, "begin": a, "end": b}]} for a, b, c in SPANS]}],
        ),
        (
            "cluener.json",
            [{"text": MILL[0],
              "label": {"BRAND": {"Acme": [[0, 3]]}, "MODEL": {"X1": [[5, 6]]}}}],
        ),
    ],
)  # fmt: skip
def test_spans_in_every_notation(
    tmp_path: Path, name: str, content: str | bytes | list[Any]
) -> None:
    found = read("entities", written(tmp_path, name, content))
    assert entities(found)[0] == MILL
    assert not found.aside.height


def test_spans_of_brat_lie_beside_their_texts(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text("Acme\nX1 mill")
    (tmp_path / "1.ann").write_text(
        "T1\tBRAND 0 4\tAcme\nT2\tMODEL 5 7\tX1\nR1\tof Arg1:T2 Arg2:T1\n"
    )
    found = read("entities", tmp_path)
    assert entities(found) == [("Acme\nX1 mill", MILL[1])] and found.read == 1


def test_characters_of_chinese_are_joined_without_blanks(tmp_path: Path) -> None:
    path = written(tmp_path, "zh.txt", "华 B-BRAND\n为 I-BRAND\n  O\nP O\n9 O\n\n手 O\n机 O\n")
    assert entities(read("entities", path)) == [("华为 P9", [("华为", "BRAND")]), ("手机", [])]
    rows = [{"tokens": list("小米"), "ner_tags": ["B-X", "E-X"]}]
    found = read("entities", written(tmp_path, "zh.jsonl", rows), token_join=" ")
    assert entities(found) == [("小 米", [("小 米", "X")])]


def test_tags_that_are_numbers_need_names(tmp_path: Path) -> None:
    rows = [{"tokens": ["Acme", "mill"], "ner_tags": [1, 0]}]
    path = written(tmp_path, "a.jsonl", rows)
    with pytest.raises(UserError, match=r"tags are numbers \(0, 1\).*\n.*tag_names"):
        read("entities", path)
    assert entities(read("entities", path, tag_names=["O", "B-X"]))[0][1] == [("Acme", "X")]
    feature = {"feature": {"names": ["O", "B-BRAND"], "_type": "ClassLabel"}, "_type": "Sequence"}
    told = json.dumps({"info": {"features": {"ner_tags": feature}}})
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"huggingface": told})
    pq.write_table(table, tmp_path / "a.parquet")
    assert entities(read("entities", tmp_path / "a.parquet"))[0][1] == [("Acme", "BRAND")]


def test_columns_of_token_files_may_be_named(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", "Acme B-NP B-X\nmill I-NP O\n")
    told = {"header": ["word", "chunk", "ner"], "tokens": "word", "tags": "chunk"}
    assert entities(read("entities", path, **told)) == [("Acme mill", [("Acme mill", "NP")])]


def test_offsets_of_javascript_and_last_characters_are_mended_by_what_spans_say(
    tmp_path: Path,
) -> None:
    rows = [
        {"text": "😀 Acme", "spans": [{"start": 3, "end": 7, "label": "B", "text": "Acme"}]},
        {"text": "Acme", "spans": [{"start": 0, "end": 3, "label": "B", "text": "Acme"}]},
        {"text": "Acme", "spans": [{"start": 0, "end": 4, "label": "B", "text": "Nova"}]},
    ]
    found = read("entities", written(tmp_path, "a.jsonl", rows))
    assert [spans for _, spans in entities(found)] == [[("Acme", "B")]] * 3
    assert found.notes == {"span_in_utf16": 1, "span_end_inclusive": 1, "span_says_other_text": 1}


def test_what_annotators_did_not_finish_goes_aside(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "spans": [{"start": 0, "end": 1, "label": "X"}], "answer": answer}
        for answer in ("accept", "reject", "ignore")
    ]
    assert read("entities", written(tmp_path, "p.jsonl", rows)).reasons == {"not_accepted": 2}
    tasks = [
        {"data": {"text": "good"}, "annotations": [
            {"result": [{"value": {"choices": ["Positive"]}, "type": "choices"}]}]},
        {"data": {"text": "odd"}, "annotations": []},
    ]  # fmt: skip
    found = read("sentiment", written(tmp_path, "s.json", json.dumps(tasks)))
    assert found.rows["label"].to_list() == ["positive"] and found.reasons == {"not_annotated": 1}


def test_values_that_stand_twice_or_nowhere(tmp_path: Path) -> None:
    rows = [{"input": "Acme mill by Acme", "target_scores": {"B": {"Acme": 1}, "C": {"red": 1}}}]
    found = read("entities", written(tmp_path, "a.jsonl", rows))
    assert entities(found)[0][1] == [("Acme", "B"), ("Acme", "B")]
    assert found.notes == {"attribute_value_not_in_text": 1}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "bc", "手"]), st.sampled_from("OXY")), min_size=1))
def test_schemes_say_the_same(units: list[tuple[str, str]]) -> None:
    """Runs of one label are one span in IOB1, BIO, BIOES, and without prefixes."""
    tokens = [token for token, _ in units]
    labels = [label for _, label in units]
    begins = [n == 0 or labels[n - 1] != label for n, label in enumerate(labels)]
    ends = [*begins[1:], True]
    bioes = {(True, True): "S", (True, False): "B", (False, True): "E", (False, False): "I"}
    schemes = [
        labels,
        [f"I-{x}" if x != "O" else x for x in labels],
        [f"{'BI'[not b]}-{x}" if x != "O" else x for x, b in zip(labels, begins, strict=True)],
        [
            f"{bioes[b, e]}-{x}" if x != "O" else x
            for x, b, e in zip(labels, begins, ends, strict=True)
        ],
    ]
    join = join_of([tokens])
    found = [as_text(tokens, tags, join) for tags in schemes]
    assert all(each == found[0] for each in found)
    text, spans = found[0]
    assert text == join.join(tokens)
    assert len(spans) == sum(b and x != "O" for x, b in zip(labels, begins, strict=True))
    assert all(text[s["start"] : s["end"]].strip() for s in spans)


ZH = "label,review\n1,这个手机很好用，非常满意\n0,质量太差了，不推荐购买\n"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "text,label\nx,1\n\"y, z\",2\nhalf a li", [("x", "1"), ("y, z", "2")]),
        ("semi.csv", "title;category\nx, y;A > B\nz;A\n", [("x, y", "A > B"), ("z", "A")]),
        ("tabs.csv", "title\tcategory\nx, y\tA\nz\tB\n", [("x, y", "A"), ("z", "B")]),
        ("bar.txt", "text|label\nx|A\ny|B\n", [("x", "A"), ("y", "B")]),
        ("ft.txt", "__label__a good shoe\n__label__b bad\n", [("good shoe", "a"), ("bad", "b")]),
        ("arr.json", json.dumps([{"text": "x", "label": 1}], indent=2), [("x", "1")]),
        ("data.json", json.dumps({"data": [{"text": "x", "label": True}]}), [("x", "true")]),
        ("cols.json", json.dumps({"text": {"0": "x"}, "label": {"0": "A"}}), [("x", "A")]),
        ("one.json", json.dumps({"text": "x", "label": "A"}, indent=1), [("x", "A")]),
        (
            "hf.json",
            json.dumps({"rows": [{"row_idx": 0, "row": {"text": "x", "label": "A"}}]}),
            [("x", "A")],
        ),
        ("pairs.jsonl", [["x", "A"], ["y", "B"]], [("x", "A"), ("y", "B")]),
        (
            "py.json.gz",
            "{'title': \"x's\", 'categories': [['A', 'B'], ['C']]}\n",
            [("x's", "A > B")],
        ),
        ("lists.jsonl", [{"title": "x", "category": ["A", "B"]}], [("x", "A > B")]),
        ("floats.csv", "text,label\nx,5.0\ny,1.0\n", [("x", "5"), ("y", "1")]),
        ("latin.csv", "text,label\ncafé très,A\n".encode("latin-1"), [("café très", "A")]),
        ("two.csv", "phrase,class\nx y,A\n", [("x y", "A")]),
        ("bom.jsonl", b"\xef\xbb\xbf" + b'{"text": "x", "label": "A"}\n', [("x", "A")]),
    ],
)  # fmt: skip
def test_texts_with_a_label(
    tmp_path: Path, name: str, content: str | bytes | list[Any], said: list[tuple[str, str]]
) -> None:
    found = read("classify", written(tmp_path, name, content))
    assert found.rows.select("text", "label").rows() == said


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("gb18030.csv", ZH.encode("gb18030"), ["positive", "negative"]),
        ("gbk.csv.gz", ZH.encode("gbk"), ["positive", "negative"]),
        ("utf16.csv", ZH.encode("utf-16"), ["positive", "negative"]),
        ("utf16be.csv", b"\xfe\xff" + ZH.encode("utf-16-be"), ["positive", "negative"]),
        ("utf16.jsonl", '{"text": "x", "label": "neg"}\n'.encode("utf-16"), ["negative"]),
        ("bom.csv", ZH.encode("utf-8-sig"), ["positive", "negative"]),
        (
            "amazon.tsv",
            'star_rating\treview_body\n5\t"Best" 17" mill\n1\t"so bad\n3\tthe "so" so\n',
            ["positive", "negative", "neutral"],
        ),
        ("quoted.tsv", 'rating\treview\n5\t"a ""b""\tc"\n1\t"d\ne"\n', ["positive", "negative"]),
        ("amazon.json.gz", [{"reviewText": "a", "summary": "s", "overall": 5.0}], ["positive"]),
        ("amazon23.jsonl", [{"rating": 2.0, "title": "t", "text": "a"}], ["negative"]),
        ("yelp.json", [{"review_id": "1", "stars": 4.0, "text": "a"}], ["positive"]),
        ("doccano.jsonl", [{"text": "a", "label": ["positive"]}], ["positive"]),
        ("words.csv", "review,sentiment\na,Positive\nb,NEG\n", ["positive", "negative"]),
        ("stars.csv", "review,rating\na,5.0 out of 5 stars\nb,1 star\n", ["positive", "negative"]),
        ("polarity.txt", "__label__2 a: b\n__label__1 c\n", ["positive", "negative"]),
        (
            "sorted.csv",
            "text,label\n" + "x,0\n" * 300 + "y,1\n" * 3,
            ["negative"] * 300 + ["positive"] * 3,
        ),
        ("numbers.csv", "text,label\nx,5\ny,1\nz,3\n", ["positive", "negative", "neutral"]),
    ],
)  # fmt: skip
def test_reviews(
    tmp_path: Path, name: str, content: str | bytes | list[Any], said: list[str]
) -> None:
    found = read("sentiment", written(tmp_path, name, content))
    assert found.rows["label"].to_list() == said
    assert not found.aside.height
    assert not found.rows["text"].str.contains("\ufffd").any()


@pytest.mark.parametrize(
    ("values", "scale", "said"),
    [
        ("0 1 2 3 4", "0 to 4", "nnupp"),
        ("1 2 3 4 5", "1 to 5", "nnupp"),
        ("0.5 2.5 3.5 5", "1 to 5", "nupp"),
        ("1 4 5 6 7 10", "1 to 10", "nnuupp"),
        ("0 4 5 9", "0 to 10", "nnup"),
    ],
)
def test_scales_of_ratings_are_told_by_all_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, values: str, scale: str, said: str
) -> None:
    names = {"n": "negative", "u": "neutral", "p": "positive"}
    # the first rows alone say less than all
    rows = [values.split()[-1]] * 300 + values.split()
    path = written(tmp_path, "a.csv", "text,rating\n" + "".join(f"x,{each}\n" for each in rows))
    with caplog.at_level(logging.INFO, "raysys"):
        found = read("sentiment", path)
    assert found.rows["label"].to_list()[300:] == [names[each] for each in said]
    assert not found.aside.height
    assert f"read as {scale}" in caplog.text
    kept = read("sentiment", path, rating_classes={"low": 1, "high": 10})
    assert {*kept.rows["label"]} == {"low", "high"}


def test_labels_of_five_steps_from_zero_are_ratings(tmp_path: Path) -> None:
    rows = "".join(f"x,{label}\n" for label in range(5))
    found = read("sentiment", written(tmp_path, "sst5.csv", "text,label\n" + rows))
    assert found.rows["label"].to_list() == [*["negative"] * 2, "neutral", *["positive"] * 2]
    assert found.rows["rating"].to_list() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("column", "values"),
    [("label", "0 1 1 3"), ("label", "1 2 3"), ("rating", "0 20 100"), ("rating", "0 3 5"),
     ("rating", "1 7"), ("rating", "0 1")],
)  # fmt: skip
def test_a_scale_that_is_not_known_is_refused(tmp_path: Path, column: str, values: str) -> None:
    rows = "".join(f"x,{each}\n" for each in values.split())
    path = written(tmp_path, "a.csv", f"text,{column}\n{rows}")
    last = values.split()[-1]
    with pytest.raises(UserError, match=rf"no known scale.*{last} \(1\)(.|\n)*rating_classes"):
        read("sentiment", path)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([f"{stars} star" for stars in range(1, 6)], "nnupp"),
        ([f"{stars} stars" for stars in range(5, 0, -1)], "ppunn"),
        (["very positive", "positive", "neutral", "negative", "very negative"], "ppunn"),
        (["a", "b", "c", "d", "e"], "nnupp"),
    ],
)
def test_names_of_classes_say_what_stars_are(tmp_path: Path, names: list[str], said: str) -> None:
    told = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    numbers = pa.table({"text": ["a"] * 5, "label": range(5)})
    numbers = numbers.replace_schema_metadata({"huggingface": json.dumps(told)})
    pq.write_table(numbers, tmp_path / "a.parquet")
    found = read("sentiment", tmp_path / "a.parquet")
    assert "".join("u" if each == "neutral" else each[0] for each in found.rows["label"]) == said


@pytest.mark.parametrize(
    ("codec", "text"),
    [
        ("gb18030", "手机不错，电池很耐用。Acme P9 屏幕清晰"),
        ("gbk", "联想笔记本电脑 14英寸"),
        ("gbk", "title;n\n燕麦牛奶;1\n黑麦面包;2\n"),
        ("euc-kr", "삼성전자 갤럭시 스마트폰 케이스, 무선 이어폰 충전기"),
        ("big5", "手機不錯，電池很耐用，螢幕清晰"),
        ("euc-kr", "이 휴대폰은 정말 좋아요. 배터리가 오래 갑니다"),
        ("euc_jp", "この携帯はとても良いです。電池が長持ちします"),
        ("cp932", "この携帯はとても良いです。電池が長持ちします"),
        ("cp1252", "café très bon, naïve façade, 5 €"),
        ("cp1252", "cooks at 72°F and 80°C"),
        ("cp1252", "a naïve film by Señor Almodóvar, my fiancée"),
        ("cp1252", "En bra stol för små barn, men den är för hög"),
        ("cp1252", "Gerät ist schön und größer"),
        ("cp1252", "größer"),
        ("cp1252", "“Hello” – it’s so-so…"),
        ("big5", "title,n\n黑色皮鞋,1\niPhone 手機殼,2\n"),
        ("big5", "好" * 2),
        ("cp932", "日本製 腕時計 防水"),
        ("cp874", "สินค้าดีมาก จัดส่งเร็ว ราคาไม่แพง"),
        ("gbk", "差评"),
        ("utf-8", "手机不错，电池很耐用"),
        ("utf-8", "plain"),
        ("utf-16", "手机不错"),
    ],
)
def test_encodings_are_told_by_their_bytes(codec: str, text: str) -> None:
    data = text.encode(codec)
    assert data.decode(told(data)) == text
    stream = as_utf8(io.BytesIO(data), "auto")
    assert b"".join(iter(lambda: stream.read(7), b"")).decode().removeprefix("\ufeff") == text


def test_a_broken_byte_does_not_make_another_encoding_of_utf8() -> None:
    assert told("手机不错，电池很耐用".encode() + b"\xff" + "屏幕".encode()) == "utf-8"
    assert told("手机不错".encode()[:-1]) == "utf-8"


def test_quotation_marks_of_amazon_are_inches(tmp_path: Path) -> None:
    text = 'star_rating\treview_body\n5\t"Best" 17" mill\n1\t"so bad\n'
    found = read("sentiment", written(tmp_path, "a.tsv", text))
    assert found.rows["text"].to_list() == ['"Best" 17" mill', '"so bad']
    with_marks = written(tmp_path, "b.tsv", 'rating\treview\n5\t"a ""b""\tc"\n')
    assert read("sentiment", with_marks).rows["text"].to_list() == ['a "b"\tc']


@pytest.mark.parametrize("mark", [",", "\t", ";"])
@pytest.mark.parametrize("opened", [(3, 20), (5,), (2, 3), (3, 20, 31), (39,)])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_marks_that_nothing_closes_swallow_no_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, mark: str, opened: tuple[int, ...], ends: str
) -> None:
    titles = ['"Foo' if row in opened else f"Foo {row}" for row in range(40)]
    lines = [f"{row}{mark}{title}{mark}c" for row, title in enumerate(titles)]
    # beyond what is looked at before: blanks are no part of a text
    for far in ("", " " * (1 << 20)):
        first = f"0{mark}Bar{far}{mark}c"
        text = ends.join([f"id{mark}title{mark}label", first, *lines, ""])
        path = written(tmp_path, "a.csv", text)
        found = read("classify", path, text="title", label="label")
        assert found.rows["text"].to_list()[1:] == titles
        assert not found.aside.height
    assert "nothing closes" in caplog.text


def test_a_mark_that_others_seem_to_close_swallows_no_rows(tmp_path: Path) -> None:
    lines = ['1,"Foo,c', "2,b,c", '3,17",c', '4,"a, b",c', '5,"x\ny",c']
    found = read("classify", written(tmp_path, "a.csv", "id,title,label\n" + "\n".join(lines)))
    assert found.rows["text"].to_list() == ['"Foo', "b", '17"', "a, b", "x\ny"]


def test_texts_of_several_lines_stay_whole(tmp_path: Path) -> None:
    told = ["good\nfast, cheap\nnice, soft", 'a ""b""\n\nc', "a, b\nc, d\ne, f\ng, h\ni, j\nk, l"]
    rows = "".join(f'c,"{text}"\n' for text in told)
    found = read("classify", written(tmp_path, "a.csv", "label,text\n" + rows))
    assert found.rows["text"].to_list() == [text.replace('""', '"') for text in told]
    loose = 'c,"one\nhe said "so" of it"\nc,x\n'  # not well written, but of two lines
    assert read("classify", written(tmp_path, "b.csv", "label,text\n" + loose)).rows.height == 2


def test_dictionaries_of_parquet_and_names_of_class_labels(tmp_path: Path) -> None:
    words = {name: pa.array(["x", "y"]).dictionary_encode() for name in ("text", "label")}
    pq.write_table(pa.table(words), tmp_path / "a.parquet")
    assert read("classify", tmp_path / "a.parquet").rows["label"].to_list() == ["x", "y"]
    told = {"info": {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}}
    numbers = pa.table({"text": ["a", "b"], "label": [1, 0]})
    numbers = numbers.replace_schema_metadata({"huggingface": json.dumps(told)})
    pq.write_table(numbers, tmp_path / "b.parquet")
    assert read("classify", tmp_path / "b.parquet").rows["label"].to_list() == ["yes", "no"]


def test_texts_that_are_lists_are_joined(tmp_path: Path) -> None:
    rows = [{"description": ["a b", "c"], "category": "X"}, {"description": [], "category": "X"}]
    pl.DataFrame(rows).write_parquet(tmp_path / "a.parquet")
    told = {"text": "description", "label": "category"}
    for path in (written(tmp_path, "a.jsonl", rows), tmp_path / "a.parquet"):
        assert read("classify", path, **told).rows["text"].to_list()[0] == "a b c"


def test_rows_before_a_cut_are_read(tmp_path: Path) -> None:
    path = written(tmp_path, "a.json", '[\n {"text": "a", "label": "x"},\n {"text": "b", "la')
    found = read("classify", path)
    assert found.rows["text"].to_list() == ["a"] and found.reasons == {"truncated_file": 1}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "", "a.csv: no row could be read: empty_file"),
        ("a.csv", "text,label\n", "empty_file"),
        ("a.csv", 'text,label\n"a\nb\n', "line_does_not_parse"),
        ("a.json", '{\n "text": ', "unreadable_file"),
        ("a.conll", "\n\n", "empty_file"),
    ],
)
def test_what_cannot_be_read_at_all_is_said(
    tmp_path: Path, name: str, content: str, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        read("classify", written(tmp_path, name, content))


def test_files_of_a_folder_may_differ_in_all(tmp_path: Path) -> None:
    written(tmp_path, "a.csv", "text,label\nx,1\n")
    written(tmp_path, "b.tsv", "label\ttext\n2\ty\n")
    written(tmp_path, "c.csv", ("text;label\n" + "质量太差了;3\n" * 3).encode("gb18030"))
    written(tmp_path, "d.txt", "__label__4 z\n")
    written(tmp_path, "e.json", json.dumps([{"text": "w", "label": 5}]))
    found = read("classify", tmp_path)
    assert found.rows["label"].to_list() == ["1", "2", "3", "3", "3", "4", "5"]


def test_a_file_without_a_header_line_takes_its_names_from_the_yaml(tmp_path: Path) -> None:
    path = written(tmp_path, "a.tsv", "1\tgood, shoe\n0\tbad shoe\n")
    with pytest.raises(UserError, match=r"text: say which column(.|\n)*header: \[label, text\]"):
        read("classify", path)
    found = read("classify", path, header=["label", "text"])
    assert found.rows.select("text", "label").rows() == [("good, shoe", "1"), ("bad shoe", "0")]


def zipped(*names: str, content: str = "x") -> bytes:
    """An archive of files that all say the same."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, content)
    return held.getvalue()


@pytest.mark.parametrize("name", ["a.zip", "a.csv.zip", "a.csv"])
def test_the_only_file_of_an_archive_is_read(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name, zipped("a.csv", content="text,label\ngood shoe,1\nbad shoe,0\n"))
    found = read("classify", path)
    assert found.rows.select("text", "label").rows() == [("good shoe", "1"), ("bad shoe", "0")]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.xlsx", zipped("[Content_Types].xml", "xl/workbook.xml"), r"Excel(.|\n)*CSV"),
        ("a.csv", zipped("[Content_Types].xml", "xl/workbook.xml"), r"Excel(.|\n)*CSV"),
        ("a.zip", zipped("train.csv", "test.csv"), r"2 files \(train.csv, test.csv\)(.|\n)*unpack"),
        ("a.pkl", b"\x80\x04\x95", r"a pickle(.|\n)*Parquet"),
        ("a.arrow", b"ARROW1\0\0", r"an Arrow file(.|\n)*to_parquet"),
        ("a.xml", "<?xml version='1.0'?><a/>", r"is XML(.|\n)*JSON lines"),
        ("a.dat", "just words", r"cannot tell the format(.|\n)*conll"),
        ("a.csv", "text,review,label\na,b,c\n", r"text: say which column.*text, review, label"),
        ("a.csv", "text,colour\na,b\n", r"which column is the label.*\n.*label: COLUMN"),
        ("a.csv", "text,label\na,x\nb,y\n", None),
    ],
)
def test_what_is_not_clear_is_refused(
    tmp_path: Path, name: str, content: str | bytes, said: str | None
) -> None:
    path = written(tmp_path, name, content)
    if said is None:
        with pytest.raises(UserError, match=r"no sentiment: 'x' 1, 'y' 1(.|\n)*label_names"):
            read("sentiment", path, label="label")
        return
    with pytest.raises(UserError, match=said):
        read("classify", path)


def test_guesses_and_labels_that_look_like_paths_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"review": f"x{n}", "category": f"{'AB'[n % 2]}/{n}"} for n in range(6)]
    path = written(tmp_path, "a.jsonl", rows)
    with caplog.at_level(logging.INFO, logger="raysys"):
        read("classify", path)
        assert "label: category, text: review" in caplog.text
        assert "label_separator: '/'" in caplog.text
        caplog.clear()
        found = read("classify", path, label_separator="/")
    assert found.rows["label"][0] == "A > 0" and "label_separator: '/'" not in caplog.text


def test_lines_are_texts_only_where_nothing_else_is_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", "good shoe\n\nbad, shoe\n")
    table = TableFiles(paths=(str(path),), columns={"t": "text"}, keys=("t",), bare=True)
    (part,) = files.find(table)
    (block,) = files.read(part, table)
    assert part.format == "lines" and block.rows["text"].to_list() == ["good shoe", "bad, shoe"]
