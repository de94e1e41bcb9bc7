"""Texts without labels put to use: what a model is sure of becomes its training, and again.

Self-training (Yarowsky, ACL 1995; Lee, "Pseudo-label", 2013) around any learner of labels. Rows of
training without a label are the unlabelled texts. After each fit those whose likeliest label has
the stated (calibrated) probability get it, and the next fit learns from them too; labels given
before are forgotten, so that a mistake can be taken back. The fit with the least log loss on
validation is kept, be it the first: where pseudo-labels gain nothing, none are used.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from raysys.config import Settings
from raysys.errors import UserError
from raysys.learners.kept_models import KeptModels
from raysys.learners.label_model import LabelModel, Scores
from raysys.learners.lookup import FILE as LEARNER
from raysys.learners.text import (
    TEXT_LEARNERS,
    load_text_model,
    make_text_learner,
    save_text_model,
    text_learner_class,
)
from raysys.learners.text_calibration import ThresholdSettings
from raysys.learners.text_labels import Codes, LabelTask, read_training
from raysys.learners.text_protocol import Task, TextContext, TextLearner

log = logging.getLogger("raysys")


class PseudoLabelSettings(Settings):
    """Which learner, and when its word is taken.

    Attributes:
        task: classify or sentiment.
        learner: its name; settings: its own, all but the task.
        confidence: least probability of a label that is taken as true.
        rounds: fits after the first, at most.
        most_per_label: pseudo-labels of each label for one that is known, at most, the surest
            first; so the shares of labels stay near those of the labelled texts.
    """

    task: LabelTask = "classify"
    learner: str = "tfidf_classifier"
    settings: dict[str, Any] = Field(default_factory=dict)
    confidence: float = Field(0.95, gt=0, lt=1)
    rounds: int = Field(3, ge=1)
    most_per_label: float = Field(20.0, gt=0)

    @property
    def thresholds(self) -> ThresholdSettings:
        """Those of the learner."""
        wrapped = make_text_learner(self.learner, self.settings, task=self.task)
        found: ThresholdSettings = wrapped.settings.thresholds
        return found


class PseudoLabelModel(LabelModel):
    """The model that was kept, and what each fit gained.

    Args:
        learner: the name of its learner.
        model: the model.
        history: one entry a fit: pseudo-labels it learned from, log loss on validation.
    """

    def __init__(
        self, learner: str, model: LabelModel, history: Sequence[dict[str, float]]
    ) -> None:
        super().__init__(model.labelling)
        self.learner = learner
        self.model = model
        self.history = tuple(history)

    def scores(self, texts: Sequence[str]) -> Scores:
        """See `LabelModel.scores`."""
        return self.model.scores(texts)

    def save(self, folder: Path) -> None:
        """See `LabelModel.save`; the model has a folder of its own."""
        super().save(folder)
        save_text_model(self.learner, self.model, folder / "model")
        (folder / "history.json").write_text(json.dumps(self.history) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> PseudoLabelModel:
        """See `TextModel.load`."""
        model = load_text_model(folder / "model")
        assert isinstance(model, LabelModel)
        learner = json.loads((folder / "model" / LEARNER).read_text(encoding="utf-8"))["learner"]
        history = json.loads((folder / "history.json").read_text(encoding="utf-8"))
        return cls(learner, model, history)


class PseudoLabels(TextLearner[PseudoLabelSettings]):
    """Any learner of labels, fitted on its own sure predictions too."""

    name: ClassVar[str] = "pseudo_labels"
    tasks: ClassVar[tuple[Task, ...]] = ("classify", "sentiment")
    family: ClassVar[str] = "baseline"
    unlabelled: ClassVar[bool] = True
    settings_model: ClassVar[type[Settings]] = PseudoLabelSettings
    model_class: ClassVar[type[PseudoLabelModel]] = PseudoLabelModel

    def __init__(self, settings: PseudoLabelSettings) -> None:
        super().__init__(settings)
        if settings.learner in TEXT_LEARNERS:  # as dear as what it wraps; fit refuses the others
            self.family = text_learner_class(settings.learner).family  # type: ignore[misc]

    def fit(self, train: pa.Table, validation: pa.Table, context: TextContext) -> PseudoLabelModel:
        """See `TextLearner.fit`; called again after a kill it fits only what had not ended."""
        settings = self.settings
        learner = make_text_learner(
            settings.learner, settings.settings, task=settings.task, where=f"{self.name}.settings"
        )
        _, labelled, held = read_training(train, validation, settings.task)
        if not (held.codes >= 0).any():
            raise UserError(
                "no validation labels to tell whether pseudo-labels help",
                where="split validation",
                mend="move some labelled texts there",
            )
        given = [(label or "").strip() or None for label in train["label"].to_pylist()]
        texts = [text or "" for text in train["text"].to_pylist()]
        source = _originals(train)  # a copy has its original's label
        unlabelled = np.array(
            [
                at
                for at, label in enumerate(given)
                if label is None and texts[at].strip() and source[at] == at
            ],
            dtype=np.int64,
        )
        seen = np.bincount(labelled.codes[(labelled.codes >= 0) & labelled.original])
        judged = np.flatnonzero(held.codes >= 0)
        best: LabelModel | None = None
        history: list[dict[str, float]] = []
        added: dict[int, str] = {}
        with KeptModels(self.name, settings, context, train, validation) as kept:
            for number in range(settings.rounds + 1):
                labels = pa.array(
                    [label or added.get(int(source[at])) for at, label in enumerate(given)],
                    pa.string(),
                )
                rows = train.set_column(train.schema.get_field_index("label"), "label", labels)
                fit = partial(learner.fit, rows, validation, context)
                model = kept.model(f"round={number}", settings.learner, fit)
                assert isinstance(model, LabelModel)  # what learns these tasks labels texts
                share, _ = model.probabilities(held.texts)
                loss = -float(np.log(share[judged, held.codes[judged]] + 1e-12).mean())
                log.info("pseudo_labels: %d texts, validation log loss %.4f", len(added), loss)
                if best is None or loss < min(entry["loss"] for entry in history):
                    best = model
                history.append({"pseudo_labels": len(added), "loss": loss})
                before, added = added, self._sure(model, texts, unlabelled, seen)
                if added == before:
                    break
        assert best is not None
        return PseudoLabelModel(settings.learner, best, history)

    def _sure(
        self, model: LabelModel, texts: Sequence[str], unlabelled: Codes, seen: Codes
    ) -> dict[int, str]:
        """Of the unlabelled texts those whose label the model is sure of, with that label."""
        share, _ = model.probabilities([texts[at] for at in unlabelled])
        best, value = share.argmax(axis=1), share.max(axis=1, initial=0.0)
        taken = value >= self.settings.confidence
        for label in range(len(model.labels)):
            mine = np.flatnonzero(taken & (best == label))
            allowed = int(np.ceil(self.settings.most_per_label * seen[label]))
            taken[mine[np.argsort(-value[mine], kind="stable")[allowed:]]] = False
        names = model.labels.names
        return {int(unlabelled[at]): names[best[at]] for at in np.flatnonzero(taken)}


def _originals(train: pa.Table) -> Codes:
    """The row that each row copies, or is: int64[n]; copies stand behind their originals."""
    rows = np.arange(len(train))
    if "augmented" in train.column_names:
        rows = np.maximum.accumulate(np.where(train["augmented"].is_null().to_numpy(), rows, 0))
    return rows
