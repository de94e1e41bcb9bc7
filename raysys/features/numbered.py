"""The log as numbers on disk: Arrow files in time order, memory-mapped, read slice by slice.

`numbering` writes it. Who needs the log reads it as often as he likes: nothing is parsed again, no
text is compared, and the operating system keeps in memory what there is room for.
"""

from __future__ import annotations

import json
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

from raysys.features.log import EventColumns

SLICE_ROWS: Final = 250_000

INDEX: Final = "log.json"
_EVENTS: Final = tuple(field.name for field in fields(EventColumns))


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
        files: list[dict[str, Any]] = json.loads((self.folder / INDEX).read_text())
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

    def slices(self, rows: int | None = None) -> Iterator[LogSlice]:
        """The whole log, about so many rows at a time; no moment is cut in two."""
        return self.between(self.first, self.last + 1, rows)

    def between(self, start: int, end: int, rows: int | None = None) -> Iterator[LogSlice]:
        """Events from `start` on and before `end` (UTC ms), about so many rows at a time.

        The columns are views of the mapped files: read-only. No moment is cut in two.
        """
        at, rows = 0, rows or SLICE_ROWS
        for file in self._files:
            if file["last"] >= start and file["first"] < end:
                whole = map_columns(self.folder / file["name"])
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
        users = place(found["user_id"], pl.Series(self.users, dtype=pl.String))
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


def map_columns(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The columns of an Arrow file of one record batch, as views of the mapped file."""
    with pa.memory_map(str(path)) as source:
        batch = pa.ipc.open_file(source).get_batch(0)
    return {
        name: batch.column(name).to_numpy(
            zero_copy_only=batch.schema.field(name).type != pa.bool_()
        )
        for name in batch.schema.names
    }


def place(values: pl.Series, vocabulary: pl.Series) -> pl.Series:
    """Place of each value in a vocabulary: Int32, -1 where it has none."""
    numbers = pl.Series(np.arange(len(vocabulary)), dtype=pl.Int32)
    return values.replace_strict(vocabulary, numbers, default=-1, return_dtype=pl.Int32)
