"""Which impression led to which click, favorite, cart or purchase, and what that makes it worth.

An outcome is credited to impressions of the same user and item, at most a window earlier. Where
the log says which answer an event reacts to (`request_id`), the impression of that answer gets
it. One pass over columns numbers the (user, item) pairs through a hash table, a second deals the
impressions out by pair, so nothing is sorted: millions of events a second, and any partition by
user gives the same result.

Labels never look ahead: see `LabelSettings.longest_ms`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from numba import njit

from raysys.features.labels import OUTCOMES, LabelSettings
from raysys.schema import EVENT_TYPES

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

IMPRESSION: Final = EVENT_TYPES.index("impression")
_IS_OUTCOME: Final = np.array([kind in OUTCOMES for kind in EVENT_TYPES])
_LAST, _FIRST, _ALL = 0, 1, 2
_TOUCH: Final = {"last": _LAST, "first": _FIRST, "all": _ALL}


@dataclass(frozen=True)
class Touches:
    """n events in time order, as columns.

    Attributes:
        user: int32[n]; item: int32[n], -1 where unknown (never credited); kind: int8[n], index
            into EVENT_TYPES; time: int64[n], UTC ms, never falling.
        session: int64[n], equal within a session, or None: needed for `same_session`.
        request: int64[n], equal for the events of one answer, -1 where the log names none; or
            None when it names none anywhere.
    """

    user: Int32
    item: Int32
    kind: npt.NDArray[np.int8]
    time: Int64
    session: Int64 | None = None
    request: Int64 | None = None

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True)
class Attribution:
    """m credits, by outcome in time order, then by impression.

    Attributes:
        outcome: int64[m], row of the event that is credited.
        impression: int64[m], row of the impression it is credited to.
        share: float64[m], in (0, 1]; the shares of one outcome add up to 1.
        exact: bool[m], whether `request` joined the two.
    """

    outcome: Int64
    impression: Int64
    share: npt.NDArray[np.float64]
    exact: Bool

    def __len__(self) -> int:
        return len(self.outcome)


@dataclass(frozen=True)
class Grades:
    """Labels of k impressions.

    Attributes:
        impression: int64[k], rows of the events, rising.
        label: float32[k], the gain.
    """

    impression: Int64
    label: npt.NDArray[np.float32]


def attribute(touches: Touches, settings: LabelSettings) -> Attribution:
    """Credit every view, click, favorite, cart and purchase to impressions before it.

    An impression of the same moment counts as earlier, wherever it stands in the log: the
    inferred ones have the moment of their click. An outcome without an impression in its window
    is credited to none and does not appear.

    Args:
        touches: events of whole users (of whole sessions with `same_session`).
        settings: windows, which touch counts, and whether sessions bound it.

    Raises:
        ValueError: times that fall, or `same_session` without sessions.
    """
    if len(touches) and (np.diff(touches.time) < 0).any():
        raise ValueError("attribution needs events in time order")
    if settings.same_session and touches.session is None:
        raise ValueError("same_session needs the session of every event")
    owner = touches.session if settings.same_session else touches.user
    assert owner is not None
    shown = np.flatnonzero((touches.kind == IMPRESSION) & (touches.item >= 0))
    done = np.flatnonzero(_IS_OUTCOME[touches.kind] & (touches.item >= 0))
    window = settings.windows_ms[touches.kind[done]]
    moment = touches.time[done]
    item = touches.item
    by_pair = _Impressions(owner[shown], item[shown], touches.time[shown])
    first, last = by_pair.within(owner[done], item[done], moment - window, moment)
    exact = np.zeros(len(done), dtype=np.bool_)
    if touches.request is not None:
        request = touches.request
        named = request[shown] >= 0
        rows = np.flatnonzero(named)
        by_request = _Impressions(
            request[shown][rows], item[shown][rows], touches.time[shown][rows]
        )
        # an answer shows an item once: of several (a list shown again) the latest counts
        begin, end = by_request.within(request[done], item[done], moment - window, moment)
        exact = (request[done] >= 0) & (end > begin)
        answer = np.full(len(done), -1, dtype=np.int64)
        answer[exact] = rows[by_request.order[end[exact] - 1]]
    touch = _TOUCH[settings.touch]
    count = np.minimum(last - first, settings.most_touches if touch == _ALL else 1)
    count[exact] = 1
    start = first if touch == _FIRST else last - count
    outcome = np.repeat(np.arange(len(done)), count)
    nth = np.arange(len(outcome)) - np.repeat(np.cumsum(count) - count, count)
    at = start[outcome] + nth
    credited = exact[outcome]
    place = np.empty(len(outcome), dtype=np.int64)
    place[~credited] = by_pair.order[at[~credited]]
    if touches.request is not None:
        place[credited] = answer[outcome[credited]]
    return Attribution(done[outcome], shown[place], 1.0 / count[outcome], credited)


def grade(
    touches: Touches,
    attribution: Attribution,
    settings: LabelSettings,
    *,
    end: int | None = None,
) -> Grades:
    """What each impression turned out to be worth.

    Args:
        touches: the events that were attributed.
        attribution: of `attribute`.
        settings: gains, and how several outcomes combine. With `touch: all` an outcome is worth
            its gain times its share; of several of one event type the largest counts.
        end: UTC ms, where the fold (or the log) ends: outcomes at or after it are as if they had
            not happened. None: the moment of the last event, that one included.
    """
    if end is None:
        end = int(touches.time[-1]) + 1 if len(touches) else 0
    shown = np.flatnonzero(touches.kind == IMPRESSION)
    shown = shown[touches.time[shown] < end]
    place = np.searchsorted(shown, attribution.impression)
    known = touches.time[attribution.outcome] < end
    kind = touches.kind[attribution.outcome][known]
    worth = (settings.by_kind[kind] * attribution.share[known]).astype(np.float32)
    best = np.zeros((len(shown), len(EVENT_TYPES)), dtype=np.float32)
    best[:, IMPRESSION] = settings.by_kind[IMPRESSION]
    _highest(best, place[known], kind, worth)
    label = best.sum(axis=1) if settings.combine == "sum" else best.max(axis=1)
    return Grades(shown, label.astype(np.float32))


class _Impressions:
    """Impressions dealt out by (owner, item), each pair's in time order.

    Attributes:
        order: int64[n], the impressions, pair by pair.
    """

    def __init__(self, owner: npt.NDArray[np.integer], item: Int32, time: Int64) -> None:
        self._size = 1 << max(4, int(2 * len(owner)).bit_length())
        self._owner = np.full(self._size, -1, dtype=np.int64)
        self._item = np.full(self._size, -1, dtype=np.int32)
        self._slot = np.full(self._size, -1, dtype=np.int64)
        pair, n_pairs = _number(owner.astype(np.int64), item, self._owner, self._item, self._slot)
        self.starts = np.concatenate([[0], np.cumsum(np.bincount(pair, minlength=n_pairs))])
        self.starts = self.starts.astype(np.int64)
        self.order = _deal(pair, self.starts)
        self._time = time[self.order]

    def within(
        self, owner: npt.NDArray[np.integer], item: Int32, since: Int64, until: Int64
    ) -> tuple[Int64, Int64]:
        """The range (begin, end) in `order` of each pair's impressions in [since, until]."""
        return _within(
            *(owner.astype(np.int64), item, since, until, self._owner, self._item, self._slot),
            *(self.starts, self._time),
        )


@njit(cache=True)
def slot_of(a, b, mask):  # type: ignore[no-untyped-def]
    """A slot of the table: both keys multiplied and mixed (after Steele et al. 2014)."""
    x = np.uint64(a) * np.uint64(0x9E3779B97F4A7C15) ^ np.uint64(b) * np.uint64(0xC2B2AE3D27D4EB4F)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    return np.int64(x & mask)


@njit(cache=True)
def _number(owner, item, owners, items, slots):  # type: ignore[no-untyped-def]
    """Number of each row's pair, in order of appearance; fills the table (linear probing)."""
    mask = np.uint64(len(slots) - 1)
    pair = np.empty(len(owner), dtype=np.int64)
    n = 0
    for row in range(len(owner)):
        at = slot_of(owner[row], item[row], mask)
        while slots[at] >= 0 and (owners[at] != owner[row] or items[at] != item[row]):
            at = np.int64(np.uint64(at + 1) & mask)
        if slots[at] < 0:
            owners[at], items[at], slots[at] = owner[row], item[row], n
            n += 1
        pair[row] = slots[at]
    return pair, n


@njit(cache=True)
def _deal(pair, starts):  # type: ignore[no-untyped-def]
    """Rows gathered by pair, in their order (a counting sort)."""
    free = starts[:-1].copy()
    order = np.empty(len(pair), dtype=np.int64)
    for row in range(len(pair)):
        order[free[pair[row]]] = row
        free[pair[row]] += 1
    return order


@njit(cache=True)
def _within(  # type: ignore[no-untyped-def]
    owner, item, since, until, owners, items, slots, starts, time
):
    mask = np.uint64(len(slots) - 1)
    begin = np.zeros(len(owner), dtype=np.int64)
    end = np.zeros(len(owner), dtype=np.int64)
    for row in range(len(owner)):
        at = slot_of(owner[row], item[row], mask)
        while slots[at] >= 0 and (owners[at] != owner[row] or items[at] != item[row]):
            at = np.int64(np.uint64(at + 1) & mask)
        if slots[at] < 0:
            continue
        low, high = starts[slots[at]], starts[slots[at] + 1]
        begin[row] = low + np.searchsorted(time[low:high], since[row], side="left")
        end[row] = low + np.searchsorted(time[low:high], until[row], side="right")
    return begin, end


@njit(cache=True)
def _highest(best, place, kind, worth):  # type: ignore[no-untyped-def]
    for at in range(len(place)):
        if worth[at] > best[place[at], kind[at]]:
            best[place[at], kind[at]] = worth[at]
