"""Who is stopped early: ASHA that spares the first, knows earlier runs, and has brackets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from raysys.tuning.settings import Asha, Hyperband, TuneSettings

STEP = "step"
TAIL = "tail_ndcg@10"
JOB = "trial"


def scheduler_of(
    settings: TuneSettings, known: Mapping[int, Mapping[int, float]]
) -> TrialScheduler:
    """The scheduler that a YAML names; population-based training stops nobody.

    Args:
        settings: of the search.
        known: by number, scores by step of trials that ended in earlier runs of the search.
    """
    scheduler = settings.scheduler
    if not isinstance(scheduler, Asha):
        return FIFOScheduler()
    brackets = scheduler.brackets if isinstance(scheduler, Hyperband) else 1
    return Patient(scheduler.grace, scheduler.reduction, brackets, settings.seed, known)


class Patient(ASHAScheduler):
    """ASHA that never stops the first trials: one or two scores are no basis to judge another.

    The first is the learner's own settings, which should be compared at the end, too.

    Args:
        grace: steps before a trial may be stopped.
        reduction: one trial in so many goes on past each rung.
        brackets: with more than one, each trial is drawn into one by its number.
        seed: of that draw.
        known: by number, scores by step of trials that ended before: they stand on the rungs, too.
    """

    def __init__(
        self,
        grace: int,
        reduction: int,
        brackets: int = 1,
        seed: int = 0,
        known: Mapping[int, Mapping[int, float]] | None = None,
    ) -> None:
        super().__init__(
            time_attr=STEP,
            metric=TAIL,
            mode="max",
            grace_period=grace,
            reduction_factor=reduction,
            max_t=grace * 10**6,  # fits end by themselves
            brackets=brackets,
        )
        self._seed = seed
        self._first: set[str] = set()
        known = known or {}
        self._free = max(0, reduction - len(known))
        for number, values in known.items():
            for milestone, recorded in self._bracket(number)._rungs:
                reached = [step for step in values if step >= milestone]
                if reached:
                    recorded[f"before-{number}"] = values[min(reached)]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """See `TrialScheduler.on_trial_add`; Ray draws from a global random number."""
        self._trial_info[trial.trial_id] = self._bracket(int(trial.config[JOB]["number"]))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """See `TrialScheduler.on_trial_result`."""
        if len(self._first) < self._free:
            self._first.add(trial.trial_id)
        action: str = super().on_trial_result(tune_controller, trial, result)
        return self.CONTINUE if trial.trial_id in self._first else action

    def _bracket(self, number: int) -> Any:
        """The bracket of a trial: each is e times as likely as the next, whose grace is longer."""
        chance = np.exp(-np.arange(len(self._brackets), dtype=float))
        rng = np.random.default_rng([self._seed, number])
        return self._brackets[rng.choice(len(chance), p=chance / chance.sum())]
