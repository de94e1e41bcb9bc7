"""Folders of outcomes and small files: what may be replaced, by whom, and whatever is cut off."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from raysys.cli import app
from raysys.errors import UserError
from raysys.storage import (
    Manifest,
    Workspace,
    is_done,
    naming_full_disk,
    outcome_folder,
    read_manifest,
    replacing,
    write_atomic,
)
from tests.disks import mounted

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

EXPERIMENTS = Path(__file__).parents[1] / "serve_configs" / "experiments" / "home.yaml"


@pytest.mark.parametrize(
    "words",
    [
        ("experiment", "analyse", str(EXPERIMENTS)),
        ("experiment", "off-policy", "log.parquet", "--target", "p"),
        ("monitor", "report"),
        ("simulate",),
    ],
)
@pytest.mark.parametrize("output", ["mine", "."])
def test_an_output_of_other_things_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], output: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [*words, "--workspace", "runs", "--output", output])
    assert done.exit_code == 2
    assert "the folder holds other things" in done.stderr and "a new --output" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_an_outcome_takes_the_place_of_nothing_or_of_an_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new", "new"):
        folder = outcome_folder(Path(name), "simulate")
        assert folder == tmp_path / name
        with replacing(folder) as fresh:
            Manifest("simulate").write(fresh)
    with pytest.raises(UserError, match="holds other things"):
        outcome_folder(Path("new"), "experiment")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="a file stands there"):
        outcome_folder(Path("file"), "simulate")


@pytest.mark.parametrize("address", ["s3://bucket/runs", "gs://bucket", "file:///tmp/runs"])
def test_an_address_is_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (
        ("ingest", "--workspace", address),
        ("simulate", "--output", address),
        ("score", "--bundle", "x", "--input", "y.csv", "--output", address),
    ):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 2, words
        assert "no folder of this machine" in done.stderr and "://" in done.stderr
    assert not any(tmp_path.iterdir())
    assert Workspace(Path("runs/2024:01")).root == tmp_path / "runs/2024:01"


def test_a_damaged_manifest_lets_its_stage_run_again(tmp_path: Path) -> None:
    planned = Manifest("train", settings={"folds": 3})
    planned.write(tmp_path)
    assert is_done(tmp_path, planned)
    for damaged in ("{", "[]", '{"stage": "train", "strange": 1}'):
        (tmp_path / "manifest.json").write_text(damaged)
        with pytest.raises(UserError, match="damaged manifest"):
            read_manifest(tmp_path)
        assert not is_done(tmp_path, planned)


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


def test_a_full_disk_is_known_by_what_each_library_says_of_it(tmp_path: Path) -> None:
    values = np.zeros(1 << 18)
    with mounted(tmp_path / "small", "1m") as disk:
        writes = [
            lambda: np.save(disk / "x.npy", values),
            lambda: (disk / "x").write_bytes(values.tobytes()),
            lambda: save_file({"values": values}, disk / "x.safetensors"),
            lambda: pl.DataFrame({"values": values}).write_ipc(disk / "x.arrow"),
            lambda: pq.write_table(
                pa.table({"values": values}), disk / "x.parquet", use_dictionary=False,
                compression="none",
            ),
        ]  # fmt: skip
        for write in writes:
            with pytest.raises(UserError) as refusal, naming_full_disk(disk):
                write()
            assert refusal.value.what == "the disk is full"
            assert refusal.value.where == str(disk)
            for path in disk.iterdir():
                path.unlink()


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError("1000000 requested and 131056 written"), True),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True),
        (OSError(errno.EIO, "Input/output error (os error 28)"), False),
        (RuntimeError("I/O error: Input/output error (os error 5)"), False),
        (KeyError(28), False),
    ],
)
def test_what_is_no_full_disk_is_raised_as_it_is(error: Exception, full: bool) -> None:
    with pytest.raises(UserError if full else type(error)) as raised, naming_full_disk(Path("w")):
        raise error
    if full:
        assert raised.value.where == (getattr(error, "filename", None) or "w")
    else:
        assert raised.value is error


def test_a_first_run_is_known_by_the_version_too(tmp_path: Path) -> None:
    planned = Manifest(stage="features", inputs={"ingest": "a"})
    assert not is_done(tmp_path, planned)
    first = planned.fingerprint
    planned.write(tmp_path)
    again = Manifest(stage="features", inputs={"ingest": "a"})
    assert is_done(tmp_path, again)
    assert again.fingerprint == first
