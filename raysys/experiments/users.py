"""One row a user of an experiment: arm, metrics after the first exposure, covariates before it.

The table that analysis reads; a shop that has its own may bring it. Columns:

| column | |
|---|---|
| `user_id`, `arm` | text |
| `arrived` | UTC ms, the first exposure; may be missing |
| `METRIC` | float64, the sum over the user's events; of a ratio its numerator |
| `METRIC.per` | float64, the denominator of a ratio |
| `METRIC.before`, `METRIC.per_before` | the same, of the days before; may be missing |
| `segment.NAME` | text; may be missing |
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from raysys.errors import UserError
from raysys.experiments.definition import Experiment
from raysys.experiments.parts import Measure, Metric
from raysys.segments import read_once

_MANY_CROSSED = 0.005
_OF_EXPOSURES = ("experiment", "arm", "user_id", "timestamp")
_WHEN = pl.Datetime("ms", "UTC")


@dataclass(frozen=True)
class UserTable:
    """Users of an experiment.

    Attributes:
        rows: one a user, see above.
        crossed: users that were seen in more than one arm, and are left out.
        forced: testers, left out.
        unfinished: users whose window is not over, left out.
        as_of: the newest moment in the data; None where nothing says it.
        notes: what a reader should know.
    """

    rows: pl.DataFrame
    crossed: int = 0
    forced: int = 0
    unfinished: int = 0
    as_of: dt.datetime | None = None
    notes: list[str] = field(default_factory=list)


def scan(path: Path, columns: Sequence[str], what: str) -> pl.LazyFrame:
    """A Parquet file or folder as a lazy table.

    Raises:
        UserError: nothing there, or columns are missing.
    """
    if not path.exists():
        raise UserError(f"no such file or folder of {what}", where=str(path))
    try:
        files = _files(path) if path.is_dir() else [path]
        if not files:
            raise UserError(f"no Parquet file of {what} in this folder", where=str(path))
        frame = pl.scan_parquet(files, hive_partitioning=False)
        names = frame.collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as error:
        told = str(error).partition("\n")[0]
        raise UserError(f"not readable as Parquet: {told}", where=str(path)) from None
    lacking = [name for name in columns if name not in names]
    if lacking:
        raise UserError(
            f"{what} lack the column{'s' * (len(lacking) > 1)} {', '.join(lacking)}",
            where=str(path),
            mend=f"there are: {', '.join(names)}",
        )
    return frame


def _files(folder: Path) -> list[Path]:
    """Its Parquet files, each row in one of them; those without a byte were never finished."""
    found = sorted(folder.glob("**/*.parquet"))
    return [path for path in read_once(found) if path.is_file() and path.stat().st_size]


def read_exposures(path: Path) -> pl.LazyFrame:
    """Exposures as `schema.EXPOSURES` has them; what only some experiments have may be missing.

    Raises:
        UserError: nothing there, columns are missing, or attributes are no map.
    """
    frame = scan(path, _OF_EXPOSURES, "exposures")
    if path.is_dir():  # replicas of two versions may have written it
        files = sorted(_files(path), key=lambda each: -len(pq.read_schema(each).names))
        frame = pl.scan_parquet(
            files, hive_partitioning=False, missing_columns="insert", extra_columns="ignore"
        )
    names = frame.collect_schema().names()
    if "forced" not in names:
        frame = frame.with_columns(forced=pl.lit(False))
    for name, kind in (("item_ids", pl.List(pl.String)), ("teams", pl.List(pl.Int8))):
        if name not in names:
            frame = frame.with_columns(pl.lit(None, kind).alias(name))
    if "attributes" not in names:
        frame = frame.with_columns(attributes=pl.lit(None, pl.Map(pl.String, pl.String)))
    elif not isinstance(frame.collect_schema()["attributes"], pl.Map):
        raise UserError(
            "attributes are no map of texts to texts", where=str(path), mend="see schema.EXPOSURES"
        )
    return frame.with_columns(pl.col("timestamp").cast(_WHEN), pl.col("user_id").cast(pl.String))


def read_events(path: Path) -> pl.LazyFrame:
    """Events as `schema.EVENTS` has them; price, quantity and event_id may be missing.

    Without impressions that were inferred from clicks: nobody recorded them, and where there are
    more clicks there would be more of them.
    """
    frame = scan(path, ("event_type", "user_id", "timestamp"), "events")
    names = frame.collect_schema().names()
    if "inferred" in names:
        frame = frame.filter(~pl.col("inferred").fill_null(value=False))
    for name in ("price", "quantity"):
        if name not in names:
            frame = frame.with_columns(pl.lit(None, pl.Float64).alias(name))
    known = ["event_id"] if "event_id" in names else []
    return frame.select(
        *(pl.col(name).cast(pl.String) for name in known),
        pl.col("event_type").cast(pl.String),
        pl.col("user_id").cast(pl.String),
        pl.col("timestamp").cast(_WHEN),
        pl.col("price").cast(pl.Float64),
        pl.col("quantity").cast(pl.Float64),
    )


def user_table(
    experiment: Experiment,
    metrics: Sequence[Metric],
    exposures: pl.LazyFrame,
    events: pl.LazyFrame,
) -> UserTable:
    """Join exposures and events into one row a user.

    A user counts from the first exposure on, in the arm of that exposure, whatever was served
    afterwards (intention to treat). Users seen in two arms are left out and counted: with a
    stable id there are none.

    Raises:
        UserError: no exposure of the experiment, or an arm that it does not have.
    """
    mine = exposures.filter(
        pl.col("experiment") == experiment.name, pl.col("timestamp") >= experiment.start
    )
    if experiment.end is not None:
        mine = mine.filter(pl.col("timestamp") < experiment.end)
    users = (
        mine.group_by("user_id")
        .agg(
            pl.col("arm").sort_by("timestamp").first(),
            arms=pl.col("arm").filter(~pl.col("forced")).n_unique(),
            forced=pl.col("forced").any(),
            arrived=pl.col("timestamp").min(),
            attributes=pl.col("attributes").sort_by("timestamp").first(),
        )
        .sort("user_id")
        .collect()
    )
    if not len(users):
        raise UserError(
            f"no exposure of {experiment.name!r} between its start and its end",
            mend="was it served yet? `raysys experiment check` says whom it is for",
        )
    _check_arms(experiment, users["arm"], "exposures")
    kept = users.filter(~pl.col("forced"), pl.col("arms") == 1)
    crossed = users.filter(~pl.col("forced"), pl.col("arms") > 1).height
    forced = users.filter("forced").height
    as_of = _newest(mine, events)
    unfinished = 0
    end = experiment.end
    if experiment.window_days is not None:
        window = dt.timedelta(days=experiment.window_days)
        over = pl.col("arrived") + window <= (as_of if end is None else min(as_of, end))
        unfinished = kept.filter(~over).height
        kept = kept.filter(over)
    rows = _with_metrics(experiment, metrics, kept, events, end)
    for name in experiment.segments:
        rows = rows.with_columns(_attribute(name).alias(f"segment.{name}"))
    notes = []
    if crossed > _MANY_CROSSED * len(users):
        notes.append(
            f"{crossed / len(users):.1%} of the users were seen in more than one arm: the id that "
            "was drawn does not stay, or their share was changed while it ran."
        )
    return UserTable(rows.drop("attributes"), crossed, forced, unfinished, as_of, notes)


def read_user_table(path: Path, experiment: Experiment, metrics: Sequence[Metric]) -> UserTable:
    """A table that the shop made itself, in the columns above.

    Raises:
        UserError: columns are missing, a user comes twice, or a metric has no value.
    """
    needed = ["user_id", "arm"]
    for metric in metrics:
        needed += [metric.name, f"{metric.name}.per"] if metric.per else [metric.name]
    rows = scan(path, needed, "users").collect()
    twice = len(rows) - rows["user_id"].n_unique()
    if twice:
        raise UserError(
            f"{twice:,} rows are of a user that is there already",
            where=str(path),
            mend="one row a user: add up each user's events",
        )
    _check_arms(experiment, rows["arm"], str(path))
    numbers = [
        name
        for name in rows.columns
        if name.partition(".")[0] in {metric.name for metric in metrics}
    ]
    try:
        rows = rows.with_columns(pl.col(numbers).cast(pl.Float64))
    except pl.exceptions.PolarsError:
        raise UserError(f"not all numbers: {', '.join(numbers)}", where=str(path)) from None
    for name in numbers:
        lacking = int((~rows[name].is_finite().fill_null(False)).sum())
        if lacking:
            raise UserError(
                f"{lacking:,} users have no number in {name}",
                where=str(path),
                mend="0 where a user did nothing; leave users out that were never exposed",
            )
    if "arrived" in rows.columns:
        rows = rows.with_columns(arrived=_arrivals(rows["arrived"], path))
    as_of = rows["arrived"].max() if "arrived" in rows.columns and len(rows) else None
    return UserTable(rows, as_of=as_of if isinstance(as_of, dt.datetime) else None)


def _arrivals(column: pl.Series, path: Path) -> pl.Series:
    """Moments in UTC: those without a zone are taken for it.

    Raises:
        UserError: not moments.
    """
    if column.dtype == pl.Date:
        column = column.cast(pl.Datetime("ms"))
    if not isinstance(column.dtype, pl.Datetime):
        raise UserError(
            f"arrived holds {column.dtype}, not moments",
            where=str(path),
            mend="write it as timestamps (UTC), or leave the column out",
        )
    if column.dtype.time_zone is None:
        column = column.dt.replace_time_zone("UTC")
    return column.cast(_WHEN)


def _check_arms(experiment: Experiment, arms: pl.Series, where: str) -> None:
    strange = sorted(set(arms.unique().to_list()) - set(experiment.arm), key=str)
    if strange:
        raise UserError(
            f"arms that {experiment.name!r} does not have: {', '.join(map(str, strange))}",
            where=where,
            mend=f"it has: {', '.join(experiment.arm)}",
        )


def _newest(exposures: pl.LazyFrame, events: pl.LazyFrame) -> dt.datetime:
    found = pl.concat([exposures.select("timestamp"), events.select("timestamp")]).select(
        pl.col("timestamp").max()
    )
    newest: dt.datetime = found.collect().item()
    return newest


def _with_metrics(
    experiment: Experiment,
    metrics: Sequence[Metric],
    users: pl.DataFrame,
    events: pl.LazyFrame,
    end: dt.datetime | None,
) -> pl.DataFrame:
    """Sums over each user's events from the first exposure on, and before it."""
    when, arrived = pl.col("timestamp"), pl.col("arrived")
    after = when >= arrived
    if experiment.window_days is not None:
        after &= when < arrived + dt.timedelta(days=experiment.window_days)
    if end is not None:
        after &= when < end
    back = dt.timedelta(days=experiment.covariate_days)
    before = (when < arrived) & (when >= arrived - back)
    wanted: dict[str, pl.Expr] = {}
    for metric in metrics:
        parts: list[tuple[str, Measure]] = [("", metric)]
        if metric.per is not None:
            parts.append(("per", metric.per))
        for part, measure in parts:
            name = f"{metric.name}.{part}" if part else metric.name
            wanted[name] = _sum(measure, after)
            if experiment.covariate_days:
                tail = "per_before" if part else "before"
                wanted[f"{metric.name}.{tail}"] = _sum(measure, before)
    types = {name for m in metrics for each in (m, m.per) if each for name in each.events}
    sums = (
        events.filter(pl.col("event_type").is_in(sorted(types)))
        .join(users.lazy().select("user_id", "arrived"), on="user_id")
        .filter(after | before)
        .group_by("user_id")
        .agg(**wanted)
        .collect()
    )
    return users.select("user_id", "arm", "arrived", "attributes").join(
        sums, on="user_id", how="left", maintain_order="left"
    ).with_columns(pl.col(list(wanted)).fill_null(0.0))  # fmt: skip


def _sum(measure: Measure, when: pl.Expr) -> pl.Expr:
    counts = when & pl.col("event_type").is_in(sorted(measure.events))
    if measure.value == "any":
        return counts.any().cast(pl.Float64)
    if measure.value == "count":
        return counts.sum().cast(pl.Float64)
    quantity = pl.col("quantity").fill_null(1.0)
    value = quantity if measure.value == "quantity" else quantity * pl.col("price").fill_null(0.0)
    return value.filter(counts).sum().cast(pl.Float64)


def _attribute(name: str) -> pl.Expr:
    """An attribute of the first exposure, `unknown` where it is missing."""
    return pl.col("attributes").map.get(name).fill_null("unknown")
