"""`cross_encoder`: a transformer that reads query and item together; the best and the slowest.

For the few best of a list, or as the teacher of a bi-encoder that scores the many.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from raysys.cluster import device_here
from raysys.config import Settings
from raysys.errors import UserError
from raysys.learners.relevance_model import RelevanceModel, Relevant
from raysys.learners.text_protocol import (
    Task,
    TextContext,
    TextLearner,
    TextModel,
    run_folder,
)
from raysys.text.cross_encoder import (
    BY_LIST,
    CrossEncoding,
    Loss,
    PairScorer,
    fitted_line,
    to_grades,
    write_json,
)
from raysys.text.pairs import Float32, Pairs, Scale, trainable
from raysys.text.training import Fitted, TrainingSettings
from raysys.text.training import train as run_training

META = "cross_encoder.json"


class CrossEncoderSettings(Settings):
    """What is read, by which loss, how it is trained.

    Attributes:
        model: the packaged all-MiniLM-L6-v2, a folder, or the id of a Hugging Face model.
        loss: `cross_entropy` takes a grade's place on its scale as a probability; `ordinal` learns
            the distances between grades; `mse` the grade itself; `margin` and `listwise` the order
            within a query, where grades of different queries cannot be compared.
        max_tokens: read of a pair, marks included.
        list_size: for `margin` and `listwise`: pairs of one query in a step, drawn if it has more.
        temperature: for `listwise`: of the grades' softmax, with grades between 0 and 1.
        training: steps and rates; for `margin` and `listwise` a batch counts queries.
    """

    model: str = "all-MiniLM-L6-v2"
    loss: Loss = "cross_entropy"
    max_tokens: int = Field(64, ge=8, le=4096)
    list_size: int = Field(12, ge=2)
    temperature: float = Field(0.25, gt=0)
    training: TrainingSettings = TrainingSettings(
        epochs=2, batch_size=32, learning_rate=1e-4, head_learning_rate=1e-3, warm_up=0.1
    )


class CrossEncoderModel(RelevanceModel):
    """A fitted cross-encoder.

    Args:
        scorer: the transformer.
        settings: as fitted.
        scale: of the grades it learned.
        line: slope and offset from scores to grades, for losses that only rank.
        fitted: how training went; None after `load`.
    """

    reads_pairs: ClassVar[bool] = True

    def __init__(
        self,
        scorer: PairScorer,
        settings: CrossEncoderSettings,
        scale: Scale,
        line: tuple[float, float] | None,
        fitted: Fitted | None = None,
    ) -> None:
        self.scorer, self.settings = scorer, settings
        self.scale, self.line, self.fitted = scale, line, fitted
        scorer.module.to(device_here())

    @property
    def lowest(self) -> float:
        """See `RelevanceModel`."""
        return self.scale.low

    def judge(self, pairs: Pairs) -> tuple[Float32, Float32]:
        """See `RelevanceModel.judge`; a pair that occurs twice is read once."""
        key = pairs.query * len(pairs.items) + pairs.item
        _, first, back = np.unique(key, return_index=True, return_inverse=True)
        scores, thresholds = self.scorer.scores(pairs.take(first))
        grades = to_grades(scores, self.settings.loss, self.scale, thresholds, self.line)
        return scores[back], grades[back]

    def save(self, folder: Path) -> None:
        """See `TextModel.save`."""
        super().save(folder)
        self.scorer.save(folder)
        content = {
            "settings": self.settings.model_dump(mode="json"),
            "levels": self.scale.levels,
            "line": self.line,
        }
        write_json(folder / META, content)

    @classmethod
    def load(cls, folder: Path) -> CrossEncoderModel:
        """See `TextModel.load`."""
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        settings = CrossEncoderSettings(**meta["settings"])
        scorer = PairScorer(folder, settings.max_tokens)
        line = tuple(meta["line"]) if meta["line"] else None
        model = cls(scorer, settings, Scale(tuple(meta["levels"])), line)
        model.relevant = Relevant.load(folder)
        return model


class CrossEncoderLearner(TextLearner[CrossEncoderSettings]):
    """Fine-tunes a transformer on pairs."""

    name: ClassVar[str] = "cross_encoder"
    tasks: ClassVar[tuple[Task, ...]] = ("relevance",)
    family: ClassVar[str] = "transformer"
    settings_model = CrossEncoderSettings
    model_class: ClassVar[type[TextModel]] = CrossEncoderModel

    def length(self) -> tuple[str, float]:
        """See `TextLearner.length`."""
        return self.settings.training.length()

    def fit(self, train: pa.Table, validation: pa.Table, context: TextContext) -> CrossEncoderModel:
        """See `TextLearner.fit`.

        Raises:
            UserError: no pairs, one grade only, or for a loss by list no query with two pairs.
        """
        settings = self.settings
        pairs = trainable(train, where=self.name)
        scale = Scale.of(pairs.grade, where=self.name)
        by_list = settings.loss in BY_LIST
        if by_list:
            require_lists(pairs, settings.loss, self.name)
        held_out = judged(validation)
        objective = CrossEncoding(
            settings.model,
            pairs,
            held_out,
            scale,
            loss=settings.loss,
            max_tokens=settings.max_tokens,
            list_size=settings.list_size,
            temperature=settings.temperature,
            smoothing=settings.training.label_smoothing,
            where=f"{self.name}.model",
        )
        folder = run_folder(self.name, settings, context)
        fitted = run_training(
            *(objective, settings.training, folder),
            seed=context.seed,
            resources=context.resources,
            report=context.report,
        )
        scorer = PairScorer(fitted.folder, settings.max_tokens)
        shutil.rmtree(fitted.folder)
        model = CrossEncoderModel(scorer, settings, scale, None, fitted)  # on the GPU, if any
        if by_list:
            known = held_out if held_out is not None else pairs
            model.line = fitted_line(scorer.scores(known)[0], known.grade, known.weight)
        return model


def judged(validation: pa.Table) -> Pairs | None:
    """The validation pairs that have a grade and texts; None: there are none."""
    if not validation.num_rows:
        return None
    pairs = Pairs.of(validation)
    rows = np.flatnonzero(pairs.readable & np.isfinite(pairs.grade) & (pairs.weight > 0))
    return pairs.take(rows) if len(rows) else None


def has_lists(pairs: Pairs) -> bool:
    """Whether a query has pairs of different grades: something to order."""
    return any(np.ptp(pairs.grade[rows]) > 0 for rows in pairs.lists())


def require_lists(pairs: Pairs, loss: str, where: str) -> None:
    """Look for a query with pairs of different grades.

    Raises:
        UserError: there is none, so no order can be learned.
    """
    if not has_lists(pairs):
        raise UserError(
            f"no query has pairs of different grades, which {loss!r} compares",
            where=f"{where}.loss",
            mend="take cross_entropy, ordinal or mse",
        )
