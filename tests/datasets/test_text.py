"""CSV and JSON lines: every record is read or becomes a fault, whatever the bytes are."""

import bz2
import gzip
import json
import lzma
import random
from functools import partial

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.datasets import chunks, json_lines, unpack
from raysys.datasets.files import find, read
from raysys.datasets.mapping import ItemFiles, TableFiles, UserFiles
from raysys.errors import UserError

ZIPPED = (b"PK\x03\x04", b"PK\x05\x06")
PACKED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ", b"BZh", *ZIPPED)


def read_all(path, files):
    """Rows by number, and faults by number, over all blocks of one file."""
    rows, faults = {}, {}
    (part,) = find(files)
    for block in read(part, files):
        assert block.rows.height == block.numbers.len()
        for number, row in zip(block.numbers, block.rows.iter_rows(named=True), strict=True):
            assert number not in rows
            rows[number] = row
        for fault in block.faults:
            faults[fault.row] = fault.reason
    assert not rows.keys() & faults.keys()
    return rows, faults


def csv(path, content, **more):
    path.write_bytes(content)
    files = ItemFiles(paths=str(path), columns={"item_id": "a", "title": "b"}, **more)
    return read_all(path, files)


def test_rows_and_faults_keep_their_numbers(tmp_path):
    rows, faults = csv(tmp_path / "x.csv", b'a,b\n1,2\n3\n\n4,5,6\n7,"x\ny"\n')
    assert rows == {1: {"a": "1", "b": "2"}, 4: {"a": "7", "b": "x\ny"}}
    assert faults == {2: "line_does_not_parse", 3: "line_does_not_parse"}


def test_windows_line_ends_byte_order_mark_and_no_last_line_end(tmp_path):
    rows, faults = csv(tmp_path / "x.csv", b"\xef\xbb\xbfa;b\r\n1;2\r\n3;4", delimiter=";")
    assert [row["a"] for row in rows.values()] == ["1", "3"]
    assert not faults


def test_broken_utf8_is_marked_not_lost(tmp_path):
    rows, faults = csv(tmp_path / "x.csv", b"a,b\n1,caf\xe9\n2,ok\n")
    assert rows[1]["b"] == "caf\ufffd"
    assert rows[2]["b"] == "ok"
    assert not faults


def test_the_right_encoding_leaves_nothing_broken(tmp_path):
    rows, _ = csv(tmp_path / "x.csv", b"a,b\n1,caf\xe9\n", encoding="latin-1")
    assert rows[1]["b"] == "café"


@pytest.mark.parametrize("content", [b"", b"\n\n", b"a,b\n"])
def test_a_file_without_rows_is_one_fault(tmp_path, content):
    assert csv(tmp_path / "x.csv", content) == ({}, {0: "empty_file"})


def test_truncated_gzip_keeps_what_came_before(tmp_path):
    lines = b"a,b\n" + b"".join(b"%d,%d\n" % (i, i * i) for i in range(50_000))
    path = tmp_path / "x.csv.gz"
    packed = gzip.compress(lines)
    rows, faults = csv(path, packed[: len(packed) // 2])
    assert len(rows) > 1000
    assert rows[1000] == {"a": "999", "b": str(999 * 999)}
    assert list(faults.values()) == ["truncated_file"]
    assert csv(path, packed)[1] == {}
    assert csv(path, packed[:1000] + b"\0" * 50 + packed[1050:])[1] != {}


def test_several_gzip_members_are_one_file(tmp_path):
    rows, faults = csv(
        tmp_path / "x.csv.gz", gzip.compress(b"a,b\n1,2\n") + gzip.compress(b"3,4\n")
    )
    assert len(rows) == 2
    assert not faults


def test_a_title_of_a_million_characters(tmp_path):
    rows, _ = csv(tmp_path / "x.csv", b"a,b\n1," + b"x" * 1_000_000 + b"\n2,y\n")
    assert len(rows[1]["b"]) == 1_000_000
    assert rows[2]["b"] == "y"


def test_records_across_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 64)
    content = b"a,b\n" + b"".join(b'%d,"line\nof %d"\n' % (i, i) for i in range(500))
    rows, faults = csv(tmp_path / "x.csv", content)
    assert not faults
    assert [rows[i + 1] for i in range(500)] == [
        {"a": str(i), "b": f"line\nof {i}"} for i in range(500)
    ]


def test_json_lines_with_paths_faults_and_numbers(tmp_path):
    path = tmp_path / "x.jsonl"
    lines = ['{"a": 1, "p": {"b": "x"}}', "[1]", "{", '{"a": "2", "p": {"b": [1, 2]}}', "", "null"]
    path.write_text("\n".join(lines))
    files = ItemFiles(paths=str(path), columns={"item_id": "a", "title": "p.b"})
    rows, faults = read_all(path, files)
    assert rows == {1: {"a": "1", "p.b": "x"}, 4: {"a": "2", "p.b": "[1, 2]"}}
    assert faults == dict.fromkeys((2, 3, 5), "line_does_not_parse")


def test_json_half_surrogates_and_deep_nesting(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": "\\ud800"}\n' + "[" * 100_000 + "\n")
    rows, faults = read_all(path, UserFiles(paths=str(path), columns={"user_id": "a"}))
    assert rows[1]["a"] == "?"
    assert faults == {2: "line_does_not_parse"}


def test_json_without_the_needed_column_is_refused(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": 1}\n{"id": 2}\n')
    files = ItemFiles(paths=str(path), columns={"item_id": "itemid"})
    with pytest.raises(UserError, match="no column 'itemid'; the file has: id"):
        read_all(path, files)


ZSTD = pa.Codec("zstd")


@pytest.mark.long
@pytest.mark.parametrize(
    ("ending", "pack"),
    [
        ("gz", gzip.compress),
        ("bz2", bz2.compress),
        ("xz", partial(lzma.compress, preset=0)),
        ("zst", lambda data: ZSTD.compress(data).to_pybytes()),
    ],
)
def test_every_packing_is_unpacked_and_its_truncation_told(tmp_path, ending, pack):
    draw = random.Random(0)
    content = b"a,b\n" + b"".join(b"%d,%d\n" % (i, draw.getrandbits(60)) for i in range(300_000))
    path = tmp_path / f"x.csv.{ending}"
    packed = pack(content)
    rows, faults = csv(path, packed)
    assert len(rows) == 300_000
    assert not faults
    rows, faults = csv(path, packed[: len(packed) * 3 // 4])
    assert list(faults.values()) == ["truncated_file"]
    assert 50_000 < len(rows) < 300_000
    assert all(rows[n]["a"] == str(n - 1) for n in range(1, len(rows), 997))
    middle = len(packed) // 2
    rows, faults = csv(path, packed[:middle] + bytes(99) + packed[middle + 99 :])
    assert set(faults.values()) & {"truncated_file", "line_does_not_parse"}


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("piece", [100, 1 << 18])
def test_a_file_cut_within_its_first_block_is_told(tmp_path, monkeypatch, pack, piece):
    monkeypatch.setattr(unpack, "_PIECE", piece)  # of some, nothing comes that can be unpacked
    packed = pack(b"a,b\n" + b"".join(b"%d,%d\n" % (i, i * i) for i in range(1000)))
    _, faults = csv(tmp_path / "x.csv", packed[: len(packed) // 2])
    assert list(faults.values()) == ["truncated_file"]


def test_quick_and_slow_json_say_the_same(tmp_path, monkeypatch):
    records = [
        {"a": n, "p": {"b": value, "q": {"r": n}}, "x.y": n, "z": n % 2 == 0}
        for n, value in enumerate(["x", 1, 1.5, None, True, [1, "é"], {"k": "v"}, "", 2**63])
    ]
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records))
    names = {"title": "p.b", "brand": "p.q.r", "size": "x.y", "category": "z", "item_id": "a"}
    files = ItemFiles(paths=str(path), columns=names)
    quick, faults = read_all(path, files)
    assert not faults
    monkeypatch.setattr(json_lines, "_quick_json", lambda *_: None)
    slow, _ = read_all(path, files)
    assert quick == slow
    assert [row["p.b"] for row in slow.values()][5:7] == ['[1, "é"]', '{"k": "v"}']


def test_a_few_bad_lines_among_many_keep_their_numbers(tmp_path):
    lines = [json.dumps({"a": n, "b": f"t{n}"}) for n in range(5000)]
    bad = {7: "{", 8: "[1]", 2500: "", 3000: '{"a": 1} {"a": 2}', 4999: "null"}
    for at, line in bad.items():
        lines[at] = line
    path = tmp_path / "x.jsonl"
    path.write_text("\r\n".join(lines))
    rows, faults = read_all(path, ItemFiles(paths=str(path), columns={"item_id": "a"}))
    assert sorted(faults) == [8, 9, 3000, 4999]  # the blank line has no number
    assert len(rows) == 4995
    assert rows[2500]["a"] == "2499"
    assert rows[2501]["a"] == "2501"


@pytest.mark.parametrize("beginning", ZIPPED)
def test_a_broken_archive_is_one_fault(tmp_path, beginning):
    path = tmp_path / "x.csv"
    path.write_bytes(beginning + b"a,b\n")
    files = ItemFiles(paths=str(path), columns={"item_id": "a", "title": "b"}, header=("a", "b"))
    rows, faults = read_all(path, files)
    assert not rows and list(faults) == [0]


@pytest.mark.long
@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_as_csv(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    path.write_bytes(content)
    files = ItemFiles(paths=str(path), columns={"item_id": "a", "title": "b"}, header=("a", "b"))
    rows, faults = read_all(path, files)
    if b'"' not in content and b"\r" not in content and not content.startswith(PACKED):
        lines = [line for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line]
        assert len(rows) + sum(1 for n in faults if n) == len(lines)


@pytest.mark.long
@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"")),
            st.dictionaries(st.sampled_from("abc"), st.text(max_size=5), max_size=3).map(
                lambda d: json.dumps(d).encode()
            ),
        ),
        max_size=20,
    )
)
def test_any_lines_as_json(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("jsonl") / "x.jsonl"
    path.write_bytes(b"\n".join(lines))
    files = UserFiles(paths=str(path), columns={"user_id": "a"})
    content = path.read_bytes()
    try:
        rows, faults = read_all(path, files)
    except UserError as refusal:
        assert "no column 'a'" in str(refusal)
        return
    if not content.startswith(PACKED):
        decoded = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")
        expected = sum(1 for line in decoded.split("\n") if line.strip())
        assert len(rows) + sum(1 for n in faults if n) == expected


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12),
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_what_the_standard_library_writes_comes_back(tmp_path_factory, table):
    import csv as standard

    path = tmp_path_factory.mktemp("csv") / "x.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = standard.writer(file, quoting=standard.QUOTE_ALL, lineterminator="\n")
        writer.writerow(("a", "b"))
        writer.writerows(table)
    rows, faults = read_all(
        path, ItemFiles(paths=str(path), columns={"item_id": "a", "title": "b"})
    )
    assert not faults
    assert [(row["a"], row["b"]) for row in rows.values()] == table


def test_objects_keep_the_quotes_in_their_texts(tmp_path):
    """An object is text as JSON writes it, so what is quoted in it stays escaped."""
    rows = [{"id": n, "a": {"size": {'17"': n}, "name": "a\\b"}} for n in range(600)]
    rows[300]["a"] = '[plain] text with a \\ and "quotes"'
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    files = TableFiles(paths=(str(path),), columns={"a": "a"}, keys=("a",))
    (part,) = find(files)
    found = [value for block in read(part, files) for value in block.rows["a"]]
    assert found.pop(300) == rows.pop(300)["a"]
    assert [json.loads(value) for value in found] == [row["a"] for row in rows]


@pytest.mark.parametrize(
    "files",
    [
        lambda path: UserFiles(paths=path, columns={"user_id": "id"}),
        lambda path: TableFiles(paths=path, columns={"id": "id"}, everything=True),
    ],
)
def test_keys_that_come_late_in_a_file_are_read(tmp_path, monkeypatch, files):
    monkeypatch.setattr(chunks, "CHUNK", 64)
    path = tmp_path / "a.jsonl"
    late = {4: {"city": "Bonn"}, 9: {"age": 30, "city": "Ulm"}}
    rows = [{"id": str(n), "name": f"user {n}", **late.get(n, {})} for n in range(12)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    found, faults = read_all(path, files(str(path)))
    assert not faults
    told = [{key: value for key, value in row.items() if value} for row in found.values()]
    assert told == [{key: str(value) for key, value in row.items()} for row in rows]
