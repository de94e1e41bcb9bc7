"""The search itself: Optuna proposes, ASHA stops the hopeless, Ray Tune runs trials side by side.

Every trial that ends is in `trials.log` (Optuna's journal, JSON lines, readable with
optuna-dashboard) before the next one starts. A search that was cut off, by whatever means, goes on
from there: trials that had ended are kept, those that ran are run again with the same settings.
`Tuner.restore` is not used: its snapshots lag behind by seconds, so a kill loses ended trials, and
it keeps state as pickles.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raysys.catalogue import Catalogue
from raysys.errors import UserError
from raysys.features.batch import Batch
from raysys.features.examples import Examples
from raysys.learners import make_learner
from raysys.learners.protocol import Context, Resources
from raysys.learners.validation import NDCG
from raysys.progress import task
from raysys.tuning.space import Parameter, Scalar

if TYPE_CHECKING:
    import optuna
    from optuna.storages import JournalStorage

log = logging.getLogger("raysys")

JOURNAL = "trials.log"
METRIC = "ndcg@10"
TAIL = "tail_ndcg@10"
STEP = "step"
ERROR = "error"
STUDY = "search"

COMPLETE, STOPPED, FAILED = "complete", "stopped", "failed"


@dataclass(frozen=True)
class Trial:
    """One trial that ended.

    Attributes:
        number: in the order of proposal, from 0.
        values: what was searched.
        state: `complete`, `stopped` (by ASHA, early) or `failed`.
        score: NDCG@10 on the validation fold; None unless complete.
        tail: (step, NDCG@10 on the tail of the fitted rows) as the fit went on.
        seconds: of the fit and the judging.
        error: why it failed.
    """

    number: int
    values: dict[str, Scalar]
    state: str
    score: float | None
    tail: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Budget:
    """How much a search may spend, and how.

    Attributes:
        trials: how many, those of earlier runs of the same search included.
        minutes: wall clock of this run; trials that still run then are cut off.
        concurrent: trials side by side; None: as many as the cluster has room for.
        resources: of one trial.
        grace: steps before ASHA may stop a trial, and how often a trial tells its score; 0: no
            trial is stopped.
        reduction: ASHA lets one trial in so many go on past each rung.
    """

    trials: int
    minutes: float
    concurrent: int | None = None
    resources: Resources = field(default_factory=Resources)
    grace: int = 0
    reduction: int = 3


@dataclass(frozen=True)
class Objective:
    """What one trial does: fit on the train folds, score the validation fold.

    Attributes:
        learner: name in the registry of learners.
        fixed: settings that are not searched.
        examples: the train folds.
        validation: labelled rows to judge by.
        catalogue: every item.
        scratch: a folder that all workers see.
        seed: of every fit.
        resources: of every fit.
        grace: the score on the tail is told every so many steps; 0: never.
    """

    learner: str
    fixed: Mapping[str, Any]
    examples: Examples
    validation: Batch
    catalogue: Catalogue
    scratch: Path
    seed: int
    resources: Resources
    grace: int

    def __call__(self, values: Mapping[str, Any]) -> None:
        """Run a trial inside a Ray Tune worker, reporting to Tune as it goes.

        A failure is an outcome like another: other settings may work. Its reason is reported.
        """
        from ray import tune

        try:
            tune.report(self._outcome(values))
        except Exception as error:
            log.exception("trial with %s failed", dict(values))
            said = error.what if isinstance(error, UserError) else error
            reason = f"{type(error).__name__}: {said}"
            tune.report({STEP: 0, TAIL: math.nan, METRIC: math.nan, ERROR: reason})

    def _outcome(self, values: Mapping[str, Any]) -> dict[str, float]:
        """Fit, telling the score on the tail on the way, and judge."""
        from ray import tune

        last = [0, math.nan]
        due = self.grace

        def told(step: int, score: float) -> None:
            nonlocal due
            last[:] = [step, score]
            if step >= due:
                due = step + self.grace
                tune.report({STEP: step, TAIL: score, METRIC: math.nan})

        learner = make_learner(self.learner, {**self.fixed, **values})
        context = Context(self.catalogue, self.scratch, self.seed, self.resources)
        model = learner.fit_local(self.examples, context, told if self.grace else None)
        score = NDCG(self.validation)(model.score(self.validation))
        step, tail = last
        tail = score if math.isnan(tail) else tail
        return {STEP: step + 1, TAIL: tail, METRIC: score}


def search(
    objective: Objective,
    space: Mapping[str, Parameter],
    budget: Budget,
    folder: Path,
    *,
    start: Mapping[str, Scalar] | None = None,
) -> list[Trial]:
    """Run trials until the budget is spent, going on where an earlier run ended.

    Args:
        objective: what a trial does.
        space: what is searched.
        budget: trials, minutes, resources.
        folder: holds the journal; of one search only.
        start: values of the first trial, to have the learner's own among those compared.

    Returns:
        All trials that ended, of this run and earlier ones, in order of proposal.

    Raises:
        UserError: no trial could be completed.
    """
    from raysys.tuning import runner

    study = open_study(folder, objective.seed)
    waiting = _take_up(study, start)
    before = trials_of(study)
    left = budget.trials - len(before)
    if left > 0:
        with task(f"tune {objective.learner}", total=budget.trials) as progress:
            progress.reach(len(before))
            scratch = folder / "ray"
            try:
                runner.run(objective, space, budget, folder, left, progress)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
            progress.note = _note(trials_of(open_study(folder, objective.seed)), waiting)
    trials = trials_of(open_study(folder, objective.seed))
    if not any(trial.state == COMPLETE for trial in trials):
        reasons = [trial.error for trial in trials if trial.error]
        raise UserError(
            f"none of {len(trials)} trials could be completed"
            + (f"; the first failed with: {reasons[0]}" if reasons else ""),
            where=str(folder),
            mend="narrow the space to settings that work, or give more minutes; run again, it "
            "starts anew",
        )
    return trials


def best_of(trials: list[Trial]) -> Trial:
    """The completed trial with the highest score; the earliest of equals."""
    return max(
        (trial for trial in trials if trial.score is not None),
        key=lambda trial: (trial.score, -trial.number),
    )


def journal(folder: Path) -> JournalStorage:
    """Optuna's storage in a search's folder; made if it is not there."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    folder.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(folder / JOURNAL)))


def open_study(folder: Path, seed: int) -> optuna.Study:
    """Optuna's study over the journal in a search's folder; made if it is not there."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(
        study_name=STUDY,
        storage=journal(folder),
        sampler=optuna.samplers.TPESampler(seed=seed),
        direction="maximize",
        load_if_exists=True,
    )


def trials_of(study: optuna.Study) -> list[Trial]:
    """The trials of a study that ended by themselves."""
    from optuna.trial import TrialState

    states = {TrialState.COMPLETE: COMPLETE, TrialState.PRUNED: STOPPED, TrialState.FAIL: FAILED}
    found = []
    for trial in study.get_trials(deepcopy=False):
        attributes = trial.user_attrs
        if trial.state not in states:
            continue
        if trial.state is TrialState.FAIL and "error" not in attributes:
            continue  # cut off, and queued again
        found.append(
            Trial(
                number=trial.number,
                values=dict(trial.params),
                state=states[trial.state],
                score=trial.value if trial.state is TrialState.COMPLETE else None,
                tail=sorted(trial.intermediate_values.items()),
                seconds=float(attributes.get("seconds", 0.0)),
                error=str(attributes.get("error", "")),
            )
        )
    return found


def _take_up(study: optuna.Study, start: Mapping[str, Scalar] | None) -> int:
    """Queue again what was running when an earlier run ended; returns how many those are."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    if not trials and start is not None:
        study.enqueue_trial(dict(start))
    running = [trial for trial in trials if trial.state is TrialState.RUNNING]
    for trial in running:
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return len(running)


def _note(trials: list[Trial], resumed: int) -> str:
    """What came of a search, in a line."""
    stopped = sum(trial.state == STOPPED for trial in trials)
    failed = sum(trial.state == FAILED for trial in trials)
    parts = [f"{len(trials)} trials, {stopped} stopped early"]
    if failed:
        parts.append(f"{failed} failed")
    if resumed:
        parts.append(f"{resumed} run again after an interruption")
    if len(trials) > stopped + failed:
        best = best_of(trials)
        parts.append(f"best {METRIC} {best.score:.4f} in trial {best.number}")
    return ", ".join(parts)
