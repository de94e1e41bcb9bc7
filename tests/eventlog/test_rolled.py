"""Stretches of the log as Parquet: each entry in one file, whatever is killed on the way."""

from __future__ import annotations

import polars as pl
import pyarrow.parquet as pq
import pytest

from raysys import schema
from raysys.eventlog import rolled as module
from raysys.eventlog.entries import LogUnavailable
from raysys.eventlog.ids import DAY_MS
from raysys.eventlog.local import LocalLog
from raysys.eventlog.rolled import Rolled, roll
from raysys.eventlog.settings import LogSettings
from raysys.eventlog.tidying import forget
from tests.eventlog.conftest import Open
from tests.eventlog.entries import NOW, entries, entry


def events(rolled: Rolled) -> pl.DataFrame:
    return pl.read_parquet(rolled.events / "*.parquet").sort("offset")


def test_events_are_rolled_once_in_the_schema_of_logs(opened: Open, tmp_path) -> None:
    log, rolled = opened(), Rolled(tmp_path / "log")
    assert roll(log, rolled) == []
    log.append([entry("a", price=2.5, position=3), entry("b", kind="item", item_id="i")])
    assert roll(log, rolled, at_least=3) == []
    (first,) = roll(log, rolled)
    assert (first.first, first.last, first.events, first.others) == (1, 2, 1, 1)
    assert roll(log, rolled) == []
    log.append(entries("c", "a"))
    assert [s.name for s in roll(log, rolled)] == ["0000000000000003-0000000000000003"]
    assert events(rolled)["event_id"].to_list() == ["a", "c"] and rolled.last() == 3
    file = pq.ParquetFile(rolled.events / f"{first.name}.parquet")
    for column in schema.LOGGED_EVENTS:
        assert file.schema_arrow.field(column.name).equals(column)
    assert events(rolled).row(0, named=True)["timestamp"].timestamp() * 1000 == NOW
    assert events(rolled).select("price", "position").row(0) == (2.5, 3)


def test_the_oldest_entry_calls_for_a_roll(opened: Open, tmp_path) -> None:
    log, rolled = opened(), Rolled(tmp_path / "log")
    log.append(entries("a"))
    received = log.read(0)[0].received
    assert roll(log, rolled, at_least=100, older_than=received) == []
    assert len(roll(log, rolled, at_least=100, older_than=received + 1)) == 1


def test_a_roll_ends_while_events_keep_coming(opened: Open, tmp_path, monkeypatch) -> None:
    log, sender, rolled = opened(), opened(), Rolled(tmp_path / "log")
    log.append(entries("a", "b"))
    read, sent = log.read, iter(range(20))

    def read_slowly(*asked):  # something comes in at each look
        sender.append(entries(f"meanwhile-{next(sent)}"))
        return read(*asked)

    monkeypatch.setattr(log, "read", read_slowly)
    (stretch,) = roll(log, rolled)
    assert (stretch.first, stretch.last) == (1, 3)
    sender.append(entries("c"))
    assert [s.first for s in roll(log, rolled)] == [4]


def test_the_newest_word_on_items_and_users_counts(opened: Open, tmp_path) -> None:
    log, rolled = opened(), Rolled(tmp_path / "log")
    log.append([
        entry("1", kind="item", item_id="i2", title="old", price=1.0),
        entry("2", kind="item", item_id="i1", title="one"),
        entry("3", kind="user", user_id="u", attributes={"age": "30", "city": "Ulm"}),
        entry("4", kind="item", item_id="i2", title="new"),
    ])  # fmt: skip
    roll(log, rolled)
    log.append([
        entry("5", kind="user", user_id="u", attributes={"age": "31"}),
        entry("6", kind="item", item_id="i0", title="zero"),
    ])  # fmt: skip
    roll(log, rolled)
    items = pq.read_table(rolled.items)
    assert items.schema.equals(schema.ITEMS)
    assert items.select(["item_id", "title", "price"]).to_pylist() == [
        {"item_id": "i0", "title": "zero", "price": None},
        {"item_id": "i1", "title": "one", "price": None},
        {"item_id": "i2", "title": "new", "price": None},
    ]
    assert pl.read_parquet(rolled.users).to_dicts() == [{"user_id": "u", "age": "31"}]


def test_what_was_put_aside_is_no_event(opened: Open, tmp_path) -> None:
    from dataclasses import replace

    log, rolled = opened(), Rolled(tmp_path / "log")
    log.append([entry("a"), replace(entry("b"), quarantined="too old")])
    (stretch,) = roll(log, rolled)
    assert (stretch.events, stretch.others) == (1, 1)
    assert events(rolled)["event_id"].to_list() == ["a"]
    others = pl.read_parquet(rolled.others / "*.parquet")
    assert others.select("event_id", "quarantined").rows() == [("b", "too old")]


@pytest.mark.parametrize("stage", ["others", "events", "marker"])
def test_a_roll_that_is_killed_is_done_again(opened: Open, tmp_path, monkeypatch, stage) -> None:
    """Killed before, or after, each of its files: no entry is lost or in two files."""
    log, rolled = opened(), Rolled(tmp_path / "log")
    log.append([entry("a"), entry("b", kind="item", item_id="i")])

    class Killed(BaseException):
        pass

    wrote = module._write

    def until(table, path):
        if stage == "others" and path.parent == rolled.others:
            raise Killed
        wrote(table, path)
        if stage == "events" and path.parent == rolled.events:
            raise Killed

    if stage == "marker":
        monkeypatch.setattr(module, "asdict", lambda stretch: (_ for _ in ()).throw(Killed))
    monkeypatch.setattr(module, "_write", until)
    with pytest.raises(Killed):
        roll(log, rolled)
    monkeypatch.undo()
    assert rolled.last() == 0
    log.append(entries("c"))  # so that the next stretch has another name
    roll(log, rolled)
    assert events(rolled)["event_id"].to_list() == ["a", "c"]
    assert [s.name for s in rolled.stretches()] == ["0000000000000001-0000000000000003"]


@pytest.mark.parametrize("seen", ["read", "asked", "rolled by another"])
def test_a_redis_that_lacks_the_last_entries_gives_no_offset_twice(
    redis_server, tmp_path, seen: str
) -> None:
    """Another takes over that had not heard of them; who goes on writing has only seen them."""
    from raysys.eventlog.redis_log import RedisLog

    redis_server.redis.flushall()
    settings = LogSettings(backend="redis", url=redis_server.url)
    log, other = RedisLog(settings, tmp_path), RedisLog(settings, tmp_path)
    rolled = Rolled(tmp_path)
    log.append(entries("a", "b", "c"))
    if seen == "read":
        assert len(other.read(0)) == 3
    elif seen == "asked":
        assert other.end() == 3
    else:
        roll(log, rolled)
    redis_server.redis.xdel("raysys:log", "3-0")
    redis_server.redis.set("raysys:end", 2)
    if seen == "rolled by another":
        assert roll(other, rolled) == []
    assert other.append(entries("d")).last == 4
    assert [s.last for s in roll(other, rolled)] == [4]
    log.close()
    other.close()


def test_who_lost_the_lock_says_nothing_is_done(redis_server, tmp_path, monkeypatch) -> None:
    """Frozen for longer than its lock lives, while another one rolls, and tidies before."""
    from raysys.eventlog.redis_log import RedisLog

    redis_server.redis.flushall()
    settings = LogSettings(backend="redis", url=redis_server.url)
    log, other = RedisLog(settings, tmp_path), RedisLog(settings, tmp_path)
    rolled, wrote = Rolled(tmp_path), module._write
    log.append([entry("a"), entry("b", kind="item", item_id="i")])

    def freezes(table, path):
        wrote(table, path)
        if path.parent == rolled.events:
            monkeypatch.undo()
            assert redis_server.redis.delete("raysys:lock:roll") == 1
            other.append(entries("c"))
            assert len(roll(other, rolled)) == 1

    monkeypatch.setattr(module, "_write", freezes)
    with pytest.raises(LogUnavailable, match="another process"):
        roll(log, rolled)
    assert [s.name for s in rolled.stretches()] == ["0000000000000001-0000000000000003"]
    assert [e.body["event_id"] for piece in rolled.read(0, 0) for e in piece] == ["a", "c"]
    assert events(rolled)["event_id"].to_list() == ["a", "c"]
    assert roll(log, rolled) == []
    log.close()
    other.close()


def test_who_rolled_what_another_took_for_left_over_does_it_again(
    opened: Open, tmp_path, monkeypatch
) -> None:
    log, rolled, wrote = opened(), Rolled(tmp_path / "log"), module._write
    log.append(entries("a"))

    def meets_a_tidy(table, path):
        wrote(table, path)
        rolled._tidy()  # of one that did not know yet that it had lost the lock

    monkeypatch.setattr(module, "_write", meets_a_tidy)
    with pytest.raises(LogUnavailable, match="another process"):
        roll(log, rolled)
    monkeypatch.undo()
    assert len(roll(log, rolled)) == 1 and events(rolled)["event_id"].to_list() == ["a"]


def test_rolled_events_are_read_as_they_were(opened: Open, tmp_path) -> None:
    log, rolled = opened(), Rolled(tmp_path / "log")
    log.append([entry(str(n), NOW + n, query=f"q{n}", position=n + 1) for n in range(10)])
    told = log.read(0)
    roll(log, rolled)
    log.append([entry("old", NOW - DAY_MS)])
    roll(log, rolled)
    assert [e for piece in rolled.read(0, 0) for e in piece][:10] == told
    assert [e for piece in rolled.read(3, NOW + 5) for e in piece] == told[6:]


def test_ids_of_what_the_log_forgot_are_known_after_a_restart(tmp_path) -> None:
    log = LocalLog(tmp_path, LogSettings(segment_mb=1))
    old = entry("old", NOW - 40 * DAY_MS)  # sent today, so it may be sent again tomorrow
    log.append([old, entry("a"), entry("b", kind="item", item_id="i")])
    log.append([entry(f"{n}", query="x" * 1000) for n in range(1200)])
    roll(log, Rolled(tmp_path))
    assert log.drop(log.end()) > 0
    log.close()
    (tmp_path / "head").unlink()
    again = LocalLog(tmp_path, LogSettings(segment_mb=1))
    assert again.end() == 1203
    assert again.append([old, entry("a"), entry("b"), entry("7"), entry("c")]).outcomes == [
        "duplicate", "duplicate", "duplicate", "duplicate", "accepted",
    ]  # fmt: skip
    assert again.end() == 1204


def test_redis_goes_on_behind_what_was_rolled_before_it(redis_server, tmp_path) -> None:
    """A log that changes its backend, or a server that was emptied, gives no offset twice."""
    from raysys.eventlog.redis_log import RedisLog

    redis_server.redis.flushall()
    before, rolled = LocalLog(tmp_path, LogSettings(segment_mb=1)), Rolled(tmp_path)
    before.append([entry(f"{n}") for n in range(100)])
    roll(before, rolled)
    settings = LogSettings(backend="redis", url=redis_server.url)
    log = RedisLog(settings, tmp_path)
    assert log.end() == 100
    assert log.append(entries("a", "b", "c")).last == 103
    assert forget(log, rolled, NOW + DAY_MS) == 0  # nothing of it is rolled yet
    (stretch,) = roll(log, rolled)
    assert (stretch.first, stretch.last) == (101, 103)
    log.append(entries("d"))
    redis_server.redis.flushall()
    assert log.append(entries("e")).last == 105
    roll(log, rolled)
    assert forget(log, rolled, NOW + DAY_MS) == 1
    assert events(rolled)["event_id"].to_list()[100:] == ["a", "b", "c", "e"]
    log.close()
