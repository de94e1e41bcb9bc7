"""Requests and folds out of a log."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from raysys import schema
from raysys.errors import UserError
from raysys.features.log import read_log
from raysys.features.requests import RequestSettings, RequestsPerFold, build_requests
from tests.features.shop import catalogue, columns

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


def test_folds_follow_time_and_labels_follow_purchases(tmp_path) -> None:
    write_log(tmp_path / "events", 24)
    log = read_log(tmp_path / "events", catalogue(), group_by=["order_id"])
    requests = build_requests(log, SETTINGS, seed=1)
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
    log = read_log(tmp_path / "events", catalogue(), group_by=["order_id"])
    few = SETTINGS.model_copy(update={"requests_per_fold": RequestsPerFold(train=5, report=4)})
    one, two = (build_requests(log, few, seed=3).frame for _ in range(2))
    assert one.equals(two)
    assert one.group_by("fold").len().sort("fold")["len"].to_list() == [5, 5, 12, 4]
    assert not one.equals(build_requests(log, few, seed=4).frame)


def test_a_log_too_short_for_its_folds_is_refused(tmp_path) -> None:
    write_log(tmp_path / "events", 5)
    log = read_log(tmp_path / "events", catalogue(), group_by=["order_id"])
    with pytest.raises(UserError, match="no request in the train fold 0"):
        build_requests(log, SETTINGS, seed=1)


def test_an_empty_log_is_refused(tmp_path) -> None:
    (tmp_path / "events").mkdir()
    empty = {field.name: pl.Series([], dtype=pl.String) for field in schema.EVENTS}
    empty["timestamp"] = pl.Series([], dtype=pl.Datetime("ms", "UTC"))
    pl.DataFrame(empty).write_parquet(tmp_path / "events" / "a.parquet")
    with pytest.raises(UserError, match="no events"):
        read_log(tmp_path / "events", catalogue(), group_by=["order_id"])


def test_unknown_items_and_users_get_numbers_that_say_so(tmp_path) -> None:
    write_log(tmp_path / "events", 24)
    log = read_log(tmp_path / "events", catalogue(3), group_by=["order_id", "session_id"])
    assert log.users == ["u0", "u1", "u2"]
    assert set(np.unique(log.events.item)) == {-1, 0, 1, 2}
    assert np.isnan(log.events.price).all()
    assert (np.diff(log.events.time) >= 0).all()


def test_sessions_queries_and_positions_are_numbered(tmp_path) -> None:
    write_log(tmp_path / "events", 3)
    log = read_log(tmp_path / "events", catalogue(), group_by=["order_id"])
    assert log.queries == ["fish", "red shoes"]
    # a day: two lines of u0 without a session, then two of u1, then two of u2
    assert log.events.session.tolist() == [
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
    assert log.events.query.tolist() == [1, 1, 0, -1, 1, 1] * 3
    assert log.events.position.tolist() == [0, 0, 1, 2, 1, 2] * 3
    assert log.sessions.rows()[:3] == [(1, "s0", 0), (2, "s0", 1), (1, "s1", 2)]


def test_events_that_say_nothing_of_sessions_have_none() -> None:
    events = columns([0, 1], [1, 2], [0, 1])
    assert events.session.tolist() == [-1, -1]
    assert events.slice(1, 2).query.tolist() == [-1]
    assert events.position.tolist() == [0, 0]
