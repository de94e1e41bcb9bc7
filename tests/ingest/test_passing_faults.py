"""Storage that fails for a while: what it did not give the next run reads, what is broken not."""

import bz2
import gzip
import io
from pathlib import Path
from typing import ClassVar

import fsspec
import polars as pl
import pyarrow as pa
import pytest
from fsspec.implementations.local import LocalFileSystem

from raysys.config import find_config, load_settings, parse_settings
from raysys.datasets import chunks, files
from raysys.datasets.mapping import ItemFiles, UserFiles
from raysys.datasets.source import Source
from raysys.ingest import pipeline
from raysys.ingest.spread import InProcess
from raysys.ingest.store import Store
from raysys.stages.features_settings import FeaturesSettings
from raysys.stages.features_start import planned_features
from raysys.stages.ingest import IngestSettings, run
from raysys.storage import Workspace
from tests.ingest.shop import COLUMNS, START, mapping
from tests.ingest.test_incremental import same

ENDINGS = ("csv", "csv.gz", "csv.zst", "csv.bz2", "jsonl", "parquet")


class ClientError(Exception):
    """As clients of object stores have them: of no kind that Python knows."""


class Failing(LocalFileSystem):
    """Raises for the files in `errors` when they are opened, or once `after` bytes are read."""

    protocol = "failing"
    errors: ClassVar[dict[str, Exception]] = {}
    after: ClassVar[int] = 0

    def _open(self, path, mode="rb", block_size=None, **more):
        name = path.rsplit("/", 1)[-1]
        if name not in self.errors:
            return super()._open(path, mode=mode, block_size=block_size, **more)
        if not self.after:
            raise self.errors[name]
        return Dropping(Path(path).read_bytes(), self.after, self.errors[name])


class Dropping(io.BytesIO):
    """A file whose connection is lost behind so many bytes."""

    def __init__(self, data, after, error):
        super().__init__(data)
        self._after, self._error = after, error

    def read(self, size=-1):
        if self.tell() + max(size, 0) > self._after and self._after < len(self.getbuffer()):
            raise self._error
        return super().read(size)


@pytest.fixture(autouse=True)
def storage():
    fsspec.register_implementation("failing", Failing, clobber=True)
    Failing.errors, Failing.after = {}, 0
    return Failing


def frame(number, rows=50):
    """A day of the log: views by four users."""
    n = pl.int_range(rows, eager=True)
    return pl.DataFrame(
        {
            "event": [f"e{number}-{i}" for i in n],
            "user": [f"u{i % 4}" for i in n],
            "item": [f"i{i % 7}" for i in n],
            "what": ["view"] * rows,
            "time": START + 86_400 * number + n,
            "price": [9.5] * rows,
            "quantity": [1.0] * rows,
            "query": [None] * rows,
        },
        schema_overrides={"query": pl.String},
    )


def write(path, number, rows=50):
    rows = frame(number, rows)
    packer = {"gz": gzip.compress, "bz2": bz2.compress}
    if path.name.endswith("zst"):
        packer["zst"] = lambda data: pa.compress(data, codec="zstd", asbytes=True)
    if path.name.endswith("parquet"):
        rows.write_parquet(path, row_group_size=1000)
    elif path.name.endswith("jsonl"):
        rows.write_ndjson(path)
    else:
        text = rows.write_csv().encode()
        path.write_bytes(packer.get(path.suffix[1:], bytes)(text))


class Shop:
    """Three days of a log in as many files, on storage that may fail; taken in again and again."""

    def __init__(self, folder, ending, rows=50, **more):
        self.folder, self.more = folder, more
        (folder / "logs").mkdir()
        self.files = [folder / f"logs/{day}.{ending}" for day in range(3)]
        for day, path in enumerate(self.files):
            write(path, day, rows)
        self.runs = 0

    def take(self, store=None):
        self.runs += 1
        out = self.folder / f"out{self.runs}"
        out.mkdir()
        source = Source("A shop", (mapping(f"failing://{self.folder}/logs"),), **self.more)
        inputs = pipeline.inspect(source)
        kept = Store(self.folder / (store or "pieces"))
        args = (pipeline.Treatment(), out, InProcess(), kept)
        return pipeline.ingest(source, inputs, *args), out

    def check_whole(self, taken):
        """That it is what a new start gives, with all rows."""
        assert taken[0].tallies["events"].rows_out == taken[0].tallies["events"].rows_in > 0
        assert not taken[0].unread
        same(taken, self.take(f"fresh{self.runs}"))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    "error",
    [
        TimeoutError("no answer"),
        PermissionError(13, "Permission denied"),
        OSError(5, "I/O"),
        ClientError("SlowDown: reduce your request rate"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_file_that_could_not_be_read_for_a_while_is_read_by_the_next_run(
    tmp_path, storage, ending, error
):
    shop = Shop(tmp_path, ending)
    storage.errors = {shop.files[1].name: error}
    first, _ = shop.take()
    assert first.tallies["events"].rows_out == 100
    assert first.tallies["events"].files == {shop.files[1].name: "unreadable_file"}
    assert first.unread == {f"failing://{shop.files[1]}"}
    again, _ = shop.take()
    assert again.tallies["events"].rows_out == 100
    assert again.reused["pieces"] == 2
    storage.errors = {}
    second = shop.take()
    assert second[0].reused["pieces"] == 2
    shop.check_whole(second)


@pytest.mark.long
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    "error", [TimeoutError("no answer"), ClientError("SlowDown")], ids=["system's", "client's"]
)
def test_a_connection_lost_within_a_file_keeps_nothing_of_it_for_the_next_run(
    tmp_path, monkeypatch, storage, ending, error
):
    monkeypatch.setattr(chunks, "CHUNK", 20_000)
    monkeypatch.setattr(files, "ROWS", 100)
    monkeypatch.setattr("raysys.datasets.unpack._PIECE", 1000)
    shop = Shop(tmp_path, ending, 4000)
    size = shop.files[1].stat().st_size
    storage.errors = {shop.files[1].name: error}
    for share in (0.4, 0.7):  # another part of the file each time: both are taken as they are
        storage.after = int(share * size)
        cut = shop.take()
        assert cut[0].unread == {f"failing://{shop.files[1]}"}
        assert cut[0].tallies["events"].quarantined == 1
        same(cut, shop.take(f"cut{storage.after}"))
    storage.errors = {}
    shop.check_whole(shop.take())


def test_a_file_that_went_and_came_back_as_it_was_is_read(tmp_path, monkeypatch):
    shop = Shop(tmp_path, "csv")
    aside, moment = tmp_path / "aside", shop.files[1].stat().st_mtime_ns
    inspect = pipeline.inspect

    def inspected(source):
        inputs = inspect(source)
        shop.files[1].rename(aside)
        return inputs

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "inspect", inspected)
        first, _ = shop.take()
    assert first.tallies["events"].files == {"1.csv": "missing_file"}
    assert first.unread == {f"failing://{shop.files[1]}"}
    aside.rename(shop.files[1])
    assert shop.files[1].stat().st_mtime_ns == moment
    shop.check_whole(shop.take())


@pytest.mark.parametrize(
    ("ending", "spoil"),
    [
        ("csv.gz", lambda data: data[: len(data) // 2]),
        ("csv.gz", lambda data: data[:20] + b"\xff" * 60),
        ("csv.zst", lambda data: data[: len(data) // 2]),
        ("csv.zst", lambda data: data[:10] + b"\xff" * 60),
        ("csv.bz2", lambda data: data[: len(data) // 2]),
        ("csv.bz2", lambda data: data[:20] + b"\xff" * 60),
        ("parquet", lambda data: b"\0not parquet" * 40),
        ("parquet", lambda data: data[:4] + b"\xff" * 300 + data[304:]),
    ],
)
def test_a_file_whose_content_is_broken_is_not_read_again(tmp_path, storage, ending, spoil):
    shop = Shop(tmp_path, ending, 400)
    shop.files[1].write_bytes(spoil(shop.files[1].read_bytes()))
    first = shop.take()
    assert set(first[0].tallies["events"].files) == {shop.files[1].name}
    assert not first[0].unread
    again = shop.take()
    assert again[0].reused["pieces"] == 3
    same(first, again)


def test_what_was_judged_by_half_a_catalogue_is_judged_again_by_the_whole_one(tmp_path, storage):
    for day in range(2):
        items = pl.DataFrame({"id": [f"i{n}" for n in range(day, 7, 2)]}).with_columns(price=9.5)
        items.write_csv(tmp_path / f"items{day}.csv")
    own = ItemFiles(
        paths=f"failing://{tmp_path}/items*.csv", columns={"item_id": "id", "price": "price"}
    )
    shop = Shop(tmp_path, "csv", items=(own,))
    storage.errors = {"items1.csv": TimeoutError("no answer")}
    first, _ = shop.take()
    assert first.tallies["events"].kept["unknown_item"] > 0
    assert first.unread == {f"failing://{tmp_path}/items1.csv"}
    storage.errors = {}
    second = shop.take()
    assert second[0].tallies["events"].kept == {}
    shop.check_whole(second)


def test_users_that_could_not_be_read_are_described_by_the_next_run(tmp_path, storage):
    pl.DataFrame({"id": ["u0", "u1"], "city": ["Rome", "Oslo"]}).write_csv(tmp_path / "users.csv")
    told = UserFiles(paths=f"failing://{tmp_path}/users.csv", columns={"user_id": "id"})
    shop = Shop(tmp_path, "csv", users=(told,))
    storage.errors = {"users.csv": PermissionError(13, "Permission denied")}
    first, _ = shop.take()
    assert first.entities.described_users == 0
    assert first.unread == {f"failing://{tmp_path}/users.csv"}
    storage.errors = {}
    second = shop.take()
    assert second[0].entities.described_users == 2
    shop.check_whole(second)


def test_a_file_that_cannot_be_asked_for_its_state_is_known_by_nothing(tmp_path, monkeypatch):
    shop = Shop(tmp_path, "csv")
    source = Source("A shop", (mapping(f"failing://{tmp_path}/logs"),))
    whole = pipeline.inspect(source).fingerprints
    asked = Failing.info

    def info(self, path, **more):
        if asking and path == str(shop.files[1]):
            raise PermissionError(13, "Permission denied")
        return asked(self, path, **more)

    asking = []
    monkeypatch.setattr(Failing, "info", info)
    (_, part, _), *_ = pipeline.inspect(source).parts
    asking.append(True)
    marks = {files.fingerprint(part) for _ in range(3)}
    assert len(marks) == 3  # nothing that is kept under one is ever taken for that of another run
    assert whole[part.path] not in marks
    assert shop.files[1].exists()


def settings_for(folder):
    log = {"paths": f"failing://{folder}/logs", "columns": COLUMNS, "time": {"unit": "seconds"}}
    content = {"source": {"kind": "files", "events": [log]}}
    return parse_settings(IngestSettings, content, where="ingest.yaml")


@pytest.mark.long
def test_an_outcome_is_not_done_while_files_wait_to_be_read(tmp_path, storage, caplog):
    Shop(tmp_path, "csv")
    workspace = Workspace(tmp_path / "ws")
    features = load_settings(FeaturesSettings, find_config("complete_journey", "features"))
    storage.errors = {"1.csv": TimeoutError("no answer")}
    first = run(settings_for(tmp_path), workspace, spread=InProcess())
    assert first.counts["events.out"] == 100
    assert "1.csv" in caplog.text and "next run" in caplog.text
    assert "1.csv" in (workspace.ingest / "report.html").read_text()
    known = planned_features(features, workspace).fingerprint
    storage.errors = {}
    caplog.clear()
    second = run(settings_for(tmp_path), workspace, spread=InProcess())
    assert second.counts["events.out"] == 150
    assert planned_features(features, workspace).fingerprint != known  # they are of another log
    assert "next run" not in caplog.text
    third = run(settings_for(tmp_path), workspace, spread=InProcess())
    assert third.created == second.created


def test_what_came_in_of_a_part_is_another_outcome_each_time(tmp_path, storage, monkeypatch):
    """Later stages would go on with pieces of the other log."""
    Shop(tmp_path, "csv")
    workspace = Workspace(tmp_path / "ws")
    features = load_settings(FeaturesSettings, find_config("complete_journey", "features"))
    size = (tmp_path / "logs" / "1.csv").stat().st_size
    storage.errors = {"1.csv": TimeoutError("no answer")}
    known = []
    monkeypatch.setattr(chunks, "CHUNK", 256)
    for after in (size // 3, 2 * size // 3):
        storage.after = after
        made = run(settings_for(tmp_path), workspace, spread=InProcess())
        known.append((made.counts["events.out"], planned_features(features, workspace).fingerprint))
    (few, first), (more, second) = known
    assert few < more and first != second
