"""Rates of slots, such as clicks of what was shown, with errors that know people come back.

A person's slots resemble each other, so the unit is the person: the error of a rate is that of a
ratio between people (linearised, as the delta method gives it), and an interval is Wilson's for as
many independent slots as that error is worth (Kish's design effect; Korn and Graubard 1998).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import stats

from raysys.monitoring.reference import Outcomes

Float64 = npt.NDArray[np.float64]

OUTCOMES: Final = ("click", "favorite", "cart", "purchase")
"""Events whose rates are watched."""

SEEN: Final = "impression"

WITHIN_MINUTES: Final = 30
"""Rates that are compared count what came so soon after the list: later events would favour
whichever period lies further back."""


@dataclass(frozen=True)
class Rate:
    """How often something came of a slot.

    Attributes:
        done, slots: how often, of how many.
        error: standard error of done ÷ slots; 0 where one person tells too little.
        low, high: 95% interval.
    """

    done: int
    slots: int
    error: float
    low: float
    high: float

    @property
    def value(self) -> float:
        """done ÷ slots; 0 of none."""
        return self.done / self.slots if self.slots else 0.0


def rate_of(done: Float64, slots: Float64, confidence: float = 0.95) -> Rate:
    """The rate of people's slots.

    Args:
        done, slots: float64[people], sums of each.
        confidence: of the interval.
    """
    n, hits = float(slots.sum()), float(done.sum())
    if not n:
        return Rate(0, 0, 0.0, 0.0, 1.0)
    p, people = hits / n, int((slots > 0).sum())
    error = 0.0
    if people > 1:
        deviations = done - p * slots
        error = float(np.sqrt((deviations**2).sum() * people / (people - 1))) / n
    plain = p * (1 - p) / n
    effect = max(1.0, error**2 / plain) if plain else 1.0
    effective = n / effect
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    middle = (p + z * z / (2 * effective)) / (1 + z * z / effective)
    half = z * np.sqrt(p * (1 - p) / effective + (z / (2 * effective)) ** 2)
    half /= 1 + z * z / effective
    return Rate(
        int(hits), int(n), max(error, plain**0.5),
        min(p, max(0.0, float(middle - half))), max(p, min(1.0, float(middle + half))),
    )  # fmt: skip


def rates(
    slots: pl.DataFrame, by: Sequence[str], outcome: str, of: str
) -> dict[tuple[Any, ...], Rate]:
    """The rate of each group, by its values of `by`.

    Args:
        slots: a row a slot: `who`, booleans such as `click`.
        by: what makes groups; none: one of all, `()`.
        outcome: a boolean column.
        of: a boolean column, the slots that count.
    """
    sums = (
        slots.filter(of)
        .group_by(*by, "who")
        .agg(done=pl.col(outcome).sum().cast(pl.Float64), slots=pl.len().cast(pl.Float64))
        .sort(*by, "who")  # floats are summed in one order
    )
    groups = sums.partition_by(*by, as_dict=True, maintain_order=True) if by else {(): sums}
    return {
        key: rate_of(group["done"].to_numpy(), group["slots"].to_numpy())
        for key, group in groups.items()
    }


def outcomes_of(events: pl.LazyFrame, surface: str) -> dict[str, Outcomes]:
    """What became of the lists that a log tells of, by surface; empty: it tells of none.

    A list is what has a `request_id` and an impression; what comes of it counts for
    `WITHIN_MINUTES`. Logs name no surface: one that answers a
    query counts as `search`, any other as the given one.

    Args:
        events: in the columns of `schema.LOGGED_EVENTS`, of the time that the training may know.
        surface: of the bundle.
    """
    types = pl.col("event_type").cast(pl.String)
    told = events.filter(pl.col("request_id").is_not_null(), pl.col("item_id").is_not_null())
    shown = (
        told.filter(types == SEEN)
        .group_by("request_id")
        .agg(until=pl.col("timestamp").min().dt.offset_by(f"{WITHIN_MINUTES}m"))
    )
    slots = (
        told.join(shown, on="request_id")
        .filter(pl.col("timestamp") <= pl.col("until"))
        .group_by("request_id", "item_id")
        .agg(
            who=pl.col("user_id").cast(pl.String).first(),
            asked=pl.col("query").is_not_null().any(),
            seen=(types == SEEN).any(),
            **{name: (types == name).any() for name in OUTCOMES},
        )
        .filter("seen")
        .with_columns(surface=pl.when("asked").then(pl.lit("search")).otherwise(pl.lit(surface)))
        .collect(engine="streaming")
    )
    found = {}
    for (name,), part in slots.partition_by("surface", as_dict=True).items():
        each = {outcome: rates(part, (), outcome, "seen")[()] for outcome in OUTCOMES}
        found[str(name)] = Outcomes(
            lists=part["request_id"].n_unique(),
            seen=len(part),
            done={outcome: rate.done for outcome, rate in each.items()},
            errors={outcome: rate.error for outcome, rate in each.items()},
        )
    return dict(sorted(found.items()))
