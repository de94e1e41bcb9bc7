"""A driver or a worker killed in the middle: the next run, or Ray, goes on where it stood."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import polars as pl
import psutil
import pytest
import yaml

from raysys.storage import Workspace, read_manifest
from tests.ingest.shop import COLUMNS, HEADER, START
from tests.processes import family

pytestmark = pytest.mark.slow

FILES, ROWS = 60, 20_000
DAY = 86_400


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Sixty files of a day each, large enough that a kill finds the run at work."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "logs").mkdir()
    for day in range(FILES):
        rows = (
            f"{day}-{i},u{i % 997},i{i % 313},view,{START + day * DAY + 4 * i},1,1,"
            for i in range(ROWS)
        )
        (folder / f"logs/{day:02}.csv").write_text("\n".join([HEADER, *rows]))
    files = {"paths": f"{folder}/logs", "columns": COLUMNS, "time": {"unit": "seconds"}}
    path = folder / "ingest.yaml"
    path.write_text(yaml.safe_dump({"source": {"kind": "files", "events": [files]}}))
    return path


def start(config, workspace):
    command = [sys.executable, "-m", "raysys", "ingest", "-c", str(config), "-w", str(workspace)]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(condition, process, seconds=240):
    """Until the condition holds; fails when the run ends or takes too long."""
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < until
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)


def pieces_of(workspace):
    return len(list((workspace / "ingest.pieces").glob("pieces/*/result.json")))


def check(workspace):
    manifest = read_manifest(Workspace(workspace).ingest)
    assert manifest.counts["events.in"] == manifest.counts["events.out"] == FILES * ROWS
    events = pl.scan_parquet(workspace / "ingest/events/**/*.parquet", hive_partitioning=False)
    assert events.select(pl.col("event_id").n_unique()).collect().item() == FILES * ROWS
    assert not list((workspace / "ingest.pieces").glob("*/.*"))


def test_a_killed_driver_is_followed_by_one_that_goes_on(config, tmp_path):
    first = start(config, tmp_path)
    wait_for(lambda: pieces_of(tmp_path) >= 5, first)
    below = family(first.pid)
    first.send_signal(signal.SIGKILL)
    first.wait()
    _, alive = psutil.wait_procs(below, timeout=60)  # the others follow their driver
    assert not alive
    had = pieces_of(tmp_path)
    assert 5 <= had < FILES
    assert not (tmp_path / "ingest").exists()  # nothing of half a run shows
    second = start(config, tmp_path)
    told, _ = second.communicate(timeout=300)
    assert second.returncode == 0, told
    assert f"{had} files were there" in told
    check(tmp_path)


def test_a_killed_worker_costs_only_its_own_work(config, tmp_path):
    run = start(config, tmp_path)
    killed: list[int] = []

    def kill_one():
        for process in psutil.Process(run.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "ray::read and check" in " ".join(process.cmdline()):
                    os.kill(process.pid, signal.SIGKILL)
                    killed.append(process.pid)
                    return True
        return False

    wait_for(lambda: pieces_of(tmp_path) >= 5, run)
    wait_for(kill_one, run)
    told, _ = run.communicate(timeout=300)
    assert run.returncode == 0, told
    assert killed
    check(tmp_path)
