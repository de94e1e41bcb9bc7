"""Population-based training, one interval of one member a trial; see `settings.Pbt`.

The population is read from the journal each time a trial is to be proposed, so nothing of it can
be lost: a search that was killed goes on with the members as they stand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.trial import TrialState

from raysys.errors import UserError
from raysys.tuning.settings import Pbt
from raysys.tuning.space import Choice, Parameter
from raysys.tuning.study import PARENT, SLOT, STEPS

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

WAIT = "wait"


@dataclass(frozen=True)
class Member:
    """What the next trial is: one interval of one member.

    Attributes:
        values: settings.
        slot: which member, from 0.
        steps: to which it is fitted, from the beginning on.
        parent: the trial from whose checkpoint it goes on; None: from none.
    """

    values: dict[str, Any]
    slot: int
    steps: int
    parent: int | None

    @property
    def attributes(self) -> dict[str, Any]:
        """As the journal keeps it."""
        return {SLOT: self.slot, STEPS: self.steps, PARENT: self.parent}


def next_member(
    trials: Sequence[FrozenTrial],
    space: Mapping[str, Parameter],
    settings: Pbt,
    last: int,
    start: Mapping[str, Any] | None,
    sign: float,
    rng: np.random.Generator,
) -> Member | str:
    """The interval to train next: of the member that is least far and idle.

    Args:
        trials: of the study, all states.
        space: what is searched.
        settings: of the population.
        last: steps after which a member is done.
        start: settings of the first member; None: drawn.
        sign: times a score, larger is better.
        rng: for everything drawn.

    Returns:
        A member; `WAIT` while all that are left are training; empty when all are done.
    """
    newest: dict[int, FrozenTrial] = {}
    busy, failed = set(), set()
    for trial in trials:
        slot = trial.user_attrs.get(SLOT)
        if slot is None:
            continue
        failed.discard(slot)
        if trial.state in (TrialState.RUNNING, TrialState.WAITING):
            busy.add(slot)
        elif trial.state is TrialState.COMPLETE:
            newest[slot] = trial
        else:
            failed.add(slot)
    at = {
        slot: int(newest[slot].user_attrs[STEPS]) if slot in newest else 0
        for slot in range(settings.population)
    }
    idle = [slot for slot, steps in at.items() if slot not in busy and steps < last]
    if not idle:
        return WAIT if busy else ""
    slot = min(idle, key=lambda each: (at[each], each))
    own = newest.get(slot)
    steps = at[slot] + settings.interval
    if own is None:
        if slot == 0 and start is not None and slot not in failed:
            values = dict(start)
        else:
            values = {name: drawn(parameter, rng) for name, parameter in space.items()}
        return Member(values, slot, steps, None)
    # whoever came as far, as it was then: scores after different steps do not compare
    peers = [
        trial
        for trial in trials
        if trial.state is TrialState.COMPLETE and trial.user_attrs.get(STEPS) == at[slot]
    ]
    peers.sort(key=lambda trial: (_broken(trial), -sign * float(trial.value), trial.number))
    few = min(len(peers) // 2, max(1, round(len(peers) * settings.quantile)))
    weak = few and own.number in {trial.number for trial in peers[-few:]}
    if not weak and slot not in failed:
        return Member(dict(own.params), slot, steps, own.number)
    strong = peers[int(rng.integers(max(1, few)))]
    values = {
        name: changed(parameter, strong.params[name], settings, rng)
        for name, parameter in space.items()
    }
    return Member(values, slot, steps, strong.number)


def _broken(trial: FrozenTrial) -> bool:
    return any(over > 0 for over in trial.constraints.values())


def drawn(parameter: Parameter, rng: np.random.Generator) -> Any:
    """A value at random, on the parameter's scale."""
    if isinstance(parameter, Choice):
        values = parameter.grid(0)
        return values[int(rng.integers(len(values)))]
    low, high = float(parameter.low), float(parameter.high)
    if parameter.log:
        value = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    else:
        value = float(rng.uniform(low, high))
    return parameter.nearest(value)


def changed(parameter: Parameter, value: Any, settings: Pbt, rng: np.random.Generator) -> Any:
    """A strong member's value, moved a little or drawn anew."""
    if rng.random() < settings.resample:
        return drawn(parameter, rng)
    return parameter.moved(value, settings.factor if rng.random() < 0.5 else 1 / settings.factor)


def check_population(
    names: Sequence[str], changeable: frozenset[str], learner: str, steps: str
) -> None:
    """Hold a space against what may change midway.

    Raises:
        UserError: the learner does not train step by step, or a setting cannot change.
    """
    if not steps or not changeable:
        raise UserError(
            f"{learner} cannot go on from a checkpoint with other settings",
            where="scheduler",
            mend="choose asha, hyperband or none",
        )
    for name in names:
        if name not in changeable:
            raise UserError(
                f"{name!r} cannot change while {learner} is fitted",
                where="space",
                mend=f"pbt searches {', '.join(sorted(changeable))}",
            )
