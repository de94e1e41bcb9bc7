"""Searches without Ray: the loop that Ray Tune would run, one trial after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from raysys.learners.protocol import Resources
from raysys.tuning.objective import Job
from raysys.tuning.runner import SCORE, JournalSearch
from raysys.tuning.schedulers import JOB, STEP, TAIL
from raysys.tuning.settings import TuneSettings
from raysys.tuning.study import ERROR, Run, Trial, open_study, trials_of

SPACE = {
    "rate": {"kind": "float", "low": 0.01, "high": 1.0, "log": True},
    "leaves": {"kind": "int", "low": 2, "high": 32},
}


def plan(folder: Path, study: str = "search", **settings: Any) -> Run:
    content = {"learner": "lightgbm_ranker", "space": SPACE, "scheduler": "none", **settings}
    parsed = TuneSettings.model_validate(content)
    return Run(
        *(study, folder, folder / "scratch", parsed.space, parsed, Resources()),
        last=parsed.grace * parsed.trials // getattr(parsed.scheduler, "population", 1),
    )


def hill(job: Job) -> dict[str, float]:
    """Best at rate 0.1 and 20 leaves: 1.0 there."""
    x, y = np.log10(job.values["rate"]) + 1, (job.values["leaves"] - 20) / 15
    return {"ndcg@10": float(np.exp(-(x**2) - y**2)), "latency_ms": job.values["leaves"] / 10}


def drive(
    made: Run,
    trials: int,
    objective: Callable[[Job], Mapping[str, float]] = hill,
    seconds: float = 1.0,
) -> list[Trial]:
    """Run up to so many trials; returns all of the study that ended."""
    searcher = JournalSearch(made)
    for number in range(trials):
        name = f"t{number}"
        config = searcher.suggest(name)
        if not isinstance(config, dict):
            break
        job = Job(values=config, **config.pop(JOB))
        try:
            metrics = dict(objective(job))
        except ValueError as error:
            result = {STEP: 0, TAIL: np.nan, SCORE: np.nan, ERROR: str(error)}
        else:
            score = metrics[made.settings.objective.metric]
            result = {STEP: 1, TAIL: score, SCORE: score, **metrics}
        searcher.on_trial_complete(name, result | {"time_total_s": seconds})
    return trials_of(open_study(made.folder, name=made.study, goal=made.settings.objective))
