"""The numbered log, written: from `events/date=*/…parquet`, in two passes, a task a group of dates.

The first reads the files, takes note of users, stores, queries, sessions and orders, and writes
every event by the places of its names in that note; once names have their numbers, the second puts
these in the place of places. So texts are read and hashed once.
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

_TYPES: Final[dict[str, Any]] = {
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
            len(groups),
            lambda n: _note(groups[n], n, catalogue, group_by, folder, seed),
            "users and orders",
        ):
            noting.advance()
        for _ in spread.each(
            len(_VOCABULARIES), lambda n: _VOCABULARIES[n](folder), "numbers for names"
        ):
            pass
        noting.note = f"{len(log.users):,} users"
    with task("features: numbering the log", len(groups)) as numbering:
        written = []
        for done in spread.each(len(groups), lambda n: _number(n, folder), "numbering the log"):
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
    paths: Sequence[Path],
    number: int,
    catalogue: Catalogue,
    group_by: Sequence[str],
    folder: Path,
    seed: int,
) -> None:
    """First pass over some dates: every name in them, and events by the places of their names."""
    done = folder / "coded" / f"{number:05d}.arrow"  # written last
    if done.exists() or _numbered(folder, number).exists():
        return
    names = ["user_id", "item_id", "event_type", "store_id", "session_id", "query", "request_id"]
    others = ["quantity", "price", "week", "position", "sampling_probability"]
    texts, frame = read_coded(paths, [*names, *group_by], others)
    pairs, queries = _sessions_of(texts), texts["query"].map(normalised)
    orders = _groups_of(texts, pairs, group_by, seed)
    items, answers = texts["item_id"], texts["request_id"]
    hashes = answers.names.hash()
    for kind, told in (
        ("orders", orders.names.struct.unnest()),
        ("answers", pl.DataFrame({"hash": hashes, "name": answers.names})),
        ("sessions", pairs.names.select(pl.Series("session", _hashes(pairs)), pl.all())),
        ("stores", texts["store_id"].names.alias("name").to_frame()),
        ("queries", queries.names.alias("name").to_frame()),
        ("users", texts["user_id"].names.alias("name").to_frame()),
    ):
        _write(told, folder / kind / f"{number:05d}.arrow")
    numbers = {
        "user": texts["user_id"].codes,
        "item": items.rows(catalogue.numbers(items.names.to_arrow()), -1),
        "kind": _placed(texts["event_type"], pl.Series(EVENT_TYPES)),
        "store": texts["store_id"].codes,
        "order": orders.codes,
        "session": pairs.codes,
        "query": queries.codes,
        "answer": answers.rows(hashes.reinterpret(signed=True).to_numpy(), 0),
    }
    missing = {"quantity": float("nan"), "price": float("nan"), "position": 0}
    missing |= {"week": -1, "sampling_probability": float("nan")}
    frame = frame.with_columns(
        *(pl.Series(name, values) for name, values in numbers.items()),
        *(pl.col(name).fill_null(what) for name, what in missing.items()),
        time=pl.col("timestamp").dt.epoch("ms"),
    ).rename({"sampling_probability": "probability"})
    _write(frame.select(pl.col(name).cast(kind) for name, kind in _TYPES.items()), done)


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
        hashes = np.sort(_met(folder / "orders", "hash"))
        fresh = np.append(True, hashes[1:] != hashes[:-1])  # `np.unique` takes 70 times as long
        _save(hashes[fresh], folder / "orders.npy")


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


def _number(number: int, folder: Path) -> dict[str, Any]:
    """Second pass over some dates: their events by numbers of the whole log."""
    path, coded = _numbered(folder, number), folder / "coded" / f"{number:05d}.arrow"
    try:
        _number_to(path, coded, folder)
    except FileNotFoundError:  # a task that was thought dead has done it meanwhile
        if not path.exists():
            raise
    coded.unlink(missing_ok=True)
    time = map_columns(path)["time"]
    return {"name": path.name, "rows": len(time), "first": int(time[0]), "last": int(time[-1])}


def _number_to(path: Path, coded: Path, folder: Path) -> None:
    if not path.exists():
        orders, sessions = (
            pl.read_ipc(folder / kind / coded.name, columns=[column])[column]
            for kind, column in (("orders", "hash"), ("sessions", "session"))
        )
        numbers: dict[str, npt.NDArray[Any]] = {
            "order": _found(orders, folder / "orders.npy"),
            "session": _session_numbers(sessions, folder),
        }
        for column, kind in (("user", "users"), ("store", "stores"), ("query", "queries")):
            names = pl.read_ipc(folder / kind / coded.name)["name"]
            vocabulary = pl.read_parquet(folder / f"{kind}.parquet")["name"]
            numbers[column] = place(names, vocabulary).to_numpy()
        columns = map_columns(coded)
        for column, values in numbers.items():
            columns[column] = np.append(values, values.dtype.type(-1))[columns[column]]
        _write(pl.DataFrame(columns).select(pl.col(n).cast(t) for n, t in _TYPES.items()), path)


def _numbered(folder: Path, number: int) -> Path:
    """The file of what `_number` writes."""
    return folder / f"events-{number:05d}.arrow"


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
