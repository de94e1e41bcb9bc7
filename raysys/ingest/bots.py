"""Users of a day who behave like programs, and the figures that say so."""

from __future__ import annotations

from typing import Final

import polars as pl

from raysys.ingest.rule_settings import Bots

SIGNALS: Final = ("bot_rate", "bot_fan_out", "bot_night_and_day", "bot_no_purchase", "bot_regular")
"""What can be told of a bot, in the order in which it is asked."""

_NOT_ACTS: Final = ("impression", "purchase", "refund")  # pages and baskets make many at a time
_MINUTE: Final = 60_000
_HOUR: Final = 3_600_000


def find_bots(
    events: pl.DataFrame, settings: Bots, catalogue_size: int | None = None
) -> pl.DataFrame:
    """The bots among the users of one date, with evidence.

    Args:
        events: all events of these users on one date; timestamps in Int64 UTC ms.
        settings: thresholds.
        catalogue_size: how many items the shop has, if it is known.

    Returns:
        One row a bot: `user_id`, `signal` (the first of `SIGNALS` that holds), `acts` (events
        other than impressions and purchases), `busiest_minute` (acts in it), `items` (different
        ones), `hours` (of the day with acts), `purchases`, `gap_variation` (standard deviation of
        the gaps between acts over their mean; null where there are no gaps).
    """
    acts = ~pl.col("event_type").is_in(_NOT_ACTS)
    # Few users are busy enough to be asked, and numbers find them faster than texts.
    numbers = events.select(user=pl.col("user_id").hash(1), act=acts)
    busy = (
        numbers.filter("act").group_by("user").len()
        .filter(pl.col("len") >= settings.at_least_events)["user"]
    )  # fmt: skip
    if busy.len() == 0:
        return _judged(_figures(events.clear()), settings, catalogue_size)
    theirs = events.filter(numbers["user"].is_in(busy.implode())).select(
        "user_id", "item_id", "timestamp", "event_type"
    )
    figures = _figures(theirs).filter(pl.col("acts") >= settings.at_least_events)
    return _judged(figures, settings, catalogue_size)


def _figures(events: pl.DataFrame) -> pl.DataFrame:
    """Figures of each user's acts; see `find_bots`."""
    acts = events.filter(~pl.col("event_type").is_in(_NOT_ACTS))
    minutes = acts.group_by("user_id", pl.col("timestamp") // _MINUTE).len("in_minute")
    busiest = minutes.group_by("user_id").agg(pl.col("in_minute").max().alias("busiest_minute"))
    bought = events.filter(pl.col("event_type") == "purchase").group_by("user_id").len("purchases")
    gaps = (
        acts.select("user_id", "timestamp")
        .sort("user_id", "timestamp")
        .with_columns(gap=pl.col("timestamp").diff())
        .filter(pl.col("user_id") == pl.col("user_id").shift())
        .group_by("user_id")
        .agg(mean=pl.col("gap").mean(), deviation=pl.col("gap").std(ddof=0))
        .select(
            "user_id",
            gap_variation=pl.when(pl.col("mean") > 0).then(pl.col("deviation") / pl.col("mean")),
        )
    )
    return (
        acts.group_by("user_id")
        .agg(
            pl.len().alias("acts"),
            pl.col("item_id").n_unique().alias("items"),
            (pl.col("timestamp") // _HOUR).n_unique().alias("hours"),
        )
        .join(busiest, on="user_id", how="left")
        .join(bought, on="user_id", how="left")
        .join(gaps, on="user_id", how="left")
        .with_columns(pl.col("purchases").fill_null(0), pl.col("gap_variation").round(4))
    )


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
            "user_id", "signal", "acts", "busiest_minute", "items", "hours", "purchases",
            "gap_variation",
        )
        .sort("acts", "user_id", descending=[True, False])
    )  # fmt: skip


def _at_least(value: pl.Expr, threshold: int | None) -> pl.Expr:
    return pl.lit(False) if threshold is None else value >= threshold
