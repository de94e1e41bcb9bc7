"""Storage that fails in its own words: told apart from content, whatever is raised and where."""

import bz2
import contextlib
import gzip
import http.client
import io
import lzma
import random
from pathlib import Path

import fsspec
import polars as pl
import pyarrow as pa
import pytest
from fsspec.implementations.local import LocalFileSystem

from raysys.datasets import chunks, files
from raysys.datasets.fetching import StorageError, opened
from raysys.datasets.files import find, fingerprint, peek, read, split
from raysys.datasets.mapping import ItemFiles
from raysys.errors import UserError

ENDINGS = ("csv", "csv.gz", "csv.bz2", "csv.xz", "csv.zst", "jsonl", "jsonl.gz", "parquet")
ROWS = 12_000  # Arrow fetches 64 KiB of a zstd file at once


def in_members(pack):
    """Packs as parallel packers do: one block alone would come whole or not at all."""
    return lambda data: b"".join(pack(data[at : at + 4000]) for at in range(0, len(data), 4000))


PACKERS = {
    "gz": gzip.compress,
    "bz2": in_members(bz2.compress),
    "xz": lzma.compress,
    "zst": in_members(lambda data: pa.compress(data, codec="zstd", asbytes=True)),
}


class ClientError(Exception):
    """As clients of object stores have them: of no kind that Python knows."""


ERRORS = (
    ClientError("SlowDown: reduce your request rate"),
    http.client.IncompleteRead(b"", 512),
    pa.ArrowInvalid("Error reading bytes from file: [Errno 104] connection reset by peer"),
    ValueError("the range is not there"),
    EOFError("the connection was closed"),
    OSError("connection reset by peer"),  # no number: decoders raise such for damage
    TimeoutError("no answer"),
    PermissionError(13, "Permission denied"),
)


class Storage(LocalFileSystem):
    """Asks `fails(action, place)` before it opens, reads or seeks: what that returns is raised."""

    protocol = "fetched"
    cachable = False
    fails = staticmethod(lambda action, place: None)

    def _open(self, path, mode="rb", block_size=None, **more):
        self.ask("open", 0)
        return Asking(Path(path).read_bytes(), self)

    def ask(self, action, place):
        error = type(self).fails(action, place)
        if error is not None:
            raise error


class Asking(io.BytesIO):
    def __init__(self, data, storage):
        super().__init__(data)
        self._storage = storage

    def read(self, size=-1):
        end = len(self.getbuffer()) if size is None or size < 0 else self.tell() + size
        self._storage.ask("read", min(end, len(self.getbuffer())))
        return super().read(size)

    def seek(self, place, whence=0):
        self._storage.ask("seek", place)
        return super().seek(place, whence)


@pytest.fixture(autouse=True)
def storage(monkeypatch):
    fsspec.register_implementation("fetched", Storage, clobber=True)
    monkeypatch.setattr(Storage, "fails", staticmethod(lambda action, place: None))
    monkeypatch.setattr(chunks, "CHUNK", 20_000)
    monkeypatch.setattr(files, "ROWS", 1000)
    monkeypatch.setattr("raysys.datasets.unpack._PIECE", 500)

    def fails(rule):
        monkeypatch.setattr(Storage, "fails", staticmethod(rule))

    return fails


def part_of(folder, ending):
    path = folder / f"x.{ending}"
    draw = random.Random(1)
    names = [f"{draw.getrandbits(64):x}" for _ in range(ROWS)]
    rows = pl.DataFrame({"a": names, "b": [str(n) for n in range(ROWS)]})
    if ending == "parquet":
        rows.write_parquet(path, row_group_size=1000)
    else:
        kind, _, packed = ending.partition(".")
        text = rows.write_csv() if kind == "csv" else rows.write_ndjson()
        path.write_bytes(PACKERS.get(packed, bytes)(text.encode()))
    mapping = ItemFiles(paths=f"fetched://{path}", columns={"item_id": "a", "title": "b"})
    (part,) = find(mapping)
    return part, mapping


def taken(part, mapping):
    blocks = list(read(part, mapping))
    faults = [fault for block in blocks for fault in block.faults]
    rows = [row for block in blocks if block.rows.height for row in block.rows["b"].to_list()]
    return rows, faults


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_whatever_storage_raises_is_a_passing_fault_and_what_came_before_stays(
    tmp_path, storage, ending, error
):
    part, mapping = part_of(tmp_path, ending)
    whole = [str(n) for n in range(ROWS)]
    assert taken(part, mapping) == (whole, [])

    storage(lambda action, place: error if action == "open" else None)
    rows, (fault,) = taken(part, mapping)
    assert rows == [] and fault.passing and (fault.row, fault.reason) == (0, "unreadable_file")

    storage(lambda action, place: error if action != "open" else None)
    rows, (fault,) = taken(part, mapping)
    assert rows == [] and fault.passing and (fault.row, fault.reason) == (0, "unreadable_file")

    if ending == "parquet":  # Arrow fetches all row groups of so small a file at once
        return
    behind = part.size * 6 // 10
    storage(lambda action, place: error if action == "read" and place > behind else None)
    rows, (fault,) = taken(part, mapping)
    assert fault.passing and fault.row == len(rows) + 1
    assert 0 < len(rows) < ROWS and rows == whole[: len(rows)]
    assert str(error.args[-1] if isinstance(error, OSError) else "") in fault.raw


@pytest.mark.parametrize("ending", ENDINGS)
def test_storage_that_fails_once_leaves_the_next_reading_whole(tmp_path, storage, ending):
    part, mapping = part_of(tmp_path, ending)
    calls = []

    def once(action, place):
        calls.append(action)
        return ClientError("SlowDown") if calls.count("read") == 1 and action == "read" else None

    storage(once)
    assert peek(part, mapping) is None
    assert peek(part, mapping) == ["a", "b"]
    calls.clear()
    assert split(part, 2000) == [part]  # a piece that is known by the whole file
    calls.clear()
    assert taken(part, mapping)[1][0].passing
    assert taken(part, mapping) == ([str(n) for n in range(ROWS)], [])


def test_what_the_reader_swallows_is_told_when_the_file_is_left(tmp_path, storage):
    part, _ = part_of(tmp_path, "csv")
    storage(lambda action, place: ClientError("SlowDown") if action == "read" else None)
    taken_for_the_end = contextlib.suppress(OSError)
    with (
        pytest.raises(StorageError, match="ClientError: SlowDown"),
        opened(part.path) as file,
        taken_for_the_end,
    ):
        file.read(10)


def test_what_the_reader_makes_of_a_failure_is_the_failure(tmp_path, storage):
    part, _ = part_of(tmp_path, "csv")
    storage(lambda action, place: TimeoutError("no answer") if action == "read" else None)
    with pytest.raises(TimeoutError, match="no answer"), opened(part.path) as file:
        try:
            file.read(10)
        except OSError:
            raise pa.ArrowInvalid("not a file of this kind") from None


def test_what_the_reader_raises_of_a_file_that_came_whole_is_its_own(tmp_path):
    part, _ = part_of(tmp_path, "csv")
    with pytest.raises(ValueError, match="no such word"), opened(part.path) as file:
        file.read(10)
        raise ValueError("no such word")


@pytest.mark.parametrize("ending", ["csv.gz", "csv.bz2", "csv.xz", "csv.zst", "parquet"])
def test_broken_content_on_storage_that_answers_is_no_passing_fault(tmp_path, ending):
    part, mapping = part_of(tmp_path, ending)
    path = tmp_path / f"x.{ending}"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    _, faults = taken(part, mapping)
    assert faults and not any(fault.passing for fault in faults)


def test_a_storage_that_cannot_be_listed_is_a_mistake_that_names_it(tmp_path, monkeypatch):
    part_of(tmp_path, "csv")

    def info(self, path, **more):
        raise ClientError("Unable to locate credentials")

    monkeypatch.setattr(Storage, "info", info)
    mapping = ItemFiles(paths=f"fetched://{tmp_path}/x.csv", columns={"item_id": "a"})
    with pytest.raises(UserError, match="ClientError: Unable to locate credentials") as refusal:
        find(mapping)
    assert refusal.value.where == f"fetched://{tmp_path}/x.csv"


def test_a_file_whose_storage_does_not_tell_its_state_is_known_by_nothing(tmp_path, monkeypatch):
    part, _ = part_of(tmp_path, "csv")
    known = fingerprint(part)

    def info(self, path, **more):
        raise ClientError("SlowDown")

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "info", info)
        assert len({known, fingerprint(part), fingerprint(part)}) == 3
    assert fingerprint(part) == known


def test_a_node_without_the_package_for_a_storage_says_what_to_do(tmp_path, monkeypatch):
    part, mapping = part_of(tmp_path, "csv")

    def missing(*args, **more):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "open", missing)
    with pytest.raises(UserError, match="Install s3fs") as refusal:
        taken(part, mapping)
    assert "every node" in refusal.value.mend
