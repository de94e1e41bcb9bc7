"""Texts as codes: the same as looking at every row's text."""

import polars as pl
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.features.coded import Coded, Pairs, read_coded
from raysys.features.log import normalised

TEXTS = st.sampled_from([None, "a", "A ", "b", " ", "c  d", "C d"])


def coded(values, chunks=2):
    cut = len(values) // chunks
    parts = [values[:cut], values[cut:]]
    return Coded.of(pa.chunked_array([pa.array(part, pa.string()) for part in parts]))


def texts(column):
    return [None if code < 0 else column.names[int(code)] for code in column.codes]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(TEXTS, TEXTS, st.sampled_from(["u", "v"])), max_size=12))
def test_columns_are_what_their_rows_say(rows):
    first, second, user = ([row[n] for row in rows] for n in range(3))
    a, b, u = coded(first), coded(second), coded(user)
    assert texts(a) == first
    assert a.names.to_list() == list(dict.fromkeys(v for v in first if v is not None))
    frame = pl.DataFrame(
        {"a": first, "b": second, "u": user}, schema=dict.fromkeys("abu", pl.String)
    )
    said = frame.select(pl.coalesce("a", "b", "u")).to_series()
    both = Coded.coalesced([a, b, u])
    assert texts(both) == said.to_list()
    assert set(both.names) == set(said)
    assert texts(a.map(normalised)) == frame.select(normalised(pl.col("a"))).to_series().to_list()
    pairs = Pairs.of(("u", u), ("a", a))
    known = frame.select("u", "a").drop_nulls()
    assert pairs.names.rows() == known.unique(maintain_order=True).rows()
    assert [pairs.names.row(int(c)) for c in pairs.codes if c >= 0] == known.rows()
    assert [c < 0 for c in pairs.codes] == [value is None for value in first]


def test_files_are_read_in_order_of_time(tmp_path):
    paths = []
    for number, times in enumerate(([5, 3, 3], [1, 3])):
        frame = pl.DataFrame(
            {
                "timestamp": pl.Series(times).cast(pl.Datetime("ms", "UTC")),
                "user_id": [f"{number}{row}" if row else None for row in range(len(times))],
                "price": [float(row) for row in range(len(times))],
            }
        )
        paths.append(tmp_path / f"{number}.parquet")
        frame.write_parquet(paths[-1])
    columns, rest = read_coded(paths, ["user_id"], ["price"])
    assert texts(columns["user_id"]) == [None, "01", "02", "11", None]
    assert rest["price"].to_list() == [0, 1, 2, 1, 0]
