"""Small files that are written at once, whoever else writes them and whatever is cut off."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raysys.storage import write_atomic


def test_a_written_file_and_its_name_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    fsync = os.fsync

    def noted(file: int) -> None:
        synced.append(os.fstat(file).st_ino)
        fsync(file)

    monkeypatch.setattr(os, "fsync", noted)
    path = tmp_path / "pointer.json"
    write_atomic(path, "here")
    assert path.read_text() == "here"
    assert synced == [path.stat().st_ino, tmp_path.stat().st_ino]


def test_writers_of_one_process_number_do_not_meet(tmp_path: Path) -> None:
    """As two containers on a shared folder have, mostly 1."""
    path = tmp_path / "pointer.json"
    with ThreadPoolExecutor(8) as writers:
        list(writers.map(lambda at: write_atomic(path, f"{at}" * 1000), range(200)))
    assert len(set(path.read_text())) <= 3 and list(tmp_path.iterdir()) == [path]


def test_what_could_not_be_written_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "pointer.json"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "\ud800")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
