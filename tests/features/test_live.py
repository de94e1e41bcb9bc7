"""Features at a moment: the past counts, the present and the future do not."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.features.chosen import Chooser, cut_blocks, gather, read_block
from raysys.features.live import LiveFeatures
from raysys.features.promotions import DISPLAY, MAILER, Promotions
from raysys.features.replay import Retrieval, choose_candidates
from raysys.retrieval.covisitation import CoVisitation
from raysys.schema import EVENT_TYPES
from tests.features.shop import DAY, columns, live

N_ITEMS, N_USERS = 12, 5

log = st.lists(
    st.tuples(
        st.integers(0, N_USERS - 1),
        st.integers(-1, N_ITEMS - 1),
        st.integers(0, 40 * DAY),
        st.sampled_from([EVENT_TYPES.index("purchase"), EVENT_TYPES.index("view")]),
        st.floats(0.5, 20),
    ),
    min_size=1,
    max_size=60,
)


def events(rows):
    rows = sorted(rows, key=lambda row: row[2])
    user, item, time, kind, price = (list(column) for column in zip(*rows, strict=True))
    return columns(user, item, time, kind=kind, price=price)


@given(log, st.integers(0, N_USERS - 1))
@settings(max_examples=60, deadline=None)
def test_replayed_and_live_features_agree_to_the_last_bit(rows, user) -> None:
    history = events(rows)
    until = int(history.time[-1]) + 1
    replayed, served = live(), live()
    replayed.apply(history)
    for at in range(len(history)):
        served.apply(history.slice(at, at + 1))
    items = np.arange(N_ITEMS, dtype=np.int32)
    ours = replayed.batch(user, items, until, "s1", 3)
    theirs = served.batch(user, items, until, "s1", 3)
    np.testing.assert_array_equal(ours.features, theirs.features)
    np.testing.assert_array_equal(ours.history[0], theirs.history[0])
    np.testing.assert_array_equal(
        replayed.candidates(user, until).items, served.candidates(user, until).items
    )


@pytest.mark.long
@given(log)
@settings(max_examples=25, deadline=None)
def test_saved_features_read_the_same(tmp_path_factory, rows) -> None:
    folder = tmp_path_factory.mktemp("state")
    first = live()
    first.apply(events(rows))
    first.save(folder)
    second = LiveFeatures.load(folder)
    items = np.arange(N_ITEMS, dtype=np.int32)
    for user in range(-1, N_USERS):
        np.testing.assert_array_equal(
            first.batch(user, items, first.as_of + DAY).features,
            second.batch(user, items, second.as_of + DAY).features,
        )
        assert first.profile(user, first.as_of + 1) == second.profile(user, second.as_of + 1)


@given(log, st.integers(1, 39 * DAY))
@settings(max_examples=25, deadline=None)
def test_what_happens_at_a_request_or_later_does_not_change_its_candidates(
    tmp_path_factory, rows, at
) -> None:
    """The leak test: what a request is offered is equal with and without the future."""
    history = events(rows)
    past = int(np.searchsorted(history.time, at))
    outcomes = []
    for known in (history.slice(0, past), history):
        outcomes.append(_choose(known, (0, at), tmp_path_factory.mktemp("chosen"))[1:])
    for ours, theirs in zip(*outcomes, strict=True):
        assert ours.equals(theirs)


def _choose(history, moment, folder):
    user, time = moment
    requests = pl.DataFrame(
        {"request": [0], "request_id": ["r0"], "user": [user], "time": [time]}
        | {"store": [0], "week": [3], "session": [-1], "n_relevant": [1]}
    )
    relevant = pl.DataFrame({"request": [0], "item": [7], "label": [1.0]})
    near = CoVisitation.fit(history.order, history.item, N_ITEMS, min_count=1)
    nothing = CoVisitation(near.neighbours * 0 - 1, near.scores * 0)
    before = history.slice(0, int(np.searchsorted(history.time, time // DAY * DAY)))
    sold = live()
    sold.apply(before)
    retrieval = Retrieval([(0, nothing)], lambda day: sold.popular_at(day * DAY), 10)
    (block,) = cut_blocks([], [time // DAY * DAY, time + 1])
    chooser = Chooser(folder, 0)
    recalls = choose_candidates(
        live(), iter([history]), requests, relevant, retrieval, [block], chooser
    )
    chooser.close()
    gather(folder, 1, block, folder)
    return recalls[0], *(read_block(folder, kind, block) for kind in ("requests", "rows"))


def test_a_purchase_that_retrieval_missed_is_kept_apart(tmp_path) -> None:
    history = columns([0, 1], [1, 2], [DAY, 2 * DAY])
    recall, _, rows = _choose(history, (0, 3 * DAY), tmp_path)
    assert (recall.relevant, recall.found) == (1, 0)
    assert 7 not in rows.filter("retrieved")["item"].to_list()
    assert rows["item"].to_list()[-1] == 7
    assert rows["label"].to_list()[-1] == 1.0
    assert rows["label"].sum() == 1.0


def test_candidates_name_their_sources() -> None:
    state = live()
    state.apply(columns([0, 0, 1, 2], [1, 2, 3, 3], [DAY, 2 * DAY, 2 * DAY, 3 * DAY]))
    found = state.candidates(0, 4 * DAY)
    by_item = {int(item): found.sources_of(at) for at, item in enumerate(found.items)}
    assert {"owned", "popular"} <= set(by_item[1])
    assert by_item[3] == ["category", "popular"] or by_item[3] == ["popular"]
    assert "owned" not in by_item[3]


def test_an_unknown_user_still_gets_candidates_and_finite_history() -> None:
    state = live()
    state.apply(columns([0, 1], [1, 3], [DAY, 2 * DAY]))
    found = state.candidates(-1, 3 * DAY)
    assert sorted(found.items.tolist()) == [1, 3]
    batch = state.batch(-1, found.items, 3 * DAY)
    assert batch.history[0].tolist() == []
    assert np.isnan(batch.column("recency")).all()
    assert (batch.column("mine") == 0).all()


def test_features_say_what_they_mean() -> None:
    state = live()
    state.apply(columns([0, 0, 0], [1, 1, 2], [0, 10 * DAY, 20 * DAY], price=[2.0, 2.0, 5.0]))
    batch = state.batch(0, np.array([1, 2, 3], dtype=np.int32), 24 * DAY)
    assert batch.column("times").tolist() == [2, 1, 0]
    assert batch.column("recency")[:2].tolist() == [14, 4]
    assert batch.column("interval")[0] == 10
    assert batch.column("overdue")[0] == pytest.approx(1.4)
    assert batch.column("price")[:2].tolist() == [2, 5]
    assert np.isnan(batch.column("price")[2])
    assert batch.column("weekday")[0] == 6  # 1970-01-25 was a Sunday
    assert batch.column("mine_share")[:2].sum() == pytest.approx(1.0, abs=1e-5)


def test_promotions_know_stores_and_weeks() -> None:
    week, store, item = (np.array(x, dtype=np.int64) for x in ([3, 3, 4], [0, 0, 0], [1, 1, 2]))
    flags = np.array([DISPLAY, MAILER, MAILER], dtype=np.uint8)
    promotions = Promotions.of_columns(week, store, item, flags, 2, N_ITEMS)
    items = np.array([1, 2], dtype=np.int32)
    assert promotions.of(items, 0, 3).tolist() == [DISPLAY | MAILER, 0]
    assert promotions.of(items, 0, 4).tolist() == [0, MAILER]
    assert promotions.of(items, 1, 3).tolist() == [-1, -1]  # a store nobody recorded
    assert promotions.of(items, 0, 9).tolist() == [-1, -1]
    assert promotions.between(4, 4).of(items, 0, 3).tolist() == [-1, -1]
