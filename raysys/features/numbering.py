"""The numbered log, written: two passes over `events/date=*/…parquet`, a task a group of dates.

The first takes note of users, stores, queries, sessions and orders; once these have their numbers,
the second writes every event as numbers alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
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
from raysys.features.coded import Coded, Pairs, read_coded
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
        for _ in spread.each(
            len(groups), lambda n: _note(groups[n], n, group_by, folder, seed), "users and orders"
        ):
            noting.advance()
        for _ in spread.each(
            len(_VOCABULARIES), lambda n: _VOCABULARIES[n](folder), "numbers for names"
        ):
            pass
        noting.note = f"{len(log.users):,} users"
    with task("features: numbering the log", len(groups)) as numbering:
        written = []
        for done in spread.each(
            len(groups),
            lambda n: _number(groups[n], n, catalogue, group_by, folder, seed),
            "numbering the log",
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
    names = ["user_id", "store_id", "query", "session_id", "request_id", *group_by]
    texts, _ = read_coded(paths, names, [])
    pairs = _sessions_of(texts)
    answers = texts["request_id"].names
    for kind, told in (
        ("orders", _groups_of(texts, pairs, group_by, seed).names.struct.unnest()),
        ("answers", pl.DataFrame({"hash": answers.hash(), "name": answers})),
    ):
        _write(told.unique("hash"), folder / kind / f"{number:05d}.arrow")
    sessions = pairs.names.select(pl.Series("session", _hashes(pairs)), pl.all())
    sessions = sessions.unique("session", keep="first", maintain_order=True)
    _write(sessions, folder / "sessions" / f"{number:05d}.arrow")
    for kind, coded in (
        ("stores", texts["store_id"]),
        ("queries", texts["query"].map(normalised)),
        ("users", texts["user_id"]),
    ):
        _write(coded.names.alias("name").to_frame().unique(), folder / kind / f"{number:05d}.arrow")


def _number_names(folder: Path) -> None:
    """Users, stores and queries: a name's number is its place among the sorted ones."""
    for kind in ("users", "stores", "queries"):
        done = folder / f"{kind}.parquet"
        if not done.exists():
            names = pl.scan_ipc(folder / kind / "*.arrow").unique().sort("name").collect()
            fresh = folder / f"{kind}.tmp"
            names.write_parquet(fresh)
            fresh.replace(done)


def _number_orders(folder: Path) -> None:
    """Orders by a hash of their names."""
    if not (folder / "orders.npy").exists():
        _save(np.unique(_met(folder / "orders", "hash")), folder / "orders.npy")


def _number_sessions(folder: Path) -> None:
    """Sessions in the order in which they begin."""
    done = folder / "session_numbers.npy"  # written last
    if done.exists():
        return
    sessions, first = np.unique(_met(folder / "sessions", "session"), return_index=True)
    numbers = np.empty(len(first), dtype=np.int32)
    numbers[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    _save(sessions, folder / "sessions.npy")
    _save(numbers, done)


_VOCABULARIES: Final = (_number_sessions, _number_orders, _number_names)  # the longest first


def _met(folder: Path, column: str) -> npt.NDArray[np.uint64]:
    """What the first pass met, date by date."""
    met = [pl.read_ipc(path)[column] for path in sorted(folder.glob("*.arrow"))]
    hashes: npt.NDArray[np.uint64] = pl.concat(met).to_numpy()
    return hashes


def _save(numbers: npt.NDArray[Any], path: Path) -> None:
    """There whole or not at all."""
    fresh = path.with_suffix(".tmp.npy")
    np.save(fresh, numbers)
    fresh.replace(path)


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
        names = ["user_id", "item_id", "event_type", "store_id", "session_id", "query"]
        names += ["request_id", *group_by]
        others = ["quantity", "price", "week", "position", "sampling_probability"]
        texts, frame = read_coded(paths, names, others)
        users, stores, queries = (
            pl.read_parquet(folder / f"{kind}.parquet")["name"]
            for kind in ("users", "stores", "queries")
        )
        items, pairs = texts["item_id"], _sessions_of(texts)
        groups = _groups_of(texts, pairs, group_by, seed)
        numbers = {
            "user": _placed(texts["user_id"], users),
            "item": items.rows(catalogue.numbers(items.names.to_arrow()), -1),
            "kind": _placed(texts["event_type"], pl.Series(EVENT_TYPES)),
            "store": _placed(texts["store_id"], stores),
            "order": groups.rows(
                _found(groups.names.struct.field("hash"), folder / "orders.npy"), -1
            ),
            "session": pairs.rows(_session_numbers(_hashes(pairs), folder), -1),
            "query": _placed(texts["query"].map(normalised), queries),
            "answer": texts["request_id"].rows(
                texts["request_id"].names.hash().reinterpret(signed=True).to_numpy(), 0
            ),
        }
        missing = {"quantity": float("nan"), "price": float("nan"), "position": 0}
        missing |= {"week": -1, "sampling_probability": float("nan")}
        frame = frame.with_columns(
            *(pl.Series(name, values) for name, values in numbers.items()),
            *(pl.col(name).fill_null(what) for name, what in missing.items()),
            time=pl.col("timestamp").dt.epoch("ms"),
        ).rename({"sampling_probability": "probability"})
        _write(frame.select(pl.col(name).cast(kind) for name, kind in _TYPES.items()), path)
    time = map_columns(path)["time"]
    return {"name": path.name, "rows": len(time), "first": int(time[0]), "last": int(time[-1])}


def _groups_of(
    texts: Mapping[str, Coded], sessions: Pairs, group_by: Sequence[str], seed: int
) -> Coded:
    """What names the order of each row: as structs of `hash`, by which it is known, and `name`.

    An order is its name. Two users' sessions may share one, and orders, sessions and users theirs.
    """
    columns = []
    for column in (*group_by, "user_id"):
        codes, names = texts[column].codes, texts[column].names.alias("name").to_frame()
        what = pl.col("name")
        if column == "session_id":
            codes, names = sessions.codes, sessions.names.rename({column: "name"})
        if column != "order_id":
            what = pl.struct(pl.lit(column), *names.columns)
        columns.append(
            Coded(codes, names.select(pl.struct("name", hash=what.hash(seed))).to_series())
        )
    return Coded.coalesced(columns)


def _sessions_of(texts: Mapping[str, Coded]) -> Pairs:
    """Two users' sessions may share a name: a session is both."""
    return Pairs.of(("user_id", texts["user_id"]), ("session_id", texts["session_id"]))


def _hashes(pairs: Pairs) -> pl.Series:
    """Of sessions: UInt64."""
    return pairs.names.select(pl.struct(pl.all()).hash()).to_series()


def _placed(texts: Coded, vocabulary: pl.Series) -> npt.NDArray[np.int32]:
    """Place of each row's text in a vocabulary: int32[n], -1 where it has none."""
    found: npt.NDArray[np.int32] = texts.rows(place(texts.names, vocabulary).to_numpy(), -1)
    return found


def _found(hashes: pl.Series, known: Path) -> npt.NDArray[np.int64]:
    """Places of hashes among the sorted ones of a file: int64[n].

    They are looked for in rising order, so that the search stays in the cache.
    """
    order = hashes.arg_sort().to_numpy()
    found = np.empty(len(hashes), dtype=np.int64)
    found[order] = np.searchsorted(np.load(known, mmap_mode="r"), hashes.to_numpy()[order])
    return found


def _session_numbers(hashes: pl.Series, folder: Path) -> npt.NDArray[np.int32]:
    """Numbers of sessions by their hashes: int32[n]."""
    numbers = np.load(folder / "session_numbers.npy", mmap_mode="r")
    found: npt.NDArray[np.int32] = numbers[_found(hashes, folder / "sessions.npy")]
    return found


def _write(frame: pl.DataFrame, path: Path) -> None:
    """As one Arrow file, uncompressed, of one record batch; there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest()).combine_chunks()
    fresh = path.with_suffix(".tmp")
    with pa.ipc.new_file(str(fresh), table.schema) as writer:
        writer.write_table(table)
    fresh.replace(path)
