"""The search itself: Optuna proposes, a scheduler stops the hopeless, Ray Tune runs trials.

Every trial that ends is in the journal before the next one starts (`study.py`), and every trial
that runs keeps checkpoints (`objective.py`). A search that was cut off, by whatever means, goes on
from there: trials that had ended are kept, those that ran go on from their last checkpoint.
`Tuner.restore` is not used: its snapshots lag behind by seconds, so a kill loses ended trials, it
knows of checkpoints only those that such a snapshot saw, and it keeps state as pickles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from raysys.errors import UserError
from raysys.progress import task
from raysys.tuning.objective import Objective
from raysys.tuning.settings import Full, Grid, NoScheduler, Random, TuneSettings
from raysys.tuning.space import Scalar, grid, inside
from raysys.tuning.study import (
    COMPLETE,
    FAILED,
    FULL,
    INFEASIBLE,
    QUEUED,
    RANDOM,
    SEARCH,
    STEPS,
    STOPPED,
    Run,
    Trial,
    best_of,
    never_began,
    only_failed,
    open_study,
    ranked,
    trials_of,
)


def search(
    objective: Objective,
    plan: Run,
    *,
    start: Mapping[str, Scalar] | None = None,
    first: Sequence[tuple[Mapping[str, Scalar], Mapping[str, Any]]] = (),
) -> list[Trial]:
    """Run the trials of one study until its budget is spent, going on where an earlier run ended.

    Args:
        objective: what a trial does.
        plan: the study, its space, its settings.
        start: values of the first trial, to have the learner's own among those compared.
        first: values of the trials after it, and attributes for the journal.

    Returns:
        All trials that ended, of this run and earlier ones, in order of proposal.

    Raises:
        UserError: no trial could be completed, or none keeps to the constraints.
    """
    from raysys.tuning import runner

    settings: TuneSettings = plan.settings
    goal = settings.objective
    study = open_study(plan.folder, name=plan.study, goal=goal)
    interrupted = sum(t.state.name == "RUNNING" for t in study.get_trials(deepcopy=False))
    if not study.get_trials(deepcopy=False) or isinstance(settings.searcher, Grid):
        _queue(study, plan, start, first)
    before = trials_of(study)
    left = settings.trials - len(before)
    if left > 0:
        total = None if plan.study == RANDOM else settings.trials  # that ends by its cost
        with task(_title(settings, plan.study), total=total) as progress:
            progress.reach(len(before))
            runner.run(objective, plan, left, progress)
            ended = trials_of(open_study(plan.folder, name=plan.study, goal=goal))
            progress.note = _note(ended, interrupted, settings)
    study = open_study(plan.folder, name=plan.study, goal=goal)
    trials = trials_of(study)
    if plan.study != RANDOM:
        _require_some(trials, settings, anew=only_failed(study), where=str(plan.folder))
    return trials


def random_search(
    objective: Objective, plan: Run, trials: Sequence[Trial], start: Mapping[str, Scalar] | None
) -> list[Trial]:
    """What a random search finds that may cost as much as a search did, in core-seconds.

    Nobody is stopped early, as a random search knows no better. The trial in which the cost is
    reached is the last; what it costs more is seen in the report.

    Args:
        objective: of the search.
        plan: of the search.
        trials: of the search.
        start: its first trial, which both of them try.
    """
    hours = sum(trial.seconds for trial in trials) / 3600
    settings = plan.settings.model_copy(
        update={
            "searcher": Random(),
            "scheduler": NoScheduler(),
            "plateau": None,
            "trials": 100 * plan.settings.trials,
            "core_hours": hours * plan.resources.cpus_per_worker,
            "gpu_hours": None,
            "constraints": plan.settings.constraints,
        }
    )
    study = open_study(plan.folder, name=RANDOM, goal=settings.objective)
    spent = sum(trial.seconds for trial in trials_of(study)) / 3600
    if study.get_trials(deepcopy=False) and spent >= hours:
        return trials_of(study)
    return search(objective, plan.of(RANDOM, settings), start=start)


def refit_full(
    objective: Objective,
    plan: Run,
    trials: Sequence[Trial],
    start: Mapping[str, Scalar] | None,
) -> list[Trial]:
    """The best few of a search and the learner's own settings, judged on everything.

    Args:
        objective: on all requests, with all steps.
        plan: of the search.
        trials: of the search.
        start: the learner's own settings of what was searched; None: outside the space.
    """
    full, proxy = plan.settings.full or Full(), plan.settings.proxy
    share = proxy.steps if proxy else 1.0
    chosen: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = []
    for trial in ranked(trials, plan.settings.objective):
        if trial.values not in [values for values, _ in chosen] and len(chosen) < full.best:
            steps = {} if trial.steps is None else {STEPS: round(trial.steps / share)}
            chosen.append((trial.values, steps))
    if start is not None and dict(start) not in [values for values, _ in chosen]:
        chosen.append((dict(start), {}))
    study = open_study(plan.folder, name=FULL, goal=plan.settings.objective)
    there = study.get_trials(deepcopy=False, states=(*_states(True), *_states(False)))
    known = [trial.system_attrs.get(QUEUED, trial.params) for trial in there]
    for values, attributes in chosen:  # others than before, if the search went on
        if dict(values) not in known:
            study.enqueue_trial(dict(values), user_attrs=dict(attributes))
    waiting = len(study.get_trials(deepcopy=False, states=_states(False)))
    settings = plan.settings.model_copy(
        update={
            "searcher": Random(),
            "scheduler": NoScheduler(),
            "plateau": None,
            "trials": len(trials_of(study)) + waiting,
            "minutes": full.minutes,
            "core_hours": None,
            "gpu_hours": None,
        }
    )
    return search(objective, plan.of(FULL, settings))


def _queue(
    study: Any,
    plan: Run,
    start: Mapping[str, Scalar] | None,
    first: Sequence[tuple[Mapping[str, Scalar], Mapping[str, Any]]],
) -> None:
    """What is tried before anything is proposed."""
    settings: TuneSettings = plan.settings
    if plan.study == SEARCH and settings.scheduler.kind == "pbt":
        return  # a population begins with `start` by itself
    if plan.study == SEARCH and isinstance(settings.searcher, Grid):
        points = grid(plan.space, settings.searcher.points, settings.seed)
        there = [trial for trial in study.get_trials(deepcopy=False) if not never_began(trial)]
        known = [trial.system_attrs.get(QUEUED) for trial in there]
        for point in islice(points, settings.trials):  # more, if the search goes on with more
            if point not in known:
                study.enqueue_trial(point)
        return
    for values, attributes in [*([(start, {})] if start is not None else []), *first]:
        if inside(plan.space, values):
            study.enqueue_trial(dict(values), user_attrs=dict(attributes), skip_if_exists=True)


def _require_some(
    trials: Sequence[Trial], settings: TuneSettings, *, anew: bool, where: str
) -> None:
    """Look for a trial that can be the best.

    Args:
        trials: that ended.
        settings: of the search.
        anew: whether the search begins from nothing when it is run again.
        where: names the search in errors.

    Raises:
        UserError: there is none; says why.
    """
    if any(trial.state == COMPLETE for trial in trials):
        return
    infeasible = [trial for trial in trials if trial.state == INFEASIBLE]
    if infeasible:
        least = {
            name: min(trial.metrics[name] for trial in infeasible) for name in settings.constraints
        }
        told = ", ".join(
            f"{name} at most {most:g}, the least was {least[name]:.4g}"
            for name, most in settings.constraints.items()
        )
        raise UserError(
            f"none of {len(trials)} trials keeps to the constraints ({told})",
            where=where,
            mend="allow more, or search settings that cost less; these trials are kept: give more "
            "trials to go on, or --force to measure anew",
        )
    reasons = [trial.error for trial in trials if trial.error]
    raise UserError(
        f"none of {len(trials)} trials could be completed"
        + (f"; the first failed with: {reasons[0]}" if reasons else ""),
        where=where,
        mend="narrow the space to settings that work, or give more minutes; run again, it "
        + ("starts anew" if anew else "goes on with what was cut off"),
    )


def _states(ended: bool) -> tuple[Any, ...]:
    """Optuna's states of trials that ended and did not fail, or of those that are to run."""
    from optuna.trial import TrialState

    if ended:
        return (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
    return (TrialState.WAITING, TrialState.RUNNING)


def _title(settings: TuneSettings, study: str) -> str:
    told = {SEARCH: "", RANDOM: ": at random", FULL: ": the best in full"}[study]
    return f"tune {settings.folder_name}{told}"


def _note(trials: Sequence[Trial], resumed: int, settings: TuneSettings) -> str:
    """What came of a study, in a line."""
    count = {
        state: sum(trial.state == state for trial in trials)
        for state in (STOPPED, FAILED, INFEASIBLE)
    }
    parts = [f"{len(trials)} trials, {count[STOPPED]} stopped early"]
    parts += [f"{count[state]} {state}" for state in (FAILED, INFEASIBLE) if count[state]]
    if resumed:
        parts.append(f"{resumed} taken up again after an interruption")
    if len(trials) > sum(count.values()):
        best = best_of(trials, settings.objective)
        parts.append(f"best {settings.objective.metric} {best.score:.4f} in trial {best.number}")
    return ", ".join(parts)
