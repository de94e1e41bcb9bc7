"""The point-in-time audit: features of a request depend on events strictly before it, on this data.

Three questions are asked of requests drawn from a log, each feature for itself:

1. Does what was written follow from the past? Features are read from a state that was never fed
   an event at or after the request, and compared with the examples, to the last bit.
2. Does the future matter? The replay is given the whole log, then logs whose events at or after
   the request are altered (`KINDS`); what it says must not move by a bit.
3. Could the audit fail? Events are put just before the request: what reads events must move.

The first two are proofs for the requests drawn, not for others; a leak in the code of a feature
shows in nearly every request.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow.parquet as pq

from raysys.features.alteration import (
    DAY_MS,
    KINDS,
    Alteration,
    Drawn,
    Shop,
    alter,
    appeared,
    invented,
    join,
    take,
)
from raysys.features.live import LiveFeatures
from raysys.features.log import EventColumns
from raysys.features.replay import replay
from raysys.progress import task
from raysys.retrieval.covisitation import CoVisitation
from raysys.schema import EVENT_TYPES

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]

CANDIDATES: Final = "(candidates)"
"""Stands beside the features: the list that retrieval proposes must not know the future either."""

_ENOUGH: Final = 5  # requests that leak, after which no more are tried
_NARROWED: Final = 2  # leaks whose events are looked for
_BEFORE: Final = 20_000  # events of the past that such a search replays
_SHOWN: Final = 5  # events of a leak that are told one by one
_HORIZONS: Final = {
    "at the same moment": 1,
    "of the hour after": 3_600_000,
    "of the day after": DAY_MS,
    "of the 28 days after": 28 * DAY_MS,
    "up to the end of the log": 1 << 60,
}


@dataclass(frozen=True)
class Answer:
    """What a replay says at a request.

    Attributes:
        features: float32[n, f] of the request's items.
        candidates: int32[m], what retrieval proposed, in its order.
    """

    features: Float32
    candidates: Int32


@dataclass(frozen=True)
class Subject:
    """What is audited: a log, a plan that runs over it, and requests.

    Attributes:
        make: an empty state of the plan, with promotions.
        events: the whole log, in time order.
        requests: in time order.
        neighbourhood: the co-visitation of a moment (UTC ms), from events before it only.
        history: items of a user that a request reads (the setting of the features stage).
        written: by request number what the features stage wrote of the request's items:
            float32[n, f]; None where nothing is to be compared.
    """

    make: Callable[[], LiveFeatures]
    events: EventColumns
    requests: Sequence[Drawn]
    neighbourhood: Callable[[int], CoVisitation]
    history: int
    written: dict[int, Float32] | None = None

    def until(self, request: Drawn) -> int:
        """How many events lie strictly before a request."""
        return int(np.searchsorted(self.events.time, request.time, side="left"))

    def read(self, live: LiveFeatures, request: Drawn) -> Float32:
        """Features from a state as it is."""
        live.covisitation = self.neighbourhood(request.time)
        moment = (request.user, request.items, request.time, request.store_id, request.week)
        return live.batch(*moment, history=self.history).features

    def state_at(self, request: Drawn, last: int | None = None) -> LiveFeatures:
        """A new state, fed with the (last so many) events before a request."""
        live, stop = self.make(), self.until(request)
        live.apply(self.events.slice(0 if last is None else max(0, stop - last), stop))
        return live


Engine = Callable[[Subject, LiveFeatures, EventColumns, Drawn], Answer]
"""The way from a log to features that is put to the test: given a state, the events that it has not
counted yet (those at or after the request are among them) and the request."""


def replayed(subject: Subject, live: LiveFeatures, events: EventColumns, request: Drawn) -> Answer:
    """The features stage's own replay, for one request."""
    frame = pl.DataFrame(
        {
            "request": pl.Series([request.number], dtype=pl.Int32),
            "request_id": [request.request_id],
            "user": pl.Series([request.user], dtype=pl.Int32),
            "time": [request.time],
            "store_id": pl.Series([request.store_id], dtype=pl.String),
            "week": pl.Series([request.week], dtype=pl.Int32),
            "split": ["audit"],
            "fold": pl.Series([request.fold], dtype=pl.Int32),
            "n_relevant": pl.Series([len(request.items)], dtype=pl.Int32),
        }
    )
    relevant = pl.DataFrame({"item": request.items}).with_columns(
        request=pl.lit(request.number, dtype=pl.Int32), label=pl.lit(1.0, dtype=pl.Float32)
    )
    neighbourhoods = [(request.time, subject.neighbourhood(request.time))]
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        replay(live, events, frame, relevant, neighbourhoods, where, 0, subject.history)
        (path,) = where.glob("examples/*/*.parquet")
        table = pq.read_table(path, partitioning=None)
    items = table["item"].to_numpy()
    order = np.argsort(items)
    rows = order[np.searchsorted(items[order], request.items)]
    features = np.stack([table[name].to_numpy()[rows] for name in live.names], axis=1)
    return Answer(features, items[table["retrieved"].to_numpy(zero_copy_only=False)])


@dataclass
class Leak:
    """A feature that knew what it could not know.

    Attributes:
        feature: its name.
        request, request_id, user, time: where; number, id, number, UTC ms.
        item: number of the item; -1 when the list of candidates moved.
        how: a key of `KINDS`; or `appeared`: the value differs as soon as there is a future.
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


def audit(
    subject: Subject, *, engine: Engine = replayed, seed: int = 0, horizon: int = 20_000
) -> Audit:
    """Ask the three questions: three passes over the log, one state in memory.

    Args:
        subject: what is audited; at least one request.
        engine: the replay on trial.
        seed: of the alterations.
        horizon: events after a request that are altered one by one; those beyond are left out
            of every altered log.
    """
    names = subject.make().names
    outcome = Audit(names, requests=len(subject.requests), compared=subject.written is not None)
    own = _from_the_past(subject, outcome)
    _explain_first(subject, outcome)
    stacked = np.concatenate(list(own.values()))
    outcome.values = len(stacked)
    outcome.constant = np.array([_one_value(stacked[:, at]) for at in range(len(names))])
    outcome.reacts = _reactions(subject, seed)
    _futures(subject, outcome, own, engine, seed, horizon)
    return outcome


def moved(one: Float32, other: Float32) -> npt.NDArray[np.bool_]:
    """Where two arrays differ in a bit; NaN equals NaN."""
    same = one.view(np.int32) == other.view(np.int32)
    return ~(same | (np.isnan(one) & np.isnan(other)))


def _walk(subject: Subject, live: LiveFeatures, name: str) -> Iterator[tuple[int, int, Drawn]]:
    """Feed a state with everything before each request; gives the events fed just now."""
    position = 0
    with task(name, len(subject.requests)) as walking:
        for request in subject.requests:
            until = subject.until(request)
            live.apply(subject.events.slice(position, until))
            yield position, until, request
            position = until
            walking.advance()


def _from_the_past(subject: Subject, outcome: Audit) -> dict[int, Float32]:
    """Question 1: features by request number, from a state that knows no future."""
    live = subject.make()
    found: dict[int, Float32] = {}
    for _, _, request in _walk(subject, live, "audit: from the past alone"):
        own = np.ascontiguousarray(subject.read(live, request))
        found[request.number] = own
        if subject.written is None:
            continue
        written = np.ascontiguousarray(subject.written[request.number])
        differs = moved(written, own)
        for at in np.flatnonzero(differs.any(axis=0)):
            rows = np.flatnonzero(differs[:, at])
            name = outcome.names[at]
            if name in outcome.differences:
                outcome.differences[name].values += len(rows)
                continue
            row = rows[0]
            outcome.differences[name] = Difference(
                *(name, request.number, request.request_id, request.user, request.time),
                *(int(request.items[row]), float(written[row, at]), float(own[row, at])),
                len(rows),
            )
    return found


def _explain_first(subject: Subject, outcome: Audit) -> None:
    """Which later events would give what was written, in the first request that differs."""
    if not outcome.differences or subject.written is None:
        return
    number = min(difference.request for difference in outcome.differences.values())
    (request,) = (one for one in subject.requests if one.number == number)
    live, position = subject.state_at(request), subject.until(request)
    open_ones = [d for d in outcome.differences.values() if d.request == number]
    for words, after in _HORIZONS.items():
        until = int(np.searchsorted(subject.events.time, request.time + after, side="left"))
        live.apply(subject.events.slice(position, until))
        position = until
        found = np.ascontiguousarray(subject.read(live, request))
        same = ~moved(found, np.ascontiguousarray(subject.written[number]))
        for difference in open_ones:
            at = outcome.names.index(difference.feature)
            if not difference.explained and same[:, at].all():
                difference.explained = words


def _reactions(subject: Subject, seed: int) -> npt.NDArray[np.float64]:
    """Question 3: the share of requests in which each feature moves with events just before."""
    live = subject.make()
    shop = _shop(live)
    hits = np.zeros(len(live.names))
    for _, until, request in _walk(subject, live, "audit: events just before"):
        rng = np.random.default_rng([seed, request.number, len(KINDS)])
        before = np.ascontiguousarray(subject.read(live, request))
        like = subject.events.slice(max(0, until - 200), max(1, until))
        again = replace(like, item=rng.permutation(like.item), price=like.price * 1.5)
        extra = join([again, invented(like, request, shop, rng)])
        # the state keeps them: each request is compared with itself, a moment before
        live.apply(replace(extra, time=np.full_like(extra.time, request.time - 1)))
        after = np.ascontiguousarray(subject.read(live, request))
        hits += moved(before, after).any(axis=0)
    return hits / max(1, len(subject.requests))


def _futures(
    subject: Subject,
    outcome: Audit,
    own: dict[int, Float32],
    engine: Engine,
    seed: int,
    horizon: int,
) -> None:
    """Question 2: the replay on trial against the true log and all altered ones."""
    live, position, leaking, narrowed = subject.make(), 0, 0, 0
    shop = _shop(live)
    with task("audit: altered futures", len(subject.requests)) as walking:
        for request in subject.requests:
            until = subject.until(request)
            future = subject.events.slice(until, min(until + horizon, len(subject.events)))
            true = engine(
                subject, live, subject.events.slice(position, len(subject.events)), request
            )
            found = [_Move(appeared(future), Answer(own[request.number], true.candidates), true)]
            position, polluted = until, live.as_of >= request.time
            for kind in () if polluted or not len(future) else KINDS:
                alteration = alter(kind, future, request, shop, seed)
                other = engine(subject, live, alteration.world(future), request)
                found.append(_Move(alteration, true, other))
                if live.as_of >= request.time:
                    polluted = True
                    break
            found = [move for move in found if move.any]
            for move in found:
                first = _note(outcome, move, request)
                if first and narrowed < _NARROWED:
                    narrowed += 1
                    _narrow(subject, engine, move, future, request, first)
            outcome.shuffled += 1
            leaking += bool(found)
            walking.advance()
            if leaking >= _ENOUGH:
                outcome.stopped = outcome.shuffled < len(subject.requests)
                break
            if polluted:  # it counted what it must not: the next request needs a clean state
                live = subject.state_at(request)
    words = f"{len(outcome.leaks)} of {len(outcome.names)} features move"
    walking.note = words if outcome.leaks else "nothing moves"


@dataclass(frozen=True)
class _Move:
    """Two answers that ought to be one, and the alteration between them."""

    alteration: Alteration
    before: Answer
    after: Answer

    @property
    def where(self) -> npt.NDArray[np.bool_]:
        return moved(
            np.ascontiguousarray(self.before.features), np.ascontiguousarray(self.after.features)
        )

    @property
    def any(self) -> bool:
        same = np.array_equal(self.before.candidates, self.after.candidates)
        return bool(self.where.any()) or not same


def _note(outcome: Audit, move: _Move, request: Drawn) -> list[Leak]:
    """Enter what moved; returns the leaks of features that had none so far."""
    place = (request.number, request.request_id, request.user, request.time)
    new: list[Leak] = []
    where = move.where
    for at in np.flatnonzero(where.any(axis=0)):
        rows = np.flatnonzero(where[:, at])
        row, name = rows[0], outcome.names[at]
        if name in outcome.leaks:
            outcome.leaks[name].values += len(rows)
            continue
        before, after = (float(a.features[row, at]) for a in (move.before, move.after))
        item, how = int(request.items[row]), move.alteration.kind
        leak = Leak(name, *place, item, how, before, after, values=len(rows))
        outcome.leaks[name] = leak
        new.append(leak)
    one, other = move.before.candidates, move.after.candidates
    if not np.array_equal(one, other):
        if CANDIDATES in outcome.leaks:
            outcome.leaks[CANDIDATES].values += 1
        else:
            sizes = (float(len(one)), float(len(np.setdiff1d(one, other))))
            kind = move.alteration.kind
            outcome.leaks[CANDIDATES] = Leak(CANDIDATES, *place, -1, kind, *sizes)
    return new


def _narrow(
    subject: Subject,
    engine: Engine,
    move: _Move,
    future: EventColumns,
    request: Drawn,
    leaks: Sequence[Leak],
) -> None:
    """Find the smallest run of changes that moves each feature, by two binary searches.

    The state of each try has seen only the last `_BEFORE` events: the search is after the
    future. If that is not enough for the feature to move, its leak keeps no events.
    """
    alteration = move.alteration
    base = future.slice(0, 0) if alteration.kind == "appeared" else future
    past = subject.events.slice(max(0, subject.until(request) - _BEFORE), subject.until(request))

    def answer(first: int, last: int) -> Float32:
        log = join([past, alteration.world(base, first, last)])
        return np.ascontiguousarray(engine(subject, subject.make(), log, request).features)

    names = subject.make().names
    still = answer(0, 0)
    cells = {leak.feature: _cell(leak, request, names) for leak in leaks}
    for leak in leaks:
        if leak.n_events:
            continue  # found with an earlier one
        cell = cells[leak.feature]

        def moves(first: int, last: int, cell: tuple[int, int] = cell) -> bool:
            return bool(moved(still, answer(first, last))[cell])

        if not moves(0, alteration.size):
            continue
        last = _first_true(1, alteration.size, partial(moves, 0))
        first = last - _first_true(1, last, partial(_before, moves, last))
        events = alteration.touched(base if len(base) else future, first, last)
        told = _told(take(events, np.arange(min(_SHOWN, len(events)))), request)
        where = moved(still, answer(first, last))
        for other in leaks:  # one search mostly does for all features of a request
            if where[cells[other.feature]] and not other.n_events:
                other.n_events, other.events = len(events), told


def _cell(leak: Leak, request: Drawn, names: tuple[str, ...]) -> tuple[int, int]:
    """Row and column of the value that a leak tells of."""
    return int(np.flatnonzero(request.items == leak.item)[0]), names.index(leak.feature)


def _before(moves: Callable[[int, int], bool], last: int, n: int) -> bool:
    return moves(last - n, last)


def _first_true(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The smallest number in [low, high] for which `holds`, which it does for `high`."""
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return high


def _told(events: EventColumns, request: Drawn) -> list[dict[str, Any]]:
    """Events as JSON can say them; numbers of users and items, for the stage to name."""
    return [
        {
            "user": int(events.user[at]),
            "item": int(events.item[at]),
            "event_type": EVENT_TYPES[events.kind[at]],
            "time": int(events.time[at]),
            "after_ms": int(events.time[at]) - request.time,
        }
        for at in range(len(events))
    ]


def _one_value(column: Float32) -> bool:
    return not moved(column[1:], column[:-1].copy()).any() if len(column) > 1 else True


def _shop(live: LiveFeatures) -> Shop:
    stores = {store: number for number, store in enumerate(live.stores)}
    return Shop(len(live.catalogue), len(live.users), stores)
