"""What an audit found: leaks, differences, and what moved no feature."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]

CANDIDATES: Final = "(candidates)"
"""Stands beside the features: the list that retrieval proposes must not know the future either."""


@dataclass
class Leak:
    """A feature that knew what it could not know.

    Attributes:
        feature: its name.
        request, request_id, user, time: where; number, id, number, UTC ms.
        item: number of the item; -1 when the list of candidates moved.
        how: a key of `KINDS`; `appeared`: the value differs as soon as there is a future; `read`:
            even without one the replay differs from a state that reads.
        before: the value on the log that the other is compared with.
        after: the value on the altered log.
        values: how many values of the feature moved, over all requests and alterations.
        events: of the smallest future found that does it, first the earliest.
        n_events: how many these are; 0 when they were not looked for.
    """

    feature: str
    request: int
    request_id: str
    user: int
    time: int
    item: int
    how: str
    before: float
    after: float
    values: int = 1
    events: list[dict[str, Any]] = field(default_factory=list)
    n_events: int = 0


@dataclass
class Difference:
    """A feature whose written value is not the one that follows from the past.

    Attributes:
        feature, request, request_id, user, time, item: as in `Leak`.
        written: as the features stage wrote it; recomputed: from the past alone.
        values: how many values of the feature differ.
        explained: which later events counted in would give what was written; empty: none found.
    """

    feature: str
    request: int
    request_id: str
    user: int
    time: int
    item: int
    written: float
    recomputed: float
    values: int = 1
    explained: str = ""


@dataclass
class Audit:
    """What came of it.

    Attributes:
        names: the features.
        requests: drawn; shuffled: of these, tried against altered futures.
        values: values of a feature that were looked at in each of the questions.
        leaks, differences: the first of each feature, by name.
        reacts: share of the requests in which events just before move a feature: float64[f].
        constant: whether a feature has one value in all that was drawn: bool[f].
        compared: whether written examples were compared.
        stopped: whether altering ended early because enough had leaked.
    """

    names: tuple[str, ...]
    requests: int = 0
    shuffled: int = 0
    values: int = 0
    leaks: dict[str, Leak] = field(default_factory=dict)
    differences: dict[str, Difference] = field(default_factory=dict)
    reacts: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    constant: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, dtype=bool))
    compared: bool = False
    stopped: bool = False

    @property
    def sound(self) -> bool:
        """Whether nothing leaks and nothing written differs."""
        return not self.leaks and not self.differences

    def verdict(self, name: str) -> str:
        """`leaks`, `differs` (from what was written), `constant`, `no event` moves it, or `ok`."""
        at = self.names.index(name)
        if name in self.leaks:
            return "leaks"
        if name in self.differences:
            return "differs"
        if self.constant[at]:
            return "constant"
        return "ok" if self.reacts[at] > 0 else "no event"


def moved(one: Float32, other: Float32) -> npt.NDArray[np.bool_]:
    """Where two arrays differ in a bit; NaN equals NaN."""
    same = one.view(np.int32) == other.view(np.int32)
    return ~(same | (np.isnan(one) & np.isnan(other)))
