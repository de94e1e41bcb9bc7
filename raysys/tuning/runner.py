"""Ray Tune's side of a search: searcher, scheduler and tuner around Optuna's journal."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import Callback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from raysys.progress import Task
from raysys.tuning.search import (
    ERROR,
    METRIC,
    STEP,
    STUDY,
    TAIL,
    Budget,
    Objective,
    journal,
    open_study,
)
from raysys.tuning.space import Parameter, distributions

# Set before a Tuner is made. No logger callbacks: the journal has it all. No SIGINT handler: Ctrl-C
# must end the command, not the search alone. The old output: the new prints even at `verbose=0`.
# Rare snapshots: nobody restores from them.
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def run(
    objective: Objective,
    space: Mapping[str, Parameter],
    budget: Budget,
    folder: Path,
    left: int,
    progress: Task,
) -> None:
    """Run `left` more trials; what comes of each is in the journal when this returns."""
    os.environ.update(_ENVIRONMENT)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    resources = budget.resources
    searcher = _Searcher(
        distributions(space),
        metric=METRIC,
        mode="max",
        study_name=STUDY,
        storage=journal(folder),
        sampler=_sampler(folder, objective.seed),
    )
    searcher.deadline = time.monotonic() + budget.minutes * 60
    trainable = tune.with_resources(
        tune.with_parameters(_trial, objective=objective),
        {"cpu": resources.cpus_per_worker, "gpu": resources.gpus_per_worker},
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=_scheduler(budget),
            num_samples=left,
            max_concurrent_trials=_concurrent(budget),
            time_budget_s=budget.minutes * 60,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(folder.resolve()),
            verbose=0,
            callbacks=[_Progress(progress)],
        ),
    )
    tuner.fit()


def _trial(values: dict[str, Any], objective: Objective) -> None:
    """The function that Ray Tune calls; a module's function, so that workers import it."""
    objective(values)


def _scheduler(budget: Budget) -> TrialScheduler:
    """ASHA (Li et al. 2020) on the tail's score, or no early end."""
    if not budget.grace:
        return FIFOScheduler()
    return _Patient(
        time_attr=STEP,
        metric=TAIL,
        mode="max",
        grace_period=budget.grace,
        reduction_factor=budget.reduction,
        max_t=budget.grace * 10**6,  # fits end by themselves
    )


def _concurrent(budget: Budget) -> int:
    """Trials side by side: what was asked for, at most what the cluster has room for."""
    there = ray.cluster_resources()
    resources = budget.resources
    room = int(there.get("CPU", 1) / max(resources.cpus_per_worker, 0.01))
    if resources.gpus_per_worker:
        room = min(room, int(there.get("GPU", 0) / resources.gpus_per_worker))
    return max(1, min(room, budget.concurrent or room))


def _sampler(folder: Path, seed: int) -> Any:
    """TPE. A resumed search goes on with other random numbers: the same would repeat proposals."""
    import optuna

    known = len(open_study(folder, seed).get_trials(deepcopy=False))
    return optuna.samplers.TPESampler(
        seed=seed + known, n_startup_trials=8, multivariate=True, constant_liar=True
    )


class _Patient(ASHAScheduler):
    """ASHA that never stops the first trials: one or two scores are no basis to judge another.

    The first is the learner's own settings, which should be compared at the end, too.
    """

    def __init__(self, *, reduction_factor: float, **settings: Any) -> None:
        super().__init__(reduction_factor=reduction_factor, **settings)
        self._first: set[str] = set()
        self._free = int(reduction_factor)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """See `TrialScheduler.on_trial_result`."""
        if len(self._first) < self._free:
            self._first.add(trial.trial_id)
        action: str = super().on_trial_result(tune_controller, trial, result)
        return self.CONTINUE if trial.trial_id in self._first else action


class _Searcher(OptunaSearch):
    """Optuna told of the tail's score on the way and the validation's at the end.

    A trial that ASHA stops has no score on the validation fold. Optuna calls it pruned, and its
    sampler ranks such trials by their last score on the tail, after those that were completed.
    """

    deadline = math.inf

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Report the score on the tail."""
        if math.isnan(result[METRIC]) and not math.isnan(result[TAIL]):
            self._ot_trials[trial_id].report(result[TAIL], result[STEP])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna the score, that the trial was stopped, or that it failed."""
        trial = self._ot_trials[trial_id]
        reason = (result or {}).get(ERROR, "the worker died" if error else "")
        if reason:
            trial.set_user_attr("error", reason)
            result, error = None, True
        elif not result or (math.isnan(result[METRIC]) and time.monotonic() >= self.deadline):
            # cut off by the budget: for Optuna it still runs, so that it is taken up again should
            # the search go on
            self._completed_trials.add(trial_id)
            return
        else:
            trial.set_user_attr("seconds", round(float(result["time_total_s"]), 3))
            if math.isnan(result[METRIC]):
                self.on_trial_result(trial_id, result)  # Tune passes the last one here only
                result = {name: value for name, value in result.items() if name != METRIC}
        super().on_trial_complete(trial_id, result, error)


class _Progress(Callback):
    """Counts ended trials."""

    def __init__(self, progress: Task) -> None:
        self._progress = progress

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks, and a terminal cannot be pickled."""
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial ended."""
        self._progress.advance()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        """A trial failed."""
        self._progress.advance()
