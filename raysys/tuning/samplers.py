"""Who proposes: Optuna's samplers, one of ours over rungs, and what a restart must not repeat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial

from raysys.tuning.settings import Bohb, Tpe, TuneSettings

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial


def sampler_of(settings: TuneSettings, known: int) -> BaseSampler:
    """The sampler that a YAML names.

    A search that goes on draws other random numbers: the same would repeat its proposals.

    Args:
        settings: of the search.
        known: trials in the journal.
    """
    seed = settings.seed + known
    searcher = settings.searcher
    if isinstance(searcher, Tpe):
        return tpe(seed, searcher.startup)
    if isinstance(searcher, Bohb):
        startup = searcher.startup or len(settings.space) + 2
        return RungSampler(seed, startup, settings.grace, settings.scheduler.reduction,  # type: ignore[union-attr]
                           searcher.random_share)  # fmt: skip
    return RandomSampler(seed=seed)  # a grid is queued, not drawn


def tpe(seed: int, startup: int) -> TPESampler:
    """TPE over all settings together; trials that still run count as bad ones, lest they repeat.

    Trials that broke a constraint rank after all that did not (`Trial.set_constraint`), stopped
    ones after the completed, by how far they came.
    """
    return TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, constant_liar=True)


class RungSampler(BaseSampler):
    """The model of BOHB: TPE on the scores of one rung, the highest that enough trials reached.

    Trials of HyperBand end at different steps, and scores of different steps cannot be compared.
    So all that reached a rung are compared by their score there, however far they went on
    (Falkner, Klein and Hutter, "BOHB", ICML 2018; its kernel density estimator is Optuna's
    multivariate TPE here). The last rung is the end: the objective of completed trials.

    Args:
        seed: of everything drawn.
        startup: trials that make a rung worth learning from.
        grace: steps of the first rung.
        reduction: from one rung to the next.
        random_share: of proposals drawn at random.
    """

    def __init__(
        self, seed: int, startup: int, grace: int, reduction: int, random_share: float
    ) -> None:
        self._tpe = tpe(seed, startup)
        self._random = RandomSampler(seed=seed)
        self._chance = np.random.default_rng(seed)
        self._startup, self._share = startup, random_share
        self._grace, self._reduction = grace, reduction

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """See Optuna: what all trials that can be learned from have in common."""
        model = self.model(study)
        return {} if model is None else self._tpe.infer_relative_search_space(model, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """See Optuna: a proposal of TPE, or nothing, so that each setting is drawn by itself."""
        model = self.model(study)
        if model is None or not search_space or self._chance.random() < self._share:
            return {}
        asked = model.ask()  # TPE notes there what it proposes
        found = self._tpe.sample_relative(model, model.trials[asked.number], search_space)
        return dict(found)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        """See Optuna: at random."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def model(self, study: Study) -> Study | None:
        """Trials of the highest rung that enough reached, as a study; None: no rung yet."""
        import optuna

        trials = study.get_trials(deepcopy=False)
        reached = self._reached(trials)
        if reached is None:
            return None
        found = optuna.create_study(direction=study.direction, sampler=self._random)
        running = [t for t in trials if t.state is TrialState.RUNNING and t.params]
        for trial in running:
            found.add_trial(
                create_trial(
                    state=TrialState.RUNNING,
                    params=trial.params,
                    distributions=trial.distributions,
                )
            )
        for trial, value in reached:
            found.add_trial(
                create_trial(
                    value=value,
                    params=trial.params,
                    distributions=trial.distributions,
                    constraints=dict(trial.constraints) or None,
                )
            )
        return found

    def _reached(self, trials: list[FrozenTrial]) -> list[tuple[FrozenTrial, float]] | None:
        """Trials of the highest rung that enough reached, each with its score there."""
        ended = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        whole = [(t, float(t.value)) for t in ended if t.state is TrialState.COMPLETE]
        if len(whole) >= self._startup:
            return whole
        furthest = max((max(t.intermediate_values, default=0) for t in ended), default=0)
        rung, rungs = self._grace, []
        while rung <= furthest:
            rungs.append(rung)
            rung *= self._reduction
        for rung in reversed(rungs):
            there = [
                (t, t.intermediate_values[min(steps)])
                for t in ended
                if (steps := [step for step in t.intermediate_values if step >= rung])
            ]
            if len(there) >= self._startup:
                return there
        return None


def known_values(trials: list[FrozenTrial]) -> dict[int, Mapping[int, float]]:
    """By number, scores by step of trials that ended, for a scheduler that begins anew."""
    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    return {trial.number: trial.intermediate_values for trial in trials if trial.state in ended}
