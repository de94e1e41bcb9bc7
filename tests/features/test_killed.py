"""A worker killed in the middle of the features stage: only what it had in hand is done again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import psutil
import pytest
import yaml

from raysys.ingest.spread import InProcess
from raysys.stages.features import run
from raysys.storage import Workspace, read_manifest
from tests.features.logs import as_rows, workspace
from tests.features.test_columns import LOGGED, log, settings

pytestmark = pytest.mark.slow

MADE = settings(**LOGGED, parts=16)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A log large enough that a kill finds the stage at work, and what it comes to unhindered."""
    place = workspace(tmp_path_factory.mktemp("shop") / "ws", as_rows(log(n=60_000)))
    run(MADE, place, spread=InProcess())
    return place


def start(config: Path, place: Workspace) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "raysys", "features", "-c", config, "-w", place.root]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.Popen(
        [*map(str, command)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition, process: subprocess.Popen[str], seconds: float = 240) -> None:
    """Until the condition holds; fails when the run ends or takes too long."""
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)


def worker_at(step: str, pid: int) -> psutil.Process | None:
    """A process below the run that does a piece of a step."""
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            title = " ".join(process.cmdline())
            if title.startswith("ray::") and step in title:
                return process
    return None


def marks(folder: Path, pattern: str) -> dict[Path, tuple[int, int]]:
    """Finished pieces with what changes when one is written again."""
    found = {}
    for path in folder.glob(f".features.work/*/{pattern}"):
        with contextlib.suppress(FileNotFoundError):
            told = path.stat()
            found[path] = (told.st_ino, told.st_mtime_ns)
    return found


@pytest.mark.parametrize(
    ("step", "pattern"),
    [
        ("choosing examples", "chosen/requests-*.arrow"),
        ("replaying the log", "columns/states/*.safetensors"),
    ],
)
def test_a_killed_worker_costs_only_its_own_pieces(shop, tmp_path, step, pattern) -> None:
    place = Workspace(tmp_path / "ws")
    shutil.copytree(shop.root, place.root, ignore=lambda _, names: {"features"} & set(names))
    config = tmp_path / "features.yaml"
    config.write_text(yaml.safe_dump(MADE.model_dump(mode="json", by_alias=True)))
    stage = start(config, place)
    had: dict[Path, tuple[int, int]] = {}

    def kill_one() -> bool:
        worker = worker_at(step, stage.pid)
        done = marks(place.root, pattern)
        if worker is None or len(done) < 3:
            return False
        had.update(done)
        with contextlib.suppress(psutil.Error):
            os.kill(worker.pid, signal.SIGKILL)
            return True
        return False

    wait_for(kill_one, stage)
    seen = dict(had)
    while stage.poll() is None:  # the working folder stays until the outcome is there
        seen |= {path: mark for path, mark in marks(place.root, pattern).items() if path in had}
        with contextlib.suppress(subprocess.TimeoutExpired):
            stage.wait(0.02)
    told, _ = stage.communicate()
    assert stage.returncode == 0, told
    # files of the one piece that the worker had in hand may have been there: NAME-PART
    again = {path for path, mark in had.items() if seen[path] != mark}
    assert len({path.stem.rpartition("-")[2] for path in again}) <= 1, again
    assert set(had) - again
    expected, came = read_manifest(shop.features), read_manifest(place.features)
    assert came.counts == expected.counts
    assert came.figures == expected.figures
    files = sorted(path.relative_to(shop.features) for path in shop.features.rglob("*.parquet"))
    assert files == sorted(p.relative_to(place.features) for p in place.features.rglob("*.parquet"))
    for file in files:
        both = [pl.read_parquet(w.features / file, hive_partitioning=False) for w in (shop, place)]
        assert both[0].equals(both[1]), file
    for path in (shop.features / "state").rglob("*.safetensors"):
        other = place.features / path.relative_to(shop.features)
        assert path.read_bytes() == other.read_bytes(), path.name
