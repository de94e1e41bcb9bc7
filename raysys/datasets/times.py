"""Moments in a log, whatever the unit: UTC milliseconds, and an error when the unit is wrong."""

from __future__ import annotations

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
_FAR: Final = 8_000_000_000_000_000  # what Arrow and polars still hold as milliseconds
_PER_MILLISECOND: Final[dict[str, float]] = {
    "seconds": 1e-3,
    "milliseconds": 1.0,
    "microseconds": 1e3,
    "nanoseconds": 1e6,
}
_FORMATS: Final = (
    "%Y-%m-%d %H:%M:%S%.f%:z",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
)


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


def latest() -> int:
    """The newest believable moment, UTC ms: a day from now, for clocks that run ahead."""
    return int(time.time() * 1000) + _A_DAY


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
    whole = (numbers * int(1 / scale)) if scale < 1 else (numbers // int(scale))
    overflow = numbers.abs() > _FAR if scale < 1 else None
    if overflow is not None:
        whole = whole.zip_with(~overflow.fill_null(False), numbers.sign() * _FAR)
    fractional = values.cast(pl.Float64, strict=False)
    fractional = fractional.set(fractional.is_nan().fill_null(False), None)
    rounded = (fractional / scale).clip(-_FAR, _FAR).round().cast(pl.Int64, strict=False)
    return whole.fill_null(rounded).clip(-_FAR, _FAR)


def check_unit(values: pl.Series, form: TimeFormat, *, where: str) -> None:
    """Refuse a log whose unit of time is obviously not the one its mapping states.

    Obviously: fewer than half of the values are believable as stated (1990 to tomorrow), and
    read in another unit at least half are. Single wrong clocks are the rules' business.

    Raises:
        UserError: naming an example, what it would mean, and the unit that fits.
    """
    present = values.drop_nulls()
    if present.len() == 0 or values.dtype.is_temporal():
        return
    stated = _believable(present, form)
    if stated >= 0.5:
        return
    units: tuple[Unit, ...] = ("seconds", "milliseconds", "microseconds", "nanoseconds", "iso")
    for unit in units:
        other = TimeFormat(unit=unit, zone=form.zone)
        if unit != form.unit and _believable(present, other) >= 0.5:
            example = present[0]
            means = _say(to_millis(present.head(1), form)[0])
            fits = _say(to_millis(present.head(1), other)[0])
            raise UserError(
                f"the time is not in {form.unit}: {example!r} would be {means}; "
                f"in {unit} it is {fits}",
                where=where,
                mend=f"set time.unit to {unit}",
            )


def _believable(values: pl.Series, form: TimeFormat) -> float:
    """Share of the values that mean a moment between 1990 and tomorrow."""
    millis = to_millis(values, form)
    good = ((millis >= EARLIEST) & (millis <= latest())).fill_null(False)
    return float(good.sum()) / values.len()


def _from_text(text: pl.Series, zone: str) -> pl.Series:
    """ISO 8601 and its common relatives: Int64[n] UTC milliseconds."""
    frame = pl.select(
        text.str.strip_chars()
        .str.replace(r"^(\d{4}-\d{2}-\d{2})T", "$1 ")
        .str.replace(r"\s*(UTC|GMT|Z)$", "+00:00")
        .str.replace(r"\s*([+-]\d{2}):?(\d{2})$", "$1:$2")
        .alias("text")
    )
    with_offset, *without = _FORMATS
    exact = pl.col("text").str.to_datetime(
        with_offset, time_unit="ms", strict=False, time_zone="UTC"
    )
    plain = pl.coalesce(
        pl.col("text").str.to_datetime(form, time_unit="ms", strict=False) for form in without
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
