"""Two rankings in one list: team draft interleaving (Radlinski, Kurup and Joachims, CIKM 2008).

Every user compares both at once, so differences between users cancel: a preference shows with far
fewer users than an A/B test needs (Chapelle, Joachims, Radlinski and Yue, TOIS 2012). It says which
ranking is preferred, not by how much a metric would change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy import special

from raysys.errors import UserError
from raysys.experiments.assignment import hashes
from raysys.experiments.statistics import (
    Analysis,
    influence,
    sample,
    sequential_p_value,
    sequential_width,
)

Item = TypeVar("Item")


@dataclass(frozen=True)
class Preference:
    """How often clicks prefer the second ranking.

    Attributes:
        requests: lists with any credited click on one side more than on the other, or equal.
        users: that they belong to.
        wins: of the first, of the second; ties are the rest.
        lead: mean over clicked requests of +1 (second wins), -1 (first wins), 0: in [-1, 1].
        low, high: its interval, users being the unit.
        p_value: of no preference.
    """

    requests: int
    users: int
    wins: tuple[int, int]
    lead: float
    low: float
    high: float
    p_value: float

    @property
    def sentence(self) -> str:
        """The preference in words."""
        told = f"{self.lead:+.1%} of lists (between {self.low:+.1%} and {self.high:+.1%})"
        if self.low > 0:
            return f"The second ranking is preferred: it leads by {told}."
        if self.high < 0:
            return f"The first ranking is preferred: the second leads by {told}."
        return f"No ranking is clearly preferred: the second leads by {told}."


def team_draft(
    first: Sequence[Item], second: Sequence[Item], k: int, *, salt: str, request_id: str
) -> tuple[list[Item], npt.NDArray[np.int8]]:
    """Interleave two rankings, the same way whenever the same request is asked again.

    Whose team is smaller picks its best item that is not in the list yet; a coin decides between
    equal teams.

    Args:
        first: best first, each item once.
        second: likewise.
        k: length of the list; shorter where both rankings together have fewer items.
        salt: of the comparison, such as its name.
        request_id: seeds the coins.

    Returns:
        The list, and int8[≤ k]: 0 where the first ranking's team brought the item, 1 where the
        second's did. Clicks count for the team.
    """
    rng = np.random.default_rng(hashes(salt, request_id))
    waiting = [list(first)[::-1], list(second)[::-1]]
    sizes = [0, 0]
    shown: list[Item] = []
    team: list[int] = []
    seen: set[Item] = set()
    while len(shown) < k:
        for each in waiting:
            while each and each[-1] in seen:
                each.pop()
        if not (waiting[0] or waiting[1]):
            break
        turn = int(rng.integers(2)) if sizes[0] == sizes[1] else int(sizes[1] < sizes[0])
        if not waiting[turn]:
            turn = 1 - turn
        item = waiting[turn].pop()
        seen.add(item)
        shown.append(item)
        team.append(turn)
        sizes[turn] += 1
    return shown, np.array(team, np.int8)


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
    found = sample(influence(led.astype(np.float64), lists))
    wins = int((lead[any_] < 0).sum()), int((lead[any_] > 0).sum())
    n = found.n
    if not found.error > 0:
        return Preference(int(any_.sum()), n, wins, found.mean, -1.0, 1.0, 1.0)
    z = found.mean / found.error
    if analysis == "sequential":
        width = sequential_width(n, alpha, tuned_for) * found.error
        p_value = sequential_p_value(z, n, alpha, tuned_for)
    else:
        width = float(special.stdtrit(n - 1, 1 - alpha / 2)) * found.error
        p_value = float(2 * special.stdtr(n - 1, -abs(z)))
    low, high = found.mean - width, found.mean + width
    return Preference(int(any_.sum()), n, wins, found.mean, low, high, p_value)
