"""Users of a day who behave like programs, and the figures that say so."""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl
import pyarrow.compute as pc
from numba import njit

from raysys.ingest.columns import DAY_MS
from raysys.ingest.rule_settings import Bots
from raysys.ingest.sessions import USER

SIGNALS: Final = ("bot_rate", "bot_fan_out", "bot_night_and_day", "bot_no_purchase", "bot_regular")
"""What can be told of a bot, in the order in which it is asked."""

DAY: Final = "_day"
"""Column of bots: the date on which they were one, days since 1970-01-01."""

_NOT_ACTS: Final = ("impression", "purchase", "refund")  # pages and baskets make many at a time
_MINUTE: Final = 60_000
_HOUR: Final = 3_600_000


def find_bots(
    events: pl.DataFrame, settings: Bots, catalogue_size: int | None = None
) -> pl.DataFrame:
    """The bots among the users of each date, with evidence.

    Args:
        events: all events of some users on some dates; timestamps in Int64 UTC ms; with `USER`
            where users are numbered already.
        settings: thresholds.
        catalogue_size: how many items the shop has, if it is known.

    Returns:
        One row a bot and date, by date: `user_id`, `DAY`, `signal` (the first of `SIGNALS`
        that holds), `acts` (events
        other than impressions and purchases), `busiest_minute` (acts in it), `items` (different
        ones), `hours` (of the day with acts), `purchases`, `gap_variation` (standard deviation of
        the gaps between acts over their mean; null where there are no gaps).
    """
    if USER in events.columns:
        user = events[USER].to_numpy()
    else:
        user = pc.dictionary_encode(events["user_id"].to_arrow()).indices.to_numpy()
    kind = events.select(
        pl.when(pl.col("event_type") == "purchase").then(2)
        .when(pl.col("event_type").is_in(_NOT_ACTS)).then(0).otherwise(1).cast(pl.Int8)
    ).to_series()  # fmt: skip
    time = events["timestamp"].to_numpy()
    order = np.arange(len(time)) if events["timestamp"].is_sorted() else time.argsort(kind="stable")
    one, first = _users_of_days(user, time, order)
    counted = _count(one, time, kind.to_numpy(), order, len(first))
    busy = np.flatnonzero(counted[0] >= settings.at_least_events)
    names = ("acts", "busiest_minute", "hours", "purchases", "_gaps", "_squares")
    figures = pl.DataFrame(
        {
            "_number": busy.astype(np.int32),
            "user_id": events["user_id"].gather(first[busy]),
            DAY: time[first[busy]] // DAY_MS,
            **{name: column[busy] for name, column in zip(names, counted, strict=True)},
        }
    )
    # different items need a set for each user, so only those busy enough are asked
    theirs = pl.DataFrame({"_number": one, "act": kind == 1}).with_columns(events["item_id"])
    theirs = theirs.filter(pl.col("act") & pl.col("_number").is_in(figures["_number"].implode()))
    items = theirs.group_by("_number").agg(pl.col("item_id").n_unique().alias("items"))
    mean = pl.col("_gaps") / (pl.col("acts") - 1)
    variance = pl.col("_squares") / (pl.col("acts") - 1) - mean**2
    figures = figures.join(items, on="_number", how="left", maintain_order="left").with_columns(
        gap_variation=pl.when((pl.col("acts") > 1) & (mean > 0))
        .then(variance.clip(lower_bound=0).sqrt() / mean)
        .round(4)
    )
    return _judged(figures, settings, catalogue_size)


@njit(cache=True)
def _users_of_days(user, time, order):  # type: ignore[no-untyped-def]
    """Number of each row's user on its date: int32[n]; and the first row of each number: int64[m].

    Args:
        user: int32[n]; time: int64[n]; order: int64[n], rows by time.
    """
    n_users = user.max() + 1 if len(user) else 0
    current = np.full(n_users, -1, dtype=np.int32)
    day = np.zeros(n_users, dtype=np.int64)
    number = np.empty(len(user), dtype=np.int32)
    first = np.empty(len(user), dtype=np.int64)
    n = 0
    for at in range(len(order)):
        row = order[at]
        who, today = user[row], time[row] // DAY_MS
        if current[who] == -1 or day[who] != today:
            current[who], day[who] = n, today
            first[n] = row
            n += 1
        number[row] = current[who]
    return number, first[:n].copy()


@njit(cache=True)
def _count(user, time, kind, order, n_users):  # type: ignore[no-untyped-def]
    """Of each user of a day: acts, most in a minute, hours with acts, purchases, gaps, squares.

    Args:
        user: int32[n], see `_users_of_days`; time: int64[n], UTC ms; kind: int8[n], 1 an
        act, 2 a purchase,
        0 else; order: int64[n], rows by time.
    """
    acts = np.zeros(n_users, dtype=np.int64)
    busiest = np.zeros(n_users, dtype=np.int64)
    hours = np.zeros(n_users, dtype=np.int64)
    purchases = np.zeros(n_users, dtype=np.int64)
    gaps = np.zeros(n_users, dtype=np.float64)
    squares = np.zeros(n_users, dtype=np.float64)
    minute = np.full(n_users, -1, dtype=np.int64)
    within = np.zeros(n_users, dtype=np.int64)
    hour = np.full(n_users, -1, dtype=np.int64)
    last = np.zeros(n_users, dtype=np.int64)
    for at in range(len(order)):
        row = order[at]
        who, moment = user[row], time[row]
        if kind[row] == 2:
            purchases[who] += 1
        if kind[row] != 1:
            continue
        if moment // _MINUTE != minute[who]:
            minute[who] = moment // _MINUTE
            within[who] = 0
        within[who] += 1
        busiest[who] = max(busiest[who], within[who])
        if moment // _HOUR != hour[who]:
            hour[who] = moment // _HOUR
            hours[who] += 1
        if acts[who]:
            gap = float(moment - last[who])
            gaps[who] += gap
            squares[who] += gap * gap
        last[who] = moment
        acts[who] += 1
    return acts, busiest, hours, purchases, gaps, squares


def _judged(figures: pl.DataFrame, settings: Bots, catalogue_size: int | None) -> pl.DataFrame:
    """Figures of those who show a signal, with the first of them."""
    items = pl.col("items")
    fan_out = _at_least(items, settings.items_per_day)
    if catalogue_size and settings.share_of_catalogue is not None:
        share = settings.share_of_catalogue * catalogue_size
        fan_out |= items >= max(share, settings.at_least_events)  # anybody sees all of a few items
    regular = (
        pl.lit(False)
        if settings.regularity is None
        else pl.col("gap_variation") < settings.regularity
    )
    told = {
        "bot_rate": _at_least(pl.col("busiest_minute"), settings.events_per_minute),
        "bot_fan_out": fan_out,
        "bot_night_and_day": _at_least(pl.col("hours"), settings.active_hours),
        "bot_no_purchase": _at_least(pl.col("acts"), settings.events_without_purchase)
        & (pl.col("purchases") == 0),
        "bot_regular": regular,
    }
    first = pl.coalesce(*(pl.when(told[name]).then(pl.lit(name)) for name in SIGNALS))
    return (
        figures.with_columns(signal=first)
        .drop_nulls("signal")
        .select(
            "user_id", DAY, "signal", "acts", "busiest_minute", "items", "hours", "purchases",
            "gap_variation",
        )
        .sort(DAY, "acts", "user_id", descending=[False, True, False])
    )  # fmt: skip


def _at_least(value: pl.Expr, threshold: int | None) -> pl.Expr:
    return pl.lit(False) if threshold is None else value >= threshold
