"""What every model that labels texts shares: calibration, thresholds, empty texts, its folder."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raysys.learners.text_calibration import TextCalibration, ThresholdSettings
from raysys.learners.text_labels import Float32, LabelledTexts, LabelSet, LabelTask
from raysys.learners.text_protocol import CHOICE, PREDICTIONS, Task, TextModel

FILE = "labelling.json"
CHOICES = 5
"""How many of the likeliest labels a prediction lists."""


@dataclass(frozen=True)
class Scores:
    """What a model makes of n texts before calibration.

    Attributes:
        logits: [n, labels].
        rating: float32[n]; None: it learned none.
    """

    logits: npt.NDArray[Any]
    rating: Float32 | None = None


@dataclass(frozen=True)
class Labelling:
    """What turns scores into predictions.

    Attributes:
        task: classify or sentiment.
        labels: in the order of their codes.
        prior: float64[labels], their shares among training texts; what an empty text gets.
        calibration: see `TextCalibration`.
        ratings: least, mean and largest rating of the training texts; None where there were none.
    """

    task: LabelTask
    labels: LabelSet
    prior: npt.NDArray[np.float64]
    calibration: TextCalibration
    ratings: tuple[float, float, float] | None

    @classmethod
    def of(cls, task: LabelTask, labels: LabelSet, train: LabelledTexts) -> Labelling:
        """That of training texts, not calibrated yet."""
        labelled = train.codes >= 0
        weight = train.weight[labelled]
        seen = np.bincount(train.codes[labelled], weights=weight, minlength=len(labels))
        known = train.rating[np.isfinite(train.rating)].astype(np.float64)
        ratings = None
        if len(known):
            ratings = (float(known.min()), float(known.mean()), float(known.max()))
        return cls(task, labels, seen / seen.sum(), TextCalibration.none(labels), ratings)

    def calibrated(
        self, logits: npt.NDArray[Any], validation: LabelledTexts, settings: ThresholdSettings
    ) -> Labelling:
        """The same with temperature and thresholds of what a model says of validation texts."""
        found = TextCalibration.fit(logits, validation.codes, self.labels, settings)
        return Labelling(self.task, self.labels, self.prior, found, self.ratings)

    def save(self, folder: Path) -> None:
        """Write one JSON file."""
        content = {
            "task": self.task,
            "labels": self.labels.names,
            "prior": self.prior.tolist(),
            "calibration": self.calibration.to_dict(),
            "ratings": self.ratings,
        }
        text = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False)
        (folder / FILE).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Labelling:
        """Read what `save` wrote."""
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return cls(
            content["task"],
            LabelSet(tuple(content["labels"])),
            np.array(content["prior"], dtype=np.float64),
            TextCalibration.from_dict(content["calibration"]),
            None if content["ratings"] is None else tuple(content["ratings"]),
        )


class LabelModel(TextModel):
    """A fitted classifier of texts. A subclass says what it makes of texts that are not empty.

    Args:
        labelling: how its scores are read.
    """

    def __init__(self, labelling: Labelling) -> None:
        self.labelling = labelling

    @property
    def task(self) -> Task:  # type: ignore[override]
        """What it was fitted for: one class serves both tasks."""
        return self.labelling.task

    @property
    def labels(self) -> LabelSet:
        """What it can say."""
        return self.labelling.labels

    @abstractmethod
    def scores(self, texts: Sequence[str]) -> Scores:
        """Of n ≥ 1 texts, none of them empty."""

    def probabilities(
        self, texts: Sequence[str | None]
    ) -> tuple[npt.NDArray[np.float64], Float32 | None]:
        """Calibrated float64[n, labels], and ratings float32[n] within those of training.

        An empty text gets the prior and the mean rating.
        """
        labelling = self.labelling
        found = np.tile(labelling.prior, (len(texts), 1))
        filled = [at for at, text in enumerate(texts) if _is_filled(text)]
        rating: Float32 | None = None
        if labelling.ratings is not None:
            rating = np.full(len(texts), labelling.ratings[1], dtype=np.float32)
        if filled:
            scores = self.scores([texts[at] or "" for at in filled])
            found[filled] = labelling.calibration.probabilities(scores.logits)
            if labelling.ratings is not None and rating is not None and scores.rating is not None:
                low, _, high = labelling.ratings
                rating[filled] = np.clip(scores.rating, low, high)
        return found, rating

    def predict(self, table: pa.Table) -> pa.Table:
        """See `TextModel.predict`."""
        texts = table["text"].to_pylist()
        probabilities, rating = self.probabilities(texts)
        labels, values = self.labelling.calibration.given(probabilities, self.labels)
        usual = int(self.labelling.prior.argmax())
        for at, text in enumerate(texts):
            if not _is_filled(text):  # whatever weights and thresholds say of it
                labels[at], values[at] = self.labels.names[usual], self.labelling.prior[usual]
        shown = min(CHOICES, len(self.labels))
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :shown]
        names = pa.array(self.labels.names).take(pa.array(order.ravel()))
        shares = np.take_along_axis(probabilities, order, axis=1).ravel().astype(np.float32)
        choices = pa.StructArray.from_arrays([names, pa.array(shares)], fields=list(CHOICE))
        offsets = pa.array(np.arange(len(probabilities) + 1, dtype=np.int32) * shown)
        columns = {
            "label": pa.array(labels, pa.string()),
            "probability": pa.array(values.astype(np.float32)),
            "choices": pa.ListArray.from_arrays(offsets, choices, type=pa.list_(CHOICE)),
        }
        if self.task == "sentiment":
            columns["rating"] = (
                pa.nulls(len(probabilities), pa.float32()) if rating is None else pa.array(rating)
            )
        return pa.table(columns, schema=PREDICTIONS[self.task])

    def save(self, folder: Path) -> None:
        """See `TextModel.save`; a subclass writes its weights beside."""
        self.labelling.save(folder)


def _is_filled(text: str | None) -> bool:
    return bool(text and text.strip())
