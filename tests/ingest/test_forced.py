"""`raysys ingest --force` that is killed: the wish stays, and what it had read is read once."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import yaml

from raysys.config import load_settings
from raysys.ingest.spread import InProcess
from raysys.ingest.store import Store
from raysys.stages.ingest import IngestSettings, run
from raysys.storage import Workspace, read_manifest
from tests.ingest.shop import COLUMNS, HEADER, good_rows
from tests.ingest.test_incremental import Fatal

pytestmark = pytest.mark.long

FILES = 6

CHILD = """
import os, signal, sys
from pathlib import Path
from raysys.config import load_settings
from raysys.ingest import pipeline
from raysys.ingest.spread import InProcess
from raysys.ingest.store import Store
from raysys.stages.ingest import IngestSettings, run
from raysys.storage import Workspace

config, workspace, moment = sys.argv[1:]

def killed_at_call(owner, name, number):
    true, calls = getattr(owner, name), []
    def call(*args, **more):
        calls.append(name)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return true(*args, **more)
    setattr(owner, name, call)

pipeline.TASK_BYTES = 1  # a task a file
if moment == "removing":
    killed_at_call(Store, "drop", 3)
elif moment == "reading":
    killed_at_call(pipeline, "_read_group", 4)
elif moment == "settling":
    killed_at_call(pipeline, "settle", 1)
else:
    killed_at_call(pipeline, "write_entities", 1)
run(
    load_settings(IngestSettings, Path(config)),
    Workspace(Path(workspace)),
    spread=InProcess(),
    force=True,
)
"""


class Shop:
    """Files of a log, taken in once and changed since, at the same size and time."""

    def __init__(self, folder: Path):
        self.workspace = Workspace(folder / "ws")
        (folder / "logs").mkdir()
        self.paths = [folder / f"logs/{n}.csv" for n in range(FILES)]
        for n, path in enumerate(self.paths):
            path.write_text("\n".join([HEADER, *(f"{n}{row}" for row in good_rows())]))
        mapping = {"paths": f"{folder}/logs", "columns": COLUMNS, "time": {"unit": "seconds"}}
        self.config = folder / "ingest.yaml"
        self.config.write_text(yaml.safe_dump({"source": {"kind": "files", "events": [mapping]}}))
        self.first = self.run()
        for path in self.paths:
            self.change(path, "i3", "ix")

    def run(self, **more):
        settings = load_settings(IngestSettings, self.config)
        return run(settings, self.workspace, spread=more.pop("spread", InProcess()), **more)

    def change(self, path, item, other):
        stamp = path.stat().st_mtime_ns
        path.write_text(path.read_text().replace(f",{item},", f",{other},"))
        os.utime(path, ns=(stamp, stamp))

    def items(self):
        events = pl.read_parquet(f"{self.workspace.ingest}/events/**/*.parquet")
        return set(events["item_id"])

    def pieces(self):
        """Each piece that is there, and when it was written."""
        found = self.workspace.pieces.glob("pieces/*/result.json")
        return {path.parent.name: path.stat().st_mtime_ns for path in found}


@pytest.fixture
def shop(tmp_path):
    return Shop(tmp_path)


@pytest.mark.parametrize(
    ("moment", "read"), [("removing", 0), ("reading", 3), ("settling", 6), ("items", 6)]
)
def test_a_plain_run_goes_on_with_a_forced_one_that_was_killed(shop, moment, read):
    command = [sys.executable, "-c", CHILD, str(shop.config), str(shop.workspace.root), moment]
    dead = subprocess.run(command, capture_output=True, text=True)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    assert read_manifest(shop.workspace.ingest) == shop.first  # stays until the new one is whole
    assert "i3" in shop.items()
    had = shop.pieces()
    second = shop.run()
    assert "ix" in shop.items() and "i3" not in shop.items()
    assert second.outcome != shop.first.outcome  # by which later stages know
    now = shop.pieces()
    kept = {key for key, written in had.items() if now[key] == written}
    assert len(kept) == read and len(now) == FILES
    assert shop.run() == second


def test_a_forced_run_that_was_forced_again_reads_all_of_it_again(shop):
    with pytest.raises(KeyboardInterrupt):
        shop.run(spread=Fatal(2), force=True)
    had = shop.pieces()
    assert had
    for path in shop.paths:
        shop.change(path, "ix", "iy")
    forced = shop.run(force=True)
    now = shop.pieces()
    assert all(now[key] != written for key, written in had.items())
    assert "iy" in shop.items() and "ix" not in shop.items()
    assert shop.run() == forced


def test_what_a_forced_run_made_stands_when_its_pieces_are_deleted(shop):
    forced = shop.run(force=True)
    shutil.rmtree(shop.workspace.pieces)
    assert shop.run() == forced


def test_files_that_come_after_a_forced_run_do_not_make_its_outcome_that_of_before(shop):
    """Later stages know outcomes by their names, and keep what they made of them."""
    shop.run(force=True)
    further = shop.paths[0].with_name("further.csv")
    further.write_text("\n".join([HEADER, *(f"x{row}" for row in good_rows())]))
    more = shop.run()
    further.unlink()
    again = shop.run()
    assert again.fingerprint == shop.first.fingerprint
    assert len({again.outcome, more.outcome, shop.first.outcome}) == 3


def test_a_store_that_nobody_forced_has_no_mark(shop):
    assert Store(shop.workspace.pieces).begun == ""
    assert shop.first.variant == ""
