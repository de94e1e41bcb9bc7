"""What happens to disks and files while a log is taken in: it is told, and nothing is lost."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import fsspec
import polars as pl
import pytest
import yaml
from fsspec.implementations.local import LocalFileSystem

from tests.disks import mounted
from tests.ingest.shop import COLUMNS, HEADER, START, good_rows, mapping, take

ROOT = Path(__file__).parents[2]


# -- a full disk ---------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MB; taken away afterwards."""
    with mounted(tmp_path / "small", "24m") as place:
        yield place


def ingest(log: Path, workspace: Path) -> subprocess.CompletedProcess:
    """The command as a user gives it."""
    config = log.with_suffix(".yaml")
    source = {"paths": str(log), "columns": COLUMNS, "time": {"unit": "seconds"}}
    config.write_text(yaml.safe_dump({"source": {"kind": "files", "events": [source]}}))
    words = ["ingest", "--config", str(config), "--workspace", str(workspace)]
    return subprocess.run(
        [sys.executable, "-m", "raysys", *words], cwd=ROOT, capture_output=True, text=True
    )


def write_log(path: Path, rows: int) -> None:
    """A log whose ids do not compress."""
    frame = pl.select(number=pl.int_range(rows)).select(
        event=pl.col("number").hash(1).cast(pl.String) + pl.col("number").hash(2).cast(pl.String),
        user="u" + (pl.col("number") % 997).cast(pl.String),
        item="i" + (pl.col("number").hash(3) % 5000).cast(pl.String),
        what=pl.lit("view"),
        time=START + pl.col("number") // 4,
        price=(pl.col("number").hash(4) % 10_000) / 100 + 1,
        quantity=pl.lit(1),
        query=pl.lit(None, dtype=pl.String),
    )
    frame.write_csv(path)


@pytest.mark.slow
def test_a_full_disk_is_told_leaves_the_old_outcome_and_is_mended_by_room(tmp_path, small_disk):
    log, workspace = tmp_path / "log.csv", small_disk / "shop"
    log.write_text("\n".join([HEADER, *good_rows(500)]))
    assert ingest(log, workspace).returncode == 0
    before = contents(workspace / "ingest")
    manifest = json.loads((workspace / "ingest" / "manifest.json").read_text())
    assert manifest["counts"]["events.out"] == 500

    write_log(log, 400_000)
    ballast = small_disk / "ballast"
    ballast.write_bytes(os.urandom(16 << 20))
    done = ingest(log, workspace)
    assert done.returncode == 2, done.stderr
    assert "error:" in done.stderr
    assert "the disk is full" in done.stderr or "No space left" in done.stderr
    assert "mend:" in done.stderr
    assert "Traceback" not in done.stderr
    assert contents(workspace / "ingest") == before
    there = {path.name for path in workspace.iterdir() if not path.name.startswith(".")}
    assert there <= {"ingest", "ingest.pieces"}  # what was read so far is kept for the next run

    ballast.unlink()
    write_log(log, 20_000)
    done = ingest(log, workspace)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((workspace / "ingest" / "manifest.json").read_text())
    assert manifest["counts"]["events.in"] == 20_000
    assert manifest["counts"]["events.out"] == 20_000


def contents(folder: Path) -> dict[str, bytes]:
    """Every file with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# -- skew: one user with a million events ----------------------------------------------------------

PEAK = textwrap.dedent(
    """
    import resource, sys
    from pathlib import Path
    from tests.ingest.shop import mapping, take
    folder = Path(sys.argv[1])
    taken = take(folder, mapping(folder / "log.parquet"))
    users = taken.events["user_id"].value_counts(sort=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(taken.tally.rows_in, taken.tally.rows_out, users["count"][0], peak // 1024)
    """
)


def peak_of(folder: Path, users: pl.Expr, rows: int) -> tuple[int, int, int, int]:
    """Rows in, rows out, events of the busiest user, and peak memory in MB."""
    folder.mkdir()
    number = pl.col("number")
    pl.select(number=pl.int_range(rows)).select(
        event="e" + number.cast(pl.String),
        user=users,
        item="i" + (number % 5000).cast(pl.String),
        what=pl.lit("view"),
        time=START + number,
        price=pl.lit(9.5),
        quantity=pl.lit(1.0),
        query=pl.lit(None, dtype=pl.String),
    ).write_parquet(folder / "log.parquet", row_group_size=100_000)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "POLARS_MAX_THREADS": "2"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = [int(word) for word in done.stdout.split()]
    return found[0], found[1], found[2], found[3]


@pytest.mark.slow
def test_a_user_with_a_million_events_costs_hardly_more_memory_than_many_users(tmp_path):
    rows = 1_200_000
    number = pl.col("number")
    many = "u" + (number % 10_000).cast(pl.String)
    one = pl.when(number % 6 > 0).then(pl.lit("shop")).otherwise(many)
    skewed = peak_of(tmp_path / "skewed", one, rows)
    assert skewed[:3] == (rows, rows, 1_000_000)
    even = peak_of(tmp_path / "even", many, rows)
    assert even[:3] == (rows, rows, 120)
    assert skewed[3] < 1.5 * even[3] + 200, (skewed, even)


# -- files that are broken, or gone ----------------------------------------------------------------


def write_files(folder: Path, count: int, rows: int = 50) -> list[Path]:
    """The log in many files: CSV, JSON lines and Parquet by turns, some packed."""
    folder.mkdir()
    names = HEADER.split(",")
    found = []
    for number in range(count):
        lines = [
            f"e{number}-{i},u{i % 4},i{i % 7},view,{START + 3600 * number + i},9.5,1,"
            for i in range(rows)
        ]
        path = folder / f"part-{number:03d}.csv.gz"
        if number % 3 == 1:
            path = folder / f"part-{number:03d}.csv"
            path.write_text("\n".join([HEADER, *lines]))
        elif number % 3 == 2:
            path = folder / f"part-{number:03d}.csv.gz"
            path.write_bytes(gzip.compress("\n".join([HEADER, *lines]).encode()))
        else:
            path = folder / f"part-{number:03d}.parquet"
            cells = [dict(zip(names, line.split(","), strict=True)) for line in lines]
            pl.DataFrame(cells).with_columns(
                pl.col("time").cast(pl.Int64), pl.col("price", "quantity").cast(pl.Float64)
            ).write_parquet(path)
        found.append(path)
    return found


def by_format(folder: Path):
    """One mapping a format, as a shop with several sources has."""
    return [mapping(f"{folder}/*.{ending}") for ending in ("csv", "csv.gz", "parquet")]


@pytest.mark.long
def test_a_tenth_of_all_files_corrupt_is_counted_and_named(tmp_path):
    files = write_files(tmp_path / "log", 40)
    garbage, packed, cut, empty = (files[n] for n in (0, 5, 9, 20))
    garbage.write_bytes(b"\x00not parquet at all" * 40)
    packed.write_bytes(packed.read_bytes()[:10] + b"\xff" * 500)  # gzip's head, then nonsense
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    empty.write_bytes(b"")
    taken = take(tmp_path, *by_format(tmp_path / "log"))
    assert taken.tally.rows_out == 36 * 50
    quarantined = taken.quarantine
    assert set(quarantined["source"]) == {path.name for path in (garbage, packed, cut, empty)}
    assert taken.tally.rows_in == 36 * 50 + quarantined.height
    reasons = dict(quarantined.select("source", "reason").iter_rows())
    assert reasons[empty.name] == "empty_file"
    assert {reasons[path.name] for path in (garbage, packed, cut)} <= {
        "unreadable_file", "truncated_file",
    }  # fmt: skip
    assert all(quarantined["raw"])


class Vanishing(LocalFileSystem):
    """Lists every file; those called gone-… have been deleted by the time they are opened."""

    protocol = "vanishing"

    def _open(self, path, mode="rb", block_size=None, **more):
        if "/gone-" in path and "r" in mode:
            raise FileNotFoundError(2, "No such file or directory", path)
        return super()._open(path, mode=mode, block_size=block_size, **more)


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "parquet"])
def test_a_file_deleted_between_listing_and_reading_is_told_and_the_others_taken(tmp_path, ending):
    fsspec.register_implementation("vanishing", Vanishing, clobber=True)
    files = [path for path in write_files(tmp_path / "log", 9) if path.name.endswith(ending)]
    if ending == "csv":
        files = [path for path in files if not path.name.endswith("gz")]
    victim = files[1].rename(files[1].with_name(f"gone-{files[1].name}"))
    taken = take(tmp_path, mapping(f"vanishing://{tmp_path}/log/*.{ending}"))
    assert taken.tally.rows_out == 50 * (len(files) - 1)
    (row,) = taken.quarantine.iter_rows(named=True)
    assert row["source"] == victim.name
    assert row["reason"] in ("unreadable_file", "missing_file")
    assert row["raw"].startswith(("No such file", "it was there when the run began"))
