"""A transformer that labels texts: queries or titles by category, reviews by sentiment and rating.

The packaged MiniLM, a folder or a hub id, fine-tuned with the loop of `raysys.text.training`, so by
any number of workers; then calibrated on validation texts like every other classifier.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from raysys.cluster import device_here
from raysys.config import Settings
from raysys.learners.label_model import Labelling, LabelModel, Scores
from raysys.learners.text_calibration import ThresholdSettings
from raysys.learners.text_labels import (
    Float32,
    LabelledTexts,
    LabelSet,
    LabelTask,
    read_training,
)
from raysys.learners.text_protocol import Task, TextContext, TextLearner, run_folder
from raysys.learners.text_reader import (
    Hierarchy,
    Losses,
    Outputs,
    Reader,
    ReadingObjective,
    Tokens,
    load_reader,
    read,
    save_reader,
)
from raysys.text.models import PACKAGED, longest_input, open_model
from raysys.text.scratch import ScratchSettings, make_model
from raysys.text.training import Fitted, TrainingSettings
from raysys.text.training import train as run_training

log = logging.getLogger("raysys")

FILE = "reader.json"


class TextClassifierSettings(Settings):
    """The transformer, what it learns, how it is trained.

    Attributes:
        task: classify or sentiment.
        model: the packaged one, a folder with a Hugging Face model, or a hub id.
        scratch: a model from nothing in its place, its tokenizer trained on the training texts.
        max_tokens: what is read of each text; fewer where the model has no more positions.
        dropout: of the mean of the last states.
        hierarchy: of labels that are paths, see `text_reader`.
        level_weight: of the loss at each level above the labels.
        rating_weight: of the squared error of ratings, beside the cross-entropy of labels.
        class_weight: of a label in the loss: one over its share (`balanced`), the root of that
            (`root`), or all the same.
        training: see `TrainingSettings`.
        thresholds: see `ThresholdSettings`.
    """

    task: LabelTask = "classify"
    model: str = PACKAGED
    scratch: ScratchSettings | None = None
    max_tokens: int = Field(128, ge=4)
    dropout: float = Field(0.1, ge=0, lt=1)
    hierarchy: Hierarchy = "marginal"
    level_weight: float = Field(0.5, ge=0)
    rating_weight: float = Field(0.5, ge=0)
    class_weight: Literal["none", "balanced", "root"] = "none"
    training: TrainingSettings = TrainingSettings(label_smoothing=0.05)
    thresholds: ThresholdSettings = ThresholdSettings()


class TextClassifierModel(LabelModel):
    """A fitted transformer. It runs where there is a GPU on that, else on the CPU.

    Args:
        labelling: how its scores are read.
        reader: the network.
        tokenizer: that of its transformer.
        outputs: what the network says.
        max_tokens: what is read of each text.
        center: mean and standard deviation of ratings, which the network tells in standard units.
    """

    fitted: Fitted | None = None
    """How training went; None after `load`."""

    def __init__(
        self,
        labelling: Labelling,
        reader: Reader,
        tokenizer: Any,
        outputs: Outputs,
        max_tokens: int,
        center: tuple[float, float],
    ) -> None:
        super().__init__(labelling)
        self.reader = reader.eval().to(device_here())
        self.tokenizer = tokenizer
        self.outputs = outputs
        self.max_tokens = max_tokens
        self.center = center

    def scores(self, texts: Sequence[str]) -> Scores:
        """See `LabelModel.scores`."""
        tokens = Tokens.of(texts, self.tokenizer, self.max_tokens)
        logits, rating = read(self.reader, tokens, self.outputs)
        if rating is not None:
            rating = rating * np.float32(self.center[1]) + np.float32(self.center[0])
        return Scores(logits, rating)

    def save(self, folder: Path) -> None:
        """See `LabelModel.save`."""
        super().save(folder)
        save_reader(self.reader, self.tokenizer, folder)
        content = {
            "hierarchy": self.outputs.hierarchy,
            "rated": self.outputs.rated,
            "max_tokens": self.max_tokens,
            "center": self.center,
        }
        (folder / FILE).write_text(json.dumps(content) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> TextClassifierModel:
        """See `TextModel.load`."""
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        labelling = Labelling.load(folder)
        reader, tokenizer = load_reader(folder)
        outputs = Outputs(labelling.labels, content["hierarchy"], content["rated"])
        center = (content["center"][0], content["center"][1])
        return cls(labelling, reader, tokenizer, outputs, content["max_tokens"], center)


class TextClassifier(TextLearner[TextClassifierSettings]):
    """A transformer with one linear layer over the mean of its states."""

    name: ClassVar[str] = "text_classifier"
    tasks: ClassVar[tuple[Task, ...]] = ("classify", "sentiment")
    family: ClassVar[str] = "transformer"
    settings_model: ClassVar[type[Settings]] = TextClassifierSettings
    model_class: ClassVar[type[TextClassifierModel]] = TextClassifierModel

    def length(self) -> tuple[str, float]:
        """See `TextLearner.length`."""
        return self.settings.training.length()

    def fit(self, train: pa.Table, validation: pa.Table, context: TextContext) -> LabelModel:
        """See `TextLearner.fit`."""
        settings = self.settings
        labels, texts, held = read_training(train, validation, settings.task)
        folder = run_folder(self.name, settings, context)
        place = settings.model
        if settings.scratch is not None:
            place = str(folder / "scratch")
            shutil.rmtree(place, ignore_errors=True)  # of a run that was cut off: it is the same
            make_model(settings.scratch, texts.texts, context.seed, Path(place))
        objective = self._objective(place, labels, texts, held)
        fitted = run_training(
            objective,
            settings.training,
            folder / "trained",
            seed=context.seed,
            resources=context.resources,
            report=context.report,
        )
        reader, tokenizer = load_reader(fitted.folder)
        shutil.rmtree(folder, ignore_errors=True)
        labelling = Labelling.of(settings.task, labels, texts)
        model = TextClassifierModel(
            labelling,
            reader,
            tokenizer,
            objective.outputs,
            _reach(reader.backbone, settings.max_tokens),
            objective.center,
        )
        model.fitted = fitted
        if len(held):
            logits, _ = read(model.reader, objective.held, model.outputs)
            model.labelling = labelling.calibrated(logits, held, settings.thresholds)
        calibration = model.labelling.calibration
        log.info(
            "text_classifier: %d steps, %.1f examples/s, %s; calibration error %.4f, at "
            "temperature %.2f %.4f",
            fitted.steps,
            fitted.examples_per_s,
            ", ".join(f"{name} {value:.4f}" for name, value in fitted.figures.items()),
            calibration.error_before,
            calibration.temperature,
            calibration.error_after,
        )
        return model

    def _objective(
        self, place: str, labels: LabelSet, texts: LabelledTexts, held: LabelledTexts
    ) -> ReadingObjective:
        settings, where = self.settings, f"{self.name}.model"
        backbone, tokenizer = open_model(place, where=where)
        reach = _reach(backbone, settings.max_tokens)
        known = texts.rating[np.isfinite(texts.rating)].astype(np.float64)
        center = (float(known.mean()), max(float(known.std()), 1e-6)) if len(known) else (0.0, 1.0)
        return ReadingObjective(
            model=place,
            where=where,
            tokenizer=tokenizer,
            tokens=Tokens.of(texts.texts, tokenizer, reach),
            held=Tokens.of(held.texts, tokenizer, reach),
            train=texts,
            validation=held,
            outputs=Outputs(labels, settings.hierarchy, texts.rated),
            losses=Losses(
                _class_weights(texts, len(labels), settings.class_weight),
                settings.level_weight,
                settings.rating_weight,
                settings.training.label_smoothing,
            ),
            dropout=settings.dropout,
            center=center,
        )


def _class_weights(texts: LabelledTexts, k: int, kind: str) -> Float32:
    """Of each label, with mean 1 over the labelled texts: float32[k]."""
    labelled = texts.codes >= 0
    seen = np.bincount(texts.codes[labelled], weights=texts.weight[labelled], minlength=k)
    power = {"none": 0.0, "root": 0.5, "balanced": 1.0}[kind]
    weights = np.maximum(seen, 1) ** -power
    return (weights * seen.sum() / (weights * seen).sum()).astype(np.float32)


def _reach(backbone: Any, max_tokens: int) -> int:
    """Tokens that are read of a text: no more than the transformer has positions for."""
    return min(max_tokens, longest_input(backbone) or max_tokens)
