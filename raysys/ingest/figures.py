"""What a log looks like, in small counts that add up over buckets: the report's material."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow.compute as pc

from raysys.ingest.sessions import SESSION, USER

PRICE_EDGES: Final = np.geomspace(0.01, 1e6, 8 * 12 + 1)
"""Bounds of the price histogram: twelve bins a decade; below and above are counted at the ends."""


@dataclass
class LogFigures:
    """Counts of clean events; adding two buckets' figures gives those of both.

    Buckets hold whole users, so users and sessions add up too.
    """

    users: int = 0
    sessions: int = 0
    orders: int = 0
    first: int | None = None  # UTC ms
    last: int | None = None
    types: Counter[str] = field(default_factory=Counter)
    days: Counter[str] = field(default_factory=Counter)  # "YYYY-MM-DD type" → events
    hours: Counter[int] = field(default_factory=Counter)  # hour of the day, UTC → events
    session_lengths: Counter[int] = field(default_factory=Counter)  # events of a day → sessions
    user_events: Counter[int] = field(default_factory=Counter)  # power of two at or below → users
    prices: Counter[int] = field(default_factory=Counter)  # bin of PRICE_EDGES → events
    free: int = 0  # events with price zero
    unpriced: int = 0
    currencies: Counter[str] = field(default_factory=Counter)  # of priced events → events
    revenue: dict[str, float] = field(default_factory=dict)  # of purchases, by currency

    def add(self, other: LogFigures) -> None:
        """Count another bucket too."""
        self.users += other.users
        self.sessions += other.sessions
        self.orders += other.orders
        moments = [m for m in (self.first, other.first) if m is not None]
        self.first = min(moments, default=None)
        self.last = max((m for m in (self.last, other.last) if m is not None), default=None)
        self.types.update(other.types)
        self.days.update(other.days)
        self.currencies.update(other.currencies)
        for mine, theirs in (
            (self.hours, other.hours),
            (self.session_lengths, other.session_lengths),
            (self.user_events, other.user_events),
            (self.prices, other.prices),
        ):
            mine.update(theirs)
        self.free += other.free
        self.unpriced += other.unpriced
        for currency, amount in other.revenue.items():
            self.revenue[currency] = self.revenue.get(currency, 0.0) + amount

    def to_dict(self) -> dict[str, Any]:
        """As JSON can say it."""
        return {
            name: dict(value) if isinstance(value, Counter) else value
            for name, value in self.__dict__.items()
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> LogFigures:
        """What `to_dict` said, also after JSON has made its keys text."""
        numbered = {
            name: Counter({int(key): value for key, value in content[name].items()})
            for name in ("hours", "session_lengths", "user_events", "prices")
        }
        named = {name: Counter(content[name]) for name in ("types", "days", "currencies")}
        return cls(**{**content, **numbered, **named})


def measure(events: pl.DataFrame) -> LogFigures:
    """The figures of all events of some users (`schema.LOGGED_EVENTS`, moments in ms).

    Where the events are numbered already (see `sessions.find_sessions`), that saves half the time.
    """
    figures = LogFigures()
    if events.height == 0:
        return figures
    numbers = (
        [events[USER].alias("user"), events[SESSION].alias("session")]
        if USER in events.columns
        else [
            pl.Series("user", _codes(events["user_id"])),
            pl.Series("session", _codes(events["session_id"])),
        ]
    )
    coded = events.select(
        "event_type",
        "order_id",
        *numbers,
        (pl.col("timestamp") // 86_400_000).alias("day"),
        (pl.col("timestamp") // 3_600_000 % 24).alias("hour"),
    )
    figures.orders = coded["order_id"].drop_nulls().n_unique()
    figures.first = int(events["timestamp"].min())  # type: ignore[arg-type]
    figures.last = int(events["timestamp"].max())  # type: ignore[arg-type]
    types = coded.group_by("day", "event_type").len()
    figures.types = _counts(types.group_by("event_type").agg(pl.col("len").sum()))
    date = (pl.col("day") * 86_400_000).cast(pl.Datetime("ms")).dt.strftime("%Y-%m-%d")
    figures.days = _counts(types.select(pl.format("{} {}", date, "event_type"), "len"))
    figures.hours = _counts(coded.group_by("hour").len())
    sessions = coded.group_by("user", "session", "day").len("events")
    figures.sessions = sessions.select("user", "session").n_unique()
    figures.session_lengths = _counts(sessions.group_by("events").len())
    activity = sessions.group_by("user").agg(pl.col("events").sum())
    figures.users = activity.height
    figures.user_events = by_power(activity["events"])
    _measure_prices(events, figures)
    return figures


def by_power(events: pl.Series) -> Counter[int]:
    """How many users have 1, 2–3, 4–7, … events: the power of two at or below → users."""
    gathered: Counter[int] = Counter()
    for count, users in events.value_counts().iter_rows():
        gathered[1 << (count.bit_length() - 1)] += users
    return gathered


def _measure_prices(events: pl.DataFrame, figures: LogFigures) -> None:
    prices = events["price"].drop_nulls()
    figures.unpriced = events.height - prices.len()
    figures.free = int((prices == 0).sum())
    distinct = prices.filter(prices > 0).value_counts(name="n")  # prices repeat
    bins = np.clip(
        np.searchsorted(PRICE_EDGES, distinct.to_series(0).to_numpy(), side="right") - 1,
        0,
        len(PRICE_EDGES) - 2,
    )
    counts = np.bincount(bins, weights=distinct["n"].to_numpy(), minlength=1)
    figures.prices = Counter({int(b): int(n) for b, n in enumerate(counts) if n})
    priced = events.select(pl.col("currency").fill_null("").filter(pl.col("price").is_not_null()))
    figures.currencies = _counts(priced.group_by("currency").len())
    paid = (
        events.filter(pl.col("event_type") == "purchase")
        .group_by("currency")
        .agg((pl.col("price") * pl.col("quantity").fill_null(1)).sum())
    )
    figures.revenue = {currency or "": float(amount) for currency, amount in paid.iter_rows()}


def _codes(values: pl.Series) -> np.ndarray:
    """Equal numbers for equal texts: int32[n], -1 for null; numbers are cheap to group by."""
    coded = pc.dictionary_encode(values.to_arrow()).indices
    return pc.fill_null(coded, -1).to_numpy(zero_copy_only=False)


def _counts(frame: pl.DataFrame) -> Counter[Any]:
    return Counter(dict(frame.iter_rows()))
