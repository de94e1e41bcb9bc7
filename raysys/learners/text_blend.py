"""A weighted average of what several text models say; a member that adds nothing is dropped.

Weights come from greedy selection on validation texts (Caruana et al., "Ensemble selection from
libraries of models", ICML 2004): again and again the member joins that lowers the loss of the
average most, as often as it likes. So they are never negative, mostly few, and where a simple
baseline wins alone it alone remains.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from raysys.config import Settings
from raysys.errors import UserError
from raysys.learners.kept_models import KeptModels
from raysys.learners.label_model import Labelling, LabelModel, Scores
from raysys.learners.lookup import FILE as LEARNER
from raysys.learners.pseudo_labels import PseudoLabels
from raysys.learners.text import load_text_model, make_text_learner, save_text_model
from raysys.learners.text_calibration import ThresholdSettings
from raysys.learners.text_labels import Float32, LabelledTexts, LabelTask, read_training
from raysys.learners.text_protocol import Task, TextContext, TextLearner

log = logging.getLogger("raysys")

FILE = "blend.json"
Array = npt.NDArray[Any]


class TextMemberSettings(Settings):
    """One model of the blend.

    Attributes:
        learner: its name; null: the name of the member.
        settings: of the learner, all but the task.
    """

    learner: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)


class TextBlendSettings(Settings):
    """What is blended.

    Attributes:
        task: classify or sentiment.
        members: by name; each is fitted on the training texts.
        rounds: of the selection; weights are multiples of one over (at most) this.
        thresholds: see `ThresholdSettings`.
    """

    task: LabelTask = "classify"
    members: dict[str, TextMemberSettings] = Field(
        default={"tfidf_classifier": TextMemberSettings(), "text_classifier": TextMemberSettings()},
        min_length=1,
    )
    rounds: int = Field(50, ge=1)
    thresholds: ThresholdSettings = ThresholdSettings()


class TextBlendModel(LabelModel):
    """Members with their weights.

    Args:
        labelling: how the average is read.
        members: name -> (name of its learner, model); all know the same labels.
        weights: of the members' probabilities, summing to one.
        rating_weights: of the members' ratings; empty: they tell none.
    """

    def __init__(
        self,
        labelling: Labelling,
        members: Mapping[str, tuple[str, LabelModel]],
        weights: Mapping[str, float],
        rating_weights: Mapping[str, float],
    ) -> None:
        super().__init__(labelling)
        self.members = dict(members)
        self.weights = dict(weights)
        self.rating_weights = dict(rating_weights)

    def scores(self, texts: Sequence[str]) -> Scores:
        """See `LabelModel.scores`: logarithms of the average probabilities."""
        return _average(
            {name: model.probabilities(texts) for name, (_, model) in self.members.items()},
            self.weights,
            self.rating_weights,
        )

    def save(self, folder: Path) -> None:
        """See `LabelModel.save`; each member has a folder of its own."""
        super().save(folder)
        content = {"weights": self.weights, "rating_weights": self.rating_weights}
        (folder / FILE).write_text(json.dumps(content) + "\n", encoding="utf-8")
        for at, (learner, model) in enumerate(self.members.values()):
            save_text_model(learner, model, folder / f"member-{at}")

    @classmethod
    def load(cls, folder: Path) -> TextBlendModel:
        """See `TextModel.load`."""
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        members: dict[str, tuple[str, LabelModel]] = {}
        names = dict.fromkeys([*content["weights"], *content["rating_weights"]])
        for at, name in enumerate(names):
            place = folder / f"member-{at}"
            model = load_text_model(place)
            assert isinstance(model, LabelModel)
            learner = json.loads((place / LEARNER).read_text(encoding="utf-8"))["learner"]
            members[name] = (learner, model)
        return cls(Labelling.load(folder), members, content["weights"], content["rating_weights"])


class TextBlend(TextLearner[TextBlendSettings]):
    """Several text learners as one."""

    name: ClassVar[str] = "text_blend"
    tasks: ClassVar[tuple[Task, ...]] = ("classify", "sentiment")
    family: ClassVar[str] = "transformer"
    settings_model: ClassVar[type[Settings]] = TextBlendSettings
    model_class: ClassVar[type[TextBlendModel]] = TextBlendModel

    def __init__(self, settings: TextBlendSettings) -> None:
        super().__init__(settings)
        known = {member.learner or name for name, member in settings.members.items()}
        self.unlabelled = PseudoLabels.name in known  # type: ignore[misc]

    def fit(self, train: pa.Table, validation: pa.Table, context: TextContext) -> TextBlendModel:
        """See `TextLearner.fit`; called again after a kill it fits only what had not ended."""
        settings = self.settings
        read_training(train, validation, settings.task)  # errors come before a long fit
        learners = {}
        for name, member in settings.members.items():
            where, learner = f"{self.name}.members.{name}", member.learner or name
            made = make_text_learner(learner, member.settings, task=settings.task, where=where)
            learners[name] = learner, made
        members: dict[str, tuple[str, LabelModel]] = {}
        with KeptModels(self.name, settings, context, train, validation) as kept:
            for at, (name, (learner, made)) in enumerate(learners.items()):
                fit = partial(made.fit, train, validation, context)
                model = kept.model(f"member={at}", learner, fit)
                assert isinstance(model, LabelModel)  # what learns these tasks labels texts
                members[name] = (learner, model)
            return blend(
                members, train, validation, rounds=settings.rounds, thresholds=settings.thresholds
            )


def blend(
    members: Mapping[str, tuple[str, LabelModel]],
    train: pa.Table,
    validation: pa.Table,
    *,
    rounds: int = 50,
    thresholds: ThresholdSettings | None = None,
) -> TextBlendModel:
    """Models fitted on `train` as one; those that get no weight are dropped.

    Without validation texts all weigh the same.

    Args:
        members: name -> (name of its learner, model).
        train: what they were fitted on; validation: what chooses the weights.
        rounds: see `TextBlendSettings`.
        thresholds: of the blend.

    Raises:
        UserError: the members know different labels.
    """
    models = {name: model for name, (_, model) in members.items()}
    first = next(iter(models.values()))
    for name, model in models.items():
        if model.labels != first.labels or model.task != first.task:
            raise UserError(
                f"the member {name!r} knows other labels than {next(iter(models))!r}",
                where="text_blend.members",
                mend="blend models that were fitted on the same training texts",
            )
    task = first.labelling.task
    labels, texts, held = read_training(train, validation, task)
    said = {name: model.probabilities(held.texts) for name, model in models.items()}
    weights = _label_weights(said, held, rounds)
    rating_weights = _rating_weights(said, held, rounds)
    kept = {name: members[name] for name in dict.fromkeys([*weights, *rating_weights])}
    labelling = Labelling.of(task, labels, texts)
    if len(held):
        logits = _average(said, weights, rating_weights).logits
        labelling = labelling.calibrated(logits, held, thresholds or ThresholdSettings())
    told = ", ".join(f"{name} {weights.get(name, 0):.2f}" for name in members)
    log.info("text_blend: %s", told)
    return TextBlendModel(labelling, kept, weights, rating_weights)


def greedy_weights(
    members: Mapping[str, Array], loss: Callable[[Array], float], rounds: int
) -> dict[str, float]:
    """Of each member that is worth it, the share in the average of the least loss.

    Args:
        members: arrays of one shape.
        loss: of an average of them.
        rounds: how often a member joins.
    """
    total: Array = np.zeros_like(next(iter(members.values())), dtype=np.float64)
    joined = dict.fromkeys(members, 0)
    best, kept = np.inf, dict(joined)
    for size in range(1, rounds + 1):
        losses = {name: loss((total + each) / size) for name, each in members.items()}
        chosen = min(losses, key=lambda name: losses[name])
        total = total + members[chosen]
        joined[chosen] += 1
        if losses[chosen] < best:
            best, kept = losses[chosen], dict(joined)
    size = sum(kept.values())
    return {name: count / size for name, count in kept.items() if count}


Said = Mapping[str, tuple[npt.NDArray[np.float64], Float32 | None]]


def _label_weights(said: Said, held: LabelledTexts, rounds: int) -> dict[str, float]:
    """By log loss."""
    known = np.flatnonzero(held.codes >= 0)
    if not len(known):
        return dict.fromkeys(said, 1 / len(said))
    codes = held.codes[known]
    right = {name: each[0][known, codes] for name, each in said.items()}
    return greedy_weights(right, lambda share: -float(np.log(share + 1e-12).mean()), rounds)


def _rating_weights(said: Said, held: LabelledTexts, rounds: int) -> dict[str, float]:
    """By squared error, of the members that tell ratings."""
    told = {name: each[1] for name, each in said.items() if each[1] is not None}
    known = np.isfinite(held.rating)
    if not told:
        return {}
    if not known.any():
        return dict.fromkeys(told, 1 / len(told))
    truth = held.rating[known].astype(np.float64)
    ratings = {name: each[known].astype(np.float64) for name, each in told.items()}
    return greedy_weights(ratings, lambda mean: float(((mean - truth) ** 2).mean()), rounds)


def _average(
    said: Said, weights: Mapping[str, float], rating_weights: Mapping[str, float]
) -> Scores:
    share = sum(weight * said[name][0] for name, weight in weights.items())
    logits = np.log(np.maximum(np.asarray(share), 1e-12))
    if not rating_weights:
        return Scores(logits)
    total = np.zeros(len(logits), dtype=np.float32)
    for name, weight in rating_weights.items():
        rating = said[name][1]
        assert rating is not None
        total += np.float32(weight) * rating
    return Scores(logits, total)
