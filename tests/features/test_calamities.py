"""A disk that is full while features are made: it is told where, and nothing is half done."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl
import pytest

from raysys.errors import UserError
from raysys.ingest.spread import InProcess
from raysys.retrieval import baskets
from raysys.stages.features import run
from tests.disks import mounted
from tests.features.logs import as_rows, workspace
from tests.features.test_columns import LOGGED, log, settings


def contents(folder: Path) -> dict[str, bytes]:
    """Every file with its bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def tables(folder: Path) -> dict[str, pl.DataFrame]:
    """Every table with its rows."""
    files = sorted(folder.rglob("*.parquet"))
    return {str(path.relative_to(folder)): pl.read_parquet(path) for path in files}


@pytest.mark.slow
@pytest.mark.parametrize("more", [LOGGED, {}], ids=["log", "retrieval"])
def test_wherever_the_disk_is_full_it_is_told_and_the_next_run_ends_the_work(tmp_path, more):
    rows = as_rows(log())
    expected = workspace(tmp_path / "ample", rows)
    run(settings(**more), expected, spread=InProcess())
    with mounted(tmp_path / "small", "64m") as disk:
        place = workspace(disk / "shop", rows)
        run(settings(**more, seed=7), place, spread=InProcess())
        before = contents(place.features)
        ballast = disk / "ballast"
        room = os.statvfs(disk)
        free = room.f_bavail * room.f_frsize
        told, left = [], 0
        ballast.write_bytes(bytes(free))
        while True:
            os.truncate(ballast, free - left)
            try:
                run(settings(**more), place, spread=InProcess())
            except UserError as error:
                assert error.what == "the disk is full"
                assert error.where.startswith(str(place.root))
                assert "free some space" in error.mend
                assert contents(place.features) == before
                told.append(error.where)
                left += 1 << 16
            else:
                break
        assert len(set(told)) > 1
        assert tables(place.features).keys() == tables(expected.features).keys()
        for name, table in tables(expected.features).items():
            assert table.equals(tables(place.features)[name]), name  # NaN is NaN here


def test_a_mapped_file_takes_its_room_before_it_is_written(tmp_path):
    with mounted(tmp_path / "small", "1m") as disk:
        path = disk / "orders.npy"
        with path.open("wb") as file:
            file.truncate(2 << 20)  # has holes: takes no room
        with pytest.raises(OSError, match="No space left"):
            baskets._take_room(path)
