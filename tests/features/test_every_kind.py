"""What holds of every kind of state and feature, on random streams."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.features.explain import as_markdown, as_text, explain
from raysys.features.live import LiveFeatures
from raysys.features.log import EventColumns
from raysys.features.plan import FeaturePlan
from raysys.features.plan_features import FeatureSpec
from raysys.features.read import CandidateRows
from raysys.features.sizes import saved_state_size, state_size
from raysys.features.state import fed_by
from tests.features import every
from tests.features.every import DAY, N_ITEMS, N_QUERIES, N_USERS, PLAN, in_order, same, take

LATER = 45 * DAY
FED = every.live()
REQUESTED = ("covisitation", "on_display", "position")  # look at the request itself, not at rows


def kinds(annotation: object = FeatureSpec) -> set[str]:
    models = annotation.__args__[0].__args__  # type: ignore[attr-defined]
    return {kind for m in models for kind in m.model_fields["kind"].annotation.__args__}


def test_the_plan_has_every_kind() -> None:
    assert {feature.kind for feature in PLAN.features} == kinds()


@pytest.mark.long
@given(every.streams(), st.lists(st.integers(0, 50), max_size=5), st.booleans())
@settings(max_examples=60, deadline=None)
def test_columns_and_single_events_agree_to_the_last_bit(events, cuts, late) -> None:
    """In whatever pieces events arrive, in order or late, the state is the same."""
    events = events if late else in_order(events)
    whole, single, pieces = every.live(), every.live(), every.live()
    whole.apply(events)
    for at in range(len(events)):
        single.apply(events.slice(at, at + 1))
    bounds = sorted({0, len(events), *(cut for cut in cuts if cut < len(events))})
    for start, stop in pairwise(bounds):
        pieces.apply(events.slice(start, stop))
    for time in (whole.as_of, whole.as_of + 1, LATER):
        same(whole, single, time)
        same(whole, pieces, time)


@given(every.streams(20), st.data())
@settings(max_examples=20, deadline=None)
def test_a_state_is_fed_the_same_by_the_columns_that_it_looks_at(events, data) -> None:
    """However the events are cut, taken and joined, what is left out changes nothing."""
    state = FED.state
    rows = np.array(data.draw(st.lists(st.integers(0, len(events) - 1), min_size=1)))
    cut = data.draw(st.integers(0, len(events)))
    for name, spec in PLAN.states.items():
        some = events.only(fed_by([spec]))
        whole = EventColumns.concat([events.take(rows), events.slice(cut, len(events))])
        bare = EventColumns.concat([some.take(rows), some.slice(cut, len(events))])
        ours, theirs = state.feed(name, bare), state.feed(name, whole)
        for column in ("keys", "times", "weights", "values"):
            np.testing.assert_array_equal(getattr(ours, column), getattr(theirs, column))
            assert getattr(ours, column).dtype == getattr(theirs, column).dtype


def test_columns_that_no_state_looks_at_take_no_memory() -> None:
    events = every.as_columns(
        [(0, 1, every.KINDS[2], day * DAY, 2, 1.5, 0, 1, 1, 1) for day in (1, 2)]
    )
    columns = fed_by([PLAN.tables["item"]])
    assert columns == {"time", "kind", "item", "price"}
    bare = events.only(columns)
    joined = EventColumns.concat([bare, bare.take(np.array([1, 0, 1]))])
    assert joined.item.tolist() == [1] * 5 and joined.price.tolist() == [1.5] * 5
    assert joined.user.tolist() == [-1] * 5 and np.isnan(joined.quantity).all()
    assert joined.user.strides == joined.quantity.strides == (0,)
    other = replace(bare, store=np.broadcast_to(np.int32(7), 2))  # one value too, yet another
    assert EventColumns.concat([bare, other]).store.tolist() == [-1, -1, 7, 7]


def rows_at(times: list[int], seed: int) -> CandidateRows:
    rng = np.random.default_rng(seed)
    n = len(times)
    draw = lambda low, high: rng.integers(low, high, n).astype(np.int32)  # noqa: E731
    return CandidateRows(
        user=draw(-1, N_USERS),
        item=draw(0, N_ITEMS),
        time=np.array(times, np.int64),
        store=draw(-1, 2),
        session=draw(-1, 7),
        query=draw(-1, N_QUERIES),
    )


UNBOUNDED = PLAN.model_copy(
    update={
        "tables": {
            name: spec.model_copy(update={"max_records": None})
            for name, spec in PLAN.tables.items()
        }
    }
)


@pytest.mark.long
@given(every.streams(), st.lists(st.integers(0, 45 * DAY), max_size=8), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_replay_tells_what_a_request_at_that_moment_was_told(events, times, seed) -> None:
    events = in_order(events)
    times = [*times, *events.time[::3].tolist()]  # many at the very moment of an event
    rows = rows_at(times, seed)
    replayed = every.columnar(every.live(UNBOUNDED), events, rows)
    asked = np.array([name not in REQUESTED for name in PLAN.names])
    order = np.argsort(rows.time, kind="stable")
    state, done = every.live(UNBOUNDED), 0
    for at in order:
        until = int(np.searchsorted(events.time, rows.time[at]))
        state.apply(events.slice(done, until))
        done = until
        store = f"s{rows.store[at]}" if rows.store[at] >= 0 else None
        state._by_user.store[:] = -1  # rows say which store; without one there is none
        batch = state.batch(
            *(int(rows.user[at]), rows.item[at : at + 1], int(rows.time[at]), store, 3),
            **{"session": int(rows.session[at]), "query": int(rows.query[at])},
        )
        np.testing.assert_array_equal(replayed[at, asked], batch.features[0, asked])


@pytest.mark.long
@given(every.streams(), every.streams(20), st.integers(0, 40 * DAY), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_no_feature_moves_with_what_happens_at_its_moment_or_later(
    events, others, moment, seed
) -> None:
    """Every kind: events at or after the read are taken away, or replaced by others."""
    events = in_order(events)
    past = events.slice(0, int(np.searchsorted(events.time, moment)))
    future = take(others, np.flatnonzero(others.time >= moment))
    changed = in_order(
        type(events)(
            *(
                np.concatenate([getattr(past, name), getattr(future, name)])
                for name in events.__dataclass_fields__
            )
        )
    )
    rows = rows_at([moment] * 6, seed)
    told = [every.columnar(every.live(UNBOUNDED), log, rows) for log in (past, events, changed)]
    np.testing.assert_array_equal(told[0], told[1])
    np.testing.assert_array_equal(told[0], told[2])


@pytest.mark.long
@given(every.streams(), st.integers(0, 50), st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_snapshot_in_the_middle_changes_nothing(tmp_path_factory, events, cut, late) -> None:
    folder = tmp_path_factory.mktemp("state")
    events = events if late else in_order(events)
    cut = min(cut, len(events))
    through, before = every.live(), every.live()
    through.apply(events)
    before.apply(events.slice(0, cut))
    before.save(folder)
    after = LiveFeatures.load(folder)
    after.apply(events.slice(cut, len(events)))
    assert after.as_of == through.as_of
    for time in (through.as_of + 1, LATER):
        same(through, after, time)


@pytest.mark.long
@given(every.streams(), st.sets(st.integers(0, 50)), st.booleans())
@settings(max_examples=60, deadline=None)
def test_compaction_changes_nothing_for_whoever_remains(events, moments, late) -> None:
    """State that ages out reads the same whenever its dead records are taken away."""
    events = events if late else in_order(events)
    kept, compacted = every.live(UNBOUNDED), every.live(UNBOUNDED)
    kept.state.ages = compacted.state.ages = False  # only when this test says so
    for at in range(len(events)):
        kept.apply(events.slice(at, at + 1))
        compacted.apply(events.slice(at, at + 1))
        if at in moments:
            compacted.compact()
    compacted.compact()
    for time in (kept.as_of, kept.as_of + 1, LATER):
        same(kept, compacted, time)


@given(every.streams())
@settings(max_examples=40, deadline=None)
def test_late_events_tell_what_timely_ones_would(events) -> None:
    """Windows and last things are as if events had come in time; sums but for rounding."""
    late, timely = every.live(UNBOUNDED), every.live(UNBOUNDED)
    late.apply(events)
    timely.apply(in_order(events))
    for name, window in late.state.windows.items():
        other = timely.state.windows[name]
        keys = np.unique(np.concatenate([window.keys[: len(window)], other.keys[: len(other)]]))
        until = int(events.time.max()) + DAY
        ours, theirs = (w.read(w.find(keys), until) for w in (window, other))
        for exact in ("lows", "highs", "days"):
            np.testing.assert_array_equal(getattr(ours, exact), getattr(theirs, exact))
        np.testing.assert_allclose(ours.counts, theirs.counts, rtol=1e-12)
        np.testing.assert_allclose(ours.sums, theirs.sums, rtol=1e-12)
    for name, last in late.state.last.items():
        other = timely.state.last[name]
        keys = last.keys[: len(last)]
        until = int(events.time.max())
        np.testing.assert_array_equal(
            last.read(last.find(keys), until).values, other.read(other.find(keys), until).values
        )


def test_a_moment_is_missed_that_comes_after_a_newer_one() -> None:
    """What docs/events.md excepts: an order of yesterday that comes after one of today."""
    orders = [(0, 0, every.KINDS[2], day * DAY, 1, 1.0, 0, 0, 0, 0) for day in (1, 3, 2)]
    events = every.as_columns(orders)
    late, timely = every.live(UNBOUNDED), every.live(UNBOUNDED)
    late.apply(events)
    timely.apply(in_order(events))
    moments = []
    for state in (late, timely):
        table = state.state.tables["user_item"]
        moments.append(table.read(table.find(table.keys[:1]), 4 * DAY).moments.tolist())
    assert moments == [[2.0], [3.0]]


def test_only_the_newest_records_are_kept_at_the_change_of_a_day() -> None:
    purchases = [(u, i, every.KINDS[2], DAY + u * 100 + i, 1, 1.0, 0, 0, 0, 0)
                 for u in range(4) for i in range(2)]  # fmt: skip
    next_day = [(0, 0, every.KINDS[2], 3 * DAY, 1, 1.0, 0, 0, 0, 0)]
    state = every.live()
    state.apply(every.as_columns(purchases))
    table = state.tables["few"]
    assert len(table) == 8
    newest = table.keys[5:8].tolist()
    state.apply(every.as_columns(next_day))
    assert len(table) == 4
    assert table.keys[:3].tolist() == newest
    assert len(state.tables["user_item"]) == 9 - 1  # the pair came again


def test_sizes_add_up() -> None:
    state = every.live()
    rows = [(u, u, every.KINDS[2], u * DAY, 1, 1.0, 0, u, 0, 0) for u in range(4)]
    state.apply(every.as_columns(rows))
    size = state_size(state)
    assert set(size["tables"]) == set(PLAN.states)
    assert size["tables"]["user_item"]["records"] == 4
    assert size["tables"]["item_days"]["kind"] == "window"
    assert size["records"] == sum(table["records"] for table in size["tables"].values())
    assert size["bytes"] == sum(entity["bytes"] for entity in size["entities"].values())
    assert size["entities"]["user"]["known"] == N_USERS
    assert size["entities"]["all"]["records"] == 1  # shop_weeks; nobody clicked
    grown = every.live()
    grown.apply(every.as_columns(rows * 3000))
    assert state_size(grown)["bytes"] == size["bytes"]  # by keys, not by events


def test_what_was_saved_is_as_large_as_its_headers_say(tmp_path) -> None:
    state = every.live()
    rows = [(u, u, every.KINDS[2], u * DAY, 1, 1.0, 0, u, 0, 0) for u in range(4)]
    state.apply(every.as_columns(rows * 500))
    state.save(tmp_path)
    saved, held = saved_state_size(tmp_path), state_size(state)
    for name, table in saved["tables"].items():
        arrays = state.state.all()[name].arrays()
        assert table["bytes"] == sum(array.nbytes for array in arrays.values())
        assert table["records"] == held["tables"][name]["records"]
    for name, entity in saved["entities"].items():
        assert entity.get("known") == held["entities"][name].get("known")
    assert saved["bytes"] < held["bytes"] and saved["records"] == held["records"] > 20


def test_every_feature_is_explained() -> None:
    rows = explain(PLAN)
    assert [row.name for row in rows] == list(PLAN.names)
    for row in rows:
        assert row.what and row.unknown and row.leak_safe, row
    by_name = {row.name: row for row in rows}
    assert by_name["mine"].keys == ("user", "item")
    assert by_name["mine"].memory == "half-life 28 days; forgotten after 20 days without an event"
    assert by_name["query_ctr"].events == ("click", "impression")
    assert "drawn towards the rate by item, then category, then all" in by_name["query_ctr"].what
    assert by_name["window_min_3d"].memory == "the last 3 days, in whole buckets of 1 day"
    assert "position is looked at" in by_name["ctr"].what
    assert by_name["few"].memory.endswith("of the newest 3 keys")
    table = as_markdown(rows).splitlines()
    assert len(table) == 2 + len(rows)
    assert {line.count("|") for line in table} == {9}
    text = as_text(rows)
    assert text.count("\n\n") == len(rows) - 1
    assert "rank (last_rank)\n  place of the candidate's item among the last 3" in text


@pytest.mark.parametrize("name", [*PLAN.states])
def test_every_state_refuses_a_replay_out_of_order(name) -> None:
    state = every.live().state.all()[name]
    keys = np.zeros(2, np.int64)
    every_row = np.ones(2, bool)
    with pytest.raises(ValueError, match="follow each other"):
        state.replay(keys, np.array([5, 4]), np.ones(2), np.ones(2), every_row, every_row)
    state.replay(keys, np.array([5, 6]), np.ones(2), np.ones(2), every_row, every_row)
    with pytest.raises(ValueError, match="no moment cut"):
        state.replay(keys, np.array([6, 7]), np.ones(2), np.ones(2), every_row, every_row)


def test_a_plan_survives_its_snapshot(tmp_path) -> None:
    every.live().save(tmp_path)
    loaded = LiveFeatures.load(tmp_path)
    assert loaded.plan == PLAN
    assert FeaturePlan.model_validate(loaded.plan.model_dump(mode="json")) == PLAN
