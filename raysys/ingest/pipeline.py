"""The passes in a row: pieces go out to Ray's tasks, only counts come back."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from raysys.datasets.files import Part, find, fingerprint, split
from raysys.datasets.mapping import AnyFiles
from raysys.datasets.source import Source
from raysys.errors import UserError
from raysys.ingest.entities import EntityFigures, write_entities
from raysys.ingest.figures import LogFigures
from raysys.ingest.passes import Piece, Settled, read_piece, settle_bucket, write_dates
from raysys.ingest.rules import Limits
from raysys.ingest.sessions import SessionSettings
from raysys.ingest.spread import Spread
from raysys.ingest.tally import Tally
from raysys.progress import task

PIECE_BYTES: Final = 64 << 20  # small files share a task up to this size
PIECE_ROWS: Final = 2_000_000  # row groups of a Parquet file share a task up to this many rows
BUCKET_ROWS: Final = 1_000_000
_BYTES_A_ROW: Final = 40  # of text, packed or not: errs towards more buckets


@dataclass
class Outcome:
    """What ingest did, table by table."""

    tallies: dict[str, Tally] = field(default_factory=dict)  # events, items, users
    tables: list[dict[str, Any]] = field(default_factory=list)  # side tables: name, rows in, out
    log: LogFigures = field(default_factory=LogFigures)
    entities: EntityFigures = field(default_factory=EntityFigures)
    sources: list[tuple[str, int]] = field(default_factory=list)  # file, bytes


@dataclass(frozen=True)
class Inputs:
    """The files of a source, found and fingerprinted."""

    parts: tuple[tuple[Part, ...], ...]  # of each event mapping
    fingerprints: dict[str, str]


def inspect(source: Source) -> Inputs:
    """Find and fingerprint all files of a source.

    Raises:
        UserError: a path names nothing, or an environment variable is not set.
    """
    parts = tuple(tuple(find(files)) for files in source.events)
    prints: dict[str, str] = {}
    own: tuple[AnyFiles, ...] = (*source.items, *source.users)
    others = [part for files in own for part in find(files)]
    for part in (*(part for group in parts for part in group), *others):
        prints[part.path if part.label in prints else part.label] = fingerprint(part)
    for table in source.tables:
        path = Path(table.path)
        prints[path.name] = fingerprint(Part(table.path, path.name, "parquet", path.stat().st_size))
    return Inputs(parts, prints)


def ingest(
    source: Source,
    inputs: Inputs,
    limits: Limits,
    sessions: SessionSettings,
    out: Path,
    spread: Spread,
) -> Outcome:
    """Run all passes into the empty folder `out`; `spread` says who does the pieces.

    Raises:
        UserError: the mapping does not fit the files, or nothing of the log is left.
    """
    work = out / ".work"
    work.mkdir()
    outcome = Outcome(sources=[(p.label, p.size) for group in inputs.parts for p in group])
    buckets = _how_many_buckets(inputs, spread.cpus)
    pieces = plan(source, inputs)
    tally = Tally()
    with task("read and check", len(pieces)) as progress:
        for result in spread.each(
            len(pieces),
            lambda n: read_piece(pieces[n], source, limits, buckets, work, out),
        ):
            if "table" in result:
                outcome.tables.append(result["table"])
            else:
                tally.add(Tally.from_dict(result["tally"]))
            progress.advance()
        outcome.tables.sort(key=lambda table: str(table["name"]))
        progress.note = f"{tally.rows_in:,} rows"
    settled: list[Settled] = []
    with task("sessions", buckets) as progress:
        for result in spread.each(buckets, lambda n: settle_bucket(n, sessions, work, out)):
            progress.advance()
            if result.get("path"):
                again = Tally.from_dict(result["tally"])
                again.rows_out -= again.quarantined
                tally.add(again)
                outcome.log.add(LogFigures.from_dict(result["figures"]))
                settled.append(Settled(result["path"], result["dates"]))
        progress.note = f"{outcome.log.sessions:,} sessions of {outcome.log.users:,} users"
    outcome.tallies["events"] = tally
    _require_something(tally)
    settled.sort(key=lambda one: one.path)
    _write(outcome, source, limits, settled, work, out, spread)
    shutil.rmtree(work)
    return outcome


def plan(source: Source, inputs: Inputs) -> list[Piece]:
    """What each task reads: large Parquet files in several pieces, small files together."""
    pieces = [Piece(0, table=number) for number in range(len(source.tables))]
    for mapping, parts in enumerate(inputs.parts):
        together: list[Part] = []
        for part in (piece for file in parts for piece in split(file, PIECE_ROWS)):
            if together and sum(p.size for p in together) + part.size > PIECE_BYTES:
                pieces.append(Piece(0, mapping, tuple(together)))
                together = []
            together.append(part)
        pieces.append(Piece(0, mapping, tuple(together)))
    largest_first = sorted(pieces, key=lambda piece: -_bytes(piece, source))
    return [
        Piece(number, piece.mapping, piece.parts, piece.table)
        for number, piece in enumerate(largest_first)
    ]


def _write(
    outcome: Outcome,
    source: Source,
    limits: Limits,
    settled: Sequence[Settled],
    work: Path,
    out: Path,
    spread: Spread,
) -> None:
    """The last pass: dates, and beside them items and users as one more task."""
    dates = sorted({date for one in settled for date in one.dates})
    groups = _groups(dates, outcome.log.days, spread.cpus)

    def write(number: int) -> dict[str, Any]:
        if number:
            return {"rows": write_dates(groups[number - 1], settled, out)}
        tallies, figures = write_entities(source, limits, work, out)
        return {
            "tallies": {name: tally.to_dict() for name, tally in tallies.items()},
            "figures": figures.__dict__,
        }

    rows = 0
    with task("write by date", outcome.tallies["events"].rows_out) as progress:
        for result in spread.each(len(groups) + 1, write):
            if "rows" in result:
                rows += result["rows"]
                progress.advance(result["rows"])
                continue
            for name, content in result["tallies"].items():
                outcome.tallies[name] = Tally.from_dict(content)
            outcome.entities = EntityFigures(**result["figures"])
        progress.note = f"{len(dates):,} dates"
    if rows != outcome.tallies["events"].rows_out:
        lost = outcome.tallies["events"].rows_out - rows
        raise RuntimeError(f"{lost} events were lost between the passes")


def _groups(dates: Sequence[str], days: dict[str, int], cpus: int) -> list[list[str]]:
    """Consecutive dates in groups of about equal events: a few tasks for each CPU."""
    events = dict.fromkeys(dates, 0)
    for key, count in days.items():
        events[key.split(" ", 1)[0]] += count
    tasks = max(1, min(len(dates), 2 * cpus))
    share = max(1, math.ceil(sum(events.values()) / tasks))
    groups: list[list[str]] = [[]]
    count = 0
    for date in dates:
        if count >= share:
            groups.append([])
            count = 0
        groups[-1].append(date)
        count += events[date]
    return groups


def _how_many_buckets(inputs: Inputs, cpus: int) -> int:
    """Enough that a bucket fits a task's memory, and one a CPU when the log is worth it."""
    rows = 0
    for part in (part for group in inputs.parts for part in group):
        known = [piece.rows for piece in split(part, 1 << 62)]
        rows += sum(n if n is not None else part.size // _BYTES_A_ROW for n in known)
    return max(1, math.ceil(rows / BUCKET_ROWS), min(cpus, rows // 200_000))


def _bytes(piece: Piece, source: Source) -> int:
    if piece.table >= 0:
        return Path(source.tables[piece.table].path).stat().st_size
    return sum(part.size for part in piece.parts)


def _require_something(tally: Tally) -> None:
    """Refuse to go on without a single event.

    Raises:
        UserError: saying why they all went, with an example.
    """
    if tally.rows_out:
        return
    reasons = ", ".join(f"{rule}: {count:,}" for rule, count in tally.reasons.most_common(5))
    first = next(iter(tally.examples.values()))[0]
    place = f"{first['source']}, row {first['row']}" if first["row"] else first["source"]
    raise UserError(
        f"no event is left of {tally.rows_in:,} rows ({reasons}); for example: {first['raw']}",
        where=str(place),
        mend="check the mapping (columns, event_types, time) and the files",
    )
