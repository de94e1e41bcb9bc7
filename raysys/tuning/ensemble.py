"""Searching how base scores are combined: no learner is fitted again, a trial takes seconds.

Judged on blocks, of time or of what `block_by` says: the ensemble is fitted without a block and
scores it, for every block.
What `fit_ensemble` says of its own methods is not used, as the choice among them is part of what
is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from raysys.config import parse_settings
from raysys.ensemble import BaseScores, Ensemble, EnsembleSettings, fit_ensemble
from raysys.ensemble.bench import Beside, cut
from raysys.features.batch import Batch
from raysys.tuning.metrics import ASKED, LATENCY, SECONDS, SIZE, quiet_ms, ranking_figures
from raysys.tuning.objective import Clock, Job, Tell
from raysys.tuning.space import merged, of_namespace

ENSEMBLE = "ensemble"


@dataclass(frozen=True)
class EnsembleObjective:
    """Fits the ensemble on stored out-of-fold base scores with a trial's settings.

    Attributes:
        scores: that the ensemble of `raysys train` was fitted on, by all members, as one fold.
        families: family of every member.
        fixed: settings that are not searched.
        folder: of the trials.
        blocks: judged in turn by an ensemble fitted on the others: of time, without requests whose
            labels were settled no earlier than they begin, or of `block_by`'s groups.
        beside: what is known of the requests, by a trial's settings; None: only their order is.
        batch: the candidates, whose features trees may read; None: they read scores alone.
    """

    scores: BaseScores
    families: Mapping[str, str]
    fixed: Mapping[str, Any]
    folder: Path
    blocks: int = 3
    beside: Callable[[EnsembleSettings], Beside] | None = None
    batch: Batch | None = None

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
        beside = Beside() if self.beside is None else self.beside(settings)
        n, rows = self.scores.n_requests, self.scores.judgements.rows
        moment = np.arange(n) if beside.moment is None else beside.moment
        ensemble: Ensemble | None = None
        for fitted, judged in cut(
            settings, self.blocks, moment, beside.window(settings), beside.group
        ):
            ensemble = fit_ensemble(
                *(self.scores.take(fitted), self.families, settings),
                beside.take(fitted, rows(fitted)),
            )
            part = self.scores.take(judged)
            batch = None if self.batch is None else self.batch.take_requests(judged)
            combined[rows(judged)] = ensemble.score(part.base, part.offsets, batch).score
        metrics = ranking_figures(self.scores.judgements, combined)
        assert ensemble is not None
        some = np.resize(np.arange(len(combined)), ASKED)
        request = {name: scores[some] for name, scores in self.scores.base.items()}
        bounds = np.array([0, ASKED], dtype=np.int64)
        shown = None
        if self.batch is not None:
            one = self.batch.take_requests(np.zeros(1, np.int64))
            shown = replace(
                one, item=self.batch.item[some], features=self.batch.features[some], offsets=bounds
            )
        metrics[LATENCY] = quiet_ms(partial(ensemble.score, request, bounds, shown))
        ensemble.save(place / "ensemble.json")
        metrics[SIZE] = (place / "ensemble.json").stat().st_size / 1e6
        metrics[SECONDS] = clock.keep()
        return metrics
