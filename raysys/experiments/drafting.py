"""Two rankings in one list: team draft interleaving (Radlinski, Kurup and Joachims, CIKM 2008)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from raysys.experiments.assignment import hashes

Item = TypeVar("Item")

BOTH = "interleaved"
"""The arm of exposures to drafted lists."""


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
