"""Searching how base scores are combined: no learner is fitted again, a trial takes seconds.

Judged on blocks of time: the ensemble is fitted without a block and scores it, for every block.
What `fit_ensemble` says of its own methods is not used, as the choice among them is part of what
is judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from raysys.config import parse_settings
from raysys.ensemble import BaseScores, Ensemble, EnsembleSettings, fit_ensemble
from raysys.tuning.metrics import ASKED, LATENCY, SECONDS, SIZE, median_ms, ranking_figures
from raysys.tuning.objective import Clock, Job, Tell
from raysys.tuning.space import merged, of_namespace

ENSEMBLE = "ensemble"


@dataclass(frozen=True)
class EnsembleObjective:
    """Fits the ensemble on stored out-of-fold base scores with a trial's settings.

    Attributes:
        scores: of the validation fold, by all members.
        families: family of every member.
        fixed: settings that are not searched.
        folder: of the trials.
        blocks: of time, judged in turn by an ensemble fitted on the others.
    """

    scores: BaseScores
    families: Mapping[str, str]
    fixed: Mapping[str, Any]
    folder: Path
    blocks: int = 3

    def __call__(self, job: Job, tell: Tell) -> dict[str, float]:
        """See `Objective`."""
        place = self.folder / f"trial-{job.number}"
        place.mkdir(parents=True, exist_ok=True)
        clock = Clock(place / "seconds.json")
        settings = parse_settings(
            EnsembleSettings,
            merged(self.fixed, of_namespace(job.values, "")),
            where=f"trial {job.number}",
        )
        combined = np.empty(len(self.scores.label), dtype=np.float32)
        owner = np.repeat(np.arange(self.scores.n_requests), np.diff(self.scores.offsets))
        everything = np.arange(self.scores.n_requests)
        ensemble: Ensemble | None = None
        for block in np.array_split(everything, self.blocks):
            ensemble = fit_ensemble(
                self.scores.take(np.setdiff1d(everything, block)), self.families, settings
            )
            part = self.scores.take(block)
            combined[np.isin(owner, block)] = ensemble.score(part.base, part.offsets).score
        metrics = ranking_figures(self.scores.judgements, combined)
        assert ensemble is not None
        rows = np.resize(np.arange(len(combined)), ASKED)
        request = {name: scores[rows] for name, scores in self.scores.base.items()}
        bounds = np.array([0, ASKED], dtype=np.int64)
        metrics[LATENCY] = median_ms(partial(ensemble.score, request, bounds))
        ensemble.save(place / "ensemble.json")
        metrics[SIZE] = (place / "ensemble.json").stat().st_size / 1e6
        metrics[SECONDS] = clock.keep()
        return metrics
