from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.config import parse_settings
from raysys.errors import UserError
from raysys.features.attribution import Touches, attribute, grade
from raysys.features.labels import HOUR_MS, OUTCOMES, LabelSettings
from raysys.features.requests import RequestSettings
from raysys.schema import EVENT_TYPES

GAINS = {"impression": 0, "view": 1, "click": 2, "favorite": 3, "cart": 4, "purchase": 5}


def touches(rows, *, sessions=False, requests=False) -> Touches:
    """(user, item, event type, time, session, request), in time order."""
    rows = sorted(rows, key=lambda row: row[3])
    user, item, kind, time, session, request = zip(*rows, strict=True) if rows else [()] * 6
    return Touches(
        np.array(user, np.int32),
        np.array(item, np.int32),
        np.array([EVENT_TYPES.index(k) for k in kind], np.int8),
        np.array(time, np.int64),
        np.array(session, np.int64) if sessions else None,
        np.array(request, np.int64) if requests else None,
    )


def by_hand(log: Touches, how: LabelSettings) -> list[tuple[int, int, float, bool]]:
    """The definition, as a loop over all pairs of events."""
    found = []
    owner = log.session if how.same_session else log.user
    for outcome in range(len(log)):
        kind = EVENT_TYPES[log.kind[outcome]]
        if kind not in OUTCOMES or log.item[outcome] < 0:
            continue
        window = how.windows_ms[log.kind[outcome]]
        near = [
            row
            for row in range(len(log))
            if EVENT_TYPES[log.kind[row]] == "impression"
            and log.item[row] == log.item[outcome]
            and 0 <= log.time[outcome] - log.time[row] <= window
        ]
        answer = []
        if log.request is not None and log.request[outcome] >= 0:
            answer = [row for row in near if log.request[row] == log.request[outcome]]
        mine = [row for row in near if owner[row] == owner[outcome]]
        if answer:
            found.append((outcome, answer[-1], 1.0, True))
        elif mine:
            chosen = {"last": mine[-1:], "first": mine[:1], "all": mine[-how.most_touches :]}
            each = chosen[how.touch]
            found += [(outcome, row, 1 / len(each), False) for row in each]
    return found


hours = st.sampled_from([0.001, 0.01, 1.0])
events = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.integers(-1, 2),
        st.sampled_from(["impression", "impression", *EVENT_TYPES]),
        st.integers(0, 40).map(lambda step: step * 1800),
        st.integers(0, 3),
        st.integers(-1, 3),
    ),
    max_size=40,
)


@pytest.mark.long
@settings(max_examples=300, deadline=None)
@given(
    events,
    st.sampled_from(["last", "first", "all"]),
    st.booleans(),
    st.booleans(),
    st.dictionaries(st.sampled_from(OUTCOMES), hours),
    st.integers(1, 4),
)
def test_it_is_what_a_loop_over_all_pairs_says(rows, touch, same, requests, windows, most):
    how = LabelSettings(
        touch=touch, same_session=same, windows_hours=windows, most_touches=most, gains=GAINS
    )
    log = touches(rows, sessions=True, requests=requests)
    found = attribute(log, how)
    told = list(zip(found.outcome, found.impression, found.share, found.exact, strict=True))
    assert told == by_hand(log, how)


@settings(max_examples=100, deadline=None)
@given(events, st.sampled_from(["last", "first", "all"]))
def test_any_partition_by_user_gives_the_same(rows, touch):
    how = LabelSettings(touch=touch, gains=GAINS)
    log = touches(rows)
    whole = attribute(log, how)
    credited = set(zip(whole.outcome, whole.impression, whole.share, strict=True))
    parts = set()
    for user in (0, 1, 2):
        mine = np.flatnonzero(log.user == user)
        part = attribute(
            Touches(log.user[mine], log.item[mine], log.kind[mine], log.time[mine]), how
        )
        parts |= set(zip(mine[part.outcome], mine[part.impression], part.share, strict=True))
    assert parts == credited


@settings(max_examples=100, deadline=None)
@given(events, st.integers(0, 40), st.sampled_from(["highest", "sum"]))
def test_final_labels_do_not_change_when_the_log_goes_on(rows, cut, combine):
    """What is final at a fold's end is the same whatever happens after it."""
    how = LabelSettings(combine=combine, gains=GAINS, windows_hours=dict.fromkeys(OUTCOMES, 0.004))
    end = cut * 1800
    log = touches(rows)
    until = touches([row for row in rows if row[3] < end])
    early = grade(until, attribute(until, how), how, end=end)
    cut_off = grade(log, attribute(log, how), how, end=end)
    np.testing.assert_array_equal(early.impression, cut_off.impression)
    np.testing.assert_array_equal(early.label, cut_off.label)
    late = grade(log, attribute(log, how), how)
    of = dict(zip(late.impression, late.label, strict=True))
    for row, label in zip(early.impression, early.label, strict=True):
        if log.time[row] < end - how.longest_ms:
            assert label == of[row]


def graded(rows, **how) -> list[float]:
    settings = LabelSettings(gains=GAINS, **how)
    log = touches([(0, 0, *row, 0, -1) for row in rows])
    return grade(log, attribute(log, settings), settings).label.tolist()


def test_labels_are_graded():
    rows = [("impression", 0), ("click", 5), ("cart", 9), ("cart", 12), ("impression", 50)]
    assert graded(rows) == [4, 0]
    assert graded(rows, combine="sum") == [6, 0]  # a click and a cart, the second cart adds nothing


def test_all_touches_share():
    rows = [("impression", 0), ("impression", 10), ("purchase", 20)]
    assert graded(rows, touch="last") == [0, 5]
    assert graded(rows, touch="first") == [5, 0]
    assert graded(rows, touch="all") == [2.5, 2.5]


def test_an_impression_of_the_same_moment_is_earlier():
    assert graded([("click", 7), ("impression", 7)]) == [2]


def test_a_window_is_by_event_type():
    rows = [("impression", 0), ("click", 2 * HOUR_MS), ("cart", 3 * HOUR_MS)]
    assert graded(rows) == [4]
    assert graded(rows, windows_hours={"cart": 1.0}) == [0]
    assert graded(rows, windows_hours={"cart": 1.0, "click": 2.0}) == [2]


def test_labels_are_final_a_window_before_the_end():
    how = LabelSettings(gains={"click": 1}, windows_hours={"click": 1, "purchase": 100})
    assert how.longest_ms == HOUR_MS  # purchases are worth nothing here
    shown = [(0, 0, "impression", at * HOUR_MS, 0, -1) for at in (7, 8, 9, 10)]
    log = touches([*shown, (0, 0, "click", 10 * HOUR_MS, 0, -1)])
    assert grade(log, attribute(log, how), how).label.tolist() == [0, 0, 0, 1]
    cut = grade(log, attribute(log, how), how, end=10 * HOUR_MS)
    assert cut.impression.tolist() == [0, 1, 2] and cut.label.tolist() == [0, 0, 0]


def test_an_empty_log_has_nothing_to_credit():
    how = LabelSettings()
    log = touches([])
    found = attribute(log, how)
    assert len(found) == 0
    assert len(grade(log, found, how).label) == 0


def test_events_out_of_order_are_refused():
    log = Touches(*(np.array(x) for x in ([0, 0], [0, 0], [0, 2], [5, 3])))
    with pytest.raises(ValueError, match="time order"):
        attribute(log, LabelSettings())
    with pytest.raises(ValueError, match="session"):
        attribute(touches([]), LabelSettings(same_session=True))


def test_the_old_form_of_labels_stays_valid():
    old = parse_settings(RequestSettings, {"labels": {"click": 1, "purchase": 5}}, where="x")
    new = parse_settings(
        RequestSettings, {"labels": {"gains": {"click": 1, "purchase": 5}}}, where="x"
    )
    assert old == new
    assert old.labels.by_kind.tolist() == [0, 0, 1, 0, 0, 5, 0, 0]
    again = parse_settings(RequestSettings, old.model_dump(mode="json"), where="x")
    assert again == old


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"click": 0}, "gain above 0"),
        ({"click": -1}, "greater than or equal to 0"),
        ({"buy": 1}, "purchase"),
        ({"gains": {"click": 1}, "windows_hours": {"impression": 1}}, "'favorite'"),
        ({"gains": {"click": 1}, "combin": "sum"}, "did you mean 'combine'"),
    ],
)
def test_impossible_labels_are_refused(labels, message):
    with pytest.raises(UserError, match=message):
        parse_settings(RequestSettings, {"labels": labels}, where="features.yaml")
