"""The local log after kills, restarts, damage and on a full disk."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.errors import UserError
from raysys.eventlog import blocks, local
from raysys.eventlog.entries import LogUnavailable
from raysys.eventlog.ids import DAY_MS, SharedIds
from raysys.eventlog.local import LocalLog
from raysys.eventlog.rolled import Rolled, roll
from raysys.eventlog.settings import LogSettings
from tests.eventlog.entries import NOW, entries, entry

SMALL = LogSettings(segment_mb=1)


def ids(log: LocalLog) -> list[str]:
    found, at = [], 0
    while piece := log.read(at):
        found += [each.body["event_id"] for each in piece]
        at = piece[-1].offset
    return found


@pytest.fixture
def log(tmp_path: Path) -> LocalLog:
    log = LocalLog(tmp_path / "log", SMALL)
    log.append(entries("a", "b"))
    log.append(entries("c"))
    return log


def overwrite(log: LocalLog, data: bytes, back: int = 0) -> None:
    """Write into the segment at its end, or so many bytes before it."""
    head = log._head.read()
    assert head is not None
    with blocks.segment_path(log.folder, head.segment).open("r+b") as file:
        file.seek(head.byte - back)
        file.write(data)


def restarted(log: LocalLog, monkeypatch: pytest.MonkeyPatch) -> LocalLog:
    """The log after the machine was: what is in memory only is not believed."""
    monkeypatch.setattr(local, "this_boot", lambda: bytes(range(16)))
    return LocalLog(log.folder, SMALL)


@given(st.integers(1, 400), st.booleans())
@settings(max_examples=20, deadline=None)
def test_a_write_that_was_cut_off_leaves_nothing(tmp_path_factory, length: int, boot: bool) -> None:
    log = LocalLog(tmp_path_factory.mktemp("log"), SMALL)
    log.append(entries("a", "b"))
    torn = blocks.packed(entries("x", "y", "z"), 3, NOW)
    overwrite(log, torn[: min(length, len(torn) - 1)])
    with pytest.MonkeyPatch.context() as patch:
        other = restarted(log, patch) if boot else LocalLog(log.folder, SMALL)
    assert ids(other) == ["a", "b"]
    assert other.append(entries("x", "c")).outcomes == ["accepted", "accepted"]
    assert ids(LocalLog(log.folder, SMALL)) == ["a", "b", "x", "c"]


def test_what_a_killed_process_wrote_but_did_not_tell_is_taken_over(log: LocalLog) -> None:
    overwrite(log, blocks.packed(entries("x", "y"), 4, NOW))
    assert ids(log) == ["a", "b", "c"]  # not yet durable for sure
    assert log.append(entries("y", "d", "x")).outcomes == ["duplicate", "accepted", "duplicate"]
    assert ids(log) == ["a", "b", "c", "x", "y", "d"]
    blocks.make_segment(log.folder, 7, 1 << 20)  # killed with a segment that nobody wrote to
    assert log.append(entries("e")).last == 7
    assert ids(LocalLog(log.folder, SMALL))[-1] == "e"


def test_a_restarted_machine_reads_everything_again(log: LocalLog, monkeypatch) -> None:
    log.append([entry(f"{n}", query="x" * 1000) for n in range(1500)])  # a segment of its own
    other = restarted(log, monkeypatch)
    assert other.end() == 1503 and ids(other) == ids(log)
    assert other.append(entries("a", "700", "new")).outcomes == [
        "duplicate", "duplicate", "accepted",
    ]  # fmt: skip


def test_what_the_disk_did_not_keep_is_accepted_again(log: LocalLog, monkeypatch) -> None:
    """Power fails: memory said that `c` is known, the disk does not have it."""
    head = log._head.read()
    assert head is not None
    overwrite(log, bytes(head.byte - head.last), back=head.byte - head.last)
    other = restarted(log, monkeypatch)
    assert (other.end(), ids(other)) == (2, ["a", "b"])
    assert other.append(entries("c", "a")).outcomes == ["accepted", "duplicate"]


def test_damage_to_the_last_block_is_said_aloud(log: LocalLog, caplog) -> None:
    overwrite(log, b"?", back=3)
    with caplog.at_level(logging.ERROR, logger="raysys"):
        other = LocalLog(log.folder, SMALL)
    assert "acknowledged events 3 to 3 are damaged and lost" in caplog.text
    assert other.append(entries("d")).last == 4  # no offset is given twice
    assert ids(other) == ["a", "b", "d"]
    caplog.clear()
    assert ids(LocalLog(log.folder, SMALL)) == ["a", "b", "d"] and not caplog.text


@pytest.mark.parametrize("lost", ["the last block", "all"])
def test_offsets_go_on_behind_what_is_rolled(log: LocalLog, caplog, monkeypatch, lost: str) -> None:
    """The end of the log is damaged, and after the restart of the machine nobody remembers it."""
    rolled, head = Rolled(log.folder), log._head.read()
    assert head is not None
    roll(log, rolled)
    overwrite(log, *((b"?", 3) if lost == "the last block" else (bytes(head.byte), head.byte)))
    with caplog.at_level(logging.WARNING, logger="raysys"):
        other = restarted(log, monkeypatch)
    assert "to 3 are not there, the rolled files hold them" in caplog.text
    assert other.end() == 3
    assert other.append(entries("c", "d")).outcomes == ["duplicate", "accepted"]
    assert [(e.offset, e.body["event_id"]) for e in other.read(2)] == [(4, "d")]
    assert [(s.first, s.last) for s in roll(other, rolled)] == [(4, 4)]
    left = ["a", "b"] if lost == "the last block" else []
    assert ids(LocalLog(log.folder, SMALL)) == [*left, "d"]


def test_damage_in_the_middle_costs_its_own_block_alone(log: LocalLog, caplog, monkeypatch) -> None:
    log.append(entries("d"))
    head = log._head.read()
    assert head is not None
    first = blocks.block_at(os.open(blocks.segment_path(log.folder, 1), os.O_RDONLY), 0)
    assert first is not None
    overwrite(log, b"\0" * 9, back=head.byte - first.end - 30)  # in the payload of c's
    with caplog.at_level(logging.ERROR, logger="raysys"):
        assert ids(log) == ["a", "b", "d"]
        assert "entries 3 to 3 are damaged" in caplog.text
        other = restarted(log, monkeypatch)
    assert "damaged bytes were left out" in caplog.text
    assert ids(other) == ["a", "b", "d"]
    assert other.append(entries("c")).last == 5  # it is lost, so it may come again


def test_old_damage_is_counted_once(log: LocalLog, monkeypatch) -> None:
    log.append(entries("d"))
    overwrite(log, b"\0" * 9, back=200)
    found = set()
    for boot in range(3):
        monkeypatch.setattr(local, "this_boot", lambda boot=boot: bytes([boot]) * 16)
        again = LocalLog(log.folder, SMALL)
        found.add(again.damaged())
        again.close()
    assert len(found) == 1 and found.pop() > 9


def test_a_segment_that_was_made_and_left_empty_is_the_next_one(log: LocalLog) -> None:
    """As by a writer that was killed between making it and writing into it."""
    roll(log, Rolled(log.folder))
    blocks.make_segment(log.folder, log.end() + 1, 1 << 20)
    assert log.append(entries("d", "e")).last == 5
    blocks.make_segment(log.folder, log.end() + 1, 1 << 20)
    log.append([entry("large", text="x" * (2 << 20))])  # larger than the segment was made
    log.append(entries("f"))
    other = LocalLog(log.folder, SMALL)
    assert ids(other) == ["a", "b", "c", "d", "e", "large", "f"]
    assert [e.body["event_id"] for e in other.read(3)] == ["d", "e", "large", "f"]
    (stretch,) = roll(other, Rolled(log.folder))
    assert (stretch.first, stretch.last) == (4, 7)
    assert other.drop(7) == 6  # all but the segment that is written to


def test_a_segment_whose_name_could_not_be_made_durable_is_written_all_the_same(
    tmp_path: Path, monkeypatch
) -> None:
    log = LocalLog(tmp_path / "log", SMALL)
    reader = LocalLog(tmp_path / "log", SMALL)
    sound = blocks.sync_folder

    def fails(_folder: Path) -> None:
        monkeypatch.setattr(blocks, "sync_folder", sound)
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(blocks, "sync_folder", fails)
    with pytest.raises(LogUnavailable, match="Too many open files"):
        log.append(entries("a"))
    assert ids(reader) == []  # which opens what is there
    assert log.append(entries("a")).outcomes == ["accepted"]
    assert ids(log) == ids(reader) == ids(LocalLog(tmp_path / "log", SMALL)) == ["a"]


def test_what_a_failed_sync_left_is_written_once_more(log: LocalLog, monkeypatch) -> None:
    """After a sync that failed the next one succeeds, though nothing came to the disk."""
    done: list[str] = []

    def fails(_file: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fails)
        with pytest.raises(LogUnavailable, match="Input/output"):
            log.append(entries("d"))
    write, sync = os.pwrite, os.fdatasync
    monkeypatch.setattr(os, "pwrite", lambda *told: done.append("write") or write(*told))
    monkeypatch.setattr(os, "fdatasync", lambda file: done.append("sync") or sync(file))
    assert log.append(entries("d")).outcomes == ["duplicate"]
    assert done == ["write", "sync"]
    assert ids(log) == ids(LocalLog(log.folder, SMALL)) == ["a", "b", "c", "d"]


def test_a_killed_writer_leaves_no_half_made_segment(tmp_path: Path) -> None:
    log = LocalLog(tmp_path / "log", SMALL)
    (log.folder / f"{1:020d}.4711.new").write_bytes(bytes(1 << 20))
    log.append(entries("a"))
    assert list(log.folder.glob("*.new")) == []
    assert ids(log) == ["a"]


def test_old_events_are_known_as_long_as_new_ones(tmp_path: Path, monkeypatch) -> None:
    """A shop that shows history sends events of years ago: they were received today."""
    monkeypatch.setattr("raysys.eventlog.ids._SLOTS", 1 << 6)
    log = LocalLog(tmp_path / "log", SMALL)
    old = [entry(f"{n}", timestamp=1_500_000_000_000 + n) for n in range(200)]
    for at in range(0, 200, 20):
        log.append(old[at : at + 20])  # the index grows on the way
    assert set(log.append(old).outcomes) == {"duplicate"}
    roll(log, Rolled(log.folder))
    (log.folder / "head").unlink()
    for path in log.folder.glob("*.seg"):
        path.unlink()
    again = LocalLog(log.folder, SMALL)
    assert set(again.append(old).outcomes) == {"duplicate"}


def test_whoever_opens_the_log_first_forgets_no_id_that_others_need(
    tmp_path: Path, monkeypatch
) -> None:
    long = LogSettings(segment_mb=1, max_age_days=365)
    old = entry("old", timestamp=NOW - 100 * DAY_MS)
    monkeypatch.setattr(local.time, "time_ns", lambda: (NOW - 99 * DAY_MS) * 1_000_000)
    log = LocalLog(tmp_path / "log", long)
    log.append([old])
    roll(log, Rolled(log.folder))
    log.close()
    for path in log.folder.glob("*.seg"):
        path.unlink()
    monkeypatch.undo()
    LocalLog(log.folder, SMALL).close()  # some tool, with settings of its own
    monkeypatch.setattr(local, "this_boot", lambda: bytes(range(16)))
    LocalLog(log.folder, SMALL).close()
    assert LocalLog(log.folder, long).append([old]).outcomes == ["duplicate"]


def test_a_copied_log_is_read_again(log: LocalLog, tmp_path) -> None:
    import shutil

    shutil.copytree(log.folder, tmp_path / "copy")
    log.append(entries("d"))
    shutil.copy(log.folder / "head", tmp_path / "copy" / "head")  # newer than its segments
    other = LocalLog(tmp_path / "copy", SMALL)
    assert ids(other) == ["a", "b", "c"]
    assert other.append(entries("a", "e")).outcomes == ["duplicate", "accepted"]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 5 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_refuses_and_recovers(tiny_disk: Path) -> None:
    log = LocalLog(tiny_disk / "log", SMALL)
    (tiny_disk / "others").write_bytes(bytes(1_500_000))
    accepted: list[str] = []
    with pytest.raises(LogUnavailable, match="is full"):
        for at in range(60):
            names = [f"{at}-{n}" for n in range(50)]
            log.append([entry(name, query="x" * 1000) for name in names])
            accepted += names
    assert 500 < len(accepted) < 3000 and ids(log) == accepted
    with pytest.raises(LogUnavailable, match="is full"):
        log.append([entry("big", query="x" * 60_000)])
    (tiny_disk / "others").unlink()
    log.append([entry("big", query="x" * 60_000)])
    assert ids(log) == [*accepted, "big"] == ids(LocalLog(log.folder, SMALL))
    log.close()


def test_a_folder_that_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be opened"):
        LocalLog(tmp_path / "file" / "log", SMALL)


@pytest.mark.long
def test_many_ids_are_known_and_old_ones_forgotten_when_room_is_made(tmp_path: Path) -> None:
    ids = SharedIds(tmp_path, 1)
    rng = np.random.default_rng(0)
    digests = [rng.bytes(16) for _ in range(60_000)]
    until = np.where(np.arange(60_000) < 20_000, 10, 30)
    held, at = 0, 0
    for at in range(0, 60_000, 5_000):
        if ids.is_full(held, 5_000):
            old = ids
            ids, held = ids.grown(held, 5_000, today=20)
            old.remove()
        assert not ids.known(digests[at : at + 5_000]).any()
        held += ids.add(digests[at : at + 5_000], until[at : at + 5_000])
    assert ids.generation == 2
    assert ids.known(digests[20_000:]).all() and not ids.known(digests[:20_000]).any()
    assert ids.add(digests[-100:], until[-100:]) == 0 and held == 40_000
    again = SharedIds(tmp_path, 2)  # as another process maps it
    assert again.known(digests[20_000:]).all()
    assert len(list(tmp_path.iterdir())) == 1
