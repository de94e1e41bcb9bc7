"""Finding files: paths, folders, globs, variables; Parquet pieces; fingerprints."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys.datasets.files import find, fingerprint, read, split
from raysys.datasets.mapping import ItemFiles
from raysys.errors import UserError

COLUMNS = {"item_id": "a"}


def items(*paths, **more):
    return ItemFiles(paths=paths, columns=COLUMNS, **more)


def test_folders_globs_and_variables(tmp_path, monkeypatch):
    for name in ("d=1/x.csv", "d=2/x.csv.gz", "d=2/.hidden.csv", "d=2/notes.md", "_SUCCESS.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a\n1\n")
    assert [part.label for part in find(items(str(tmp_path)))] == ["d=1/x.csv", "d=2/x.csv.gz"]
    assert [p.label for p in find(items(f"{tmp_path}/*/*.csv"))] == ["x.csv"]
    monkeypatch.setenv("SHOP_DATA", str(tmp_path))
    assert len(find(items("${SHOP_DATA}/d=1/x.csv"))) == 1
    monkeypatch.delenv("SHOP_DATA")
    with pytest.raises(UserError, match="SHOP_DATA is not set") as refusal:
        find(items("${SHOP_DATA}/d=1/x.csv"))
    assert "export SHOP_DATA=" in refusal.value.mend


def test_what_is_not_there_or_of_no_known_kind(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        find(items(str(tmp_path / "nothing.csv")))
    (tmp_path / "x.xlsx").write_text("")
    with pytest.raises(UserError, match="set format"):
        find(items(str(tmp_path / "x.xlsx")))
    with pytest.raises(UserError, match="cannot be listed"):
        find(items("nosuchscheme://bucket/x.csv"))


def test_a_fingerprint_changes_with_the_file(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("a\n1\n")
    before = fingerprint(find(items(str(path)))[0])
    assert fingerprint(find(items(str(path)))[0]) == before
    os.utime(path, (1, 1))
    assert fingerprint(find(items(str(path)))[0]) != before


def test_large_parquet_files_are_split_by_row_groups_with_their_numbers(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": list(range(1000))}), path, row_group_size=100)
    (part,) = find(items(str(path)))
    pieces = split(part, 300)
    assert [piece.rows for piece in pieces] == [300, 300, 300, 100]
    numbers, values = [], []
    for piece in pieces:
        for block in read(piece, items(str(path))):
            numbers += block.numbers.to_list()
            values += block.rows["a"].to_list()
    assert numbers == list(range(1, 1001))
    assert values == list(range(1000))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[: len(data) // 2], "unreadable_file"),
        (lambda data: b"", "empty_file"),
        (lambda data: b"PAR1" + os.urandom(100) + b"PAR1", "unreadable_file"),
    ],
)
def test_damaged_parquet_is_a_fault(tmp_path, damage, reason):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": list(range(1000))}), path)
    path.write_bytes(damage(path.read_bytes()))
    (part,) = find(items(str(path)))
    assert split(part, 10) == [part]
    (block,) = list(read(part, items(str(path))))
    assert block.rows.height == 0
    assert [fault.reason for fault in block.faults] == [reason]


def test_parquet_text_that_is_not_utf8_is_marked(tmp_path):
    bad = pa.array([b"caf\xe9", b"ok"]).view(pa.string())
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": bad}), path)
    (part,) = find(items(str(path)))
    (block,) = list(read(part, items(str(path))))
    assert block.rows["a"].to_list() == ["caf\ufffd", "ok"]
