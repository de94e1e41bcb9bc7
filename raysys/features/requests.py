"""Requests out of history: moments at which a list would have helped, and what came of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field

from raysys.config import Settings
from raysys.errors import UserError
from raysys.features.labels import LabelSettings
from raysys.features.numbered import LogSlice, NumberedLog

DAY_MS = 86_400_000
_COLUMNS = ("order", "time", "user", "store", "session", "item")


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
        frame: request, request_id, order, user, time (UTC ms), store, week and session (-1 where
            unknown), fold, split, n_relevant; in time order.
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


def build_requests(log: NumberedLog, settings: RequestSettings) -> Requests:
    """Orders (or sessions) with a labelled event as requests, each at its first moment.

    The log is read in stretches; what they say of an order that lies in two is put together here.

    Raises:
        UserError: a fold without any request.
    """
    bounds = fold_bounds(settings, log.last + 1)
    gains = settings.labels.by_kind
    kept = _draw(_orders(log, gains), bounds, settings)
    names = pl.Series("request_id", log.order_names(kept["order"].to_numpy()), dtype=pl.String)
    requests = kept.with_columns(names).sort("time", "request_id", "user").with_row_index("request")
    requests = requests.with_columns(pl.col("request").cast(pl.Int32))
    wanted = requests.select("order", "request")
    found = [
        wanted.clear()
        .select("request")
        .with_columns(item=pl.lit(0, pl.Int32), label=pl.lit(0, pl.Float32))
    ]
    for each in log.between(bounds[0], log.last + 1):
        rows = _rows(each, gains).filter((pl.col("label") > 0) & (pl.col("item") >= 0))
        rows = rows.join(wanted, on="order").group_by("request", "item").agg(pl.col("label").max())
        found.append(rows.select("request", "item", "label"))
    relevant = pl.concat(found).group_by("request", "item").agg(pl.col("label").max())
    relevant = relevant.sort("request", "item")
    sizes = relevant.group_by("request").agg(n_relevant=pl.len().cast(pl.Int32))
    requests = requests.join(sizes, on="request", how="left", maintain_order="left")
    return Requests(requests, relevant, bounds)


def _orders(log: NumberedLog, gains: npt.NDArray[np.float32]) -> pl.DataFrame:
    """First moment, user, store, week and session of every order with a labelled item."""
    partial = []
    for each in log.slices():
        rows = _rows(each, gains).filter(pl.col("item") >= 0)
        partial.append(_begin(rows.with_columns(labelled=pl.col("label") > 0)))
    return _begin(pl.concat(partial)).filter("labelled").drop("labelled")


def _begin(rows: pl.DataFrame) -> pl.DataFrame:
    """Each order as it begins; rows in time order."""
    return rows.group_by("order", maintain_order=True).agg(
        pl.col("time", "user", "store", "week", "session").first(), pl.col("labelled").any()
    )


def _rows(each: LogSlice, gains: npt.NDArray[np.float32]) -> pl.DataFrame:
    events = each.events
    columns = {name: getattr(events, name) for name in _COLUMNS}
    return pl.DataFrame({**columns, "week": each.week, "label": gains[events.kind]})


def _draw(starts: pl.DataFrame, bounds: tuple[int, ...], settings: RequestSettings) -> pl.DataFrame:
    """Requests of every fold with their split, no more than are wanted of each."""
    fold = np.searchsorted(bounds, starts["time"].to_numpy(), side="right") - 1
    starts = starts.with_columns(fold=pl.Series(fold, dtype=pl.Int32))
    last = len(bounds) - 2
    splits = ["train"] * (last - 1) + ["validation", "report"]
    kept = []
    for number, split in enumerate(splits):
        block = starts.filter(fold=number)
        if block.is_empty():
            spanned = starts.filter(pl.col("fold").is_between(0, last))
            raise UserError(
                f"no request in the {split} fold {number}",
                where="features: train_days, validation_days, report_days",
                mend=f"the log's requests span {_span(spanned)}; give fewer days or folds",
            )
        wanted = getattr(settings.requests_per_fold, split)
        if wanted is not None and wanted < len(block):
            # orders are numbered by a hash: a longer log keeps the requests it had
            block = block.bottom_k(wanted, by="order")
        kept.append(block.with_columns(split=pl.lit(split)))
    return pl.concat(kept)


def _span(starts: pl.DataFrame) -> str:
    if starts.is_empty():
        return "nothing"
    first, last = (pl.Series([t]).cast(pl.Datetime("ms"))[0] for t in _bounds(starts))
    return f"{first:%Y-%m-%d} to {last:%Y-%m-%d}"


def _bounds(starts: pl.DataFrame) -> tuple[object, object]:
    return starts["time"].min(), starts["time"].max()
