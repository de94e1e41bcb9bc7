"""Moments of a log: units and forms all read to UTC milliseconds; a wrong unit is told."""

import datetime as dt

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.datasets.times import EARLIEST, TimeFormat, check_unit, guess_unit, latest, to_millis
from raysys.errors import UserError

MOMENT = 1_511_658_000_000  # 2017-11-26 01:00:00 UTC


@pytest.mark.parametrize(
    ("unit", "written"),
    [
        ("seconds", "1511658000"),
        ("seconds", "1511658000.0"),
        ("milliseconds", "1511658000000"),
        ("microseconds", "1511658000000000"),
        ("nanoseconds", "1511658000000000000"),
        ("iso", "2017-11-26 01:00:00 UTC"),
        ("iso", "2017-11-26T01:00:00Z"),
        ("iso", "2017-11-26T01:00:00.000"),
        ("iso", "2017-11-26T03:30:00+02:30"),
        ("iso", "2017-11-25 20:00:00 -0500"),
        ("iso", " 2017-11-26 01:00 "),
        ("iso", "2017-11-26 01:00:00+00"),
        ("iso", "2017-11-26 03:00:00.000+02"),
        ("iso", "2017-11-25 19:00:00.00 -06"),
        ("iso", "2017-11-26T01:00Z"),
        ("iso", "2017-11-26T02:00+01:00"),
        ("iso", "2017-11-25T20:00-0500"),
    ],
)
def test_every_form_means_the_same_moment(unit, written):
    assert to_millis(pl.Series([written]), TimeFormat(unit=unit)).to_list() == [MOMENT]


def test_fractions_stay_with_an_offset_of_two_digits():
    values = pl.Series(["2017-11-26 01:00:00.12+00", "2017-11-26 06:00:00.123456+05"])
    assert to_millis(values, TimeFormat()).to_list() == [MOMENT + 120, MOMENT + 123]


def test_zone_is_assumed_only_where_none_is_named():
    form = TimeFormat(zone="America/New_York")
    values = pl.Series(["2017-11-25 20:00:00", "2017-11-26 01:00:00Z", "2017-11-26"])
    assert to_millis(values, form).to_list() == [MOMENT, MOMENT, MOMENT + 4 * 3_600_000]


def test_timestamps_and_dates_say_their_unit_themselves():
    stamps = pl.Series([MOMENT * 1000]).cast(pl.Datetime("us"))
    assert to_millis(stamps, TimeFormat(unit="seconds")).to_list() == [MOMENT]
    dates = pl.Series(["2017-11-26"]).str.to_date()
    assert to_millis(dates, TimeFormat()).to_list() == [MOMENT - 3_600_000]


def test_what_is_no_moment_is_null():
    form = TimeFormat(unit="seconds")
    assert to_millis(pl.Series(["", "soon", None, "nan", "12:30"]), form).null_count() == 5
    assert to_millis(pl.Series(["26/11/2017", "2017-13-01"]), TimeFormat()).null_count() == 2


@pytest.mark.parametrize("stated", ["seconds", "milliseconds", "microseconds", "iso"])
@pytest.mark.parametrize("true", ["seconds", "milliseconds", "microseconds"])
def test_a_wrong_unit_is_refused_and_the_right_one_named(stated, true):
    scale = {"seconds": 1e-3, "milliseconds": 1, "microseconds": 1e3}[true]
    values = pl.Series([str(int(MOMENT * scale))] * 10)
    if stated == true:
        check_unit(values, TimeFormat(unit=stated), where="log.csv")
        return
    with pytest.raises(UserError) as refusal:
        check_unit(values, TimeFormat(unit=stated), where="log.csv")
    assert f"set time.unit to {true}" in str(refusal.value)
    assert "2017-11-26 01:00" in refusal.value.what


def test_single_wrong_clocks_do_not_condemn_the_unit():
    values = pl.Series(["1511658000"] * 9 + ["15"])
    check_unit(values, TimeFormat(unit="seconds"), where="log.csv")


@pytest.mark.parametrize("known", [1, 4, 5])
def test_few_values_do_not_condemn_the_unit(known):
    values = pl.Series([str(MOMENT), None] * known)
    if known < 5:
        check_unit(values, TimeFormat(unit="seconds"), where="log.csv")
        return
    with pytest.raises(UserError, match="time is not in seconds"):
        check_unit(values, TimeFormat(unit="seconds"), where="log.csv")


def test_unknown_zone_is_refused():
    with pytest.raises(ValueError, match="no such time zone"):
        TimeFormat(zone="Mars/Olympus")


@pytest.mark.long
@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.text(), st.integers().map(str), st.floats().map(str))))
def test_garbage_never_raises_and_keeps_its_length(values):
    series = pl.Series(
        [None if v is None else v.encode("utf-8", "replace").decode() for v in values],
        dtype=pl.String,
    )
    for unit in ("seconds", "milliseconds", "microseconds", "nanoseconds", "iso"):
        assert to_millis(series, TimeFormat(unit=unit)).len() == len(values)


@pytest.mark.long
@settings(deadline=None)
@given(st.integers(EARLIEST, latest()))
def test_units_agree(moment):
    for unit, scale in (("milliseconds", 1), ("microseconds", 1000), ("nanoseconds", 1_000_000)):
        series = pl.Series([str(moment * scale)])
        assert to_millis(series, TimeFormat(unit=unit)).to_list() == [moment]


FORMS = (
    "%Y-%m-%d %H:%M:%S UTC",
    "%Y-%m-%dT%H:%M:%SZ",
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%dT%H:%M:%S.250",
    "%Y-%m-%dT%H:%M:%S.250Z",
    "%Y-%m-%d %H:%M:%S +02:00",
    "%Y-%m-%d %H:%M:%S.250+02",
    "%Y-%m-%dT%H:%MZ",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
    "%Y%m%d",
    "noon",
)


@pytest.mark.long
@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.datetimes(dt.datetime(1995, 1, 1), dt.datetime(2030, 1, 1)), st.integers(0, 11)
        )
    ),
    st.sampled_from(["UTC", "Europe/Berlin"]),
)
def test_a_column_of_mixed_forms_reads_as_each_value_alone(rows, zone):
    texts = [moment.strftime(FORMS[form]) for moment, form in rows]
    together = to_millis(pl.Series(texts, dtype=pl.String), TimeFormat(zone=zone)).to_list()
    # a blank before the value takes it out of the quick way, which knows the usual forms only
    alone = [to_millis(pl.Series([" " + text]), TimeFormat(zone=zone))[0] for text in texts]
    assert together == alone


@pytest.mark.parametrize("more", [[None], [None, float("nan")], []])
def test_fractions_of_a_second_stay_in_a_column_of_floats(more):
    """As Parquet holds what `time.time()` gave."""
    values = pl.Series([1_569_888_000.75, 1_569_888_000.25, *more], dtype=pl.Float64)
    found = to_millis(values, TimeFormat(unit="seconds")).to_list()
    assert found == [1_569_888_000_750, 1_569_888_000_250, *[None] * len(more)]


@pytest.mark.parametrize(
    ("values", "unit"),
    [
        (["1396861869", "1396861869.277"], "seconds"),
        ([1396861869277], "milliseconds"),
        (["2014-04-07T10:51:09.277Z", "noon"], "iso"),
        (["20140407"], "iso"),
        (["17", "4"], None),
        (["shoe"], None),
        ([None], None),
    ],
)
def test_the_unit_is_guessed_by_what_is_believable(values: list[object], unit: str | None) -> None:
    assert guess_unit(pl.Series(values)) == unit
