"""Moments in a log, whatever the unit: UTC milliseconds, and an error when the unit is wrong."""

from __future__ import annotations

import functools
import re
import time
import zoneinfo
from typing import Final, Literal

import polars as pl
from pydantic import field_validator

from raysys.config import Settings
from raysys.errors import UserError

Unit = Literal["seconds", "milliseconds", "microseconds", "nanoseconds", "iso"]

EARLIEST: Final = 631_152_000_000
"""1990-01-01 in UTC milliseconds: no shop's behaviour log is older."""

_A_DAY: Final = 86_400_000
_FEW: Final = 5  # fewer values than these say nothing of a unit
_FAR: Final = 8_000_000_000_000_000  # what Arrow and polars still hold as milliseconds
_PER_MILLISECOND: Final[dict[str, float]] = {
    "seconds": 1e-3,
    "milliseconds": 1.0,
    "microseconds": 1e3,
    "nanoseconds": 1e6,
}
_WITH_OFFSET: Final = ("%Y-%m-%d %H:%M:%S%.f%:z", "%Y-%m-%d %H:%M%:z")
_WITHOUT: Final = (
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
    "%Y%m%d",
)
_USUAL: Final = re.compile(
    r"\d{4}-\d\d-\d\d(?P<between>[T ])\d\d:\d\d:\d\d(?P<fraction>\.\d+)?(?P<utc>\s*(?:UTC|GMT|Z))?"
)
"""The forms that most logs write; read by one pass where the whole column has the same."""


class TimeFormat(Settings):
    """How a log writes its moments.

    `unit` counts from 1970-01-01 UTC, or is `iso` for text such as `2019-10-01 00:00:00 UTC`.
    Timestamp columns of Parquet files say their unit themselves. `zone` is assumed for texts and
    timestamps that name none.
    """

    unit: Unit = "iso"
    zone: str = "UTC"

    @field_validator("zone")
    @classmethod
    def _known_zone(cls, zone: str) -> str:
        if zone not in zoneinfo.available_timezones():
            raise ValueError("no such time zone; write for example UTC or Europe/Berlin")
        return zone


@functools.cache
def in_utc(unit: Unit) -> TimeFormat:
    """The format of that unit in UTC: checking a zone anew takes 20 ms."""
    return TimeFormat(unit=unit)


def latest(hours: float = 24) -> int:
    """The newest believable moment, UTC ms: a day from now, for clocks that run ahead."""
    return int(time.time() * 1000 + hours * 3_600_000)


def to_millis(values: pl.Series, form: TimeFormat) -> pl.Series:
    """Moments as UTC milliseconds: Int64[n], null where the value is not one.

    Args:
        values: text, numbers, dates or timestamps.
        form: how to read them.
    """
    dtype = values.dtype
    if isinstance(dtype, pl.Datetime):
        if dtype.time_zone is None and form.zone != "UTC":
            values = _in_zone(values, form.zone)
        return values.dt.epoch("ms")
    if dtype == pl.Date:
        return to_millis(values.cast(pl.Datetime("ms")), form)
    if form.unit == "iso":
        return _from_text(values.cast(pl.String, strict=False), form.zone)
    numbers = values.cast(pl.Int64, strict=False)
    scale = _PER_MILLISECOND[form.unit]
    if scale < 1:  # clipped first: a product of more than 63 bits would wrap around
        whole = numbers.clip(-_FAR, _FAR) * int(1 / scale)
    else:
        whole = numbers // int(scale) if scale > 1 else numbers
    if dtype.is_integer() or (not dtype.is_float() and numbers.null_count() == values.null_count()):
        return whole.clip(-_FAR, _FAR)
    fractional = values.cast(pl.Float64, strict=False)
    fractional = fractional.set(fractional.is_nan().fill_null(False), None)
    rounded = (fractional / scale).clip(-_FAR, _FAR).round().cast(pl.Int64, strict=False)
    if dtype.is_float():  # whose cast to whole numbers cuts
        return rounded
    return whole.fill_null(rounded).clip(-_FAR, _FAR)


def check_unit(
    values: pl.Series,
    form: TimeFormat,
    *,
    where: str,
    millis: pl.Series | None = None,
    fixed: bool = False,
) -> None:
    """Refuse a log whose unit of time is obviously not the one its mapping states.

    Obviously: fewer than half of the values are believable as stated (1990 to tomorrow), and
    read in another unit at least half are. Single wrong clocks are the rules' business, and
    where there are fewer than five values every one may be such a clock.

    Args:
        values: as the log has them.
        form: the mapping's statement.
        where: file and column, for the error.
        millis: what `to_millis` makes of the values, where the caller has it.
        fixed: the unit is that of the log's format; no mapping states it.

    Raises:
        UserError: naming an example, what it would mean, and the unit that fits.
    """
    known = values.len() - values.null_count()
    if known < _FEW or values.dtype.is_temporal():
        return
    meant = to_millis(values, form) if millis is None else millis
    if _believable(meant) >= 0.5 * known:
        return
    present = values.drop_nulls()
    units: tuple[Unit, ...] = ("seconds", "milliseconds", "microseconds", "nanoseconds", "iso")
    for unit in units:
        other = TimeFormat(unit=unit, zone=form.zone)
        if unit == form.unit:
            continue
        if _believable(to_millis(present, other)) >= 0.5 * present.len():
            example = present[0]
            means = _say(to_millis(present.head(1), form)[0])
            fits = _say(to_millis(present.head(1), other)[0])
            raise UserError(
                f"the time is not in {form.unit}: {example!r} would be {means}; "
                f"in {unit} it is {fits}",
                where=where,
                mend=f"this kind of source has its moments in {form.unit}: write them so, or read "
                f"the files as kind: files, with a mapping whose time.unit is {unit}"
                if fixed
                else f"set time.unit to {unit}",
            )


def guess_unit(values: pl.Series, *, share: float = 0.5, earliest: int = EARLIEST) -> Unit | None:
    """The unit in which most values are believable; None: in none, or there is no value.

    Args:
        values: text, numbers, dates or timestamps.
        share: of the values, at least, that must be.
        earliest: believable moment, UTC ms.
    """
    present = values.drop_nulls()
    units: tuple[Unit, ...] = ("seconds", "milliseconds", "microseconds", "nanoseconds", "iso")
    for unit in units if present.len() else ():
        if _believable(to_millis(present, in_utc(unit)), earliest) >= share * present.len():
            return unit
    return None


def _believable(millis: pl.Series, earliest: int = EARLIEST) -> int:
    """How many values mean a moment between 1990, or what is said, and tomorrow."""
    return int(((millis >= earliest) & (millis <= latest())).sum())


def _from_text(text: pl.Series, zone: str) -> pl.Series:
    """ISO 8601 and its common relatives: Int64[n] UTC milliseconds."""
    quick = _like_the_first(text, zone)
    if quick is None:
        return _each_form(text, zone)
    unread = quick.is_null() & text.is_not_null()
    if not unread.any():
        return quick
    return quick.scatter(unread.arg_true(), _each_form(text.filter(unread), zone))


def _like_the_first(text: pl.Series, zone: str) -> pl.Series | None:
    """Moments of the values that are written like the first one; None if that is unusual.

    A column nearly always has one form, and polars reads a known form many times faster than
    it tries all of them.
    """
    first = text.drop_nulls().head(1)
    written = _USUAL.fullmatch(first[0]) if first.len() else None
    if written is None:
        return None
    form = f"%Y-%m-%d{written['between']}%H:%M:%S{'%.f' if written['fraction'] else ''}"
    utc = written["utc"] or ""
    bare = text.str.strip_suffix(utc) if utc else text
    read = bare.str.to_datetime(form, time_unit="ms", strict=False)
    if utc:
        named = text.str.ends_with(utc)
        if not named.all():  # those without it are of the mapping's zone
            read = read.zip_with(named.fill_null(True), pl.Series([None], dtype=read.dtype))
    elif zone != "UTC":
        read = _in_zone(read, zone)
    return read.dt.epoch("ms").rename(text.name)


def _each_form(text: pl.Series, zone: str) -> pl.Series:
    """Every form that is known, tried on every value."""
    frame = pl.select(
        text.str.strip_chars()
        .str.replace(r"^(\d{4}-\d{2}-\d{2})T", "$1 ")
        .str.replace(r"\s*(UTC|GMT|Z)$", "+00:00")
        .str.replace(r"\s*([+-]\d{2}):?(\d{2})$", "$1:$2")
        .str.replace(r"(:\d{2}(?:\.\d+)?)\s*([+-]\d{2})$", "$1$2:00")  # as PostgreSQL writes it
        .alias("text")
    )
    exact = pl.coalesce(
        pl.col("text").str.to_datetime(form, time_unit="ms", strict=False, time_zone="UTC")
        for form in _WITH_OFFSET
    )
    plain = pl.coalesce(
        pl.col("text").str.to_datetime(form, time_unit="ms", strict=False) for form in _WITHOUT
    )
    frame = frame.select(
        exact=exact.dt.epoch("ms"),
        plain=plain.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null").dt.epoch(
            "ms"
        ),
    )
    return frame.to_series(0).fill_null(frame.to_series(1)).rename(text.name)


def _in_zone(values: pl.Series, zone: str) -> pl.Series:
    return values.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")


def _say(millis: int | None) -> str:
    """A moment in words for an error message."""
    if millis is None:
        return "no time at all"
    year = 1970 + millis / (365.2425 * _A_DAY)
    if not 1 <= year <= 9999:
        return f"the year {year:,.0f}"
    moment = pl.Series([millis]).cast(pl.Datetime("ms"))
    return str(moment.dt.strftime("%Y-%m-%d %H:%M")[0])
