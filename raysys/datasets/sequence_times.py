"""Moments as shops' exports write them, besides those that every log's reader knows."""

from __future__ import annotations

from typing import Final, Literal

import polars as pl

Form = Literal["year first", "month first"]

FORMATS: Final = (
    "times may be numbers since 1970 (seconds and finer), 2014-04-13 08:26:00, 2014/04/13, "
    "4/13/2014 8:26 (with a day above 12, which tells it from 13/4/2014), or 04 13, 2014"
)
"""For messages: what is read."""

_YEAR_FIRST: Final = r"^(?<y>\d{4})/(?<m>\d{1,2})/(?<d>\d{1,2})(?:[ T]+(?<t>\d{1,2}:.*))?$"
_MONTH_FIRST: Final = (
    r"^(?<m>\d{1,2})(?:/| )(?<d>\d{1,2})(?:/|, )(?<y>\d{4})(?: +(?<t>\d{1,2}:.*))?$"
)
_COMMA: Final = r"^\d{1,2} \d{1,2}, \d{4}"


def find_form(values: pl.Series, share: float = 0.99) -> Form | None:
    """Which of these forms texts have; None: none, or the day may as well be the month.

    Args:
        values: texts.
        share: of the values, at least, that have it.
    """
    present = values.drop_nulls()
    if not present.len() or present.dtype != pl.String:
        return None
    if present.str.contains(_YEAR_FIRST).mean() >= share:  # type: ignore[operator]
        return "year first"
    slashed = present.filter(present.str.contains(_MONTH_FIRST))
    if slashed.len() < share * present.len():
        return None
    parts = slashed.str.extract_groups(_MONTH_FIRST).struct.unnest()
    month, day = parts["m"].cast(pl.Int64), parts["d"].cast(pl.Int64)
    if (month > 12).any():
        return None
    return "month first" if (day > 12).any() or slashed.str.contains(_COMMA).all() else None


def as_iso(values: pl.Series, form: Form) -> pl.Series:
    """Texts of that form as ISO 8601; null where the value has another."""
    pattern = _YEAR_FIRST if form == "year first" else _MONTH_FIRST
    date = pl.concat_str(
        pl.col("y"), pl.lit("-"), pl.col("m").str.zfill(2), pl.lit("-"), pl.col("d").str.zfill(2)
    )
    time = pl.col("t").str.replace(r"^(\d):", "0$1:")
    parts = values.str.extract_groups(pattern).struct.unnest()
    read = pl.when(time.is_null()).then(date).otherwise(pl.concat_str(date, pl.lit(" "), time))
    return parts.select(read.alias("time")).to_series()
