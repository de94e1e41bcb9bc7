"""Baselines that read one or two features: what everybody should beat, and what never fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysys.catalogue import Catalogue
from raysys.config import Settings
from raysys.features.batch import Batch
from raysys.features.examples import Examples
from raysys.learners.protocol import Context, Float32, Learner, Model
from raysys.learners.validation import require_columns, require_positives

FILE = "baseline.json"
TIE = 1e-3


class ColumnModel(Model):
    """Scores by a column, ties by a second one.

    Args:
        column: the feature that is the score; NaN (knows nothing) comes lowest.
        floor: what NaN scores: one less than the least value seen when fitting.
        tie_break: a feature of counts that decides between equals, or None.
    """

    def __init__(self, column: str, floor: float, tie_break: str | None = None) -> None:
        self.column = column
        self.floor = floor
        self.tie_break = tie_break
        self.requires = (column,) if tie_break is None else (column, tie_break)

    def score(self, batch: Batch) -> Float32:
        """See `Model.score`; the tie-break moves a score by less than a thousandth."""
        values = batch.column(self.column)
        known = np.clip(values, self.floor, np.finfo(np.float32).max)
        scores = np.where(np.isnan(values), np.float32(self.floor), known)
        if self.tie_break is not None:
            counts = np.nan_to_num(batch.column(self.tie_break), nan=0.0, posinf=1e9).clip(0)
            scores = scores + TIE * counts / (1 + counts)  # any count fits into [0, TIE)
        return scores.astype(np.float32)

    def contributions(self, batch: Batch) -> tuple[tuple[str, ...], npt.NDArray[np.float64]]:
        """See `Explainable`; the tie-break is counted to its column."""
        return (self.column,), self.score(batch)[:, None].astype(np.float64)

    def save(self, folder: Path) -> None:
        """See `Model.save`."""
        content = {"column": self.column, "floor": self.floor, "tie_break": self.tie_break}
        (folder / FILE).write_text(json.dumps(content) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, catalogue: Catalogue) -> ColumnModel:
        """See `Model.load`."""
        return cls(**json.loads((folder / FILE).read_text(encoding="utf-8")))


class PopularSettings(Settings):
    """Which popularity counts.

    Attributes:
        column: the feature that is the score.
    """

    column: str = "item_purchases_28d"


class RepeatPurchaseSettings(Settings):
    """What says that this user buys this item, and what decides among items never bought.

    Attributes:
        column: the feature that is the score.
        tie_break: the feature that decides between equals.
    """

    column: str = "user_item_purchases_112d"
    tie_break: str = "item_purchases_28d"


class CoOccurrenceSettings(Settings):
    """What says that the item goes with those the user bought last.

    Attributes:
        column: the feature that is the score.
    """

    column: str = "covisitation"


B = TypeVar("B", PopularSettings, RepeatPurchaseSettings, CoOccurrenceSettings)


class _ColumnLearner(Learner[B], Generic[B]):
    """Nothing to fit but the score of candidates of which nothing is known."""

    family: ClassVar[str] = "baseline"
    model_class: ClassVar[type[Model]] = ColumnModel

    def fit(self, examples: Examples, context: Context) -> ColumnModel:
        """See `Learner.fit`; reads single columns, takes a moment."""
        column: str = self.settings.column
        tie_break: str | None = getattr(self.settings, "tie_break", None)
        wanted = [name for name in (column, tie_break) if name is not None]
        require_columns(wanted, examples.names, where=f"{self.name}.column")
        require_positives(examples)
        least = 0.0
        for path in examples.files("examples"):
            values = pq.read_table(path, columns=[column], partitioning=None)[column]
            known = values.filter(pc.is_finite(values))
            if len(known):
                least = min(least, pc.min(known).as_py())
        return ColumnModel(column, float(np.float32(least - 1.0)), tie_break)


class Popular(_ColumnLearner[PopularSettings]):
    """What everybody bought lately."""

    name = "popular"
    settings_model = PopularSettings


class RepeatPurchase(_ColumnLearner[RepeatPurchaseSettings]):
    """What this user bought before, most and most lately first, then what is popular."""

    name = "repeat_purchase"
    settings_model = RepeatPurchaseSettings


class CoOccurrence(_ColumnLearner[CoOccurrenceSettings]):
    """What others bought together with what this user bought last."""

    name = "co_occurrence"
    settings_model = CoOccurrenceSettings
