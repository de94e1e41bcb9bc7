"""Counts of replicas on disk, `BUNDLE/BEGAN-REPLICA.parquet`: one row, of one stretch of time.

A replica writes the stretch it is in anew every so often, beside its place and renamed into it, so
readers have all that was counted but for the last moments; a stretch that has ended stays as it
is. Who wants a window adds up the files that overlap it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysys.monitoring.reference import Reference
from raysys.monitoring.tally import Tally

log = logging.getLogger("raysys")

_SLACK_MS: Final = 120_000  # between the clocks of a machine and of its disk

WINDOWS: Final = pa.schema(
    [
        pa.field("bundle", pa.string(), nullable=False),
        pa.field("replica", pa.string(), nullable=False),
        pa.field("began", pa.timestamp("ms", tz="UTC"), nullable=False),
        pa.field("ended", pa.timestamp("ms", tz="UTC"), nullable=False),  # of the latest count
        pa.field("requests", pa.int64(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("people", pa.binary(), nullable=False),  # bitmap, see `tally`
        pa.field("variables", pa.list_(pa.string()), nullable=False),  # feature:NAME, score:NAME
        pa.field("counts", pa.list_(pa.list_(pa.int64())), nullable=False),  # by bin
    ]
)


@dataclass(frozen=True)
class Stretch:
    """What one replica counted in one stretch of time.

    Attributes:
        began, ended: UTC ms.
        replica: who counted.
        tally: what.
    """

    began: int
    ended: int
    replica: str
    tally: Tally


@dataclass(frozen=True)
class Window:
    """A stretch of time, all replicas together.

    Attributes:
        since, until: UTC ms of what was counted first and last.
        replicas: how many counted.
        tally: what.
    """

    since: int
    until: int
    replicas: int
    tally: Tally


class Windows:
    """The counts of one bundle.

    Args:
        folder: of all bundles' counts.
        bundle: its id.
        reference: of the bundle, whose bins the counts are of.
    """

    def __init__(self, folder: Path, bundle: str, reference: Reference) -> None:
        self._folder, self._bundle, self._reference = folder / bundle, bundle, reference
        self._names = [f"{each.kind}:{each.name}" for each in reference.variables]
        self._read: dict[Path, tuple[tuple[int, int], Stretch]] = {}

    def write(self, stretch: Stretch) -> None:
        """Write a stretch; in the place of what the replica wrote of it before.

        Raises:
            OSError: no space, no right to.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        starts, tally = self._reference.grid.starts, stretch.tally
        row = {
            "bundle": self._bundle,
            "replica": stretch.replica,
            "began": stretch.began,
            "ended": stretch.ended,
            "requests": tally.requests,
            "rows": tally.rows,
            "people": tally.people.tobytes(),
            "variables": self._names,
            "counts": [tally.counts[a:b].tolist() for a, b in pairwise(starts)],
        }
        path = self._folder / f"{stretch.began:013d}-{stretch.replica}.parquet"
        fresh = path.with_name(f".{path.name}")
        pq.write_table(pa.Table.from_pylist([row], schema=WINDOWS), fresh, compression="zstd")
        fresh.replace(path)

    def window(self, since: int, until: int | None = None) -> Window | None:
        """All stretches that overlap a time, added up; None: nobody counted.

        Args:
            since, until: UTC ms; None: until now.
        """
        found = self._within(since, until)
        return self._sum(found) if found else None

    def parts(self, since: int, until: int, most: int) -> list[Window]:
        """The same in parts that follow each other, each stretch in one of them.

        Args:
            since, until: UTC ms.
            most: parts.
        """
        found = self._within(since, until)
        moments = sorted({each.began for each in found})
        size = max(1, -(-len(moments) // most))
        groups = [set(moments[at : at + size]) for at in range(0, len(moments), size)]
        return [self._sum([e for e in found if e.began in group]) for group in groups]

    def forget(self, before: int) -> None:
        """Remove stretches that ended before a moment, UTC ms; files of other bundles too.

        Raises:
            OSError: no right to.
        """
        for path in self._folder.parent.glob("*/[0-9]*.parquet"):
            if path.stat().st_mtime * 1000 < before:
                path.unlink(missing_ok=True)

    def _within(self, since: int, until: int | None) -> list[Stretch]:
        return [
            each
            for each in self._stretches(since)
            if each.ended >= since
            and (until is None or each.began <= until)
            and each.tally.requests
        ]

    def _sum(self, found: Sequence[Stretch]) -> Window:
        total = Tally.empty(self._reference.grid.size)
        for each in found:
            total = total + each.tally
        return Window(
            min(each.began for each in found),
            max(each.ended for each in found),
            len({each.replica for each in found}),
            total,
        )

    def _stretches(self, since: int) -> list[Stretch]:
        """Those that may reach to a time (UTC ms), if they can be read.

        Files are read again only when they have changed, and forgotten when they are too old.
        """
        known, self._read = self._read, {}
        for path in sorted(self._folder.glob("[0-9]*.parquet")):
            try:
                told = path.stat()
                if told.st_mtime * 1000 + _SLACK_MS < since:  # written for the last time before
                    continue
                stamp = (told.st_mtime_ns, told.st_size)
                before = known.get(path)
                again = before is not None and before[0] == stamp
                self._read[path] = before if again and before else (stamp, self._of(path))
            except FileNotFoundError:  # forgotten meanwhile
                continue
            except (OSError, pa.ArrowException, ValueError) as error:
                log.warning("%s is left out: %s", path, error)
        return [stretch for _, stretch in self._read.values()]

    def _of(self, path: Path) -> Stretch:
        row = pq.ParquetFile(path).read().to_pylist()[0]
        if row["variables"] != self._names:
            raise ValueError("it counts other features or scores than the bundle has")
        counts = np.array([n for each in row["counts"] for n in each], np.int64)
        if len(counts) != self._reference.grid.size:
            raise ValueError("its bins are not those of the bundle")
        people = np.frombuffer(row["people"], np.uint8)
        tally = Tally(counts, row["requests"], row["rows"], people)
        began, ended = (round(row[name].timestamp() * 1000) for name in ("began", "ended"))
        return Stretch(began, ended, row["replica"], tally)


def now_ms() -> int:
    """UTC ms."""
    return time.time_ns() // 1_000_000
