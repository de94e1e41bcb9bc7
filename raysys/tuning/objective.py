"""What one trial does: fit on the train folds, score the validation fold, measure what it costs.

It knows nothing of Ray: the runner passes on what it tells. All that a trial needs to go on after
a kill lies in its folder.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from raysys.catalogue import Catalogue
from raysys.ensemble.folds import base_score
from raysys.ensemble.ranking import Judgements
from raysys.errors import UserError
from raysys.features.batch import Batch
from raysys.features.examples import Examples
from raysys.learners import make_learner
from raysys.learners.protocol import Context, Resources
from raysys.storage import CheckpointFolder, write_atomic
from raysys.tuning.metrics import LATENCY, SECONDS, SIZE, latency_ms, ranking_figures, size_mb
from raysys.tuning.space import merged, of_namespace

Tell = Callable[[int, float], None]
"""Told (step, NDCG@10 on the tail of the fitted rows) every so many steps; may raise."""


@dataclass(frozen=True)
class Job:
    """One trial as a worker gets it.

    Attributes:
        number: of the trial.
        values: what is searched, by name.
        steps: to fit for, in place of the learner's own; None: its own.
        parent: the trial from whose checkpoint to go on if there is none of its own.
    """

    number: int
    values: Mapping[str, Any]
    steps: int | None = None
    parent: int | None = None


class Objective(Protocol):
    """What a trial does."""

    def __call__(self, job: Job, tell: Tell) -> dict[str, float]:
        """Run a trial from wherever it was cut off; gives the metrics that are known at its end.

        Raises:
            UserError, ValueError: these settings do not work. Whatever is raised is this trial's
                failure alone.
        """


@dataclass(frozen=True)
class Rows:
    """What is fitted on and judged by; the same for all trials unless `data.…` is searched.

    Attributes:
        examples: the train folds.
        validation: labelled rows to judge by.
    """

    examples: Examples
    validation: Batch

    def of(self, values: Mapping[str, Any]) -> tuple[Examples, Batch]:
        """Those for some values of `data.…` and `features.…`."""
        data = of_namespace(values, "data")
        return (replace(self.examples, **data) if data else self.examples), self.validation


class RowsOf(Protocol):
    """See `Rows`."""

    def of(self, values: Mapping[str, Any]) -> tuple[Examples, Batch]:
        """Examples to fit on and rows to judge by."""


@dataclass(frozen=True)
class LearnerObjective:
    """Fits a learner with a trial's settings.

    Attributes:
        learner: name in the registry of learners.
        fixed: settings that are not searched.
        rows: to fit on and to judge by.
        catalogue: every item.
        folder: of all trials' checkpoints, seen by all workers.
        seed: of every fit.
        resources: of every fit.
        grace: the score on the tail is told every so many steps; 0: never.
        every: steps between two checkpoints.
        share: of the learner's steps that are taken.
    """

    learner: str
    fixed: Mapping[str, Any]
    rows: RowsOf
    catalogue: Catalogue
    folder: Path
    seed: int = 0
    resources: Resources = field(default_factory=Resources)
    grace: int = 0
    every: int = 50
    share: float = 1.0

    def __call__(self, job: Job, tell: Tell) -> dict[str, float]:
        """See `Objective`."""
        own = self.folder / f"trial-{job.number}"
        if job.parent is not None and not own.exists():
            _inherit(self.folder / f"trial-{job.parent}", own)
        clock = Clock(own / "seconds.json")
        settings = self._settings(job)
        learner = make_learner(self.learner, settings)
        examples, validation = self.rows.of(job.values)
        context = Context(
            *(self.catalogue, self.folder, self.seed, self.resources),
            checkpoint=CheckpointFolder(own, self.every),
        )
        told = paced(tell, self.grace, clock) if self.grace else None
        model = learner.fit_local(examples, context, told)
        scores = base_score(self.learner, model, validation)
        if np.ptp(scores) == 0 or _flat(scores, validation):
            raise ValueError("every candidate of a request got the same score")
        metrics = ranking_figures(Judgements.of(validation), scores)
        metrics[LATENCY] = latency_ms(model, validation)
        metrics[SIZE] = size_mb(model)
        metrics[SECONDS] = clock.keep()
        return metrics

    def _settings(self, job: Job) -> dict[str, Any]:
        """Of the learner, with as many steps as it gets."""
        settings = merged(self.fixed, of_namespace(job.values, ""))
        if job.steps is None and self.share == 1.0:
            return settings
        # where the learner within is searched, only some take steps
        return shortened(
            settings, make_learner(self.learner, settings).length(), self.share, job.steps
        )


def shortened(
    settings: Mapping[str, Any],
    length: tuple[str, float] | None,
    share: float,
    steps: int | None = None,
) -> dict[str, Any]:
    """Settings with fewer steps.

    Args:
        settings: of a learner.
        length: see `Learner.length`; None: there is nothing to take less of.
        share: of the steps, where `steps` does not say how many.
        steps: so many.
    """
    if length is None:
        return dict(settings)
    name, own = length
    fewer = max(1, round(share * own)) if isinstance(own, int) else share * own
    return merged(settings, {name: steps or fewer})


class Clock:
    """Seconds that a trial has taken, those before a kill included, as far as they were kept."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = 0.0
        if path.is_file():
            self._before = float(json.loads(path.read_text(encoding="utf-8")))
        self._began = time.monotonic()

    def keep(self) -> float:
        """Write them, and give them."""
        seconds = self._before + time.monotonic() - self._began
        write_atomic(self._path, f"{seconds:.3f}\n")
        return seconds


def paced(tell: Tell, grace: int, clock: Clock) -> Tell:
    """Tells of a step when `grace` of them have passed, and keeps the seconds spent."""
    due = 0

    def told(step: int, score: float) -> None:
        nonlocal due
        due = due or -(-step // grace) * grace  # not the first step: taken up again
        if step >= due:
            due = step + grace
            clock.keep()
            tell(step, score)

    return told


def _flat(scores: np.ndarray, batch: Batch) -> bool:
    """Whether no request has two different scores."""
    starts = batch.offsets[:-1][batch.sizes > 0]
    return bool((np.maximum.reduceat(scores, starts) == np.minimum.reduceat(scores, starts)).all())


def _inherit(parent: Path, own: Path) -> None:
    """Copy a trial's checkpoint; whole or not at all. Its seconds are its own.

    Raises:
        UserError: it is gone.
    """
    if not parent.is_dir():
        raise UserError(f"the checkpoint of {parent.name} is gone", where=str(parent))
    fresh = own.with_name(f".{own.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(parent, fresh, ignore=shutil.ignore_patterns("seconds.json", "new"))
    fresh.rename(own)
