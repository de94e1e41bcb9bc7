"""What one trial of a text learner does: fit on train, be judged on validation, tell what it costs.

The test of the task is never read: by it `raysys text fit` reports what was chosen here.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from raysys.learners.text import (
    load_text_model,
    make_text_learner,
    save_text_model,
    text_learner_class,
)
from raysys.learners.text_protocol import Task, TextContext, TextLearner, TextModel
from raysys.tuning.metrics import ASKED, LATENCY, SECONDS, SIZE, quiet_ms, size_mb
from raysys.tuning.objective import Clock, Job, Tell, paced, shortened
from raysys.tuning.space import merged, of_namespace

ENDED = "ended"
"""Where a trial leaves its fitted model: a kill while it is judged costs no fit."""


class Judging(Protocol):
    """How a fitted model is finished and judged; the same for all trials."""

    def finish(self, name: str, model: TextModel) -> None:
        """Do to a model of a learner what `raysys text fit` does once it is fitted."""

    def figures(self, said: pa.Table) -> dict[str, float]:
        """Figures of predictions for the validation texts; those that are no number are absent."""


@dataclass(frozen=True)
class TextObjective:
    """Fits a text learner with a trial's settings.

    Attributes:
        learner: name in the registry of text learners.
        task: that it learns.
        fixed: settings that are not searched.
        train, validation: `LABELLED_TEXTS`, or `LABELLED_PAIRS`.
        judging: by what trials are compared.
        folder: of all trials' checkpoints, seen by all workers.
        seed: of every fit.
        grace: what training watches is told every so many steps; 0: never.
        every: steps between two checkpoints.
        share: of the learner's steps that are taken.
    """

    learner: str
    task: Task
    fixed: Mapping[str, Any]
    train: pa.Table
    validation: pa.Table
    judging: Judging
    folder: Path
    seed: int = 0
    grace: int = 0
    every: int = 50
    share: float = 1.0

    def __call__(self, job: Job, tell: Tell) -> dict[str, float]:
        """See `Objective`."""
        own = self.folder / f"trial-{job.number}"
        clock = Clock(own / "seconds.json")
        model = self._fitted(job, own, paced(tell, self.grace, clock) if self.grace else None)
        asked = [name for name in ("query", "text") if name in self.validation.column_names]
        texts = self.validation.select(asked)
        metrics = self.judging.figures(model.predict(texts))
        request = request_of(texts)
        metrics[LATENCY] = quiet_ms(lambda: model.predict(request), repeats=7)
        metrics[SIZE] = size_mb(model)
        metrics[SECONDS] = clock.keep()
        return metrics

    def _fitted(self, job: Job, own: Path, report: Tell | None) -> TextModel:
        ended = own / ENDED
        if ended.is_dir():
            model = load_text_model(ended)
        else:
            learner = self._learner(job)
            own.mkdir(parents=True, exist_ok=True)
            context = TextContext(
                own, self.seed, report=report if learner.length() is not None else None
            )
            model = learner.fit(self.train, self.validation, context)
            _keep(self.learner, model, ended)
        self.judging.finish(self.learner, model)
        return model

    def _learner(self, job: Job) -> TextLearner[Any]:
        """With as many steps as it gets, and checkpoints where it trains a transformer."""
        settings = merged(self.fixed, of_namespace(job.values, ""))
        learner = make_text_learner(self.learner, settings, task=self.task)
        if job.steps is not None or self.share != 1.0:
            settings = shortened(settings, learner.length(), self.share, job.steps)
            learner = make_text_learner(self.learner, settings, task=self.task)
        return with_checkpoints(learner, self.every)


def settings_of_task(learner: str, task: Task, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a text learner that may learn several tasks, told which."""
    found = text_learner_class(learner).settings_model
    return {"task": task, **settings} if "task" in found.model_fields else dict(settings)


def with_checkpoints(learner: TextLearner[Any], every: int) -> TextLearner[Any]:
    """The learner, leaving a checkpoint every so many steps if it trains a transformer itself."""
    training = getattr(learner.settings, "training", None)
    if training is None:
        return learner
    from raysys.text.training import CheckpointEvery

    own = training.model_copy(update={"checkpoint_every": CheckpointEvery(steps=every)})
    learner.settings = learner.settings.model_copy(update={"training": own})
    return learner


def request_of(texts: pa.Table) -> pa.Table:
    """What a replica is asked at once: one text, or a query with 100 texts.

    Args:
        texts: at least one row, of columns `text` and, for relevance, `query`.
    """
    if "query" not in texts.column_names:
        return texts.slice(0, 1)
    rows = texts.take(pa.array(np.resize(np.arange(len(texts)), ASKED)))
    query = pa.array([texts["query"][0].as_py()] * ASKED, pa.string())
    return rows.set_column(rows.schema.get_field_index("query"), "query", query)


def _keep(learner: str, model: TextModel, place: Path) -> None:
    """Write what a fit ended with, whole or not at all."""
    fresh = place.with_name(f"{place.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    save_text_model(learner, model, fresh)
    fresh.rename(place)
