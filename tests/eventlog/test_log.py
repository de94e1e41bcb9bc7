"""What every event log promises, whatever keeps it: the local one and Redis pass the same tests."""

from __future__ import annotations

import threading

import pytest

from raysys.eventlog.entries import EventLog, LogBusy, LogUnavailable
from raysys.eventlog.group import GroupCommit
from tests.eventlog.conftest import Open
from tests.eventlog.entries import entries, entry


def ids(log: EventLog, after: int = 0, limit: int = 10_000) -> list[str]:
    return [found.body["event_id"] for found in log.read(after, limit)]


def test_what_is_appended_is_read_in_order(opened: Open) -> None:
    log = opened()
    assert (log.end(), log.read(0), log.first()) == (0, [], 1)
    told = [entry("a", query="crème brûlée 🍮", price=1.5), entry("b", kind="item", item_id="x")]
    appended = log.append(told)
    assert appended.outcomes == ["accepted", "accepted"] and appended.last == 2
    first, second = log.read(0)
    assert (first.offset, second.offset, log.end(), log.first()) == (1, 2, 2, 1)
    assert (first.kind, first.body, first.quarantined) == ("event", told[0].body, None)
    assert (second.kind, second.body) == ("item", told[1].body)
    assert first.received == second.received > 0
    assert ids(log, after=1) == ["b"] and log.read(2) == []


def test_an_id_is_there_once_whatever_is_repeated_or_reordered(opened: Open) -> None:
    log, other = opened(), opened()
    assert log.append(entries("a", "b", "a")).outcomes == ["accepted", "accepted", "duplicate"]
    again = other.append(entries("c", "b", "a"))
    assert again.outcomes == ["accepted", "duplicate", "duplicate"]
    assert log.append(entries("c")).outcomes == ["duplicate"]
    assert ids(log) == ids(other) == ["a", "b", "c"]
    assert ids(opened()) == ["a", "b", "c"]


def test_a_reader_may_read_in_pieces(opened: Open) -> None:
    log = opened()
    names = [f"e{number}" for number in range(57)]
    for at in range(0, 57, 5):
        log.append(entries(*names[at : at + 5]))
    found, at = [], 0
    while piece := log.read(at, 7):
        found += [each.body["event_id"] for each in piece]
        at = piece[-1].offset
    assert found == names
    assert ids(log, after=33) == names[33:]  # in the middle of what was appended at once


def test_many_threads_and_logs_append_at_once(opened: Open) -> None:
    logs = [opened() for _ in range(3)]
    outcomes: list[str] = []

    def append(number: int) -> None:
        for at in range(20):  # every event is sent by two
            batch = entries(*(f"{number // 2}-{at}-{n}" for n in range(5)))
            outcomes.extend(logs[number % 3].append(batch).outcomes)

    threads = [threading.Thread(target=append, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["accepted"] * 400 + ["duplicate"] * 400
    found = [e for log in logs for e in [log.read(0)]]
    assert found[0] == found[1] == found[2]
    assert [e.offset for e in found[0]] == list(range(1, 401))
    assert len({e.body["event_id"] for e in found[0]}) == 400


def test_a_reader_hears_of_what_another_appends(opened: Open) -> None:
    log, other = opened(), opened()
    assert not log.wait(0, 0.02)
    heard = threading.Event()

    def listen() -> None:
        if log.wait(0, 30):
            heard.set()

    thread = threading.Thread(target=listen)
    thread.start()
    other.append(entries("a"))
    thread.join(30)
    assert heard.is_set() and ids(log) == ["a"]


def test_consumers_keep_their_place(opened: Open) -> None:
    log = opened()
    assert log.position("roll") == 0
    log.commit("roll", 41)
    log.commit("other", 7)
    assert (opened().position("roll"), log.position("other")) == (41, 7)


def test_only_one_of_all_has_the_lock(opened: Open) -> None:
    log, other = opened(), opened()
    with log.exclusively("roll") as mine, other.exclusively("roll") as theirs:
        assert mine and not theirs
        with other.exclusively("else") as free:
            assert free
    with other.exclusively("roll") as now:
        assert now


def test_what_was_dropped_is_gone_but_known(opened: Open) -> None:
    log = opened()
    filler = "x" * 1000
    for at in range(30):  # segments of 1 MB
        log.append([entry(f"{at}-{n}", query=filler) for n in range(100)])
    assert log.drop(2000) > 0
    first = log.first()
    assert 1 < first <= 2001 and log.end() == 3000
    assert log.read(0, 1)[0].offset == first
    assert log.append([entry("3-7")]).outcomes == ["duplicate"]
    assert log.append([entry("new")]).last == 3001
    assert opened().append([entry("3-7")]).outcomes == ["duplicate"]


def test_what_cannot_wait_is_pushed_back() -> None:
    """Nothing is dropped: who may not wait is told so."""
    may_write, outcomes = threading.Event(), []

    def write(batches):
        may_write.wait(30)
        outcomes.extend(batches)
        return [None for _ in batches]

    group = GroupCommit(write, most=10)
    first = group.submit(entries("a"))
    waiting = group.submit(entries(*"bcdefghij"))
    with pytest.raises(LogBusy, match="10 events are waiting"):
        group.submit(entries("k"))
    may_write.set()
    first.result(30)
    waiting.result(30)
    large = group.submit(entries(*(str(n) for n in range(50))))  # alone, it may
    large.result(30)
    assert sum(len(batch) for batch in outcomes) == 60
    group.close()
    with pytest.raises(LogUnavailable, match="closed"):
        group.submit(entries("z"))


def test_a_writer_that_fails_tells_everybody() -> None:
    def write(batches):
        raise LogUnavailable("no")

    group = GroupCommit(write, most=10)
    for name in "ab":
        with pytest.raises(LogUnavailable):
            group.submit(entries(name)).result(30)
    group.close()
