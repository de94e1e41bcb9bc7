"""The point-in-time audit: features of a request depend on events strictly before it, on this data.

Three questions are asked of requests drawn from a log, each feature for itself:

1. Does what was written follow from the past? Features are read from a state that was never fed
   an event at or after the request, and compared with the examples, to the last bit.
2. Does the future matter? The replay of the features stage is given what lies around the request:
   a log that ends there, the true one that goes on, and some whose events at or after the request
   are altered (`KINDS`); what it says must not move by a bit, nor differ from a state that reads.
3. Could the audit fail? Events are put just before the request: what reads events must move.

The first two are proofs for the requests drawn, not for others; a leak in the code of a feature
shows in nearly every request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from raysys.features.alteration import (
    DAY_MS,
    KINDS,
    Alteration,
    Drawn,
    Shop,
    alter,
    appeared,
    invented,
)
from raysys.features.audit_outcome import CANDIDATES, Audit, Difference, Float32, Leak, moved
from raysys.features.audit_subject import Answer, Engine, Subject, replayed
from raysys.features.live import LiveFeatures
from raysys.features.log import EventColumns
from raysys.progress import task
from raysys.schema import EVENT_TYPES

_ENOUGH: Final = 5  # requests that leak, after which no more are tried
_NARROWED: Final = 2  # leaks whose events are looked for
_SHOWN: Final = 5  # events of a leak that are told one by one
_HORIZONS: Final = {
    "at the same moment": 1,
    "of the hour after": 3_600_000,
    "of the day after": DAY_MS,
    "of the 28 days after": 28 * DAY_MS,
    "up to the end of the log": 1 << 60,
}


def audit(
    subject: Subject, *, engine: Engine = replayed, seed: int = 0, horizon: int = 5_000
) -> Audit:
    """Ask the three questions: two passes over the log, and small replays around each request.

    Args:
        subject: what is audited; at least one request.
        engine: the replay on trial.
        seed: of the alterations.
        horizon: events from a request on that it is given, as they are and altered.
    """
    names = subject.make().names
    outcome = Audit(names, requests=len(subject.requests), compared=subject.written is not None)
    own = _from_the_past(subject, outcome)
    _explain_first(subject, outcome)
    stacked = np.concatenate(list(own.values()))
    outcome.values = len(stacked)
    outcome.constant = np.array([_one_value(stacked[:, at]) for at in range(len(names))])
    outcome.reacts = _reactions(subject, seed)
    _futures(subject, outcome, engine, seed, horizon)
    return outcome


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
        extra = EventColumns.concat([again, invented(like, request, shop, rng)])
        # the state keeps them: each request is compared with itself, a moment before
        live.apply(replace(extra, time=np.full_like(extra.time, request.time - 1)))
        after = np.ascontiguousarray(subject.read(live, request))
        hits += moved(before, after).any(axis=0)
    return hits / max(1, len(subject.requests))


def _futures(
    subject: Subject,
    outcome: Audit,
    engine: Engine,
    seed: int,
    horizon: int,
) -> None:
    """Question 2: the replay on trial against the true log and all altered ones."""
    leaking, narrowed, shop = 0, 0, _shop(subject.make())
    with task("audit: altered futures", len(subject.requests)) as walking:
        for request in subject.requests:
            until = subject.until(request)
            past = subject.before(request)
            future = subject.events.slice(until, min(until + horizon, len(subject.events)))
            tried = _tried(subject, engine, past, future, request, shop, seed)
            found = [move for move in tried if move.any]
            for move in found:
                first = _note(outcome, move, request)
                if first and move.alteration.kind != "read" and narrowed < _NARROWED:
                    narrowed += 1
                    _narrow(subject, engine, move, past, future, request, first)
            outcome.shuffled += 1
            leaking += bool(found)
            walking.advance()
            if leaking >= _ENOUGH:
                outcome.stopped = outcome.shuffled < len(subject.requests)
                break
        words = f"{len(outcome.leaks)} of {len(outcome.names)} features move"
        walking.note = words if outcome.leaks else "nothing moves"


def _tried(
    subject: Subject,
    engine: Engine,
    past: EventColumns,
    future: EventColumns,
    request: Drawn,
    shop: Shop,
    seed: int,
) -> Iterator[_Move]:
    """A log that ends at the request against the true one, and that against every altered one."""
    ended = engine(subject, past, request)
    live = subject.make()
    live.apply(past)
    read = Answer(subject.read(live, request), ended.candidates)
    true = engine(subject, EventColumns.concat([past, future]), request)
    yield _Move(appeared(future), ended, true)
    for kind in KINDS if len(future) else ():
        alteration = alter(kind, future, request, shop, seed)
        log = EventColumns.concat([past, alteration.world(future)])
        yield _Move(alteration, true, engine(subject, log, request))
    yield _Move(replace(appeared(future), kind="read"), read, ended)


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
    past: EventColumns,
    future: EventColumns,
    request: Drawn,
    leaks: Sequence[Leak],
) -> None:
    """Find the smallest run of changes that moves each feature, by two binary searches."""
    alteration = move.alteration
    base = future.slice(0, 0) if alteration.kind == "appeared" else future

    def answer(first: int, last: int) -> Float32:
        log = EventColumns.concat([past, alteration.world(base, first, last)])
        return np.ascontiguousarray(engine(subject, log, request).features)

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
        told = _told(events.slice(0, min(_SHOWN, len(events))), request)
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
