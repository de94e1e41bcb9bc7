"""How a bandit gives an experiment's users to its arms.

The weights follow from all lists so far and nothing else: whoever computes them again gets the
same, so no state can be lost, and a list that comes late counts the next time. Each exposure says
the probability with which its arm was drawn, by which `arm_values` judges.
"""

from __future__ import annotations

import datetime as dt
import itertools
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from raysys.experiments.assignment import Assignment, hashes
from raysys.experiments.bandits import LinUCB, Thompson
from raysys.experiments.definition import Experiment
from raysys.experiments.lists import with_rewards
from raysys.experiments.parts import Attributes, BanditSettings, Metric, as_text

Float64 = npt.NDArray[np.float64]

_HASH_SPACE = 1 << 64
_MOST_CONTEXTS = 1000  # that weights are kept for; others get those of nobody in particular
_UNSEEN = "\0"  # a value that no attribute has
_MOST_VALUES = 100  # of attributes, that a linear model learns


@dataclass(frozen=True)
class Allocation:
    """The weights of an experiment's arms until the next look.

    Attributes:
        step: of the look; 0: nobody has looked yet.
        made: UTC ms of it.
        context: attributes by which weights differ, in order.
        otherwise: probability of each arm, in the order of the experiment.
        by_context: values of `context` → probabilities; all others get `otherwise`.
        lists, rewards: of each arm, that the weights were made of.
    """

    step: int
    made: int
    context: tuple[str, ...]
    otherwise: tuple[float, ...]
    by_context: Mapping[tuple[str, ...], tuple[float, ...]]
    lists: tuple[int, ...]
    rewards: tuple[int, ...]

    def weights(self, attributes: Attributes) -> tuple[float, ...]:
        """Probabilities of the arms for somebody with such attributes."""
        if not self.context:
            return self.otherwise
        key = tuple(as_text(attributes[c]) if c in attributes else "" for c in self.context)
        return self.by_context.get(key, self.otherwise)

    def draw(self, experiment: Experiment, user_id: str, attributes: Attributes) -> Assignment:
        """The arm of a user until the next look; its propensity is of those who are in."""
        weights = self.weights(attributes)
        # no user's id begins so in the draw of who is in, which has the same salt
        of_step = f"\0{self.step} {user_id}"
        place = hashes(experiment.salt or experiment.name, of_step)[1] / _HASH_SPACE
        at = bisect_right(list(itertools.accumulate(weights))[:-1], place)
        return Assignment(experiment.name, experiment.arms[at], weights[at])


def even(experiment: Experiment) -> Allocation:
    """What holds before anything is known."""
    n = len(experiment.arms)
    context = () if experiment.bandit is None else experiment.bandit.context
    return Allocation(0, 0, context, (1 / n,) * n, {}, (0,) * n, (0,) * n)


def allocate(
    experiment: Experiment,
    metric: Metric,
    exposures: pl.LazyFrame,
    answers: pl.LazyFrame,
    now: int,
    step: int,
) -> Allocation:
    """Weigh the arms by what came of the lists so far.

    Args:
        experiment: one with `bandit`.
        metric: its primary; a list that got any of its events is rewarded.
        exposures: as `read_exposures` gives them.
        answers: columns of `event_sources.ANSWERING`.
        now: UTC ms; lists of the last `settle_minutes` do not count yet.
        step: of this look, above those before.
    """
    bandit = experiment.bandit
    assert bandit is not None
    settled = dt.datetime.fromtimestamp(now / 1000 - bandit.settle_minutes * 60, dt.UTC)
    lists = with_rewards(experiment, metric, exposures, answers)
    lists = lists.filter(pl.col("timestamp") <= settled)
    names = [arm.name for arm in experiment.arms]
    keys = [
        pl.col("attributes").map.get(name).fill_null("").alias(f"context.{name}")
        for name in bandit.context
    ]
    grouped = (
        lists.filter(pl.col("arm").is_in(names))
        .select("arm", "reward", *keys)
        .group_by("arm", *(f"context.{name}" for name in bandit.context))
        .agg(lists=pl.len(), rewards=pl.col("reward").sum())
        .sort(pl.all())
        .collect()
    )
    by_arm = {str(arm): (0, 0) for arm in names}
    for arm, n, earned in grouped.group_by("arm").agg(
        pl.col("lists").sum(), pl.col("rewards").sum()
    ).iter_rows():  # fmt: skip
        by_arm[arm] = (int(n), int(earned))
    shown = tuple(by_arm[name][0] for name in names)
    earned_ = tuple(by_arm[name][1] for name in names)
    if bandit.kind == "thompson":
        arms = Thompson(names, floor=bandit.floor)
        arms.successes += np.array(earned_, np.float64)
        arms.failures += np.array(shown, np.float64) - np.array(earned_, np.float64)
        weights = tuple(float(p) for p in arms.probabilities())
        return Allocation(step, now, (), weights, {}, shown, earned_)
    otherwise, by_context = _by_bounds(bandit, names, grouped)
    return Allocation(step, now, bandit.context, otherwise, by_context, shown, earned_)


def _by_bounds(
    bandit: BanditSettings, names: Sequence[str], grouped: pl.DataFrame
) -> tuple[tuple[float, ...], dict[tuple[str, ...], tuple[float, ...]]]:
    """Probabilities by LinUCB: of unknown contexts, and of each that was seen.

    A list's features are its arm, and its arm with each value of its context: columns of their own,
    one where they apply; the `_MOST_VALUES` most frequent values have some. Equal rows are counted
    once with their number.
    """
    columns = [f"context.{name}" for name in bandit.context]
    frequent = (
        grouped.group_by(columns)
        .agg(pl.col("lists").sum())
        .sort("lists", *columns, descending=True)
        if columns
        else grouped.clear()
    )
    seen = frequent.head(_MOST_CONTEXTS).select(columns).rows() if columns else []
    counts: Counter[tuple[int, str]] = Counter()
    for *row, n in grouped.select(*columns, "lists").iter_rows():
        counts.update(dict.fromkeys(enumerate(row), n))
    values = sorted(each for each, _ in counts.most_common(_MOST_VALUES))
    place = {each: 1 + number for number, each in enumerate(values)}
    width = 1 + len(values)

    def features(arm: int, context: Sequence[str]) -> Float64:
        row = np.zeros(width * len(names))
        row[arm * width] = 1.0
        for at, value in enumerate(context):
            if (at, value) in place:
                row[arm * width + place[at, value]] = 1.0
        return row

    explore = min(bandit.floor * len(names), 0.999)  # spread evenly, it is each arm's floor
    model = LinUCB([str(n) for n in range(width * len(names))], width=bandit.width, explore=explore)
    for arm, *shown_to, n, earned in grouped.select(
        "arm", *columns, "lists", "rewards"
    ).iter_rows():
        one = features(names.index(arm), shown_to)
        model.precision = model.precision + n * np.outer(one, one)
        model.moment = model.moment + earned * one

    def probabilities(context: Sequence[str]) -> tuple[float, ...]:
        rows = np.stack([features(arm, context) for arm in range(len(names))])
        return tuple(float(p) for p in model.probabilities(rows))

    nobody = [_UNSEEN] * len(columns)
    return probabilities(nobody), {tuple(row): probabilities(row) for row in seen}
