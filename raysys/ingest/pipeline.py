"""The passes in a row: pieces and units go out to Ray's tasks, only counts come back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import polars as pl

from raysys import __version__
from raysys.datasets.files import Part, find, split
from raysys.datasets.source import Source
from raysys.errors import UserError
from raysys.ingest.aside import QUARANTINE
from raysys.ingest.described import CATALOGUE, read_catalogue, write_catalogue
from raysys.ingest.entities import EntityFigures, write_entities
from raysys.ingest.figures import LogFigures
from raysys.ingest.impressions import ImpressionSettings
from raysys.ingest.inputs import Inputs, inspect
from raysys.ingest.reading import PIECES, Piece, drop_outdated, read_pieces
from raysys.ingest.rule_settings import RuleSettings
from raysys.ingest.rules import Limits, event_rules
from raysys.ingest.sessions import SessionSettings
from raysys.ingest.settling import UNITS, Batches, Settling, Unit, plan_units, settle
from raysys.ingest.spread import Spread
from raysys.ingest.store import Store, link
from raysys.ingest.tables import TABLE, TABLES, write_table
from raysys.ingest.tally import Tally
from raysys.progress import task
from raysys.storage import digest

__all__ = ["Inputs", "Outcome", "Treatment", "ingest", "inspect", "plan_pieces"]

TASK_BYTES: Final = 64 << 20  # small files share a task up to this size
PIECE_ROWS: Final = 2_000_000  # row groups of a Parquet file share a piece up to this many rows
CUT_ROWS: Final = 1_500_000
_FORM: Final = 2  # of what is said of kept work: what was kept in another form is done again
_BYTES_A_ROW: Final = 40  # of text, packed or not: errs towards more cuts


@dataclass
class Outcome:
    """What ingest did, table by table."""

    tallies: dict[str, Tally] = field(default_factory=dict)  # events, items, users
    tables: list[dict[str, Any]] = field(default_factory=list)  # side tables: name, rows in, out
    log: LogFigures = field(default_factory=LogFigures)
    entities: EntityFigures = field(default_factory=EntityFigures)
    sources: list[tuple[str, int]] = field(default_factory=list)  # file, bytes
    reused: dict[str, int] = field(default_factory=dict)  # pieces and days that were there already
    ahead: int | None = None  # the earliest moment (UTC ms) put aside as in the future
    unread: set[str] = field(default_factory=set)  # paths of files that storage did not give


@dataclass(frozen=True)
class Treatment:
    """What becomes of a log, whatever its source."""

    limits: Limits = field(default_factory=Limits)
    rules: RuleSettings = field(default_factory=RuleSettings)
    sessions: SessionSettings = field(default_factory=SessionSettings)
    impressions: ImpressionSettings = field(default_factory=ImpressionSettings)

    def causes(self, *parts: str) -> list[Any]:
        """What an outcome depends on here, as JSON can say it.

        With the version of polars: users are cut and items are numbered by its hashes.
        """
        settings = (getattr(self, part).model_dump(mode="json") for part in parts)
        return [*settings, __version__, pl.__version__, _FORM]


def ingest(
    source: Source,
    inputs: Inputs,
    treatment: Treatment,
    out: Path,
    spread: Spread,
    store: Store,
) -> Outcome:
    """Run all passes into the empty folder `out`; `spread` says who does the work.

    What `store` holds of earlier runs is not done again; afterwards it holds what this outcome
    is made of, and nothing else.

    Raises:
        UserError: the mapping does not fit the files, or nothing of the log is left.
    """
    outcome = Outcome(sources=[(p.label, p.size) for group in inputs.parts for p in group])
    catalogue = _catalogue(source, inputs, treatment, spread, store)
    items = store.result(CATALOGUE, catalogue)
    outcome.unread.update(items["unread"])
    # what half a catalogue says of events does not stand for what the whole one would
    asked = digest([catalogue, items]) if items["unread"] else catalogue
    pieces = plan_pieces(source, inputs, treatment, asked)
    tables = [
        digest([TABLES, inputs.fingerprints[table.path], table.name, __version__])
        for table in source.tables
    ]
    known = store.folder(CATALOGUE, catalogue)
    drop_outdated(pieces, treatment.rules, store)
    _read(source, pieces, tables, treatment, known, spread, store, outcome)
    tally = Tally()
    batches = []
    for piece in pieces:
        result = store.result(PIECES, piece.key)
        tally.add(Tally.from_dict(result["tally"]))
        numbered = tuple((n, *batch) for n, batch in enumerate(result["batches"]))
        name, label = piece.part.key, piece.part.label
        ahead, unread = result["ahead"], result["unread"]
        batches.append(Batches(piece.key, name, label, numbered, ahead, unread))
        outcome.unread.update([piece.part.path] if unread else [])
    outcome.ahead = min((b.ahead for b in batches if b.ahead is not None), default=None)
    settling = Settling(
        treatment.sessions,
        treatment.rules,
        treatment.impressions,
        known,
        items["items"],
    )
    causes = [*treatment.causes("sessions", "rules", "impressions"), asked]
    units = plan_units(batches, causes, digest)
    _settle(units, settling, spread, store, outcome)
    for unit in units:
        result = store.result(UNITS, unit.key)
        tally.add_later(Tally.from_dict(result["tally"]))
        outcome.log.add(LogFigures.from_dict(result["figures"]))
    outcome.tallies["events"] = tally
    _require_something(tally)
    outcome.tallies["items"] = Tally.from_dict(items["tally"])
    _finish(outcome, source, treatment, catalogue, pieces, units, spread, store, out)
    for number, key in enumerate(tables):
        outcome.tables.append(store.result(TABLES, key))
        link(store.folder(TABLES, key) / TABLE, out / f"{source.tables[number].name}.parquet")
    outcome.tables.sort(key=lambda table: str(table["name"]))
    store.keep_only(CATALOGUE, [catalogue])
    store.keep_only(PIECES, [piece.key for piece in pieces])
    store.keep_only(UNITS, [unit.key for unit in units])
    store.keep_only(TABLES, tables)
    return outcome


def plan_pieces(
    source: Source, inputs: Inputs, treatment: Treatment, catalogue: str
) -> list[Piece]:
    """All pieces in file order: a file each, large Parquet files several."""
    pieces = []
    for mapping, parts in enumerate(inputs.parts):
        files = source.events[mapping].model_dump(mode="json", exclude={"paths"})
        causes = [source.title, files, *treatment.causes("limits", "rules"), catalogue]
        for part in (piece for file in parts for piece in split(file, PIECE_ROWS)):
            place = [part.label, part.row_groups, inputs.fingerprints[part.path]]
            pieces.append(Piece(digest([PIECES, causes, place]), mapping, part))
    return pieces


def _catalogue(
    source: Source, inputs: Inputs, treatment: Treatment, spread: Spread, store: Store
) -> str:
    """The shop's own items, read unless they are there; their key."""
    files = [one.model_dump(mode="json", exclude={"paths"}) for one in source.items]
    paths = [part.path for one in source.items for part in find(one, source.of(one).derived)]
    marks = [inputs.fingerprints.get(path) for path in paths]
    causes = [source.title, files, marks, *treatment.causes("limits", "rules")]
    key = digest([CATALOGUE, causes])
    if store.has(CATALOGUE, key) and store.result(CATALOGUE, key)["unread"]:
        store.drop(CATALOGUE, key)  # storage failed then: it may give more now
    if not source.items:
        write_catalogue(source, treatment.limits, treatment.rules, key, store)
    elif not store.has(CATALOGUE, key):
        limits, rules = treatment.limits, treatment.rules
        jobs = [(1.0, lambda: write_catalogue(source, limits, rules, key, store))]
        _each("catalogue", jobs, spread, 0, "")
    return key


def _read(
    source: Source,
    pieces: Sequence[Piece],
    tables: Sequence[str],
    treatment: Treatment,
    catalogue: Path,
    spread: Spread,
    store: Store,
    outcome: Outcome,
) -> None:
    """First pass, over what the store does not hold yet."""
    cuts = _most_cuts(pieces)
    missing = [piece for piece in pieces if not store.has(PIECES, piece.key)]
    sized = [(piece.part.size * _share(piece.part), piece) for piece in missing]
    jobs: list[tuple[float, Callable[[], int]]] = []
    for number, key in enumerate(tables):
        if not store.has(TABLES, key):
            table = source.tables[number]
            size = Path(table.path).stat().st_size
            jobs.append((size, lambda t=table, k=key: write_table(t, k, store)))  # type: ignore[misc]
    share = sum(size for size, _ in sized) / (4 * spread.cpus)  # enough tasks to go round
    for together, group in _together(sized, min(TASK_BYTES, share)):
        job = partial(_read_group, group, source, treatment, catalogue, cuts, store)
        jobs.append((together, job))
    jobs.sort(key=lambda job: -job[0])
    outcome.reused["pieces"] = len(pieces) - len(missing)
    _each("read and check", jobs, spread, outcome.reused["pieces"], "files")


def _read_group(
    pieces: Sequence[Piece],
    source: Source,
    treatment: Treatment,
    catalogue: Path,
    cuts: int,
    store: Store,
) -> int:
    """Read some pieces with one set of rules; returns the rows in them."""
    items = read_catalogue(catalogue)
    rules = event_rules(treatment.limits, treatment.rules, items if items.height else None)
    read_pieces(pieces, source, rules, cuts, store)
    return sum(store.result(PIECES, piece.key)["tally"]["rows_in"] for piece in pieces)


def _settle(
    units: Sequence[Unit],
    settling: Settling,
    spread: Spread,
    store: Store,
    outcome: Outcome,
) -> None:
    """Second pass, over the days that the store does not hold as they are now."""
    missing = [unit for unit in units if not store.has(UNITS, unit.key)]
    outcome.reused["days"] = len(units) - len(missing)

    def job(unit: Unit) -> int:
        if not store.has(UNITS, unit.key):
            settle(unit, settling, store)
        figures: dict[str, int] = store.result(UNITS, unit.key)["figures"]["types"]
        return sum(figures.values())

    jobs = [(1.0, lambda unit=unit: job(unit)) for unit in missing]
    _each("sessions", jobs, spread, outcome.reused["days"], "blocks of days")


def _each(
    title: str,
    jobs: Sequence[tuple[float, Callable[[], int]]],
    spread: Spread,
    reused: int,
    what: str,
) -> None:
    """Do jobs, largest first, with progress in bytes or pieces."""
    rows = 0
    with task(title, len(jobs)) as progress:
        for result in spread.each(len(jobs), lambda n: {"rows": jobs[n][1]()}, title):
            rows += result["rows"]
            progress.advance()
        progress.note = f"{rows:,} rows" + (f"; {reused:,} {what} were there" if reused else "")


def _finish(
    outcome: Outcome,
    source: Source,
    treatment: Treatment,
    catalogue: str,
    pieces: Sequence[Piece],
    units: Sequence[Unit],
    spread: Spread,
    store: Store,
    out: Path,
) -> None:
    """Items and users in one task; days and quarantine become part of the outcome by name."""

    def entities(_: int) -> dict[str, Any]:
        tallies, figures, users = write_entities(
            source,
            treatment.limits,
            treatment.rules,
            read_catalogue(store.folder(CATALOGUE, catalogue)),
            [store.folder(PIECES, piece.key) for piece in pieces],
            [store.folder(UNITS, unit.key) for unit in units],
            out,
        )
        return {
            "tallies": {name: tally.to_dict() for name, tally in tallies.items()},
            "figures": figures.__dict__,
            "users": users,
        }

    with task("items and users", 1) as progress:
        (result,) = spread.each(1, entities, "items and users")
        progress.advance()
        for name, content in result["tallies"].items():
            outcome.tallies.setdefault(name, Tally()).add(Tally.from_dict(content))
        outcome.entities = EntityFigures(**result["figures"])
        outcome.unread.update(outcome.entities.unread)
        outcome.log.users = sum(result["users"].values())
        outcome.log.user_events.update({int(k): n for k, n in result["users"].items()})
        progress.note = f"{outcome.entities.items:,} items, {outcome.log.users:,} users"
    rejected = store.folder(CATALOGUE, catalogue) / QUARANTINE
    if rejected.exists():
        link(rejected, out / "quarantine" / "items.parquet")
    for piece in pieces:
        source_file = store.folder(PIECES, piece.key) / QUARANTINE
        if source_file.exists():
            link(source_file, out / "quarantine" / f"events-{piece.key}.parquet")
    for unit in units:
        folder = store.folder(UNITS, unit.key)
        for date in store.result(UNITS, unit.key)["dates"]:
            link(
                folder / f"{date}.parquet",
                out / "events" / f"date={date}" / f"part-{unit.cut}.parquet",
            )
        if (folder / QUARANTINE).exists():
            link(folder / QUARANTINE, out / "quarantine" / f"days-{unit.key}.parquet")


def _together(sized: Sequence[tuple[float, Piece]], most: float) -> list[tuple[float, list[Piece]]]:
    """Small pieces in groups that are worth a task."""
    groups: list[tuple[float, list[Piece]]] = []
    for size, piece in sized:
        if groups and groups[-1][0] + size <= most:
            groups[-1] = (groups[-1][0] + size, [*groups[-1][1], piece])
        else:
            groups.append((size, [piece]))
    return groups


def _share(part: Part) -> float:
    """Which share of its file's bytes a part is, about."""
    if part.row_groups is None or part.rows is None:
        return 1.0
    return min(1.0, part.rows / max(1, part.first_row + part.rows))


def _most_cuts(pieces: Sequence[Piece]) -> int:
    """Into how many cuts a day would fall if all the log were of one day: a power of two."""
    rows = sum(
        piece.part.rows if piece.part.rows is not None else piece.part.size // _BYTES_A_ROW
        for piece in pieces
    )
    return 1 << min(10, max(0, math.ceil(math.log2(max(1, rows / CUT_ROWS)))))


def _require_something(tally: Tally) -> None:
    """Refuse to go on without a single event.

    Raises:
        UserError: saying why they all went, with an example.
    """
    if tally.rows_out:
        return
    reasons = ", ".join(f"{rule}: {count:,}" for rule, count in tally.reasons.most_common(5))
    first = next((each[0] for each in tally.examples.values() if each), None)
    if first is None:  # there are records, and none of them is an event
        ignored = ", ".join(f"{what}: {count:,}" for what, count in tally.ignored.most_common(5))
        raise UserError(
            f"no record is an event ({ignored or 'no file has any'})",
            where="source.events",
            mend="check the files, and the mapping of event types",
        )
    place = f"{first['source']}, row {first['row']}" if first["row"] else first["source"]
    raise UserError(
        f"no event is left of {tally.rows_in:,} rows ({reasons}); for example: {first['raw']}",
        where=str(place),
        mend="check the mapping (columns, event_types, time) and the files",
    )
