"""`bi_encoder`: one transformer for queries and items apart, so that items are encoded ahead."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from raysys.cluster import device_here
from raysys.config import Settings
from raysys.errors import UserError
from raysys.learners.cross_encoder import META as TEACHER_META
from raysys.learners.cross_encoder import (
    CrossEncoderLearner,
    CrossEncoderModel,
    CrossEncoderSettings,
    judged,
    require_lists,
)
from raysys.learners.relevance_model import RelevanceModel, Relevant
from raysys.learners.text_protocol import (
    Task,
    TextContext,
    TextLearner,
    TextModel,
    run_folder,
)
from raysys.text.bi_encoder import BiEncoding, Lesson, TextVectors
from raysys.text.cross_encoder import BY_LIST, Loss, fitted_line, to_grades, write_json
from raysys.text.pairs import Float32, Pairs, Scale, clean, trainable
from raysys.text.training import Fitted, TrainingSettings
from raysys.text.training import train as run_training

META = "bi_encoder.json"


class BiEncoderSettings(Settings):
    """What is read, what is taught, how it is trained.

    Attributes:
        model: the packaged all-MiniLM-L6-v2, a folder, or the id of a Hugging Face model.
        loss: of the judged pairs, see `CrossEncoderSettings.loss`.
        max_tokens: read of a text, marks included.
        list_size: pairs of one query in a step, drawn if it has more.
        temperature: for `listwise`: of the grades' softmax, with grades between 0 and 1.
        contrast: weight of the softmax of good items against those of other queries; 0: none.
        contrast_temperature: of that softmax.
        positive_from: place of a grade between the lowest (0) and the highest (1) from which an
            item is good there.
        popularity_correction: 1 takes off the logits how often an item is in a batch, 0 does not.
        teacher: a cross-encoder that is fitted first on the same pairs, or the folder of a saved
            one; its scores of the training pairs are computed once. null: none.
        distillation: weight of the differences to the teacher's (margin-MSE).
        training: steps and rates; a batch counts queries.
    """

    model: str = "all-MiniLM-L6-v2"
    loss: Loss = "cross_entropy"
    max_tokens: int = Field(48, ge=4, le=4096)
    list_size: int = Field(6, ge=2)
    temperature: float = Field(0.25, gt=0)
    contrast: float = Field(0.2, ge=0)
    contrast_temperature: float = Field(0.05, gt=0)
    positive_from: float = Field(0.8, gt=0, le=1)
    popularity_correction: float = Field(1.0, ge=0, le=1)
    teacher: CrossEncoderSettings | str | None = None
    distillation: float = Field(1.0, gt=0)
    training: TrainingSettings = TrainingSettings(
        epochs=2, batch_size=8, learning_rate=1e-4, head_learning_rate=1e-2, warm_up=0.1
    )


@dataclass(frozen=True)
class PlacedTexts:
    """Texts of a catalogue beside what encodes a query: a `learners.protocol.TextEncoder`.

    Attributes:
        item_vectors: float32[n, d], unit rows.
        vectors: the encoder.
    """

    item_vectors: Float32
    vectors: TextVectors

    def encode(self, texts: Sequence[str]) -> Float32:
        """See `TextEncoder`."""
        return self.vectors.encode([clean(text) for text in texts])


class BiEncoderModel(RelevanceModel):
    """A fitted bi-encoder.

    Args:
        vectors: the transformer.
        settings: as fitted.
        scale: of the grades it learned.
        line: slope and offset from scores to grades, for losses that only rank.
        fitted: how training went; None after `load`.
    """

    def __init__(
        self,
        vectors: TextVectors,
        settings: BiEncoderSettings,
        scale: Scale,
        line: tuple[float, float] | None,
        fitted: Fitted | None = None,
    ) -> None:
        self.vectors, self.settings = vectors, settings
        self.scale, self.line, self.fitted = scale, line, fitted
        vectors.encoder.to(device_here())

    def encode(self, texts: Sequence[str]) -> Float32:
        """Unit vectors float32[len(texts), d]; an empty text gets zeros."""
        return self.vectors.encode([clean(text) for text in texts])

    def place(self, texts: Sequence[str]) -> PlacedTexts:
        """Item texts as a `TextEncoder`, for retrieval; each distinct text is read once."""
        distinct, codes = np.unique(np.array(texts, dtype=object), return_inverse=True)
        return PlacedTexts(self.encode(distinct.tolist())[codes], self.vectors)

    @property
    def lowest(self) -> float:
        """See `RelevanceModel`."""
        return self.scale.low

    def judge(self, pairs: Pairs) -> tuple[Float32, Float32]:
        """See `RelevanceModel.judge`; a text that occurs twice is read once."""
        found = self.scores(pairs)
        loss, limits = self.settings.loss, self.vectors.thresholds
        return found, to_grades(found, loss, self.scale, limits, self.line)

    def scores(self, pairs: Pairs) -> Float32:
        """Scores float32[n], a line through cosines."""
        left, right = self.encode(pairs.queries), self.encode(pairs.items)
        slope, offset = self.vectors.line
        cosines = np.einsum("nd,nd->n", left[pairs.query], right[pairs.item])
        return (cosines * slope + offset).astype(np.float32)

    def save(self, folder: Path) -> None:
        """See `TextModel.save`."""
        super().save(folder)
        self.vectors.save(folder)
        content = {
            "settings": self.settings.model_dump(mode="json"),
            "levels": self.scale.levels,
            "line": self.line,
        }
        write_json(folder / META, content)

    @classmethod
    def load(cls, folder: Path) -> BiEncoderModel:
        """See `TextModel.load`."""
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        settings = BiEncoderSettings(**meta["settings"])
        line = tuple(meta["line"]) if meta["line"] else None
        vectors = TextVectors(folder, settings.max_tokens)
        model = cls(vectors, settings, Scale(tuple(meta["levels"])), line)
        model.relevant = Relevant.load(folder)
        return model


class BiEncoderLearner(TextLearner[BiEncoderSettings]):
    """Fine-tunes a transformer so that cosines order the items of a query."""

    name: ClassVar[str] = "bi_encoder"
    tasks: ClassVar[tuple[Task, ...]] = ("relevance",)
    family: ClassVar[str] = "transformer"
    settings_model = BiEncoderSettings
    model_class: ClassVar[type[TextModel]] = BiEncoderModel

    def length(self) -> tuple[str, float]:
        """See `TextLearner.length`."""
        return self.settings.training.length()

    def fit(self, train: pa.Table, validation: pa.Table, context: TextContext) -> BiEncoderModel:
        """See `TextLearner.fit`.

        Raises:
            UserError: no pairs, one grade only, for a loss by list no query with two grades, or
                no teacher in the folder.
        """
        pairs = trainable(train, where=self.name)
        scale = Scale.of(pairs.grade, where=self.name)
        if self.settings.loss in BY_LIST:
            require_lists(pairs, self.settings.loss, self.name)
        return self.fit_pairs(pairs, judged(validation), scale, context,
                              self._teacher(pairs, train, validation, context))  # fmt: skip

    def fit_pairs(
        self,
        pairs: Pairs,
        held_out: Pairs | None,
        scale: Scale,
        context: TextContext,
        teacher: Float32 | None = None,
    ) -> BiEncoderModel:
        """Fit on pairs whose teacher's scores, float32[n] logits, are known; None: no teacher."""
        settings = self.settings
        lesson = Lesson(
            settings.loss,
            settings.temperature,
            settings.contrast,
            settings.contrast_temperature,
            settings.positive_from,
            settings.popularity_correction,
            settings.distillation if teacher is not None else 0.0,
            settings.training.label_smoothing,
        )
        objective = BiEncoding(
            settings.model,
            pairs,
            held_out,
            scale,
            lesson,
            max_tokens=settings.max_tokens,
            list_size=settings.list_size,
            teacher=teacher,
            where=f"{self.name}.model",
        )
        folder = run_folder(self.name, settings, context)
        fitted = run_training(
            *(objective, settings.training, folder),
            seed=context.seed,
            resources=context.resources,
            report=context.report,
        )
        vectors = TextVectors(fitted.folder, settings.max_tokens)
        shutil.rmtree(fitted.folder)
        model = BiEncoderModel(vectors, settings, scale, None, fitted)
        if settings.loss in BY_LIST:
            known = held_out if held_out is not None else pairs
            model.line = fitted_line(model.scores(known), known.grade, known.weight)
        return model

    def _teacher(
        self, pairs: Pairs, train: pa.Table, validation: pa.Table, context: TextContext
    ) -> Float32 | None:
        """The teacher's logits of the training pairs, computed once: float32[n]."""
        teacher = self.settings.teacher
        if teacher is None:
            return None
        if isinstance(teacher, str):
            fitted = _opened(Path(teacher))
        else:
            fitted = CrossEncoderLearner(teacher).fit(
                train, validation, replace(context, report=None)
            )
        return fitted.scorer.scores(pairs)[0]


def _opened(folder: Path) -> CrossEncoderModel:
    if not (folder / TEACHER_META).is_file():
        raise UserError(
            f"no saved cross-encoder in {folder}",
            where="bi_encoder.teacher",
            mend="give the folder of one, or settings of one to be fitted first",
        )
    return CrossEncoderModel.load(folder)
