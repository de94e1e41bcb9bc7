"""Requests and folds out of a log."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys import schema
from raysys.errors import UserError
from raysys.features.log import EventColumns
from raysys.features.numbered import LogSlice, NumberedLog
from raysys.features.numbering import number_log
from raysys.features.requests import RequestSettings, RequestsPerFold, build_requests
from raysys.ingest.spread import InProcess
from tests.features.logs import write_events
from tests.features.shop import DAY, catalogue, columns

SETTINGS = RequestSettings(train_days=8, train_folds=2, validation_days=4, report_days=4)


def write_log(folder, days: int, per_day: int = 3) -> None:
    start = datetime(2026, 1, 1, 9, tzinfo=UTC)
    rows = []
    for day in range(days):
        for number in range(per_day):
            for line in range(2):
                rows.append(
                    {
                        "event_id": f"{day:03d}-{number}-{line}",
                        "event_type": "purchase" if line == 0 or number else "view",
                        "user_id": f"u{number}",
                        "item_id": f"i{(day + number + line) % 12:03d}",
                        "timestamp": start + timedelta(days=day, hours=number, minutes=line),
                        "order_id": f"o{day}-{number}",
                        "session_id": f"s{day}" if number else None,
                        "query": ["Red  Shoes", " red shoes", "ﬁsh", None][line + number % 2 * 2],
                        "position": line + 1 if number else None,
                    }
                )
    table = pl.DataFrame(rows).to_arrow()
    columns = {
        field.name: table[field.name].cast(field.type)
        if field.name in table.column_names
        else pl.Series([None] * len(table)).to_arrow().cast(field.type)
        for field in schema.EVENTS
    }
    folder.mkdir()
    pl.DataFrame(columns).write_parquet(folder / "a.parquet")


def numbers(folder, items=None, group_by=("order_id",), seed=1) -> NumberedLog:
    items = catalogue() if items is None else items
    return number_log(folder / "events", items, group_by, folder / "log", InProcess(), seed)


def everything(log: NumberedLog) -> EventColumns:
    return LogSlice.concat(list(log.slices())).events


def test_folds_follow_time_and_labels_follow_purchases(tmp_path) -> None:
    write_log(tmp_path / "events", 24)
    log = numbers(tmp_path)
    requests = build_requests(log, SETTINGS)
    frame = requests.frame
    assert frame["time"].is_sorted()
    assert frame["fold"].is_sorted()
    assert frame.group_by("fold", "split").len().sort("fold")["split"].to_list() == [
        *("train", "train", "validation", "report")
    ]
    for fold in range(4):
        block = frame.filter(fold=fold)["time"]
        assert requests.folds[fold] <= block.min()
        assert block.max() < requests.folds[fold + 1]
    first = frame.filter(pl.col("request_id").str.ends_with("-0"))
    assert first["n_relevant"].unique().to_list() == [1]  # its second line was only a view
    others = frame.filter(~pl.col("request_id").str.ends_with("-0"))
    assert others["n_relevant"].unique().to_list() == [2]
    assert requests.validation == 2


def test_sampling_keeps_the_number_and_repeats_itself(tmp_path) -> None:
    write_log(tmp_path / "events", 24)
    log = numbers(tmp_path, seed=3)
    few = SETTINGS.model_copy(update={"requests_per_fold": RequestsPerFold(train=5, report=4)})
    one, two = (build_requests(log, few).frame for _ in range(2))
    assert one.equals(two)
    assert one.group_by("fold").len().sort("fold")["len"].to_list() == [5, 5, 12, 4]
    other = number_log(
        *(tmp_path / "events", catalogue(), ["order_id"], tmp_path / "other", InProcess()), seed=4
    )
    assert set(one["request_id"]) != set(build_requests(other, few).frame["request_id"])


def test_a_log_too_short_for_its_folds_is_refused(tmp_path) -> None:
    write_log(tmp_path / "events", 5)
    log = numbers(tmp_path)
    with pytest.raises(UserError, match="no request in the train fold 0"):
        build_requests(log, SETTINGS)


def test_an_empty_log_is_refused(tmp_path) -> None:
    (tmp_path / "events").mkdir()
    empty = {field.name: pl.Series([], dtype=pl.String) for field in schema.EVENTS}
    empty["timestamp"] = pl.Series([], dtype=pl.Datetime("ms", "UTC"))
    pl.DataFrame(empty).write_parquet(tmp_path / "events" / "a.parquet")
    with pytest.raises(UserError, match="no events"):
        numbers(tmp_path)


def test_unknown_items_and_users_get_numbers_that_say_so(tmp_path) -> None:
    write_log(tmp_path / "events", 24)
    log = numbers(tmp_path, catalogue(3), ["order_id", "session_id"])
    assert log.users == ["u0", "u1", "u2"]
    events = everything(log)
    assert set(np.unique(events.item)) == {-1, 0, 1, 2}
    assert np.isnan(events.price).all()
    assert (np.diff(events.time) >= 0).all()


def test_sessions_queries_and_positions_are_numbered(tmp_path) -> None:
    write_log(tmp_path / "events", 3)
    log = numbers(tmp_path)
    events = everything(log)
    assert log.queries == ["fish", "red shoes"]
    # a day: two lines of u0 without a session, then two of u1, then two of u2
    assert events.session.tolist() == [
        -1,
        -1,
        0,
        0,
        1,
        1,
        -1,
        -1,
        2,
        2,
        3,
        3,
        -1,
        -1,
        4,
        4,
        5,
        5,
    ]
    assert events.query.tolist() == [1, 1, 0, -1, 1, 1] * 3
    assert events.position.tolist() == [0, 0, 1, 2, 1, 2] * 3
    assert log.newest_sessions(100).rows()[:3] == [(1, "s0", 0), (2, "s0", 1), (1, "s1", 2)]
    assert log.newest_sessions(2).rows() == [(1, "s2", 4), (2, "s2", 5)]


def test_events_that_say_nothing_of_sessions_have_none() -> None:
    events = columns([0, 1], [1, 2], [0, 1])
    assert events.session.tolist() == [-1, -1]
    assert events.slice(1, 2).query.tolist() == [-1]
    assert events.position.tolist() == [0, 0]


def test_an_order_across_midnight_is_one_request(tmp_path) -> None:
    rows = [
        {
            **{"event_id": f"e{at}", "user_id": "u0", "event_type": "purchase"},
            **{"timestamp": day * DAY + minute * 60_000, "item_id": f"i00{item}"},
            "order_id": order,
        }
        for at, (day, minute, item, order) in enumerate(
            [(d, 0, 1, f"o{d}") for d in range(20)]
            + [(12, 1439, 2, "late"), (13, 1, 3, "late"), (13, 2, 2, "late")]
        )
    ]
    write_events(tmp_path / "events", rows)
    requests = build_requests(numbers(tmp_path), SETTINGS)
    late = requests.frame.filter(request_id="late")
    assert late["time"].to_list() == [12 * DAY + 1439 * 60_000]
    assert late["n_relevant"].to_list() == [2]
    mine = requests.relevant.filter(request=late["request"][0])
    assert mine["item"].to_list() == [2, 3]


def test_sessions_of_one_name_are_requests_of_their_own(tmp_path) -> None:
    """Of two users, and of a session, an order and a user that share a name: each stays apart."""
    rows = [
        {
            **{"event_id": f"e{day}-{at}", "user_id": user, "event_type": "purchase"},
            **{"timestamp": day * DAY + at, "item_id": f"i00{at}"},
            **{"session_id": session, "order_id": order},
        }
        for day in range(20)
        for at, (user, session, order) in enumerate(
            [("u0", f"{day}", None), ("u1", f"{day}", None), ("u1", "x", f"{day}")]
        )
    ]
    rows.append({**rows[-1], "event_id": "bare", "user_id": "19", "order_id": None})
    rows[-1] |= {"session_id": None, "item_id": "i007"}
    write_events(tmp_path / "events", rows)
    log = numbers(tmp_path, group_by=("order_id", "session_id"))
    assert log.n_orders == 20 * 3 + 1
    requests = build_requests(log, SETTINGS)
    last = requests.frame.filter(request_id="19")
    assert [log.users[user] for user in last["user"]] == ["u0", "u1", "19", "u1"]
    assert last["n_relevant"].to_list() == [1, 1, 1, 1]


@pytest.mark.long
@given(st.lists(st.integers(0, 12), min_size=1, max_size=40), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_slices_hold_the_log_and_cut_no_moment(tmp_path_factory, moments, rows) -> None:
    folder = tmp_path_factory.mktemp("log")
    moments = sorted(moment * DAY // 3 for moment in moments)
    events = [
        {
            **{"event_id": f"e{at}", "user_id": f"u{at % 3}", "event_type": "view"},
            **{"timestamp": moment, "item_id": "i001", "order_id": f"o{at % 5}"},
        }
        for at, moment in enumerate(moments)
    ]
    write_events(folder / "events", events)
    log = numbers(folder)
    assert len(log) == len(moments)
    slices = list(log.slices(rows))
    assert np.concatenate([each.events.time for each in slices]).tolist() == moments
    assert [each.start for each in slices] == np.cumsum([0, *map(len, slices)])[:-1].tolist()
    for one, two in pairwise(slices):
        assert one.events.time[-1] < two.events.time[0]
    low, high = moments[len(moments) // 3], moments[-1]
    found = [t for each in log.between(low, high, rows) for t in each.events.time.tolist()]
    assert found == [t for t in moments if low <= t < high]
    cuts = [log.first, *log.cuts(rows), log.last + 1]
    sizes = [sum(len(each) for each in log.between(a, b)) for a, b in pairwise(cuts)]
    assert sum(sizes) == len(moments)
    assert all(size >= rows for size in sizes[:-1])
