"""Every fault a log can have: told or quarantined with its reason, and no row is ever lost."""

import gzip
import random

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.datasets.mapping import ItemFiles, UserFiles
from raysys.errors import UserError
from raysys.ingest.quality import write_report
from raysys.ingest.rules import Limits
from tests.ingest.shop import HEADER, START, good_rows, mapping, take

FUTURE = START + 10**9 * 3

FAULTS = {
    "missing user": ("b,,i1,view,{t},1,1,", "missing_value"),
    "missing type": ("b,u,i1,,{t},1,1,", "missing_value"),
    "missing item": ("b,u,,view,{t},1,1,", "missing_value"),
    "missing time": ("b,u,i1,view,,1,1,", "missing_value"),
    "mistyped time": ("b,u,i1,view,noon,1,1,", "mistyped_value"),
    "mistyped price": ("b,u,i1,view,{t},cheap,1,", "mistyped_value"),
    "mistyped quantity": ("b,u,i1,view,{t},1,two,", "mistyped_value"),
    "unknown type": ("b,u,i1,stare,{t},1,1,", "unknown_event_type"),
    "before 1990": ("b,u,i1,view,15,1,1,", "before_1990"),
    "in the future": (f"b,u,i1,view,{FUTURE},1,1,", "in_the_future"),
    "beyond all years": ("b,u,i1,view,99999999999999999999,1,1,", "in_the_future"),
    "negative price": ("b,u,i1,view,{t},-0.01,1,", "negative_price"),
    "infinite price": ("b,u,i1,view,{t},inf,1,", "impossible_price"),
    "price not a number": ("b,u,i1,view,{t},NaN,1,", "impossible_price"),
    "absurd price": ("b,u,i1,view,{t},1e12,1,", "impossible_price"),
    "zero quantity": ("b,u,i1,purchase,{t},1,0,", "quantity_not_positive"),
    "negative quantity": ("b,u,i1,purchase,{t},1,-2,", "refund"),
    "negative quantity of a view": ("b,u,i1,view,{t},1,-2,", "quantity_not_positive"),
    "infinite quantity": ("b,u,i1,view,{t},1,inf,", "impossible_quantity"),
    "refund": ("b,u,i1,refund,{t},1,1,", "refund"),
    "repeated event": ("e3,u3,i3,view,{t},9.5,1,", "duplicate"),
    "too few columns": ("b,u,i1", "line_does_not_parse"),
    "too many columns": ("b,u,i1,view,{t},1,1,,,", "line_does_not_parse"),
    "long id": ("b," + "u" * 5000 + ",i1,view,{t},1,1,", "id_too_long"),
    "broken id": ("b,caf\udce9,i1,view,{t},1,1,", "broken_encoding_in_id"),
}


@pytest.mark.long
@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_row_is_quarantined_with_its_reason(tmp_path, name):
    line, reason = FAULTS[name]
    line = line.replace("{t}", str(START + 180))
    lines = [HEADER, *good_rows(), line]
    (tmp_path / "log.csv").write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    taken = take(tmp_path, mapping(tmp_path / "log.csv"))
    assert taken.tally.rows_in == 21
    assert taken.tally.rows_out == 20
    assert taken.tally.reasons == {reason: 1}
    assert len(taken.tally.examples[reason]) == 1
    (row,) = taken.quarantine.iter_rows(named=True)
    assert row["table"] == "events"
    assert row["reason"] == reason
    assert row["source"] == "log.csv"
    assert row["row"] == 21
    assert row["raw"]


def test_a_search_needs_no_item(tmp_path):
    line = f"s,u1,,search,{START},,,red shoes"
    (tmp_path / "log.csv").write_text("\n".join([HEADER, *good_rows(), line]))
    taken = take(tmp_path, mapping(tmp_path / "log.csv"))
    assert taken.events.filter(pl.col("event_type") == "search")["query"].to_list() == ["red shoes"]
    assert taken.tally.quarantined == 0


def test_a_query_of_a_million_characters_is_cut_and_counted(tmp_path):
    line = f"s,u1,,search,{START},,,{'x' * 1_000_000}"
    (tmp_path / "log.csv").write_text("\n".join([HEADER, *good_rows(), line]))
    taken = take(tmp_path, mapping(tmp_path / "log.csv"))
    assert taken.tally.mended == {"long_text": 1}
    assert taken.events["query"].str.len_chars().max() == 1000
    assert len(taken.tally.examples["long_text"][0]["raw"]) <= 300


def test_broken_text_is_mended_and_counted(tmp_path):
    line = f"s,u1,,search,{START},,,caf".encode() + b"\xe9\n"
    (tmp_path / "log.csv").write_bytes("\n".join([HEADER, *good_rows(), ""]).encode() + line)
    taken = take(tmp_path, mapping(tmp_path / "log.csv"))
    assert taken.tally.mended == {"broken_encoding": 1}
    assert "caf\ufffd" in taken.events["query"].to_list()


def test_exact_repetition_without_event_ids_is_a_duplicate(tmp_path):
    columns = {"user_id": "u", "item_id": "i", "event_type": "w", "timestamp": "t"}
    lines = [f"u1,i{i % 3},view,{START}" for i in range(6)] + [f"u2,i1,view,{START}"]
    (tmp_path / "log.csv").write_text("\n".join(["u,i,w,t", *lines]))
    taken = take(tmp_path, mapping(tmp_path / "log.csv", columns=columns))
    assert taken.tally.reasons == {"duplicate": 3}
    assert taken.quarantine["row"].sort().to_list() == [4, 5, 6]
    assert taken.events["event_id"].n_unique() == 4


def test_the_same_item_twice_with_own_ids_is_no_duplicate(tmp_path):
    lines = [f"e{i},u1,i1,purchase,{START},2,1," for i in range(3)]
    (tmp_path / "log.csv").write_text("\n".join([HEADER, *lines]))
    assert take(tmp_path, mapping(tmp_path / "log.csv")).tally.rows_out == 3


@pytest.mark.parametrize(
    ("stated", "found"), [("milliseconds", "seconds"), ("microseconds", "seconds")]
)
def test_a_wrong_unit_of_time_stops_the_stage(tmp_path, stated, found):
    (tmp_path / "log.csv").write_text("\n".join([HEADER, *good_rows()]))
    with pytest.raises(UserError, match=f"set time.unit to {found}") as refusal:
        take(tmp_path, mapping(tmp_path / "log.csv", time={"unit": stated}))
    assert "log.csv, column 'time'" in refusal.value.where


def test_one_wrong_clock_in_a_small_file_is_one_bad_row(tmp_path):
    (tmp_path / "log1.csv").write_text("\n".join([HEADER, *good_rows()]))
    (tmp_path / "log2.csv").write_text(f"{HEADER}\nx,u1,i1,view,{START * 1000},1,1,\n")
    taken = take(tmp_path, mapping(tmp_path / "log*.csv"))
    assert taken.tally.rows_out == 20
    assert taken.tally.reasons == {"in_the_future": 1}


def test_a_missing_column_stops_the_stage(tmp_path):
    header = HEADER.replace("price", "prize")
    (tmp_path / "log.csv").write_text("\n".join([header, *good_rows()]))
    with pytest.raises(UserError, match="no column 'price'") as refusal:
        take(tmp_path, mapping(tmp_path / "log.csv"))
    assert "did you mean 'prize'" in refusal.value.mend


@pytest.mark.parametrize("content", [b"", HEADER.encode() + b"\n"])
def test_an_empty_log_stops_the_stage_and_an_empty_file_among_others_is_counted(tmp_path, content):
    (tmp_path / "log0.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"no event is left of 1 rows \(empty_file: 1\)"):
        take(tmp_path, mapping(tmp_path / "log0.csv"))
    (tmp_path / "out/events").mkdir(exist_ok=True)
    other = tmp_path / "other"
    other.mkdir()
    (tmp_path / "log1.csv").write_text("\n".join([HEADER, *good_rows()]))
    taken = take(other, mapping(f"{tmp_path}/log*.csv"))
    assert taken.tally.reasons == {"empty_file": 1}
    assert taken.tally.rows_in == 21


def test_truncated_gzip_keeps_whole_lines_and_counts_the_rest_as_one(tmp_path):
    packed = gzip.compress("\n".join([HEADER, *good_rows(5000)]).encode())
    (tmp_path / "log.csv.gz").write_bytes(packed[: len(packed) * 2 // 3])
    taken = take(tmp_path, mapping(tmp_path / "log.csv.gz"))
    assert taken.tally.reasons == {"truncated_file": 1}
    assert 1000 < taken.tally.rows_out < 5000


def test_truncated_parquet_among_others_is_counted(tmp_path):
    rows = pl.DataFrame(
        [line.split(",") for line in good_rows()], schema=HEADER.split(","), orient="row"
    )
    rows.write_parquet(tmp_path / "good.parquet")
    whole = (tmp_path / "good.parquet").read_bytes()
    (tmp_path / "half.parquet").write_bytes(whole[: len(whole) // 2])
    taken = take(tmp_path, mapping(tmp_path / "*.parquet"))
    assert taken.tally.reasons == {"unreadable_file": 1}
    assert taken.tally.rows_out == 20


@pytest.mark.long
def test_a_tenth_of_the_files_corrupt(tmp_path):
    whole = "\n".join([HEADER, *good_rows(50)]).encode()
    frame = pl.read_csv(whole, infer_schema=False)
    noise = random.Random(0).randbytes(3000)
    for n in range(34):
        (tmp_path / f"{n:02d}.csv").write_bytes(whole.replace(b"\ne", b"\n%de" % n))
    for n in range(2):
        frame.with_columns(pl.col("event") + f"p{n}").write_parquet(tmp_path / f"{n}.parquet")
    (tmp_path / "90.csv.gz").write_bytes(gzip.compress(whole.replace(b"\ne", b"\ngz"))[:-20])
    (tmp_path / "91.parquet").write_bytes(noise)
    (tmp_path / "92.csv").write_bytes(b"")
    (tmp_path / "93.csv").write_bytes(noise)
    taken = take(tmp_path, mapping(tmp_path / "*.*"))
    assert taken.tally.reasons == {
        "truncated_file": 1, "unreadable_file": 1, "empty_file": 1, "missing_columns": 1,
    }  # fmt: skip
    assert taken.tally.files == {
        "90.csv.gz": "truncated_file", "91.parquet": "unreadable_file", "92.csv": "empty_file",
        "93.csv": "missing_columns",
    }  # fmt: skip
    assert taken.tally.rows_out >= 36 * 50
    write_report(taken.outcome, "A shop", Limits(), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "4 files could not be read" in page
    assert "91.parquet" in page


def test_a_column_that_some_files_lack_is_counted(tmp_path):
    (tmp_path / "a.csv").write_text("\n".join([HEADER, *good_rows()]))
    lines = [f"x{i},u1,i1,view,{START + i}" for i in range(5)]
    (tmp_path / "b.csv").write_text("\n".join(["event,user,item,what,time", *lines]))
    taken = take(tmp_path, mapping(tmp_path / "*.csv"))
    assert taken.tally.rows_out == 25
    assert taken.tally.lacking == {"price": 1, "quantity": 1, "query": 1}
    assert taken.events["price"].null_count() == 5


def test_parquet_with_its_own_types(tmp_path):
    table = pa.table(
        {
            "user": pa.array([1, 2, None]),
            "item": pa.array([7, 8, 9]),
            "what": pa.array(["view", "view", "view"]).dictionary_encode(),
            "time": pa.array([START * 10**6] * 3, pa.timestamp("us")),
            "price": pa.array([1.5, -1.0, 2.0], pa.float32()),
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    columns = {
        "user_id": "user", "item_id": "item", "event_type": "what", "timestamp": "time",
        "price": "price",
    }  # fmt: skip
    taken = take(tmp_path, mapping(tmp_path / "log.parquet", columns=columns))
    assert taken.tally.reasons == {"negative_price": 1, "missing_value": 1}
    assert taken.events["user_id"].to_list() == ["1"]


def test_faults_of_the_catalogue_and_of_users(tmp_path):
    (tmp_path / "log.csv").write_text("\n".join([HEADER, *good_rows()]))
    (tmp_path / "items.csv").write_bytes(
        b"id,title,price\ni0,Shoe,5\ni0,Shoe again,5\n,Nothing,1\ni1,Hat,-3\n"
        b"i2," + b"t" * 1_000_000 + b",1\ni3,caf\xe9,1\ni4,Odd,dear\n"
    )
    (tmp_path / "users.csv").write_text("id,town\nu0,Bonn\nu0,Ulm\n,Kiel\nu9,Jena\n")
    taken = take(
        tmp_path,
        mapping(tmp_path / "log.csv"),
        items=(
            ItemFiles(
                paths=str(tmp_path / "items.csv"),
                columns={"item_id": "id", "title": "title", "price": "price"},
            ),
        ),
        users=(UserFiles(paths=str(tmp_path / "users.csv"), columns={"user_id": "id"}),),
        limits=Limits(longest_text=50),
    )
    items = taken.outcome.tallies["items"]
    assert items.reasons == {
        "duplicate": 1, "missing_value": 1, "negative_price": 1, "mistyped_value": 1,
    }  # fmt: skip
    assert items.mended == {"long_text": 1, "broken_encoding": 1}
    assert items.added == {"unknown_item": 4}
    assert taken.items["item_id"].to_list() == [f"i{i}" for i in range(7)]
    assert taken.items["title"].str.len_chars().max() == 50
    users = taken.outcome.tallies["users"]
    assert users.reasons == {"duplicate": 1, "missing_value": 1}
    known = pq.read_table(taken.folder / "users.parquet").to_pylist()
    assert {u["user_id"]: dict(u["attributes"]) for u in known} == {
        "u0": {"town": "Bonn"}, "u1": {}, "u2": {}, "u3": {}, "u9": {"town": "Jena"},
    }  # fmt: skip


_cell = st.one_of(
    st.sampled_from(["", "u1", "i1", "view", "purchase", "pv", str(START), "9.5", "-1", "nan"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
)


@pytest.mark.long
@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(_cell, min_size=1, max_size=10), max_size=15), st.binary(max_size=60))
def test_counts_add_up_for_any_garbage(tmp_path_factory, rows, tail):
    folder = tmp_path_factory.mktemp("log")
    lines = [HEADER, *good_rows(30), *(",".join(row) for row in rows)]
    content = "\n".join(lines).encode() + b"\n" + tail
    (folder / "log.csv").write_bytes(content)
    taken = take(folder, mapping(folder / "log.csv"))  # take() itself checks the sums
    assert taken.tally.rows_out + taken.tally.quarantined >= 30
    if b'"' not in content and b"\r" not in content:
        assert taken.tally.rows_in == sum(1 for line in content.split(b"\n") if line) - 1
