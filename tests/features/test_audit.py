"""The audit: sound on the real replay, and it catches each way of looking ahead that we plant."""

from __future__ import annotations

from dataclasses import fields, replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.features.alteration import KINDS, Drawn, Shop, alter, appeared
from raysys.features.audit import audit
from raysys.features.audit_outcome import CANDIDATES
from raysys.features.audit_subject import Answer, Subject, replayed
from raysys.features.log import EventColumns
from raysys.features.proposing import CandidateSettings
from raysys.retrieval.covisitation import CoVisitation
from raysys.schema import EVENT_TYPES
from raysys.stages.audit import _copied
from tests.features.shop import DAY, columns, live

N_ITEMS, N_USERS = 12, 5
FULL = CoVisitation.fit(
    np.repeat(np.arange(40), 3), np.resize(np.arange(N_ITEMS, dtype=np.int32), 120), N_ITEMS,
    min_count=1,
)  # fmt: skip


def shop_log(n: int = 400, seed: int = 0) -> EventColumns:
    """Baskets of up to three items at one moment, a few a day."""
    rng = np.random.default_rng(seed)
    time = np.sort(rng.integers(0, 60 * DAY, n // 2)).repeat(2)
    events = columns(
        np.repeat(rng.integers(0, N_USERS, n // 2), 2).tolist(),
        rng.integers(0, N_ITEMS, n).tolist(),
        time.tolist(),
        kind=rng.choice(
            [EVENT_TYPES.index("purchase"), EVENT_TYPES.index("view")], n, p=[0.7, 0.3]
        ).tolist(),
        price=rng.uniform(1, 9, n).tolist(),
        quantity=rng.integers(1, 4, n).astype(float).tolist(),
    )
    return replace(events, store=rng.integers(0, 2, n).astype(np.int32), order=np.arange(n) // 2)


def drawn(events: EventColumns, count: int = 8) -> list[Drawn]:
    """Requests at moments at which something happens, as in a real log: baskets."""
    at = np.linspace(len(events) // 3, len(events) - 20, count).astype(int)
    return [
        Drawn(
            number, f"r{number}", number % 3, int(events.user[row]), int(events.time[row]), "s0",
            3, np.arange(N_ITEMS, dtype=np.int32),
        )
        for number, row in enumerate(at)
    ]  # fmt: skip


def subject(events: EventColumns | None = None, **more) -> Subject:
    events = shop_log() if events is None else events
    given_ = {
        "make": live, "events": events, "requests": drawn(events),
        "neighbourhood": lambda moment: FULL, "history": 24, **more,
    }  # fmt: skip
    return Subject(**given_)


def from_the_past(of: Subject) -> dict[int, np.ndarray]:
    """What an honest features stage writes."""
    found = {}
    for request in of.requests:
        found[request.number] = of.read(of.state_at(request), request)
    return found


@pytest.mark.long
def test_the_real_replay_is_sound_and_what_reads_events_reacts() -> None:
    honest = subject()
    outcome = audit(replace(honest, written=from_the_past(honest)))
    assert outcome.sound
    assert outcome.compared
    assert outcome.shuffled == len(honest.requests)
    verdicts = {name: outcome.verdict(name) for name in outcome.names}
    for name in ("item_7d", "price", "user_28d", "mine", "recency", "overdue", "views"):
        assert verdicts[name] == "ok", name
    assert verdicts["weekday"] == verdicts["department"] == "no event"
    assert verdicts["on_display"] == "constant"  # no promotions are known


# -- engines that look ahead, each in a way of its own -------------------------------------------


def counts_the_same_moment(of, events, request) -> Answer:
    """≤ where < belongs: the classic; the request's own basket is in its features."""
    state = of.make()
    state.apply(events.slice(0, int(np.searchsorted(events.time, request.time, side="right"))))
    return Answer(of.read(state, request), np.empty(0, np.int32))


def peeks_at_the_same_moment(of, events, request) -> Answer:
    """The state is right, one feature is not: it counts the item in events of this moment."""
    answer = replayed(of, events, request)
    now = events.item[events.time == request.time]
    features = answer.features.copy()
    features[:, of.make().names.index("item_7d")] += np.isin(request.items, now)
    return replace(answer, features=features)


def knows_tomorrows_price(of, events, request) -> Answer:
    """The dearest price of the week to come, of each item."""
    answer = replayed(of, events, request)
    week = (events.time >= request.time) & (events.time < request.time + 7 * DAY)
    features = answer.features.copy()
    for row, item in enumerate(request.items):
        prices = events.price[week & (events.item == item)]
        features[row, of.make().names.index("price")] = prices.max(initial=0.0)
    return replace(answer, features=features)


def proposes_what_will_be_bought(of, events, request) -> Answer:
    answer = replayed(of, events, request)
    later = events.item[events.time >= request.time][:2]
    return replace(answer, candidates=np.concatenate([later, answer.candidates]))


def reads_another_clock(of, events, request) -> Answer:
    """Never looks ahead, and is wrong all the same: an hour late."""
    late = replace(request, time=request.time + 3_600_000)
    state = of.make()
    state.apply(events.slice(0, int(np.searchsorted(events.time, request.time))))
    return Answer(of.read(state, late), np.empty(0, np.int32))


@pytest.mark.long
@pytest.mark.parametrize(
    ("engine", "leaking"),
    [
        (peeks_at_the_same_moment, {"item_7d"}),
        (knows_tomorrows_price, {"price"}),
        (proposes_what_will_be_bought, {CANDIDATES}),
    ],
)
def test_a_peek_is_caught_and_nothing_else_is_blamed(engine, leaking) -> None:
    outcome = audit(subject(), engine=engine)
    assert not outcome.sound
    assert set(outcome.leaks) == leaking


def proposes_as_of_just_after(of, events, request) -> Answer:
    """Its candidates are those of a moment at which the request's own basket is known."""
    late = replayed(of, events, replace(request, time=request.time + 1))
    return replace(replayed(of, events, request), candidates=late.candidates)


@pytest.mark.long
def test_a_peek_into_what_the_user_will_own_is_caught() -> None:
    """With states as the stage makes them: copies of an empty one."""
    empty = live()
    empty.settings = CandidateSettings(covisitation=0, category=0, popular=0)
    of = subject(make=partial(_copied, empty))
    request = of.requests[-1]
    before = of.events.slice(0, of.until(request))
    table = of.state_at(request).tables["user_item"]
    mine = table.second(table.members(request.user, request.time))
    assert len(mine) > 0
    assert set(replayed(of, before, request).candidates.tolist()) == set(mine.tolist())
    assert audit(of).sound
    assert set(audit(of, engine=proposes_as_of_just_after).leaks) == {CANDIDATES}
    assert len(empty.tables["user_item"]) == 0


def test_a_peek_is_told_with_its_values_and_the_events_that_it_saw() -> None:
    events = shop_log()
    leak = audit(subject(events), engine=peeks_at_the_same_moment).leaks["item_7d"]
    request = drawn(events)[leak.request]
    assert (leak.request_id, leak.time) == (request.request_id, request.time)
    assert leak.how in (*KINDS, "appeared")
    assert abs(leak.after - leak.before) == 1  # the item's one event of this moment
    assert leak.n_events == 1
    (event,) = leak.events
    assert event["after_ms"] == 0
    assert event["item"] in events.item[events.time == request.time]


def test_counting_the_same_moment_is_caught() -> None:
    outcome = audit(subject(), engine=counts_the_same_moment)
    assert {"item_7d", "user_28d", "mine", "recency"} <= set(outcome.leaks)
    assert not {"weekday", "department", "on_display"} & set(outcome.leaks)
    assert outcome.stopped  # enough is enough
    assert outcome.leaks["recency"].how == "appeared"
    narrowed = [leak for leak in outcome.leaks.values() if leak.n_events]
    assert narrowed
    assert all(event["after_ms"] == 0 for leak in narrowed for event in leak.events)


def test_a_replay_that_differs_from_a_state_that_reads_is_caught_too() -> None:
    outcome = audit(subject(), engine=reads_another_clock)
    assert outcome.leaks["recency"].how == "read"
    assert outcome.leaks["recency"].n_events == 0  # no event is to blame


@pytest.mark.long
def test_what_was_written_with_the_same_moment_counted_is_told_so() -> None:
    honest = subject()
    written = {}
    for request in honest.requests:
        state = honest.make()
        stop = int(np.searchsorted(honest.events.time, request.time, side="right"))
        state.apply(honest.events.slice(0, stop))
        written[request.number] = honest.read(state, request)
    outcome = audit(replace(honest, written=written))
    assert not outcome.leaks
    assert not outcome.sound
    assert outcome.verdict("item_7d") == "differs"
    assert outcome.differences["item_7d"].explained == "at the same moment"
    assert "weekday" not in outcome.differences


def test_a_single_bit_that_was_written_otherwise_is_found() -> None:
    honest = subject()
    written = from_the_past(honest)
    at = honest.make().names.index("age")
    column = written[5][:, at].copy()
    row = int(np.flatnonzero(np.isfinite(column))[0])
    column[row] = np.nextafter(column[row], np.float32(np.inf))
    written[5] = written[5].copy()
    written[5][:, at] = column
    outcome = audit(replace(honest, written=written))
    (found,) = outcome.differences.values()
    assert (found.feature, found.request, found.item, found.values) == ("age", 5, row, 1)
    assert found.explained == ""


def test_a_dead_feature_is_told() -> None:
    """A table that counts what this log does not have: its feature can leak nothing, nor help."""
    events = shop_log()
    only = replace(events, kind=np.full_like(events.kind, EVENT_TYPES.index("purchase")))
    outcome = audit(subject(only, requests=drawn(only)))
    assert outcome.verdict("views") == "constant"


@pytest.mark.long
def test_it_repeats_itself_and_depends_on_its_seed() -> None:
    one, two = (audit(subject(), engine=knows_tomorrows_price, seed=3) for _ in range(2))
    assert one.leaks == two.leaks
    np.testing.assert_array_equal(one.reacts, two.reacts)


# -- alterations ---------------------------------------------------------------------------------

SHOP = Shop(N_ITEMS, N_USERS, {"s0": 0, "s1": 1})


@given(st.sampled_from(list(KINDS)), st.integers(0, 10_000), st.integers(1, 60))
@settings(max_examples=120, deadline=None)
def test_an_alteration_touches_the_future_alone_and_all_of_it(kind, seed, size) -> None:
    log = shop_log(120, seed)
    request = drawn(log, 1)[0]
    start = int(np.searchsorted(log.time, request.time))
    future = log.slice(start, min(len(log), start + size))
    alteration = alter(kind, future, request, SHOP, seed)
    world = alteration.world(future)
    assert (world.time >= request.time).all()
    assert (np.diff(world.time) >= 0).all()
    if kind == "at_once":
        assert same(world, future) == (future.time == request.time).all()
    elif kind != "rest" or size > 20:  # few baskets may come to lie where they were
        assert not same(world, future)
    assert same(alteration.world(future, 0, 0), future)  # no change made: the true future
    again = alter(kind, future, request, SHOP, seed)
    assert same(again.world(future), world)
    assert (world.item < N_ITEMS).all()
    assert (world.user < N_USERS).all()


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_permutations_keep_what_they_permute(seed) -> None:
    log = shop_log(80, seed)
    request = drawn(log, 1)[0]
    future = log.slice(int(np.searchsorted(log.time, request.time)), len(log))
    for kind, name in (("rest", "order"), ("rest", "store")):
        world = alter(kind, future, request, SHOP, seed).world(future)
        assert sorted(getattr(world, name)) == sorted(getattr(future, name))


def test_a_future_that_appears_is_none_until_it_does() -> None:
    log = shop_log(40)
    nothing = log.slice(0, 0)
    found = appeared(log)
    assert len(found.world(nothing, 0, 0)) == 0
    assert same(found.world(nothing), log)
    assert same(found.world(nothing, 3, 5), log.slice(3, 5))


def same(one: EventColumns, other: EventColumns) -> bool:
    return all(
        np.array_equal(getattr(one, each.name), getattr(other, each.name))
        for each in fields(EventColumns)
    )
