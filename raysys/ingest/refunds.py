"""Purchases that came back, and what is left of them."""

from __future__ import annotations

import polars as pl

from raysys.datasets.mapping import REFUND
from raysys.ingest.columns import DAY_MS

LEFT = "_left"
"""Column: what is left of a purchase's quantity."""


def is_refund() -> pl.Expr:
    """Whether an event takes a purchase back: by its type, or by a negative quantity."""
    what = pl.col("event_type")
    return (what == REFUND) | ((what == "purchase") & (pl.col("quantity") < 0).fill_null(False))


def what_is_left(events: pl.DataFrame) -> pl.DataFrame:
    """Purchases of which something came back: `_at` (row of `events`), `LEFT` (0: all of it).

    A refund that names an order takes back that order's item, another one the same user's item,
    of the same date; earlier purchases first. A refund without a quantity takes back all of
    them, a purchase
    without one is of one. What was bought after the refund is not touched.

    Args:
        events: of some dates, purchases and refunds among them.
    """
    rows = events.with_row_index("_at").with_columns((pl.col("timestamp") // DAY_MS).alias("_day"))
    back = rows.filter(is_refund()).with_columns(pl.col("quantity").abs())
    bought = rows.filter((pl.col("event_type") == "purchase") & ~is_refund()).join(
        back.select("item_id").unique(), on="item_id", how="semi"
    )
    bought = bought.with_columns(pl.col("quantity").fill_null(1).alias(LEFT))
    whole = bought.select("_at", was=LEFT)
    by_order = back.filter(pl.col("order_id").is_not_null())
    by_user = back.filter(pl.col("order_id").is_null())
    bought = _take_back(bought, by_order, ["order_id", "item_id", "_day"])
    bought = _take_back(bought, by_user, ["user_id", "item_id", "_day"])
    return (
        bought.select("_at", LEFT)
        .join(whole, on="_at")
        .filter(pl.col(LEFT) < pl.col("was"))
        .select("_at", LEFT)
        .sort("_at")
    )


def _take_back(bought: pl.DataFrame, back: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """Purchases with less `LEFT`, by what came back under the same keys."""
    returned = back.group_by(keys).agg(
        pl.col("quantity").fill_null(float("inf")).sum().alias("returned"),
        pl.col("timestamp").max().alias("until"),
    )
    matched = bought.join(returned, on=keys, how="left").sort("timestamp", "_at")
    open_ = (pl.col("timestamp") <= pl.col("until")).fill_null(False)
    amount = pl.when(open_).then(LEFT).otherwise(0)
    before = (amount.cum_sum() - amount).over(keys)
    taken = pl.when(open_).then((pl.col("returned") - before).clip(0, pl.col(LEFT))).otherwise(0)
    return matched.with_columns((pl.col(LEFT) - taken).alias(LEFT)).drop("returned", "until")
