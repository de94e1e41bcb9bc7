"""Which of two rankings users prefer, by lists that were drafted from both (`drafting`).

Every user compares both at once, so differences between users cancel: a preference shows with far
fewer users than an A/B test needs (Chapelle, Joachims, Radlinski and Yue, TOIS 2012). It says which
ranking is preferred, not by how much a metric would change.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import special

from raysys.errors import UserError
from raysys.experiments.definition import Experiment
from raysys.experiments.lists import lists_of, rewarded
from raysys.experiments.parts import Metric
from raysys.experiments.statistics import (
    Analysis,
    sample,
    sequential_p_value,
    sequential_width,
)


@dataclass(frozen=True)
class Preference:
    """How often clicks prefer the second ranking.

    Attributes:
        requests: lists with any credited click on one side more than on the other, or equal.
        users: that they belong to.
        wins: of the first, of the second; ties are the rest.
        lead: mean over users of the mean over their clicked requests of +1 (second wins), -1
            (first wins), 0: in [-1, 1].
        low, high: its interval, users being the unit.
        p_value: of no preference.
        lists: that were drafted, clicked or not.
        names: of the two rankings; None: they have none.
    """

    requests: int
    users: int
    wins: tuple[int, int]
    lead: float
    low: float
    high: float
    p_value: float
    lists: int = 0
    names: tuple[str, str] | None = None

    @property
    def sentence(self) -> str:
        """The preference in words."""
        told = f"{self.lead:+.1%} of lists (between {self.low:+.1%} and {self.high:+.1%})"
        first, second = self.names or ("The first ranking", "The second ranking")
        after = "the second" if self.names is None else second
        if self.low > 0:
            return f"{second} is preferred: it leads by {told}."
        if self.high < 0:
            return f"{first} is preferred: {after} leads by {told}."
        return f"Neither is clearly preferred: {after} leads by {told}."


def judge_interleaving(
    team: npt.NDArray[np.integer],
    clicked: npt.NDArray[np.floating] | npt.NDArray[np.bool_],
    request: npt.NDArray[np.integer],
    user: npt.NDArray[np.integer],
    *,
    alpha: float = 0.05,
    analysis: Analysis = "sequential",
    tuned_for: int = 2000,
) -> Preference:
    """Which ranking is preferred.

    Args:
        team: int[n], 0 or 1, of every shown item.
        clicked: [n], credit of the item: clicked or not, or a weight such as its price if bought.
        request: int[n], whose list it was in.
        user: int[n], whose request.
        alpha: one minus the interval's coverage.
        analysis: for one look, or any number.
        tuned_for: users at which sequential intervals are narrowest.

    Raises:
        UserError: fewer than two users have clicked.
    """
    labels, at = np.unique(request, return_inverse=True)
    sign = np.where(team == 1, 1.0, -1.0) * clicked
    lead = np.sign(np.bincount(at, weights=sign, minlength=len(labels)))
    any_ = np.bincount(at, weights=(np.asarray(clicked) > 0) * 1.0, minlength=len(labels)) > 0
    owner = np.zeros(len(labels), np.int64)
    owner[at] = user
    people, of = np.unique(owner[any_], return_inverse=True)
    if len(people) < 2:
        raise UserError("fewer than two users have clicked: nothing to compare yet")
    led = np.bincount(of, weights=lead[any_], minlength=len(people))
    lists = np.bincount(of, minlength=len(people)).astype(np.float64)
    found = sample(led / lists)  # each user weighs the same, as a few may bring most lists
    wins = int((lead[any_] < 0).sum()), int((lead[any_] > 0).sum())
    n = found.n
    if not found.error > 0:
        low, high, p_value = _unanimous(found.mean, n, alpha, analysis)
        return Preference(int(any_.sum()), n, wins, found.mean, low, high, p_value)
    z = found.mean / found.error
    if analysis == "sequential":
        width = sequential_width(n, alpha, tuned_for) * found.error
        p_value = sequential_p_value(z, n, alpha, tuned_for)
    else:
        width = float(special.stdtrit(n - 1, 1 - alpha / 2)) * found.error
        p_value = float(2 * special.stdtr(n - 1, -abs(z)))
    low, high = max(-1.0, found.mean - width), min(1.0, found.mean + width)
    return Preference(int(any_.sum()), n, wins, found.mean, low, high, p_value)


def _unanimous(lead: float, n: int, alpha: float, analysis: Analysis) -> tuple[float, float, float]:
    """Interval and p-value where all n users say the same, so that no spread can be estimated.

    Of users of whom a share p prefers a side, all n do with p^n (Clopper and Pearson); the
    sequential bound is that of the mixture over all p, 1 / (n + 1), against it (Robbins).
    """
    if lead == 0:
        return -1.0, 1.0, 1.0
    if analysis == "sequential":
        share, p_value = (alpha / (n + 1)) ** (1 / n), min(1.0, (n + 1) * 0.5**n)
    else:
        share, p_value = (alpha / 2) ** (1 / n), min(1.0, 2 * 0.5**n)
    bound = 2 * share - 1
    return (bound, 1.0, p_value) if lead > 0 else (-1.0, -bound, p_value)


def judge_interleaved(
    experiment: Experiment, metric: Metric, exposures: pl.LazyFrame, answers: pl.LazyFrame
) -> Preference:
    """Which arm of an interleaved experiment is preferred, by what its lists got.

    Args:
        experiment: one with `interleave`.
        metric: its primary.
        exposures: as `read_exposures` gives them.
        answers: columns of `event_sources.ANSWERING`.

    Raises:
        UserError: no list was drafted, or fewer than two users have clicked.
    """
    drafted = exposures.filter(pl.col("teams").is_not_null())
    lists = lists_of(experiment, drafted.select(pl.exclude("item_ids", "teams", "attributes")))
    n_lists = int(lists.select(pl.len()).collect().item())
    if not n_lists:
        raise UserError(
            f"no list of {experiment.name!r} was drafted between its start and its end",
            mend="was it served yet? `raysys experiment check` says whom it is for",
        )
    counted = rewarded(metric, answers)
    # most lists get nothing: theirs need not be looked at
    clicked = drafted.join(counted.select("request_id").unique(), on="request_id", how="semi")
    credits_ = (
        lists_of(experiment, clicked)
        .select("request_id", "user_id", item_id="item_ids", team="teams")
        .explode("item_id", "team")
        .join(counted, on=["request_id", "item_id"], how="inner")
        .with_columns(pl.col("request_id", "user_id").rank("dense").cast(pl.Int64))
        .collect()
    )
    found = judge_interleaving(
        credits_["team"].to_numpy(),
        credits_["times"].to_numpy(),
        credits_["request_id"].to_numpy(),
        credits_["user_id"].to_numpy(),
        alpha=experiment.alpha,
        analysis=experiment.analysis,
        tuned_for=experiment.expected_users,
    )
    first, second = (arm.name for arm in experiment.arms)
    return replace(found, lists=n_lists, names=(first, second))
