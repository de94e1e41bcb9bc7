"""Folders that are swapped in, and what a stage's outcome is known by."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raysys.storage import Manifest, is_done, replacing

KILLED = """
import os, signal, sys
from pathlib import Path
from raysys.storage import replacing

class Killed(type(Path())):
    def rename(self, target):
        if ".old." not in str(target):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().rename(target)

with replacing(Killed(sys.argv[1])) as folder:
    (folder / "what").write_text("new")
"""
"""Dies with the old folder out of the way and the new one not yet in its place."""


def test_a_writer_killed_between_its_renames_loses_nothing(tmp_path: Path) -> None:
    place = tmp_path / "outcome"
    with replacing(place) as folder:
        (folder / "what").write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(place)], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not place.exists()
    with pytest.raises(ZeroDivisionError), replacing(place):
        assert (place / "what").read_text() == "old"
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["outcome"]
    assert (place / "what").read_text() == "old"


def test_a_folder_that_cannot_be_swapped_in_leaves_the_old_one(tmp_path: Path) -> None:
    place = tmp_path / "outcome"
    with replacing(place) as folder:
        (folder / "what").write_text("old")
    with pytest.raises(OSError), replacing(place) as folder:
        folder.rmdir()  # as if the disk had lost it
    assert (place / "what").read_text() == "old"


def test_a_first_run_is_known_by_the_version_too(tmp_path: Path) -> None:
    planned = Manifest(stage="features", inputs={"ingest": "a"})
    assert not is_done(tmp_path, planned)
    first = planned.fingerprint
    planned.write(tmp_path)
    again = Manifest(stage="features", inputs={"ingest": "a"})
    assert is_done(tmp_path, again)
    assert again.fingerprint == first
