"""Figures of what is watched, as reports and pages say them."""

from __future__ import annotations

import datetime as dt

from raysys.monitoring.drift import Moved
from raysys.monitoring.rates import Rate


def day(millis: int) -> str:
    """UTC milliseconds as a day and minute."""
    return dt.datetime.fromtimestamp(millis / 1000, tz=dt.UTC).strftime("%Y-%m-%d %H:%M")


def percent(value: float, digits: int = 1) -> str:
    """A share; small ones with as many digits as tell them from nothing."""
    if 0 < abs(value) < 0.01:
        return f"{100 * value:.2g}%"
    return f"{100 * value:.{digits}f}%"


def of(rate: Rate) -> str:
    """A rate and its interval."""
    if not rate.slots:
        return "–"
    return f"{percent(rate.value)} [{percent(rate.low)}, {percent(rate.high)}]"


def level(moved: Moved) -> str:
    """How far it moved, in a word or two."""
    return f"{moved.level}, missing" if moved.missing_over else moved.level


def name(moved: Moved) -> str:
    """Of a feature its name, of a score whose it is."""
    return moved.name if moved.kind == "feature" else f"score of {moved.name}"
