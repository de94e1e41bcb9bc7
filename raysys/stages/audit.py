"""`raysys features audit`: the point-in-time check and drift, on the user's own log and plan."""

from __future__ import annotations

import contextlib
import copy
import datetime as dt
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from raysys import schema
from raysys.errors import UserError
from raysys.features import audit_report as report
from raysys.features.alteration import DAY_MS, Drawn
from raysys.features.audit import Subject, audit
from raysys.features.drift import Drift, Sample, categorical_features, compare, counts, sample_rows
from raysys.features.examples import Examples
from raysys.features.live import LiveFeatures
from raysys.features.log import EventColumns
from raysys.features.numbered import NumberedLog
from raysys.features.numbering import number_log
from raysys.features.plan import FeaturePlan
from raysys.features.requests import build_requests, fold_bounds
from raysys.features.work import Work
from raysys.ingest.spread import InProcess
from raysys.progress import task
from raysys.retrieval.covisitation import CoVisitation
from raysys.schema import EVENT_TYPES
from raysys.stages.features import FeaturesSettings, FromLog
from raysys.storage import Manifest, Workspace, is_done, read_manifest, replacing

HORIZON = 5_000
_TOLD = 6  # leaks, and differences, told one by one on the terminal
_STYLE = {
    "leaks": "bold red", "differs": "bold red", "constant": "yellow", "no event": "dim",
    "ok": "green", "large": "bold yellow", "moderate": "yellow", "stable": "dim",
}  # fmt: skip


@dataclass(frozen=True)
class AuditOptions:
    """What the command line asks for.

    Attributes:
        requests: how many to draw, spread evenly over the folds.
        seed: of the draw and of the alterations.
        reference, current: the periods whose drift is measured: `train`, `validation`, `report`,
            `all`, days `FROM..TO` (UTC, both included), or another features folder or workspace,
            alone or followed by `#` and one of these.
    """

    requests: int = 200
    seed: int = 0
    reference: str = "train"
    current: str = "report"


def run(
    settings: FeaturesSettings,
    workspace: Workspace,
    options: AuditOptions,
    *,
    as_json: bool = False,
) -> bool:
    """Audit and print what came of it to stdout; returns whether the features are sound.

    Raises:
        UserError: see `examine`.
    """
    findings = examine(settings, workspace, options)
    if as_json:
        print((workspace.audit / "audit.json").read_text(encoding="utf-8"), end="")
    else:
        show(findings, Console(), workspace.audit)
    return findings.audit.sound


def examine(
    settings: FeaturesSettings, workspace: Workspace, options: AuditOptions
) -> report.Findings:
    """Audit, measure drift, write `audit.json`, `report.html` and a manifest to `workspace.audit`.

    Raises:
        UserError: no ingested log, no request to draw, or a period that there is not.
    """
    started = time.monotonic()
    ingest = read_manifest(workspace.ingest).fingerprint
    planned = Manifest(
        stage="features",
        inputs={"ingest": ingest},
        settings=settings.model_dump(mode="json", by_alias=True),
    )
    there = (workspace.features / "manifest.json").is_file()
    written = there and is_done(workspace.features, planned)
    notes = [] if written else [_why_not_compared(workspace, there)]
    with _scratch(workspace) as scratch:
        subject = _subject(settings, workspace, options, scratch, written=written)
        outcome = audit(subject, seed=options.seed, horizon=HORIZON)
    names = subject.make()
    drifts: Sequence[Drift] = ()
    periods, sizes = ("", ""), ((0, 0), (0, 0))
    if there:
        with task("audit: drift") as comparing:
            one, other = (
                _period(words, workspace.features, options.seed)
                for words in (options.reference, options.current)
            )
            drifts = compare(one, other, categorical_features(settings.plan))
            periods = (one.words, other.words)
            sizes = ((one.requests, len(one.values)), (other.requests, len(other.values)))
            levels = counts(drifts)
            comparing.note = ", ".join(f"{count} {level}" for level, count in levels.items())
    findings = report.Findings(
        audit=outcome,
        drifts=drifts,
        periods=periods,
        sizes=sizes,
        user=lambda number: names.users[number] if number >= 0 else "(unknown)",
        item=lambda number: str(names.catalogue.ids[number]) if number >= 0 else "(unknown)",
        horizon=HORIZON,
        notes=notes,
    )
    manifest = Manifest(
        stage="audit",
        inputs={"ingest": ingest, **_features_input(workspace, there)},
        settings={**asdict(options), "features": planned.settings},
        counts={
            "requests": outcome.requests,
            "rows": outcome.values,
            "features": len(outcome.names),
            "leaks": len(outcome.leaks),
            "differences": len(outcome.differences),
        },
        figures={"sound": outcome.sound, "drift": dict(counts(drifts))},
    )
    with replacing(workspace.audit) as folder:
        report.write(findings, folder)
        manifest.seconds = round(time.monotonic() - started, 2)
        manifest.write(folder)
    return findings


def show(findings: report.Findings, console: Console, folder: Path) -> None:
    """The findings as tables, the conclusion last."""
    outcome = findings.audit
    drift = {found.feature: found for found in findings.drifts}
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("feature", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for name in ("reacts", "PSI", "KS"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("drift", no_wrap=True)
    for at, name in enumerate(outcome.names):
        verdict = outcome.verdict(name)
        row = [escape(name), _styled(verdict), f"{outcome.reacts[at]:.0%}"]
        if name in drift:
            found = drift[name]
            row += [f"{found.psi:.3f}", "–" if found.ks is None else f"{found.ks:.3f}"]
            row += [_styled(found.level)]
        table.add_row(*row)
    console.print(table)
    _show_faults(findings, console)
    for note in findings.notes:
        console.print(f"note: {escape(note)}", style="yellow", soft_wrap=True)
    if findings.drifts:
        console.print(f"drift: from {findings.periods[0]} to {findings.periods[1]}", style="dim")
    style = "bold green" if outcome.sound else "bold red"
    console.print(escape(report.conclusion(outcome)), style=style, soft_wrap=True)
    console.print(f"report: {escape(str(folder / 'report.html'))}", soft_wrap=True)


def _show_faults(findings: report.Findings, console: Console) -> None:
    """Each leak and each difference in a few lines."""
    say = report.number
    leaks = list(findings.audit.leaks.values())
    for leak in leaks[:_TOLD]:
        item = "" if leak.item < 0 else f", item {findings.item(leak.item)}"
        console.print(
            f"\n[bold red]{escape(leak.feature)} leaks[/]: request {escape(leak.request_id)} at "
            f"{report.moment(leak.time)}, user {escape(findings.user(leak.user))}{escape(item)}: "
            f"{say(leak.before)} → {say(leak.after)} with {report.HOW[leak.how]}",
            soft_wrap=True,
            highlight=False,
        )
        if leak.events:
            console.print(f"  moved by {leak.n_events:,} event(s):", highlight=False)
        for event in leak.events:
            console.print(
                f"    {event['event_type']}, user {escape(findings.user(event['user']))}, item "
                f"{escape(findings.item(event['item']))}, {report.after(event['after_ms'])}",
                highlight=False,
            )
    if len(leaks) > _TOLD:
        console.print(f"\n… and {len(leaks) - _TOLD} more features leak: see the report")
    differences = list(findings.audit.differences.values())
    for one in differences[:_TOLD]:
        because = f"; that is what counting events {one.explained} gives" if one.explained else ""
        console.print(
            f"\n[bold red]{escape(one.feature)} differs[/]: request {escape(one.request_id)} at "
            f"{report.moment(one.time)}, item {escape(findings.item(one.item))}: written "
            f"{say(one.written)}, from the past {say(one.recomputed)}{because}",
            soft_wrap=True,
            highlight=False,
        )
    if len(differences) > _TOLD:
        console.print(f"\n… and {len(differences) - _TOLD} more features differ: see the report")
    if leaks or differences:
        console.print()


def _styled(word: str) -> str:
    return f"[{_STYLE[word]}]{word}[/]"


def _why_not_compared(workspace: Workspace, there: bool) -> str:
    if not there:
        return (
            "written examples were not compared, and no drift measured: run `raysys features` "
            "with this config first"
        )
    return (
        "written examples were not compared: they come from another log or from other settings; "
        "run `raysys features` with this config"
    )


def _features_input(workspace: Workspace, there: bool) -> dict[str, str]:
    return {"features": read_manifest(workspace.features).fingerprint} if there else {}


@contextlib.contextmanager
def _scratch(workspace: Workspace) -> Iterator[Path]:
    """A folder to work in, beside the outcome; `replacing` takes away what a killed run left."""
    folder = workspace.root / f".audit.scratch.{os.getpid()}.tmp"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _subject(
    settings: FeaturesSettings,
    workspace: Workspace,
    options: AuditOptions,
    scratch: Path,
    *,
    written: bool,
) -> Subject:
    """Read the log, draw requests, and say how their state is made."""
    work = Work(scratch, settings.plan, settings.candidates)
    catalogue = work.write_catalogue(workspace.ingest / "items.parquet")
    log = number_log(
        *(workspace.ingest / "events", catalogue, settings.group_by, work.root / "log"),
        InProcess(),
        seed=settings.seed,
    )
    work.write_resources(workspace.root)
    with task("audit: reading the log") as reading:
        events = EventColumns.concat([each.events for each in log.slices()])
        reading.note = f"{len(events):,} events"
    values: dict[int, npt.NDArray[np.float32]] | None = None
    with task("audit: drawing requests") as drawing:
        if written:
            requests, values = _drawn_from_examples(workspace.features, options)
            requests = [_with_positions(each, settings.plan, values) for each in requests]
        else:
            requests = _drawn_from_log(settings, log, events, options)
        if isinstance(settings.examples, FromLog):
            requests = [_with_query(each, log, settings.examples) for each in requests]
        drawing.note = f"{len(requests):,}"
    weeks = [request.week for request in requests if request.week is not None]
    span = (min(weeks), max(weeks)) if weeks else (-1, -1)
    work.write_promotions(workspace.ingest / "promotions.parquet", *span)
    empty = work.live()
    empty.promotions = work.promotions()
    bounds = fold_bounds(settings, log.last + 1)
    near = _Neighbourhoods(settings, events, len(catalogue), bounds, requests)
    return Subject(
        make=partial(_copied, empty),
        events=events,
        requests=requests,
        neighbourhood=near,
        history=settings.history,
        written=values,
    )


def _copied(empty: LiveFeatures) -> LiveFeatures:
    """Another empty state that shares all that events do not change."""
    changing = ("state", "sessions", "_last_store", "_last_store_time")
    shared = {id(each): each for name, each in vars(empty).items() if name not in changing}
    return copy.deepcopy(empty, shared)


def _with_query(request: Drawn, log: NumberedLog, examples: FromLog) -> Drawn:
    """A request of the log with session and query: those of the first row that is its own."""
    kinds = np.isin(EVENT_TYPES, examples.events)
    for each in log.between(request.time, request.time + 1):
        events = each.events
        mine = (events.user == request.user) & kinds[events.kind] & (events.item >= 0)
        rows = np.flatnonzero(mine)
        names = log.answer_names(each.answer[rows]) if len(rows) else []
        for row, name in zip(rows, names, strict=True):
            made = f"{log.users[request.user]}@{request.time}"
            if request.request_id == (made if each.answer[row] == 0 else name):
                session, query = int(events.session[row]), int(events.query[row])
                return replace(request, session=session, query=query)
    return request


def _with_positions(
    request: Drawn, plan: FeaturePlan, values: Mapping[int, npt.NDArray[np.float32]]
) -> Drawn:
    """A request with the positions of its items: no state has them, only the examples."""
    kinds = [feature.kind for feature in plan.features]
    if "shown_position" not in kinds:
        return request
    positions = np.nan_to_num(values[request.number][:, kinds.index("shown_position")])
    return replace(request, positions=positions.astype(np.int32))


class _Neighbourhoods:
    """Co-visitation as of each period of the features stage, from events before it alone."""

    def __init__(
        self,
        settings: FeaturesSettings,
        events: EventColumns,
        n_items: int,
        bounds: tuple[int, ...],
        requests: Sequence[Drawn],
    ) -> None:
        step = int(settings.covisitation.refit_days * DAY_MS)
        self._moments = np.arange(bounds[0], bounds[-1], step)
        self._fitted: dict[int, CoVisitation] = {}
        reads = settings.candidates.covisitation > 0 or any(
            feature.kind == "covisitation" for feature in settings.plan.features
        )
        epochs = sorted({self._epoch(request.time) for request in requests}) if reads else []
        self._none = CoVisitation(
            np.full((n_items, 1), -1, np.int32), np.zeros((n_items, 1), np.float32)
        )
        with task("audit: items bought together", len(epochs)) as fitting:
            for epoch in epochs:
                past = int(np.searchsorted(events.time, self._moments[epoch]))
                given = settings.covisitation.model_dump(exclude={"refit_days"})
                order, item = events.order[:past], events.item[:past]
                self._fitted[epoch] = CoVisitation.fit(order, item, n_items, **given)
                fitting.advance()

    def __call__(self, moment: int) -> CoVisitation:
        return self._fitted.get(self._epoch(moment), self._none)

    def _epoch(self, moment: int) -> int:
        return max(0, int(np.searchsorted(self._moments, moment, side="right")) - 1)


def _drawn_from_examples(
    folder: Path, options: AuditOptions
) -> tuple[list[Drawn], dict[int, npt.NDArray[np.float32]]]:
    """Requests of every fold with the items and the values that were written of them."""
    folds = sorted(int(path.name.partition("=")[2]) for path in (folder / "requests").iterdir())
    each = -(-options.requests // len(folds))
    drawn: list[Drawn] = []
    values: dict[int, npt.NDArray[np.float32]] = {}
    for fold in folds:
        examples = Examples(folder, (fold,))
        chosen = _draw(_frame(examples.requests()), each, options.seed)
        rows = _rows_of(examples, chosen["request"].to_numpy())
        for row in chosen.iter_rows(named=True):
            items, features = rows[row["request"]]
            drawn.append(_request(row, items))
            values[row["request"]] = features
    return sorted(drawn, key=_by_time), values


def _drawn_from_log(
    settings: FeaturesSettings, log: NumberedLog, events: EventColumns, options: AuditOptions
) -> list[Drawn]:
    """Orders that would be requests, with what was bought and what was seen around them."""
    requests = build_requests(log, settings)
    folds = requests.frame["fold"].unique().sort()
    each = -(-options.requests // len(folds))
    frame = pl.concat(_draw(requests.frame.filter(fold=n), each, options.seed) for n in folds)
    relevant = requests.relevant.group_by("request").agg("item")
    bought = dict(relevant.filter(pl.col("request").is_in(frame["request"].implode())).iter_rows())
    drawn = []
    for row in frame.iter_rows(named=True):
        until = int(np.searchsorted(events.time, row["time"]))
        before = events.slice(max(0, until - 20_000), until)
        own, others = before.item[before.user == row["user"]], before.item
        items = np.unique(np.concatenate([bought[row["request"]], own[-80:], others[-80:]]))
        store, week = (None if row[name] < 0 else row[name] for name in ("store", "week"))
        known = {**row, "store_id": None if store is None else log.stores[store], "week": week}
        drawn.append(_request(known, items[items >= 0].astype(np.int32)))
    return sorted(drawn, key=_by_time)


def _draw(frame: pl.DataFrame, count: int, seed: int) -> pl.DataFrame:
    """So many requests, by a hash of their id."""
    return frame.bottom_k(count, by=pl.col("request_id").hash(seed)).sort("time", "request")


def _by_time(request: Drawn) -> tuple[int, int]:
    return request.time, request.number


def _request(row: dict[str, Any], items: npt.NDArray[np.int32]) -> Drawn:
    return Drawn(
        number=int(row["request"]),
        request_id=str(row["request_id"]),
        fold=int(row["fold"]),
        user=int(row["user"]),
        time=int(row["time"]),
        store_id=row["store_id"],
        week=row["week"],
        items=items,
    )


def _rows_of(
    examples: Examples, requests: npt.NDArray[np.int32]
) -> dict[int, tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]]:
    """Items and features of requests, as written, by ordinal."""
    found = {}
    for path in examples.files("examples"):
        request = pq.read_table(path, columns=["request"], partitioning=None)["request"].to_numpy()
        index = np.flatnonzero(np.isin(request, requests))
        if not len(index):
            continue
        columns = ["item", *examples.names]
        table = pq.read_table(path, columns=columns, partitioning=None).take(pa.array(index))
        features = np.stack([table[name].to_numpy() for name in examples.names], axis=1)
        item, group = table["item"].to_numpy(), request[index]
        for number in np.unique(group):
            mine = group == number
            found[int(number)] = (item[mine], np.ascontiguousarray(features[mine]))
    return found


def _frame(table: pa.Table) -> pl.DataFrame:
    """A requests table with `time` in UTC ms."""
    frame = pl.from_arrow(table.select([n for n in schema.REQUESTS.names if n != "history"]))
    assert isinstance(frame, pl.DataFrame)
    return frame.with_columns(time=pl.col("timestamp").dt.epoch("ms"))


def _period(words: str, features: Path, seed: int) -> Sample:
    """Sample the candidates of a period, as `AuditOptions` has it."""
    place, _, part = words.rpartition("#")
    if not place and _is_folder(part):
        place, part = part, "all"
    if place:
        features = _features_folder(Path(place))
    manifest = read_manifest(features)
    folds = manifest.figures["folds"]
    named = {
        "train": list(folds["train"]),
        "validation": [folds["validation"]],
        "report": [folds["report"]],
    }
    named["all"] = [fold for group in named.values() for fold in group]
    first, dots, last = part.partition("..")
    if part not in named and not dots:
        raise UserError(
            f"no such period: {words!r}",
            where="raysys features audit",
            mend=f"give {', '.join(named)}, days as FROM..TO, or a features folder",
        )
    examples = Examples(features, tuple(int(fold) for fold in named.get(part, named["all"])))
    table = examples.requests()
    if dots:
        start, end = _day(first, words), _day(last, words) + dt.timedelta(days=1)
        moments = pl.Series(table["timestamp"]).dt.replace_time_zone(None)
        table = table.filter(pa.array(((moments >= start) & (moments < end)).to_numpy()))
    told = part if not place else f"{place}, {part}"
    span = ""
    if table.num_rows and not dots:
        moments = table["timestamp"].to_numpy()
        span = f" ({str(moments.min())[:10]} to {str(moments.max())[:10]})"
    return sample_rows(
        features,
        table["request"].to_numpy(),
        examples.files("examples"),
        seed=seed,
        words=f"{told}{span}",
    )


def _is_folder(words: str) -> bool:
    return Path(words).is_dir() or "/" in words


def _features_folder(path: Path) -> Path:
    """The features folder that a path means: itself, or that of a workspace."""
    inner = path / "features"
    return inner if (inner / "manifest.json").is_file() else path


def _day(words: str, whole: str) -> dt.datetime:
    try:
        return dt.datetime.fromisoformat(words)
    except ValueError:
        raise UserError(
            f"not a day: {words!r}",
            where=f"raysys features audit: {whole}",
            mend="write days as 2026-01-31..2026-02-28",
        ) from None
