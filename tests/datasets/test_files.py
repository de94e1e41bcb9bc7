"""Finding files: paths, folders, globs, variables; Parquet pieces; fingerprints."""

import io
import os
import random
from collections import Counter

import fsspec
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raysys.datasets.drafting import draft_events
from raysys.datasets.files import find, fingerprint, read, split
from raysys.datasets.mapping import UNPARSED, EventFiles, ItemFiles
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


LOG = {"user_id": "u", "item_id": "i", "event_type": "w", "timestamp": "t"}


def log(path, columns=LOG, **more):
    return EventFiles(paths=str(path), columns=columns, time={"unit": "seconds"}, **more)


def drafts(files):
    """All draft events of some files, with what blocks say of faults and lacking columns."""
    frames, faults, lacking = [], [], Counter()
    for part in find(files):
        for block in read(part, files):
            faults += [(part.label, fault.reason) for fault in block.faults]
            lacking.update(block.lacking)
            if block.rows.height:
                frames.append(draft_events(block.rows, files, where=part.label))
    return pl.concat(frames).sort("timestamp"), faults, lacking


ROWS = [("1", "2", "view", 1_511_658_000 + n, 1.5) for n in range(3)]
FRAME = pl.DataFrame(ROWS, schema=["u", "i", "w", "t", "p"], orient="row")


def test_files_whose_columns_drift_read_alike(tmp_path):
    later = {n: pl.col("t") + 10 * n for n in range(8)}
    types = [
        FRAME,
        FRAME.select("p", "t", "w", "i", "u").with_columns(pl.col("u", "i").cast(pl.Int64)),
        FRAME.with_columns(pl.col("u").cast(pl.Float64), pl.col("w").cast(pl.Categorical)),
        FRAME.with_columns(pl.col("u").cast(pl.Int32), pl.col("p").cast(pl.String), new=pl.lit(1)),
        FRAME.with_columns(pl.col("p").cast(pl.Decimal(9, 2))),
        FRAME.with_columns(pl.lit(None).alias("p")),
    ]
    for n, frame in enumerate(types):
        frame.with_columns(t=later[n]).write_parquet(tmp_path / f"{n}.parquet")
    for n, unit in ((6, "ms"), (7, "ns")):
        moments = pl.from_epoch(later[n], time_unit="s").cast(pl.Datetime(unit))
        FRAME.with_columns(t=moments).drop("p").write_parquet(tmp_path / f"{n}.parquet")
    files = log(tmp_path, {**LOG, "price": "p"})
    found, faults, lacking = drafts(files)
    assert not faults
    assert lacking == {"p": 2}
    assert found["timestamp"].to_list() == [
        (1_511_658_000 + 10 * n + k) * 1000 for n in range(8) for k in range(3)
    ]
    assert set(found["user_id"]) == {"1"}
    assert set(found["item_id"]) == {"2"}
    assert set(found["event_type"]) == {"view"}
    assert found["price"].to_list() == [1.5] * 15 + [None] * 9
    assert found[UNPARSED].null_count() == found.height


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_column_may_lack_in_some_files_but_not_in_all(tmp_path, ending):
    write = {
        "csv": lambda frame, path: frame.write_csv(path),
        "jsonl": lambda frame, path: frame.write_ndjson(path),
        "parquet": lambda frame, path: frame.write_parquet(path),
    }[ending]
    write(FRAME, tmp_path / f"b.{ending}")
    write(FRAME.drop("p"), tmp_path / f"a.{ending}")
    found, _, lacking = drafts(log(tmp_path, {**LOG, "price": "p"}))
    assert found["price"].null_count() == 3
    assert lacking == {"p": 1}
    columns = {**LOG, "price": "pp"}
    wrong = log(tmp_path, {**LOG, "price": "w_"})
    with pytest.raises(UserError, match=r"no column '[iw]_'") as refusal:
        find(log(tmp_path, {**LOG, "item_id": "i_"}) if ending == "jsonl" else wrong)
    assert "did you mean" in refusal.value.mend
    found, _, lacking = drafts(log(tmp_path, columns, optional=["price"]))
    assert found["price"].null_count() == found.height == 6
    assert lacking == {"pp": 2}


def test_a_misspelt_column_of_json_lines_is_told_by_a_near_key(tmp_path):
    lines = '{"u": 1, "i": 2, "w": "view", "t": 1511658000, "prize": 3}\n'
    (tmp_path / "x.jsonl").write_text(lines)
    with pytest.raises(UserError, match="no column 'price'") as refusal:
        find(log(tmp_path, {**LOG, "price": "price"}))
    assert "did you mean 'prize'" in refusal.value.mend
    assert drafts(log(tmp_path, {**LOG, "query": "search_text"}))[2] == {"search_text": 1}


def test_folders_say_what_files_do_not(tmp_path):
    for name in ("date=2017-11-26/store=5", "date=2017-11-27/store=__HIVE_DEFAULT_PARTITION__"):
        (tmp_path / "hive" / name).mkdir(parents=True)
        FRAME.drop("t").write_parquet(tmp_path / "hive" / name / "x.parquet")
    columns = {**LOG, "timestamp": "$date", "store_id": "store"}
    files = EventFiles(paths=str(tmp_path / "hive"), columns=columns)
    found, faults, lacking = drafts(files)
    assert not faults
    assert not lacking
    assert found["timestamp"].to_list() == [1_511_654_400_000] * 3 + [1_511_740_800_000] * 3
    assert found["store_id"].to_list() == ["5"] * 3 + [None] * 3
    (tmp_path / "plain/2017/11/26").mkdir(parents=True)
    FRAME.drop("t").write_csv(tmp_path / "plain/2017/11/26/x.csv")
    FRAME.drop("t").write_ndjson(tmp_path / "plain/2017/11/26/x.jsonl")
    columns = {**LOG, "timestamp": "$date"}
    found, _, _ = drafts(EventFiles(paths=f"{tmp_path}/plain/**/x.*", columns=columns))
    assert found["timestamp"].to_list() == [1_511_654_400_000] * 6
    with pytest.raises(UserError, match=r"no column '\$day'.*its path says: date"):
        find(EventFiles(paths=f"{tmp_path}/plain", columns={**LOG, "timestamp": "$day"}))


def test_a_file_that_goes_while_ingest_runs_is_one_fault(tmp_path):
    for ending in ("csv", "parquet", "jsonl"):
        path = tmp_path / f"x.{ending}"
        if ending == "csv":
            FRAME.write_csv(path)
        elif ending == "parquet":
            FRAME.write_parquet(path)
        else:
            FRAME.write_ndjson(path)
        (part,) = find(log(path))
        path.unlink()
        assert len(fingerprint(part)) == 16
        assert split(part, 1) == [part]
        (block,) = read(part, log(path))
        assert [fault.reason for fault in block.faults] == ["missing_file"]


def test_a_file_of_another_kind_among_good_ones_is_one_fault(tmp_path):
    FRAME.write_csv(tmp_path / "good.csv")
    (tmp_path / "odd.csv").write_text("name,age\nAnn,3\nBob,4\n")
    (tmp_path / "noise.csv").write_bytes(random.Random(0).randbytes(5000))
    found, faults, _ = drafts(log(tmp_path))
    assert found.height == 3
    assert sorted(faults) == [("noise.csv", "missing_columns"), ("odd.csv", "missing_columns")]
    (tmp_path / "good.csv").unlink()
    with pytest.raises(UserError, match="no column"):
        find(log(tmp_path))


def test_any_filesystem_of_fsspec():
    system = fsspec.filesystem("memory")
    system.pipe("/shop/2017/11/26/a.csv", FRAME.drop("t").write_csv().encode())
    buffer = io.BytesIO()
    FRAME.drop("t").write_parquet(buffer)
    system.pipe("/shop/2017/11/27/b.parquet", buffer.getvalue())
    for path in ("memory://shop", "memory://shop/**/*.*"):
        found, faults, _ = drafts(
            EventFiles(paths=path, columns={**LOG, "timestamp": "$date", "price": "p"})
        )
        assert not faults
        assert found["price"].to_list() == [1.5] * 6
        assert found["timestamp"].n_unique() == 2
    system.rm("/shop", recursive=True)
