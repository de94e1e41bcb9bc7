"""An ingested log as a source of judgements: `kind: behaviour` in the YAML of a text task.

Alone, its pairs are divided by time. Beside files with judgements it only teaches: its grades are
brought to the judges' scale, and queries by which learners are judged leave it.
"""

from __future__ import annotations

import datetime as dt
import math
from pathlib import Path
from typing import Final, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from raysys.catalogue import Catalogue
from raysys.datasets.labelled import DRAFT
from raysys.datasets.splits import SplitSettings
from raysys.errors import UserError
from raysys.text.behaviour import (
    BehaviourSettings,
    highest_grade,
    pairs_by_time,
    pairs_from_behaviour,
    validation_begins,
)
from raysys.text.pretraining.corpus import log_end, scan_events
from raysys.text.pretraining.log_read import models_that_read

JOIN: Final = ", "
"""Between the columns of an item's text."""

_COLUMNS: Final = (
    *("event_type", "item_id", "timestamp", "request_id"),
    *("position", "query", "inferred"),
)
_LABEL: Final = "behaviour"


class BehaviourSource(BehaviourSettings):
    """Queries of the workspace's log, and what was clicked, put into a cart or bought for them.

    Attributes:
        held_back_days: the last days of the log are not read. A model that `raysys train` shall
            take needs the days on which learners of the ranking are validated and judged.
        weight: beside files with judgements: of a pair that the log knows much of, where a
            judgement weighs 1.
    """

    kind: Literal["behaviour"]
    held_back_days: float = Field(0.0, ge=0)
    weight: float = Field(0.3, gt=0, le=1)


def pairs_of_log(
    source: BehaviourSource, ingest: Path, split: SplitSettings | None
) -> pl.DataFrame:
    """What the log says, in the columns of `DRAFT`.

    Args:
        source: how it is read.
        ingest: what `raysys ingest` wrote.
        split: by which it is divided in time; None: all of it is train.

    Raises:
        UserError: a log without queries, or too short for a split; see `pairs_from_behaviour`.
    """
    events = _events(source, ingest)
    catalogue = Catalogue(pq.read_table(ingest / "items.parquet"))
    if split is None:
        pairs = pairs_from_behaviour(events, catalogue, source)
    else:
        pairs = pairs_by_time(events, catalogue, source, split)
    frame = pl.DataFrame(pairs).with_row_index("row", offset=1)
    frame = frame.with_columns(
        pl.format("behaviour-{}", "row").alias("text_id"),
        pl.col("row").cast(pl.Int64),
        source=pl.lit(_LABEL),
    )
    lacking = {name: kind for name, kind in DRAFT.items() if name not in frame.columns}
    return frame.with_columns(
        pl.lit(None, dtype=kind).alias(name) for name, kind in lacking.items()
    ).select(list(DRAFT))


def notes_on_models(
    source: BehaviourSource, ingest: Path, split: SplitSettings, learners: object
) -> tuple[str, ...]:
    """What to say of learners that begin with a model which has read what they are judged by.

    Args:
        source, ingest, split: see `pairs_of_log`.
        learners: their settings, as data.
    """
    models = list(models_that_read(learners, "learners"))
    if not models:
        return ()
    catalogue = Catalogue(pq.read_table(ingest / "items.parquet"))
    begins = validation_begins(_events(source, ingest), catalogue, source, split)
    last = log_end(ingest, 0)
    assert last is not None  # there are events
    days = math.ceil((last - begins) / dt.timedelta(days=1))
    return tuple(
        f"{where}: {model} was pre-trained on the log until {until:%Y-%m-%d %H:%M}, and validation "
        f"begins at {begins:%Y-%m-%d %H:%M}: figures of this learner are too good; pre-train it "
        f"with `held_back_days: {days}`"
        for where, model, until in models
        if until > begins
    )


def as_judged(weak: pl.DataFrame, judged: pl.DataFrame, source: BehaviourSource) -> pl.DataFrame:
    """Pairs of the log on the scale of judgements, so that both can be learned from together.

    No gain is the lowest grade of the judgements, the highest of the log the highest of theirs;
    between them each takes the nearest that was given: a clicked item is good, not exactly 2.37.

    Args:
        weak: `DRAFT`, of `pairs_of_log`.
        judged: `DRAFT`, those to train on.
        source: says what the log's pairs weigh.
    """
    levels = np.unique(judged["grade"].to_numpy())
    grade = weak["grade"].to_numpy()
    share = np.minimum(grade / highest_grade(grade, source.top), 1.0)
    place = levels[0] + share * (levels[-1] - levels[0])
    nearest = levels[np.searchsorted((levels[:-1] + levels[1:]) / 2, place)]
    return weak.with_columns(
        grade=pl.Series(nearest, dtype=pl.Float32),
        weight=(pl.col("weight") * source.weight).cast(pl.Float32),
    )


def _events(source: BehaviourSource, ingest: Path) -> pa.Table:
    """The events that may count, of those columns that are read.

    Raises:
        UserError: no event has a query.
    """
    until = log_end(ingest, source.held_back_days) if source.held_back_days else None
    log = scan_events(ingest, until)
    asked = pl.col("query").is_not_null()
    if not log.filter(asked).head(1).collect().height:
        raise UserError(
            "the log has no queries, so behaviour says nothing of what answers one",
            where="sources: behaviour",
            mend="name the column of the query in the YAML of `raysys ingest`, or take another "
            "source; a shorter `held_back_days` may help a short log",
        )
    kinds = ["impression", *source.gains]
    counts = pl.col("item_id").is_not_null() & (asked | pl.col("request_id").is_not_null())
    found = log.filter(pl.col("event_type").is_in(kinds) & counts)
    return found.select(_COLUMNS).collect().to_arrow()
