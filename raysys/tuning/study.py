"""The journal of a search: every trial as it stands, in a file that no kill leaves damaged.

`trials.log` is Optuna's journal (JSON lines, readable with optuna-dashboard) and holds up to three
studies: the search itself, the random search it is compared with, and the best refitted in full.
A trial is in it from its proposal on, its scores as they come, its end before the next begins.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysys.learners.protocol import Resources
from raysys.tuning.settings import Goal, TuneSettings
from raysys.tuning.space import Parameter

if TYPE_CHECKING:
    import optuna
    from optuna.samplers import BaseSampler
    from optuna.storages import JournalStorage
    from optuna.trial import FrozenTrial

JOURNAL = "trials.log"
SEARCH, RANDOM, FULL = "search", "random", "full"
COMPLETE, STOPPED, FAILED, INFEASIBLE = "complete", "stopped", "failed", "infeasible"
ERROR, SPENT, METRICS, PARENT, STEPS, SLOT = (
    "error", "seconds", "metrics", "parent", "steps", "slot",
)  # fmt: skip
QUEUED = "fixed_params"  # how Optuna calls the values of a trial that was queued


@dataclass(frozen=True)
class Trial:
    """One trial that ended.

    Attributes:
        number: in the order of proposal, from 0.
        values: what was searched.
        state: `complete`, `stopped` (early, by the scheduler), `infeasible` (a constraint is
            broken: never the best) or `failed`.
        score: the objective; None if stopped or failed.
        tail: (step, NDCG@10 on the tail of the fitted rows) as the fit went on.
        seconds: of the fit and the judging, those before a kill included.
        error: why it failed, or which constraint is broken.
        metrics: all that it reported.
        parent: the trial from whose checkpoint it went on; None: from none.
        steps: that it was fitted for in all, where the scheduler says so; else None.
    """

    number: int
    values: dict[str, Any]
    state: str
    score: float | None
    tail: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0
    error: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    parent: int | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Run:
    """One study to be run to its end.

    Attributes:
        study: its name in the journal.
        folder: of the search, with the journal.
        checkpoints: of the trials.
        space: what is searched.
        settings: of the search; trials, minutes and who proposes are taken from it.
        resources: of a trial, on the cluster that is there.
        start: values of the first member of a population.
        last: steps after which a member of a population is done.
    """

    study: str
    folder: Path
    checkpoints: Path
    space: Mapping[str, Parameter]
    settings: TuneSettings
    resources: Resources
    start: Mapping[str, Any] | None = None
    last: int = 0

    def of(self, study: str, settings: TuneSettings) -> Run:
        """Another study of the same search, with checkpoints of its own."""
        place = self.checkpoints.with_name(study)
        return replace(self, study=study, checkpoints=place, settings=settings)


def best_of(trials: Sequence[Trial], goal: Goal | None = None) -> Trial:
    """The completed trial with the best score that keeps to the constraints; the first of equals.

    Raises:
        ValueError: there is none.
    """
    return ranked(trials, goal)[0]


def ranked(trials: Sequence[Trial], goal: Goal | None = None) -> list[Trial]:
    """Completed trials that keep to the constraints, the best first."""
    sign = (goal or Goal()).sign
    found = [trial for trial in trials if trial.state == COMPLETE]
    found.sort(key=lambda trial: (-sign * (trial.score or 0.0), trial.number))
    if not found:
        raise ValueError("no trial was completed")
    return found


def journal(folder: Path) -> JournalStorage:
    """Optuna's storage in a search's folder; made if it is not there."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    folder.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(folder / JOURNAL)))


def open_study(
    folder: Path,
    seed: int = 0,
    *,
    name: str = SEARCH,
    goal: Goal | None = None,
    sampler: BaseSampler | None = None,
) -> optuna.Study:
    """Optuna's study over the journal in a search's folder; made if it is not there."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = sampler or optuna.samplers.RandomSampler(seed=seed)
    if has_study(folder, name):  # who only reads writes nothing
        return optuna.load_study(study_name=name, storage=journal(folder), sampler=sampler)
    return optuna.create_study(
        study_name=name,
        storage=journal(folder),
        sampler=sampler,
        direction="maximize" if (goal or Goal()).sign > 0 else "minimize",
        load_if_exists=True,
    )


def has_study(folder: Path, name: str) -> bool:
    """Whether the journal in a folder holds a study of this name."""
    import optuna

    if not (folder / JOURNAL).is_file():
        return False
    return name in optuna.get_all_study_names(journal(folder))


def trials_of(study: optuna.Study) -> list[Trial]:
    """The trials of a study that ended by themselves, in the order of proposal."""
    from optuna.trial import TrialState

    states = {TrialState.COMPLETE: COMPLETE, TrialState.PRUNED: STOPPED, TrialState.FAIL: FAILED}
    found = []
    for trial in study.get_trials(deepcopy=False):
        attributes = trial.user_attrs
        if trial.state not in states:
            continue
        if never_began(trial):
            continue
        complete = trial.state is TrialState.COMPLETE
        broken = [name for name, over in trial.constraints.items() if over > 0]
        metrics = json.loads(attributes.get(METRICS, "{}"))
        error = str(attributes.get(ERROR, ""))
        if complete and broken:
            error = ", ".join(f"{name} is {metrics[name]:.4g}" for name in broken)
        found.append(
            Trial(
                number=trial.number,
                values=dict(trial.params),
                state=INFEASIBLE if complete and broken else states[trial.state],
                score=trial.value if complete else None,
                tail=sorted(trial.intermediate_values.items()),
                seconds=float(attributes.get(SPENT, 0.0)),
                error=error,
                metrics=metrics,
                parent=attributes.get(PARENT),
                steps=attributes.get(STEPS),
            )
        )
    return found


def never_began(trial: FrozenTrial) -> bool:
    """Whether it was cut off while it was being proposed, and closed."""
    from optuna.trial import TrialState

    return trial.state is TrialState.FAIL and ERROR not in trial.user_attrs


def running(study: optuna.Study) -> list[int]:
    """Numbers of the trials that run, or did when the search was cut off: see `take_up`."""
    from optuna.trial import TrialState

    states = (TrialState.RUNNING,)
    return [trial.number for trial in study.get_trials(deepcopy=False, states=states)]


def only_failed(study: optuna.Study) -> bool:
    """Whether all trials failed, and none is to be taken up: their reason may be mended by now.

    One that broke a constraint is no failure: the same search would measure the same again.
    """
    trials = trials_of(study)
    return bool(trials) and not running(study) and all(t.state == FAILED for t in trials)


def take_up(study: optuna.Study, space: Mapping[str, Any]) -> list[FrozenTrial]:
    """The trials that ran when an earlier run was cut off, to be run on from their checkpoints.

    One that was killed while it was being proposed lacks values: it never began, and is closed. Its
    point is queued again where it came from a queue; a population proposes its members anew.
    """
    from optuna.trial import TrialState

    found = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial.params.keys() == space.keys():
            found.append(trial)
        else:
            study.tell(trial.number, state=TrialState.FAIL)
            queued = trial.system_attrs.get(QUEUED)
            if queued is not None and SLOT not in trial.user_attrs:
                study.enqueue_trial(queued, user_attrs=trial.user_attrs)
    return found
