"""Stretches of an event log as Parquet: what `raysys ingest` reads, and what the log may forget.

    rolled/events/FIRST-LAST.parquet   events in the columns of `schema.LOGGED_EVENTS`, log order
    rolled/others/FIRST-LAST.parquet   updates of items and users, and what was put aside
    rolled/items.parquet               the newest word on each item, `schema.ITEMS`
    rolled/users.parquet               the newest word on each user, a column an attribute
    rolled/done/FIRST-LAST.json        the stretch is complete; counts, newest moment

The last file of a stretch to be written is the one in `done`: files of a stretch that has none
were left by a process that was killed, and are removed by the next. So each entry is in one file.
A process that was frozen until its lock expired may meet the next one at work: each asks whether it
still holds the lock before a file, and sees to it that its files are there before it says so.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from raysys import schema
from raysys.eventlog.entries import Entry, EventLog, Held, LogUnavailable
from raysys.eventlog.ids import DAY_MS, known_until
from raysys.storage import sync_folder

EVENTS: Final = pa.schema(
    [
        *schema.LOGGED_EVENTS,
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("received", schema.TIMESTAMP, nullable=False),
    ]
)
OTHERS: Final = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("timestamp", schema.TIMESTAMP, nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("quarantined", pa.string()),
        pa.field("body", pa.string(), nullable=False),  # JSON
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("received", schema.TIMESTAMP, nullable=False),
    ]
)
ROWS: Final = 250_000
"""Entries of one file at most."""

_TAKEN: Final = "another process has begun to roll the event log"
_RANGE: Final = re.compile(r"(\d{16})-(\d{16})")


@dataclass(frozen=True)
class Stretch:
    """One stretch of the log in Parquet.

    Attributes:
        first, last: offsets.
        events: used events; others: updates, and what was put aside.
        newest: UTC ms of the newest of all entries.
        newest_event: of the used events; 0: there are none.
        received: UTC ms at which the last one came in, by the clock that was ahead most.
    """

    first: int
    last: int
    events: int
    others: int
    newest: int
    newest_event: int
    received: int

    @property
    def name(self) -> str:
        """Of its files, without their ending; names sort as stretches follow each other."""
        return f"{self.first:016d}-{self.last:016d}"


class Rolled:
    """The rolled files of a log.

    Args:
        folder: of the log; they lie in its `rolled`, which need not be there.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder / "rolled"
        self.events, self.others = self.root / "events", self.root / "others"
        self.items, self.users = self.root / "items.parquet", self.root / "users.parquet"
        self._done = self.root / "done"

    def stretches(self) -> list[Stretch]:
        """All complete stretches, in order."""
        paths = sorted(self._done.glob("*.json"))
        return [Stretch(**json.loads(p.read_text())) for p in paths if _RANGE.fullmatch(p.stem)]

    def last(self) -> int:
        """Offset up to which the log is rolled; 0: nothing is."""
        names = [_RANGE.fullmatch(path.stem) for path in self._done.glob("*.json")]
        return max((int(name[2]) for name in names if name), default=0)

    def write(self, entries: Sequence[Entry], held: Held) -> Stretch:
        """Write the next stretch; only one process may at a time.

        Args:
            entries: of it.
            held: asks whether this is still the one that may.

        Raises:
            LogUnavailable: it is not, and nothing of the stretch stays.
        """
        for folder in (self.events, self.others, self._done):
            folder.mkdir(parents=True, exist_ok=True)

        def alone() -> None:
            if not held():
                raise LogUnavailable(_TAKEN)

        def put(table: pa.Table, path: Path) -> None:
            alone()
            _write(table, path)

        alone()
        self._tidy()
        used = [e for e in entries if e.kind == "event" and e.quarantined is None]
        others = [e for e in entries if e.kind != "event" or e.quarantined is not None]
        stretch = Stretch(
            first=entries[0].offset,
            last=entries[-1].offset,
            events=len(used),
            others=len(others),
            newest=max(e.body["timestamp"] for e in entries),
            newest_event=max((e.body["timestamp"] for e in used), default=0),
            received=max(e.received for e in entries),
        )
        updates = {k: [e.body for e in others if e.kind == k and not e.quarantined] for k in
                   ("item", "user")}  # fmt: skip
        if updates["item"]:
            put(self._with_items(updates["item"]), self.items)
        if updates["user"]:
            put(self._with_users(updates["user"]), self.users)
        files = []
        if others:
            files.append(self.others / f"{stretch.name}.parquet")
            put(_others(others), files[-1])
        if used:
            files.append(self.events / f"{stretch.name}.parquet")
            put(_events(used), files[-1])
        marker = self._done / f"{stretch.name}.json"
        if not held() or not all(path.exists() for path in files):
            if not marker.exists():  # else they are the other one's, which has rolled the same
                for path in files:
                    path.unlink(missing_ok=True)
            raise LogUnavailable(_TAKEN)
        fresh = marker.with_suffix(".new")
        with fresh.open("w") as file:
            file.write(json.dumps(asdict(stretch)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(marker)
        sync_folder(self._done)
        return stretch

    def read(self, after: int, since: int) -> Iterator[list[Entry]]:
        """Used events of offsets above `after` and moments after `since` (UTC ms), in log order."""
        for stretch in self.stretches():
            if stretch.last <= after or stretch.newest_event <= since:
                continue
            file = pq.ParquetFile(self.events / f"{stretch.name}.parquet")
            for batch in file.iter_batches(batch_size=20_000):
                rows = batch.set_column(
                    batch.schema.get_field_index("timestamp"), "timestamp",
                    batch["timestamp"].cast(pa.int64()),
                ).to_pylist()  # fmt: skip
                found = []
                for row in rows:
                    offset, received = row.pop("offset"), row.pop("received")
                    if offset > after and row["timestamp"] > since:
                        body = {name: value for name, value in row.items() if value is not None}
                        came = int(received.timestamp() * 1000)
                        found.append(Entry(offset, came, "event", body))
                if found:
                    yield found

    def told_items(self) -> pa.Table | None:
        """The newest word on each item, `schema.ITEMS`; None: nothing was said of any."""
        return pq.read_table(self.items) if self.items.exists() else None

    def told_users(self) -> pa.Table | None:
        """The newest word on each user: `user_id`, a column of texts an attribute; None: none."""
        return pq.read_table(self.users) if self.users.exists() else None

    def ids(
        self, remember_days: int, today: int
    ) -> Iterator[tuple[list[bytes], npt.NDArray[np.int64]]]:
        """Digests of ids that must still be known, and the day up to which each must."""
        for stretch in self.stretches():
            if max(stretch.newest, stretch.received) // DAY_MS + remember_days < today:
                continue
            for folder in (self.events, self.others):
                path = folder / f"{stretch.name}.parquet"
                if not path.exists():
                    continue
                file = pq.ParquetFile(path)
                columns = ["event_id", "timestamp", "received"]
                for batch in file.iter_batches(20_000, columns=columns):
                    names = batch["event_id"].to_pylist()
                    digests = [blake2b(n.encode(), digest_size=16).digest() for n in names]
                    time, came = (
                        batch[name].cast(pa.int64()).to_numpy()
                        for name in ("timestamp", "received")
                    )
                    yield digests, known_until(time, came, remember_days)

    def _tidy(self) -> None:
        """Remove files of stretches that were never completed."""
        done = {path.stem for path in self._done.glob("*.json")}
        for folder in (self.events, self.others):
            for path in folder.iterdir():
                if path.suffix != ".parquet" or path.stem not in done:
                    path.unlink()

    def _with_items(self, updates: Sequence[dict[str, Any]]) -> pa.Table:
        rows = _newest(self.items, "item_id", updates)
        known = [{name: row.get(name) for name in schema.ITEMS.names} for row in rows]
        return pa.Table.from_pylist(known, schema=schema.ITEMS)

    def _with_users(self, updates: Sequence[dict[str, Any]]) -> pa.Table:
        told = [{"user_id": row["user_id"], **row.get("attributes", {})} for row in updates]
        rows = _newest(self.users, "user_id", told)
        names = sorted({name for row in rows for name in row} - {"user_id"})
        return pa.table(
            {
                name: pa.array([r.get(name) for r in rows], pa.string())
                for name in ("user_id", *names)
            }
        )


def last_received(log: EventLog, rolled: Rolled) -> int:
    """UTC ms of the latest moment at which something came in, by the clocks of then; 0: none.

    Of what is rolled all is known, of the rest the newest entry.

    Raises:
        LogUnavailable: the log cannot be asked.
    """
    end = log.end()
    newest = [entry.received for entry in log.read(end - 1, 1)] if end else []
    return max([*(each.received for each in rolled.stretches()), *newest], default=0)


def roll(
    log: EventLog, rolled: Rolled, *, at_least: int = 1, older_than: int | None = None
) -> list[Stretch]:
    """Write what the log has beyond the rolled files; nothing if another process is at it.

    What comes in meanwhile is the next roll's: else this one would not end while events come.

    Args:
        log: the log.
        rolled: its files.
        at_least: do nothing for fewer entries,
        older_than: unless the oldest of them was received before this moment, UTC ms.

    Raises:
        LogUnavailable: the log cannot be read, or this process was frozen until another took over.
        OSError: no space for the files.
    """
    done: list[Stretch] = []
    with log.exclusively("roll") as held:
        if held is None:
            return done
        at, end = rolled.last(), log.end()
        if end - at < max(1, at_least):
            oldest = log.read(at, 1)
            if not oldest or older_than is None or oldest[0].received >= older_than:
                return done
        while at < end and (entries := _some(log, at, end)):
            done.append(rolled.write(entries, held))
            at = entries[-1].offset
    return done


def _some(log: EventLog, after: int, end: int) -> list[Entry]:
    """The next entries up to an end or a few more, as many as a file should hold."""
    found: list[Entry] = []
    while len(found) < ROWS and after < end and (more := log.read(after)):
        found += more
        after = more[-1].offset
    return found


def _events(entries: Sequence[Entry]) -> pa.Table:
    rows = [{**e.body, "offset": e.offset, "received": e.received} for e in entries]
    columns = [pa.array([row.get(f.name) for row in rows], f.type) for f in EVENTS]
    return pa.Table.from_arrays(columns, schema=EVENTS)


def _others(entries: Sequence[Entry]) -> pa.Table:
    rows = [
        {
            "event_id": e.body["event_id"],
            "timestamp": e.body["timestamp"],
            "kind": e.kind,
            "quarantined": e.quarantined,
            "body": json.dumps(e.body),
            "offset": e.offset,
            "received": e.received,
        }
        for e in entries
    ]
    columns = [pa.array([row[f.name] for row in rows], f.type) for f in OTHERS]
    return pa.Table.from_arrays(columns, schema=OTHERS)


def _newest(path: Path, key: str, updates: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The newest row of each key, those of the file and updates that came after it, by key."""
    rows = {row[key]: row for row in (pq.read_table(path).to_pylist() if path.exists() else [])}
    rows |= {row[key]: row for row in updates}
    return [rows[name] for name in sorted(rows)]


def _write(table: pa.Table, path: Path) -> None:
    """As Parquet, durable; there whole or not at all."""
    fresh = path.with_suffix(".new")
    pq.write_table(table, fresh, compression="zstd")
    file = os.open(fresh, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
    fresh.replace(path)
    sync_folder(path.parent)
