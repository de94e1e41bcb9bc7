"""Requests out of history: moments at which a list would have helped, and what came of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from pydantic import Field

from raysys.config import Settings
from raysys.errors import UserError
from raysys.features.labels import LabelSettings
from raysys.features.log import Log

DAY_MS = 86_400_000


class RequestsPerFold(Settings):
    """How many requests to keep of each fold, drawn at random; null keeps all."""

    train: int | None = Field(None, ge=1)
    validation: int | None = Field(None, ge=1)
    report: int | None = Field(None, ge=1)


class RequestSettings(Settings):
    """Which moments become requests, and how time is cut into folds.

    The report period is the last `report_days` of the log, validation the days before it, and
    the train folds cut the `train_days` before those into blocks of equal length. Everything
    earlier only feeds the features.
    """

    labels: LabelSettings = LabelSettings()
    train_days: float = Field(112, gt=0)
    train_folds: int = Field(2, ge=1, le=20)
    validation_days: float = Field(28, gt=0)
    report_days: float = Field(28, gt=0)
    requests_per_fold: RequestsPerFold = RequestsPerFold()


@dataclass(frozen=True)
class Requests:
    """Requests and what was relevant in each.

    Attributes:
        frame: columns of `schema.REQUESTS` but `history`, `n_orders`; in time order.
        relevant: request, item, label: distinct items with their highest gain.
        folds: first moment (UTC ms) of every fold, then the end of the last.
    """

    frame: pl.DataFrame
    relevant: pl.DataFrame
    folds: tuple[int, ...]

    @property
    def validation(self) -> int:
        """Number of the validation fold."""
        return len(self.folds) - 3


def fold_bounds(settings: RequestSettings, end: int) -> tuple[int, ...]:
    """First moment of each fold and the end of the last, UTC ms, for a log that ends at `end`."""
    report = end - int(settings.report_days * DAY_MS)
    validation = report - int(settings.validation_days * DAY_MS)
    block = int(settings.train_days * DAY_MS / settings.train_folds)
    train = [validation - block * left for left in range(settings.train_folds, 0, -1)]
    return (*train, validation, report, end)


def build_requests(log: Log, settings: RequestSettings, seed: int) -> Requests:
    """Orders (or sessions) with a labelled event as requests, each at its first moment.

    Raises:
        UserError: a fold without any request.
    """
    bounds = fold_bounds(settings, int(log.events.time[-1]) + 1)
    frame = log.frame.with_columns(label=pl.Series(settings.labels.by_kind[log.events.kind]))
    frame = frame.filter(pl.col("item") >= 0)
    starts = frame.group_by("order").agg(
        pl.col("time").min(),
        pl.col("user", "store_id", "week").first(),
        request_id=pl.col("group").first(),
        n_relevant=pl.col("item").filter(pl.col("label") > 0).n_unique().cast(pl.Int32),
    )
    fold = pl.Series(np.searchsorted(bounds, starts["time"].to_numpy(), side="right") - 1)
    starts = starts.with_columns(fold=fold.cast(pl.Int32)).filter(
        (pl.col("n_relevant") > 0) & (pl.col("fold") >= 0) & (pl.col("fold") < len(bounds) - 1)
    )
    last = len(bounds) - 2
    splits = ["train"] * (last - 1) + ["validation", "report"]
    kept = []
    for number, split in enumerate(splits):
        block = starts.filter(fold=number).sort("time", "request_id")
        if block.is_empty():
            raise UserError(
                f"no request in the {split} fold {number}",
                where="features: train_days, validation_days, report_days",
                mend=f"the log's requests span {_span(starts)}; give fewer days or folds",
            )
        wanted = getattr(settings.requests_per_fold, split)
        if wanted is not None and wanted < len(block):
            # drawn by a hash of the id, so that a longer log keeps the requests it had
            chance = block["request_id"].hash(seed)
            block = block.with_columns(chance=chance).bottom_k(wanted, by="chance").drop("chance")
        kept.append(block.with_columns(split=pl.lit(split)))
    requests = pl.concat(kept).sort("time", "request_id").with_row_index("request")
    requests = requests.with_columns(pl.col("request").cast(pl.Int32))
    relevant = (
        frame.filter(pl.col("label") > 0)
        .join(requests.select("order", "request"), on="order")
        .group_by("request", "item")
        .agg(pl.col("label").max())
        .sort("request", "item")
    )
    return Requests(requests, relevant, bounds)


def _span(starts: pl.DataFrame) -> str:
    if starts.is_empty():
        return "nothing"
    first, last = (pl.Series([t]).cast(pl.Datetime("ms"))[0] for t in _bounds(starts))
    return f"{first:%Y-%m-%d} to {last:%Y-%m-%d}"


def _bounds(starts: pl.DataFrame) -> tuple[object, object]:
    return starts["time"].min(), starts["time"].max()
