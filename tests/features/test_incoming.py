"""Events by name, as they come in, count as the numbered log's do."""

from __future__ import annotations

import pickle

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.features.incoming import Incoming
from raysys.features.live import LiveFeatures
from raysys.features.numbering import number_log
from raysys.features.plan import FeaturePlan
from raysys.ingest.sessions import SessionSettings, find_sessions
from raysys.ingest.spread import InProcess
from raysys.schema import EVENT_TYPES, EVENTS
from tests.features.shop import DAY, PLAN, catalogue, live

MINUTE = 60_000
USERS = ("ann", "bob", "cleo")
MANY_KEYS = FeaturePlan.model_validate({
    **PLAN.model_dump(mode="json"),
    "tables": {
        **PLAN.model_dump(mode="json")["tables"],
        "session_item": {"keys": ["session", "item"], "events": ["view", "click", "purchase"]},
        "query_item": {"keys": ["query", "item"], "events": ["click", "search"]},
        "user_store": {"keys": ["user", "store"], "weight": "spend", "max_idle_days": 1},
        "shown": {"keys": ["user"], "events": ["impression"], "weight": "quantity"},
    },
    "windows": {"hours": {"keys": ["user"], "unit": "hour", "spans": [1, 5], "value": "price"}},
    "last": {"seen": {"keys": ["session"], "of": "item", "n": 3, "events": ["view", "click"]}},
})  # fmt: skip


def event(user: str, item: str | None, time: int, kind: str = "purchase", **told: object) -> dict:
    body = {"event_id": f"{user}{time}", "event_type": kind, "user_id": user, "timestamp": time}
    return {**body, **({"item_id": item} if item else {}), **told}


happenings = st.lists(
    st.builds(
        lambda user, item, gap, kind, session, more: (user, item, gap, kind, session, more),
        st.sampled_from(USERS),
        st.none() | st.sampled_from(["i000", "i003", "i007", "nobody has it"]),
        st.integers(1, 50 * MINUTE),
        st.sampled_from(EVENT_TYPES),
        st.none() | st.sampled_from(["s1", "s2"]),
        st.fixed_dictionaries(
            {},
            optional={
                "query": st.sampled_from(["Ice  cream", "ICE CREAM", "tea", " "]),
                "quantity": st.floats(0.5, 9),
                "price": st.floats(0.5, 9),
                "position": st.integers(1, 9),
                "store_id": st.sampled_from(["s0", "s1", "else"]),
            },
        ),
    ),
    min_size=1,
    max_size=30,
)


@pytest.mark.long
@given(happenings, st.sampled_from(["all", "some", "none"]))
@settings(max_examples=18, deadline=None)
def test_live_numbers_are_those_of_the_numbered_log(tmp_path_factory, rows, named) -> None:
    """Ingest's sessions, numbering's numbers and the replay's counts, against one by one."""
    time, told = 17_000 * DAY, []
    for number, (user, item, gap, kind, session, more) in enumerate(rows):
        time += gap
        name = {"session_id": f"{user}{session or 's0'}"}
        own = name if named == "all" or (named == "some" and session) else {}
        told.append({**event(user, item, time, kind, **more, **own), "event_id": str(number)})
    frame = pl.DataFrame(
        [{name: row.get(name) for name in EVENTS.names} for row in told],
        schema=pl.DataFrame(EVENTS.empty_table()).schema | {"timestamp": pl.Int64},
    )
    frame = find_sessions(frame, [], SessionSettings(), int(frame["timestamp"][0]))
    folder = tmp_path_factory.mktemp("log")
    (folder / "events").mkdir()
    written = frame.select(EVENTS.names).with_columns(
        pl.col("timestamp").cast(pl.Datetime("ms", "UTC"))
    )
    written.to_arrow().cast(EVENTS)
    written.write_parquet(folder / "events" / "part.parquet")
    log = number_log(folder / "events", catalogue(), ["order_id"], folder / "log", InProcess())
    (part,) = log.slices()

    def empty() -> LiveFeatures:
        return LiveFeatures(MANY_KEYS, catalogue(), log.users, log.stores, queries=log.queries)

    offline, served = empty(), empty()
    offline.apply(part.events)
    incoming = Incoming(served)
    for row in told:
        incoming.apply([row])
    for name, state in offline.state.all().items():
        ours, theirs = state.arrays(), served.state.all()[name].arrays()
        for array in ours:
            np.testing.assert_array_equal(ours[array], theirs[array], err_msg=f"{name}.{array}")
    assert offline.as_of == served.as_of
    np.testing.assert_array_equal(offline._by_user.session, served._by_user.session)
    assert [served.last_store(n) for n in range(3)] == [offline.last_store(n) for n in range(3)]


def test_a_new_user_is_known_from_the_first_event() -> None:
    state = live()
    incoming = Incoming(state)
    assert state.user_number("eve") == -1
    incoming.apply([event("eve", "i001", DAY), event("eve", "i002", 2 * DAY, session_id="x")])
    number = state.user_number("eve")
    assert number == 5 and state.n_users == 6
    assert state.history(number, 5).tolist() == [2, 1] and state.orders(number) == 2
    batch = state.batch(number, np.array([1, 3], np.int32), 3 * DAY)
    assert batch.column("times").tolist() == [1, 0]
    assert state.sessions.number(number, "x") >= 0
    assert state.current_session(number, 2 * DAY + MINUTE, 30 * MINUTE) >= 0
    assert state.current_session(number, 3 * DAY, 30 * MINUTE) == -1


def test_an_event_without_a_session_joins_none_that_has_a_name(tmp_path) -> None:
    """As in ingest, whatever lies between; after a restart too."""
    state = live()
    told = [event("eve", "i001", DAY), event("eve", "i002", DAY + MINUTE, session_id="x")]
    Incoming(state).apply(told)
    number = state.user_number("eve")
    made = state.sessions.number(number, f"eve@{DAY}")
    assert made >= 0 and state.last_session(number)[1] == state.sessions.number(number, "x") != made
    state.save(tmp_path)
    again = LiveFeatures.load(tmp_path)
    for each in (state, again):
        Incoming(each).apply([event("eve", "i003", DAY + 20 * MINUTE)])
        assert each.last_session(number)[1] == made
        Incoming(each).apply([event("eve", "i003", DAY + 60 * MINUTE)])
        assert each.last_session(number)[1] not in (-1, made)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(USERS),
            st.integers(0, 200),
            st.sampled_from([None, None, None, "s1", "s2"]),
        ),
        min_size=2,
        max_size=12,
    ),
    st.integers(1, 6),
)
@settings(max_examples=25, deadline=None)
def test_sessions_do_not_depend_on_where_a_batch_ends(rows, size) -> None:
    """Events that come late included: replicas read a log in pieces of their own."""
    told = [
        event(user, "i001", 17_000 * DAY + minute * MINUTE, **({"session_id": s} if s else {}))
        for user, minute, s in rows
    ]
    one_by_one, in_pieces = live(), live()
    for each in told:
        Incoming(one_by_one).apply([each])
    incoming = Incoming(in_pieces)
    for at in range(0, len(told), size):
        incoming.apply(told[at : at + size])
    for name in one_by_one._by_user.columns():
        np.testing.assert_array_equal(
            one_by_one._by_user.columns()[name], in_pieces._by_user.columns()[name], err_msg=name
        )
    assert len(one_by_one.sessions) == len(in_pieces.sessions)


def test_new_users_are_kept_and_bounded(tmp_path) -> None:
    state = live()
    incoming = Incoming(state, new_users=100)
    incoming.apply([event(f"n{n}", "i001", DAY + n, store_id="s1") for n in range(150)])
    assert state.n_users == 105
    assert state.user_number("n99") == 104 and state.user_number("n100") == -1
    state.save(tmp_path)
    again = LiveFeatures.load(tmp_path)
    assert again.n_users == 105 and again.last_store(104) == 1
    assert again.history(104, 3).tolist() == [1]
    last = again._by_user.session[104]
    assert again.current_session(104, DAY + 100, 30 * MINUTE) == last >= 0


def test_unknown_items_count_for_their_user_only() -> None:
    state = live()
    before = len(state.tables["item"])
    Incoming(state).apply([event("u1", "who knows", DAY)])
    assert len(state.tables["item"]) == before and len(state.tables["user_item"]) == 0
    assert state.orders(1) == 1


def test_a_state_still_goes_to_other_processes() -> None:
    state = live()
    Incoming(state).apply([event("eve", "i001", DAY)])
    again = pickle.loads(pickle.dumps(state))  # noqa: S301  as Ray does with what tasks need
    assert again.user_number("eve") == 5
    with again.lock:
        assert again.history(5, 3).tolist() == [1]


def test_keys_that_end_with_a_user_have_no_room_for_new_ones() -> None:
    plan = PLAN.model_copy(
        update={"tables": {**PLAN.tables, "of": PLAN.tables["user_item"].model_copy(
            update={"keys": ("item", "user")})}}
    )  # fmt: skip
    state = LiveFeatures(plan, catalogue(), ["u0", "u1", "u2"])
    assert state.open_user("eve") == -1 and state.n_users == 3
    Incoming(state).apply([event("eve", "i001", DAY)])  # and nothing breaks
