"""The numbered log, written: two passes over `events/date=*/…parquet`, a task a group of dates.

The first takes note of users, stores, queries, sessions and orders; once these have their numbers,
the second writes every event as numbers alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
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
from raysys.features.log import normalised
from raysys.features.numbered import INDEX, NumberedLog, map_columns, place
from raysys.ingest.spread import Spread
from raysys.progress import task
from raysys.schema import EVENT_TYPES
from raysys.storage import write_atomic

GROUP_ROWS: Final = 500_000  # events that a task numbers at a time, whole dates

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
    if (folder / INDEX).exists():
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
        write_atomic(folder / INDEX, json.dumps(written))
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
        frame = frame.with_columns(
            user=place(frame["user_id"], users),
            item=pl.Series(catalogue.numbers(frame["item_id"].to_arrow()), dtype=pl.Int32),
            kind=place(frame["event_type"], pl.Series(EVENT_TYPES)),
            time=pl.col("timestamp").dt.epoch("ms"),
            store=place(frame["store_id"], stores),
            order=_found(frame["order"], orders).cast(pl.Int64),
            session=_sessions(frame["session"], folder),
            query=place(frame["query"], queries),
            answer=pl.col("answer").reinterpret(signed=True),
            probability=pl.col("sampling_probability"),
        )
        missing = {"quantity": float("nan"), "price": float("nan"), "position": 0, "answer": 0}
        missing |= {"week": -1, "probability": float("nan")}
        frame = frame.with_columns(pl.col(name).fill_null(what) for name, what in missing.items())
        _write(frame.select(pl.col(name).cast(kind) for name, kind in _TYPES.items()), path)
    time = map_columns(path)["time"]
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
    return _found(hashes, known, numbers)


def _found(
    hashes: pl.Series, known: npt.NDArray[np.uint64], numbers: npt.NDArray[np.int32] | None = None
) -> pl.Series:
    """Places of hashes among the sorted ones, or the numbers there: Int32, -1 of null.

    Each hash is looked for once, in rising order, so that the search stays in the cache.
    """
    distinct = hashes.drop_nulls().unique().sort()
    at = np.searchsorted(known, distinct.to_numpy())
    found = at if numbers is None else numbers[at]
    return hashes.replace_strict(
        distinct, pl.Series(found, dtype=pl.Int32), default=-1, return_dtype=pl.Int32
    )


def _write(frame: pl.DataFrame, path: Path) -> None:
    """As one Arrow file, uncompressed, of one record batch; there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest()).combine_chunks()
    fresh = path.with_suffix(".tmp")
    with pa.ipc.new_file(str(fresh), table.schema) as writer:
        writer.write_table(table)
    fresh.replace(path)
