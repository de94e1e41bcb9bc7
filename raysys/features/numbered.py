"""The log as numbers on disk: Arrow files in time order, memory-mapped, read slice by slice.

Two passes make it out of `events/date=*/…parquet`, a task for each group of dates. The first takes
note of users, stores, queries, sessions and orders; once these have their numbers, the second
writes every event as numbers alone. What follows reads it as often as it likes: nothing is parsed
again, no text is compared, and the operating system keeps in memory what there is room for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from raysys.catalogue import Catalogue
from raysys.errors import UserError
from raysys.features.log import EventColumns, normalised
from raysys.ingest.spread import Spread
from raysys.progress import task
from raysys.schema import EVENT_TYPES
from raysys.storage import write_atomic

GROUP_ROWS: Final = 500_000  # events that a task numbers at a time, whole dates
SLICE_ROWS: Final = 250_000

_INDEX: Final = "log.json"
_EVENTS: Final = tuple(field.name for field in fields(EventColumns))
_TYPES: Final = {
    "user": pl.Int32,
    "item": pl.Int32,
    "kind": pl.Int8,
    "time": pl.Int64,
    "quantity": pl.Float64,
    "price": pl.Float64,
    "store": pl.Int32,
    "order": pl.Int64,
    "session": pl.Int32,
    "query": pl.Int32,
    "position": pl.Int32,
    "week": pl.Int32,
    "answer": pl.Int64,
    "probability": pl.Float32,
}


@dataclass(frozen=True)
class LogSlice:
    """Some events in a row, and what the log knows of them beside `EventColumns`.

    Attributes:
        start: number of the first row in the whole log.
        events: n events.
        week: int32[n], promotion week, -1 where unknown.
        answer: int64[n], hash of the request_id that the event reacts to, 0 where it has none.
        probability: float32[n], with which ingest drew an impression that no log tells of; NaN
            for what the log says.
    """

    start: int
    events: EventColumns
    week: npt.NDArray[np.int32]
    answer: npt.NDArray[np.int64]
    probability: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.events)

    def take(self, rows: npt.NDArray[np.int64]) -> LogSlice:
        """The given rows, in the given order, as copies."""
        events = self.events.take(rows)
        return LogSlice(
            self.start, events, self.week[rows], self.answer[rows], self.probability[rows]
        )

    @classmethod
    def concat(cls, parts: Sequence[LogSlice]) -> LogSlice:
        """Several one after the other."""
        return cls(
            parts[0].start,
            EventColumns.concat([part.events for part in parts]),
            np.concatenate([part.week for part in parts]),
            np.concatenate([part.answer for part in parts]),
            np.concatenate([part.probability for part in parts]),
        )


@dataclass(frozen=True)
class NumberedLog:
    """A numbered log in a folder; picklable, reads lazily.

    A user's number is its place among the sorted users; stores and queries likewise. Sessions are
    numbered in the order in which they begin, orders by a hash of their names, so that the lowest
    numbers of any set of orders are a random draw that a longer log does not change.
    """

    folder: Path

    @cached_property
    def _files(self) -> list[dict[str, Any]]:
        """Of each file: its name, rows, and first and last moment."""
        files: list[dict[str, Any]] = json.loads((self.folder / _INDEX).read_text())
        return files

    def __len__(self) -> int:
        return sum(file["rows"] for file in self._files)

    @property
    def first(self) -> int:
        """The first moment, UTC ms."""
        return int(self._files[0]["first"])

    @property
    def last(self) -> int:
        """The last moment, UTC ms."""
        return int(self._files[-1]["last"])

    @property
    def n_orders(self) -> int:
        """How many orders there are."""
        return len(np.load(self.folder / "orders.npy", mmap_mode="r"))

    @cached_property
    def users(self) -> list[str]:
        """user_id by number."""
        return self._vocabulary("users")

    @cached_property
    def stores(self) -> list[str]:
        """store_id by number."""
        return self._vocabulary("stores")

    @cached_property
    def queries(self) -> list[str]:
        """Normalised text by number."""
        return self._vocabulary("queries")

    def _vocabulary(self, name: str) -> list[str]:
        return pq.read_table(self.folder / f"{name}.parquet")["name"].to_pylist()

    def slices(self, rows: int = SLICE_ROWS) -> Iterator[LogSlice]:
        """The whole log, about so many rows at a time; no moment is cut in two."""
        return self.between(self.first, self.last + 1, rows)

    def between(self, start: int, end: int, rows: int = SLICE_ROWS) -> Iterator[LogSlice]:
        """Events from `start` on and before `end` (UTC ms), about so many rows at a time.

        The columns are views of the mapped files: read-only. No moment is cut in two.
        """
        at = 0
        for file in self._files:
            if file["last"] >= start and file["first"] < end:
                whole = _map(self.folder / file["name"])
                time = whole["time"]
                low, high = (int(n) for n in np.searchsorted(time, [start, end]))
                while low < high:
                    stop = min(high, low + rows)
                    if stop < high:  # on to where the next moment begins
                        stop = int(np.searchsorted(time, time[stop - 1], side="right"))
                    yield LogSlice(
                        at + low,
                        EventColumns(*(whole[name][low:stop] for name in _EVENTS)),
                        *(whole[name][low:stop] for name in ("week", "answer", "probability")),
                    )
                    low = stop
            at += file["rows"]

    def cuts(self, rows: int) -> list[int]:
        """Moments that cut the log into stretches of about so many events, the first one left out.

        They are first moments of stretches, so that `between(cuts[i], cuts[i + 1])` are stretches.
        """
        found, since = [], 0
        for each in self.slices(min(rows, SLICE_ROWS)):
            if since >= rows:
                found.append(int(each.events.time[0]))
                since = 0
            since += len(each)
        return found

    def newest_sessions(self, n: int) -> pl.DataFrame:
        """The n that began last: user, session_id, session; numbers rising."""
        known = np.load(self.folder / "sessions.npy", mmap_mode="r")
        numbers = np.load(self.folder / "session_numbers.npy", mmap_mode="r")
        kept = np.flatnonzero(numbers >= len(numbers) - n)
        wanted = pl.LazyFrame(
            {"session": np.asarray(known[kept]), "number": np.asarray(numbers[kept])},
            schema={"session": pl.UInt64, "number": pl.Int32},
        )
        told = pl.scan_ipc(self.folder / "sessions" / "*.arrow")
        found = told.join(wanted, on="session").unique("session").sort("number").collect()
        users = _place(found["user_id"], pl.Series(self.users, dtype=pl.String))
        return found.select(users.alias("user"), "session_id", session=pl.col("number"))

    def order_names(self, orders: npt.NDArray[np.int64]) -> list[str]:
        """What the log calls some orders, by their numbers."""
        hashes = np.load(self.folder / "orders.npy", mmap_mode="r")
        return self._names("orders", np.asarray(hashes[orders]))

    def answer_names(self, answers: npt.NDArray[np.int64]) -> list[str]:
        """request_id of some answers, by their hashes."""
        return self._names("answers", answers.view(np.uint64))

    def _names(self, kind: str, hashes: npt.NDArray[np.uint64]) -> list[str]:
        """Names by hash, out of what the first pass kept of each group of dates."""
        wanted = pl.LazyFrame({"hash": pl.Series(hashes, dtype=pl.UInt64)}).with_row_index()
        told = pl.scan_ipc(self.folder / kind / "*.arrow")
        kept = told.join(wanted.select("hash"), on="hash", how="semi").unique("hash")
        return wanted.join(kept, on="hash", how="left").sort("index").collect()["name"].to_list()


def number_log(
    events: Path,
    catalogue: Catalogue,
    group_by: Sequence[str],
    folder: Path,
    spread: Spread,
    seed: int = 0,
) -> NumberedLog:
    """Write the numbers of a log into `folder`; what a killed run left there is not done again.

    Args:
        events: the folder of `ingest`, `schema.EVENTS` as Parquet in one folder a date. Files that
            are not in folders by date are numbered in one piece.
        catalogue: numbers the items.
        group_by: columns that name what belongs together, the first that is not null counts:
            `order_id`, `session_id`.
        folder: may hold what an earlier run over the same events wrote, and nothing else.
        spread: who does the pieces.
        seed: of the hash by which orders are numbered.

    Raises:
        UserError: no events.
    """
    log = NumberedLog(folder)
    if (folder / _INDEX).exists():
        return log
    groups = _groups(events)
    if not groups:
        raise UserError("no events", where=str(events), mend="look at the quarantine of `ingest`")
    folder.mkdir(parents=True, exist_ok=True)
    with task("features: users, orders, sessions", len(groups)) as noting:
        for _ in spread.each(len(groups), lambda n: _note(groups[n], n, group_by, folder, seed)):
            noting.advance()
        _fix_vocabularies(folder)
        noting.note = f"{len(log.users):,} users"
    with task("features: numbering the log", len(groups)) as numbering:
        written = []
        for done in spread.each(
            len(groups), lambda n: _number(groups[n], n, catalogue, group_by, folder, seed)
        ):
            written.append(done)
            numbering.advance()
        written.sort(key=lambda file: str(file["name"]))
        write_atomic(folder / _INDEX, json.dumps(written))
        numbering.note = f"{len(log):,} events"
    return log


def _groups(events: Path) -> list[list[Path]]:
    """Files of consecutive dates, about `GROUP_ROWS` events together; all in one if undated."""
    paths = sorted(events.glob("**/*.parquet"))
    rows = {path: pq.read_metadata(path).num_rows for path in paths}
    paths = [path for path in paths if rows[path]]
    by_date: dict[str, list[Path]] = {}
    for path in paths:
        by_date.setdefault(path.parent.name, []).append(path)
    if not all(name.startswith("date=") for name in by_date):
        return [paths]
    tasks = max(1, math.ceil(sum(rows.values()) / GROUP_ROWS))
    share = sum(rows.values()) / tasks
    groups: list[list[Path]] = []
    count = share
    for date in sorted(by_date):
        if count >= share:
            groups.append([])
            count = 0
        groups[-1].extend(by_date[date])
        count += sum(rows[path] for path in by_date[date])
    return groups


def _note(
    paths: Sequence[Path], number: int, group_by: Sequence[str], folder: Path, seed: int
) -> None:
    """First pass over some dates: every name in them once."""
    done = folder / "users" / f"{number:05d}.arrow"  # written last
    if done.exists():
        return
    frame = _read(paths, ["user_id", "store_id", "query", "session_id", "request_id", *group_by])
    frame = _hashed(frame, group_by, seed)
    for kind, name, known in (
        ("orders", "group", "order"),
        ("answers", "request_id", "answer"),
    ):
        told = frame.select(pl.col(known).alias("hash"), pl.col(name).alias("name"))
        _write(told.drop_nulls().unique("hash"), folder / kind / f"{number:05d}.arrow")
    sessions = frame.select("session", "user_id", "session_id").drop_nulls()
    sessions = sessions.unique("session", keep="first", maintain_order=True)
    _write(sessions, folder / "sessions" / f"{number:05d}.arrow")
    for kind, name in (("stores", "store_id"), ("queries", "query"), ("users", "user_id")):
        told = frame.select(pl.col(name).alias("name")).drop_nulls().unique()
        _write(told, folder / kind / f"{number:05d}.arrow")


def _fix_vocabularies(folder: Path) -> None:
    """Numbers for all names that the first pass met."""
    done = folder / "session_numbers.npy"  # written last
    if done.exists():
        return
    for kind in ("users", "stores", "queries"):
        names = pl.scan_ipc(folder / kind / "*.arrow").unique().sort("name").collect()
        names.write_parquet(folder / f"{kind}.parquet")
    orders = [pl.read_ipc(path)["hash"] for path in sorted((folder / "orders").glob("*.arrow"))]
    np.save(folder / "orders.npy", np.unique(pl.concat(orders).to_numpy()))
    paths = sorted((folder / "sessions").glob("*.arrow"))
    begun = pl.concat([pl.read_ipc(path)["session"] for path in paths]).to_numpy()
    sessions, first = np.unique(begun, return_index=True)
    numbers = np.empty(len(first), dtype=np.int32)
    numbers[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    np.save(folder / "sessions.npy", sessions)
    fresh = folder / "session_numbers.tmp.npy"
    np.save(fresh, numbers)
    fresh.replace(done)


def _number(
    paths: Sequence[Path],
    group: int,
    catalogue: Catalogue,
    group_by: Sequence[str],
    folder: Path,
    seed: int,
) -> dict[str, Any]:
    """Second pass over some dates: their events as numbers, in one record batch."""
    path = folder / f"events-{group:05d}.arrow"
    if not path.exists():
        names = ["user_id", "item_id", "event_type", "timestamp", "quantity", "price", "store_id"]
        names += ["week", "session_id", "query", "position", "request_id"]
        names += ["sampling_probability", *group_by]
        frame = _hashed(_read(paths, names), group_by, seed)
        users, stores, queries = (
            pl.read_parquet(folder / f"{kind}.parquet")["name"]
            for kind in ("users", "stores", "queries")
        )
        orders = np.load(folder / "orders.npy", mmap_mode="r")
        order = np.searchsorted(orders, frame["order"].to_numpy())
        frame = frame.with_columns(
            user=_place(frame["user_id"], users),
            item=pl.Series(catalogue.numbers(frame["item_id"].to_arrow()), dtype=pl.Int32),
            kind=_place(frame["event_type"], pl.Series(EVENT_TYPES)),
            time=pl.col("timestamp").dt.epoch("ms"),
            store=_place(frame["store_id"], stores),
            order=pl.Series(order, dtype=pl.Int64),
            session=_sessions(frame["session"], folder),
            query=_place(frame["query"], queries),
            answer=pl.col("answer").reinterpret(signed=True),
            probability=pl.col("sampling_probability"),
        )
        missing = {"quantity": float("nan"), "price": float("nan"), "position": 0, "answer": 0}
        missing |= {"week": -1, "probability": float("nan")}
        frame = frame.with_columns(pl.col(name).fill_null(what) for name, what in missing.items())
        _write(frame.select(pl.col(name).cast(kind) for name, kind in _TYPES.items()), path)
    time = _map(path)["time"]
    return {"name": path.name, "rows": len(time), "first": int(time[0]), "last": int(time[-1])}


def _read(paths: Sequence[Path], names: Sequence[str]) -> pl.DataFrame:
    """Columns of some files in time order; events of one moment stay as `ingest` sorted them."""
    columns = dict.fromkeys(["timestamp", *names])
    frame = pl.read_parquet(list(paths), columns=list(columns), hive_partitioning=False)
    if not frame["timestamp"].is_sorted():
        frame = frame.sort("timestamp", maintain_order=True)
    return frame


def _hashed(frame: pl.DataFrame, group_by: Sequence[str], seed: int) -> pl.DataFrame:
    """With `group`, what names the order, and hashes of the names that are many: UInt64."""
    session = pl.struct("user_id", "session_id").hash()  # two users' sessions may share a name
    return frame.with_columns(group=pl.coalesce(*group_by, "user_id")).with_columns(
        query=normalised(pl.col("query")),
        order=pl.col("group").hash(seed),
        session=pl.when(pl.col("session_id").is_not_null()).then(session),
        answer=pl.when(pl.col("request_id").is_not_null()).then(pl.col("request_id").hash()),
    )


def _sessions(hashes: pl.Series, folder: Path) -> pl.Series:
    """Session numbers: Int32, -1 where there is none."""
    known, numbers = (
        np.load(folder / name, mmap_mode="r") for name in ("sessions.npy", "session_numbers.npy")
    )
    if not len(known):
        return pl.Series([-1], dtype=pl.Int32).new_from_index(0, len(hashes))
    at = np.minimum(np.searchsorted(known, hashes.fill_null(0).to_numpy()), len(known) - 1)
    return pl.Series(np.where(hashes.is_null().to_numpy(), -1, numbers[at]), dtype=pl.Int32)


def _place(values: pl.Series, vocabulary: pl.Series) -> pl.Series:
    """Place of each value in a vocabulary: Int32, -1 where it has none."""
    numbers = pl.Series(np.arange(len(vocabulary)), dtype=pl.Int32)
    return values.replace_strict(vocabulary, numbers, default=-1, return_dtype=pl.Int32)


def _write(frame: pl.DataFrame, path: Path) -> None:
    """As one Arrow file, uncompressed, of one record batch; there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest()).combine_chunks()
    fresh = path.with_suffix(".tmp")
    with pa.ipc.new_file(str(fresh), table.schema) as writer:
        writer.write_table(table)
    fresh.replace(path)


def _map(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The columns of an Arrow file of one record batch, as views of the mapped file."""
    with pa.memory_map(str(path)) as source:
        batch = pa.ipc.open_file(source).get_batch(0)
    return {
        name: batch.column(name).to_numpy(
            zero_copy_only=batch.schema.field(name).type != pa.bool_()
        )
        for name in batch.schema.names
    }
