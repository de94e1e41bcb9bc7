"""What one trial of a text learner does: fit on train, be judged on validation, tell what it costs.

Nothing is judged by the test of the task: by it `raysys text fit` reports what was chosen here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from raysys.learners.text import load_text_model, make_text_learner, save_text_model
from raysys.learners.text_protocol import Task, TextContext, TextLearner, TextModel
from raysys.storage import replacing
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
            steps = learner.length() is not None  # of a blend each member would tell its own
            context = TextContext(own, self.seed, report=report if steps else None)
            model = learner.fit(self.train, self.validation, context)
            with replacing(ended) as fresh:
                save_text_model(self.learner, model, fresh)
        self.judging.finish(self.learner, model)
        return model

    def _learner(self, job: Job) -> TextLearner[Any]:
        """With as many steps as it gets, and checkpoints where it trains a network itself."""
        settings = merged(self.fixed, of_namespace(job.values, ""))
        learner = make_text_learner(self.learner, settings, task=self.task)
        if job.steps is not None or self.share != 1.0:
            settings = shortened(settings, learner.length(), self.share, job.steps)
        if "training" in learner.settings_model.model_fields:
            settings = merged(settings, {"training.checkpoint_every": {"steps": self.every}})
        return make_text_learner(self.learner, settings, task=self.task)


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
