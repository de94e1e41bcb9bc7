"""What came of single lists: exposures joined with the events that name them.

Experiments that mix arms within a user (interleaving, bandits) are judged so; users would have seen
all arms. A list counts once, testers' lists do not.
"""

from __future__ import annotations

import polars as pl

from raysys.errors import UserError
from raysys.experiments.definition import Experiment
from raysys.experiments.parts import Metric


def lists_of(experiment: Experiment, exposures: pl.LazyFrame) -> pl.LazyFrame:
    """The lists of an experiment, between its start and its end, without testers'.

    Args:
        experiment: whose.
        exposures: as `read_exposures` gives them.

    Raises:
        UserError: exposures that say neither the list nor the arm's probability.
    """
    names = exposures.collect_schema().names()
    if lacking := [name for name in ("request_id", "propensity") if name not in names]:
        raise UserError(
            f"exposures lack the column{'s' * (len(lacking) > 1)} {', '.join(lacking)}",
            mend=f"what came of single lists is looked at; there are: {', '.join(names)}",
        )
    mine = exposures.filter(
        pl.col("experiment") == experiment.name,
        pl.col("timestamp") >= experiment.start,
        ~pl.col("forced"),
    )
    if experiment.end is not None:
        mine = mine.filter(pl.col("timestamp") < experiment.end)
    return mine.unique("request_id", keep="first", maintain_order=True)


def rewarded(metric: Metric, answers: pl.LazyFrame) -> pl.LazyFrame:
    """Events that count for a metric, by the list and the item that they name.

    Args:
        metric: whose events.
        answers: columns of `event_sources.ANSWERING`.

    Returns:
        `request_id`, `item_id`, `times` (float64): 1 where the metric asks whether (`any`).
    """
    named = answers.filter(
        pl.col("event_type").is_in(sorted(metric.events)),
        pl.col("request_id").is_not_null(),
        pl.col("item_id").is_not_null(),
    )
    counted = named.group_by("request_id", "item_id").agg(times=pl.len().cast(pl.Float64))
    return counted.with_columns(times=pl.lit(1.0)) if metric.value == "any" else counted


def with_rewards(
    experiment: Experiment, metric: Metric, exposures: pl.LazyFrame, answers: pl.LazyFrame
) -> pl.LazyFrame:
    """The lists with `reward`: 1 if one got any event of the metric, else 0."""
    hit = rewarded(metric, answers).select("request_id").unique().with_columns(reward=pl.lit(1))
    lists = lists_of(experiment, exposures)
    return lists.join(hit, on="request_id", how="left").with_columns(pl.col("reward").fill_null(0))
