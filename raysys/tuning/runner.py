"""Ray Tune's side of a search: searcher, scheduler and tuner around Optuna's journal."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import optuna
import ray
from ray import tune
from ray.tune import Callback, FailureConfig
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from raysys.errors import UserError
from raysys.learners.protocol import Resources
from raysys.progress import Task
from raysys.tuning import population, samplers
from raysys.tuning.loggers import loggers
from raysys.tuning.metrics import OF_TEXTS, REPORTED
from raysys.tuning.objective import Job, Objective
from raysys.tuning.schedulers import JOB, STEP, TAIL, scheduler_of
from raysys.tuning.settings import Pbt, TuneSettings
from raysys.tuning.space import distributions
from raysys.tuning.study import (
    ERROR,
    METRICS,
    PARENT,
    SEARCH,
    SPENT,
    STEPS,
    Run,
    journal,
    open_study,
    ranked,
    take_up,
    trials_of,
)

log = logging.getLogger("raysys")

SCORE = "score"
REPORTABLE = frozenset(REPORTED).union(*OF_TEXTS.values())

# Set before a Tuner is made. No logger callbacks but those asked for: the journal has it all. No
# SIGINT handler: Ctrl-C must end the command, not the search alone. The old output: the new prints
# even at `verbose=0`. Rare snapshots: nobody restores from them.
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def run(objective: Objective, plan: Run, left: int, progress: Task) -> None:
    """Run `left` more trials; what comes of each is in the journal when this returns."""
    os.environ.update(_ENVIRONMENT)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    settings, resources = plan.settings, plan.resources
    searcher = JournalSearch(plan)
    trainable = tune.with_resources(
        tune.with_parameters(_trial, objective=objective, metric=settings.objective.metric),
        {"cpu": resources.cpus_per_worker, "gpu": resources.gpus_per_worker},
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler_of(settings, searcher.known),
            num_samples=left,
            max_concurrent_trials=_concurrent(settings, resources),
            time_budget_s=settings.minutes * 60,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=str(plan.folder.resolve()),
            verbose=0,
            failure_config=FailureConfig(max_failures=settings.retries),
            callbacks=[
                _Progress(progress),
                *loggers(settings.logging, plan.folder, plan.study, settings.mlflow_uri),
            ],
        ),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(plan.folder / "ray", ignore_errors=True)


def _trial(config: dict[str, Any], objective: Objective, metric: str) -> None:
    """The function that Ray Tune calls; a module's function, so that workers import it.

    A failure is an outcome like another: other settings may work. Its reason is reported.
    """
    config = dict(config)
    job = config.pop(JOB)
    last = [0, math.nan]

    def tell(step: int, score: float) -> None:
        last[:] = [step, score]
        tune.report({STEP: step, TAIL: score, SCORE: math.nan})

    try:
        metrics = objective(Job(values=config, **job), tell)
        if metric not in metrics:
            raise ValueError(f"it reported no {metric}; there are {', '.join(metrics)}")
        score = metrics[metric]
        if not math.isfinite(score):
            raise ValueError(f"{metric} is {score}")
    except Exception as error:
        log.exception("trial %d with %s failed", job["number"], config)
        said = error.what if isinstance(error, UserError) else error
        reason = f"{type(error).__name__}: {said}"
        tune.report({STEP: 0, TAIL: math.nan, SCORE: math.nan, ERROR: reason})
        return
    step, tail = last
    tail = score if math.isnan(tail) else tail
    tune.report({STEP: step + 1, TAIL: tail, SCORE: score, **metrics})


def _concurrent(settings: TuneSettings, resources: Resources) -> int:
    """Trials side by side: what was asked for, at most what the cluster has room for."""
    there = ray.cluster_resources()
    room = int(there.get("CPU", 1) / max(resources.cpus_per_worker, 0.01))
    if resources.gpus_per_worker:
        room = min(room, int(there.get("GPU", 0) / resources.gpus_per_worker + 1e-9))
    return max(1, min(room, settings.concurrent or room))


class JournalSearch(OptunaSearch):
    """Optuna told of the tail's score on the way and the validation's at the end.

    First it hands out the trials that ran when an earlier run was cut off: they go on under their
    numbers, from their checkpoints. A trial that ASHA stops has no score on the validation fold.
    Optuna calls it pruned, and TPE ranks such trials by their last score on the tail, after those
    that were completed.
    """

    def __init__(self, plan: Run) -> None:
        study = open_study(plan.folder, name=plan.study, goal=plan.settings.objective)
        ended = study.get_trials(deepcopy=False)
        self.known: Mapping[int, Mapping[int, float]] = samplers.known_values(ended)
        self._plan = plan
        self._interrupted = take_up(study, plan.space)
        self._deadline = time.monotonic() + plan.settings.minutes * 60
        self._chance = np.random.default_rng([plan.settings.seed, len(ended)])
        super().__init__(
            distributions(plan.space),
            metric=SCORE,
            mode=plan.settings.objective.direction,
            study_name=plan.study,
            storage=journal(plan.folder),
            sampler=samplers.sampler_of(plan.settings, len(ended)),
        )

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial: one that was interrupted, or a new one; or the end."""
        if self._interrupted:
            trial = self._interrupted.pop(0)
            self._ot_trials[trial_id] = optuna.trial.Trial(self._ot_study, trial._trial_id)
        elif reason := self._enough():
            log.info("search: %s", reason)
            return Searcher.FINISHED
        elif isinstance(self._plan.settings.scheduler, Pbt) and self._plan.study == SEARCH:
            member = self._member(self._plan.settings.scheduler)
            if isinstance(member, str):
                return None if member else Searcher.FINISHED
            self._ot_study.enqueue_trial(member.values, user_attrs=member.attributes)
        if trial_id not in self._ot_trials:
            self._ot_trials[trial_id] = self._ot_study.ask(fixed_distributions=self._space)
        trial = self._ot_trials[trial_id]
        attributes = trial.user_attrs
        job = Job(trial.number, {}, attributes.get(STEPS), attributes.get(PARENT))
        return dict(trial.params) | {JOB: _without_values(job)}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Report the score on the tail."""
        trial = self._ot_trials[trial_id]
        if math.isnan(result[SCORE]) and not math.isnan(result[TAIL]):
            told = self._ot_study.get_trials(deepcopy=False)[trial.number].intermediate_values
            if result[STEP] not in told:  # a retry from a checkpoint tells some steps twice
                trial.report(result[TAIL], result[STEP])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna the score, that the trial was stopped, or that it failed."""
        trial = self._ot_trials[trial_id]
        reason = (result or {}).get(ERROR, "the worker died" if error else "")
        if not reason and (
            not result or (math.isnan(result[SCORE]) and time.monotonic() >= self._deadline)
        ):
            # cut off by the budget: for Optuna it still runs, so that it is taken up again should
            # the search go on
            self._completed_trials.add(trial_id)
            return
        trial.set_user_attr(SPENT, round(self._seconds(trial.number, result), 3))
        if reason:
            trial.set_user_attr(ERROR, reason)
            result, error = None, True
        elif result and math.isnan(result[SCORE]):
            self.on_trial_result(trial_id, result)  # Tune passes the last one here only
            result = {name: value for name, value in result.items() if name != SCORE}
        elif result:
            metrics = {name: result[name] for name in result if _is_metric(name, result)}
            trial.set_user_attr(METRICS, json.dumps(metrics))
            for name, most in self._plan.settings.constraints.items():
                trial.set_constraint(name, metrics[name] - most)
        super().on_trial_complete(trial_id, result, error)
        if not isinstance(self._plan.settings.scheduler, Pbt):  # whose trials are parents, too
            place = self._plan.checkpoints / f"trial-{trial.number}"
            shutil.rmtree(place, ignore_errors=True)

    def _seconds(self, number: int, result: Mapping[str, Any] | None) -> float:
        """That a trial took, those before a kill included as far as they are known."""
        kept = self._plan.checkpoints / f"trial-{number}" / "seconds.json"
        if kept.is_file():
            return float(json.loads(kept.read_text(encoding="utf-8")))
        return float((result or {}).get("time_total_s", 0.0))

    def _member(self, settings: Pbt) -> population.Member | str:
        return population.next_member(
            self._ot_study.get_trials(deepcopy=False),
            self._plan.space,
            settings,
            self._plan.last,
            self._plan.start,
            self._plan.settings.objective.sign,
            self._chance,
        )

    def _enough(self) -> str:
        """Why no trial is to be begun; empty while one is."""
        settings, trials = self._plan.settings, trials_of(self._ot_study)
        hours = sum(trial.seconds for trial in trials) / 3600
        cores, gpus = self._plan.resources.cpus_per_worker, self._plan.resources.gpus_per_worker
        if settings.core_hours is not None and hours * cores >= settings.core_hours:
            return f"{hours * cores:.3g} core-hours are spent"
        if settings.gpu_hours is not None and hours * gpus >= settings.gpu_hours:
            return f"{hours * gpus:.3g} GPU-hours are spent"
        if settings.plateau is not None and self._plan.study == SEARCH:
            since = trials_since_better(trials, settings)
            if since >= settings.plateau.trials:
                return f"nothing better in {since} trials"
        waiting = any(_queued(self._ot_study))
        if settings.searcher.kind == "grid" and not waiting:
            return "the grid is done"
        return ""


def trials_since_better(trials: Sequence[Any], settings: TuneSettings) -> int:
    """Ended trials since one was better than all before it by the plateau's epsilon."""
    assert settings.plateau is not None
    sign, best, since = settings.objective.sign, -math.inf, 0
    able = (
        {trial.number for trial in ranked(trials, settings.objective)}
        if any(trial.state == "complete" for trial in trials)
        else set()
    )
    for trial in trials:
        if trial.number in able and sign * trial.score > best + settings.plateau.epsilon:
            best, since = sign * trial.score, 0
        else:
            since += 1
    return since


def _queued(study: optuna.Study) -> Iterator[Any]:
    yield from study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,))


def _without_values(job: Job) -> dict[str, Any]:
    return {name: value for name, value in asdict(job).items() if name != "values"}


def _is_metric(name: str, result: Mapping[str, Any]) -> bool:
    return name in REPORTABLE and isinstance(result[name], int | float)


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
