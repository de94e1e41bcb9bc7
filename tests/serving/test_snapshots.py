"""Copies of a live state on the disk."""

from __future__ import annotations

from pathlib import Path

from raysys.serving.snapshots import Snapshots
from raysys.storage import writer_mark
from tests.features.shop import live


def test_copies_that_a_kill_cut_off_are_removed(tmp_path: Path) -> None:
    snapshots, state = Snapshots(tmp_path, "bundle"), live()
    snapshots.write(state.changing(), 5)
    host, pid, started, _ = writer_mark().split("-")
    gone = [snapshots.root / f".{3:016d}.{host}-{pid}-{int(started) - 1}-0.tmp"]
    gone += [snapshots.root / f".{5:016d}.old.{host}-999999999-1-0.tmp"]
    alive = snapshots.root / f".{7:016d}.{host}-{pid}-{started}-0.tmp"
    for folder in (*gone, alive):
        folder.mkdir()
    path = snapshots.write(state.changing(), 9)
    assert sorted(snapshots.root.iterdir()) == [alive, path]
