"""`raysys features audit`: the point-in-time check and drift, on the user's own log and plan."""

from __future__ import annotations

import contextlib
import copy
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from raysys.features import audit_report as report
from raysys.features.audit import audit
from raysys.features.audit_subject import Subject
from raysys.features.drift import Drift, categorical_features, compare, counts
from raysys.features.live import LiveFeatures
from raysys.features.log import EventColumns
from raysys.features.numbering import number_log
from raysys.features.requests import fold_bounds
from raysys.features.weeks import span_of_weeks
from raysys.features.work import Work
from raysys.ingest.spread import InProcess
from raysys.progress import task
from raysys.stages.audit_periods import _period
from raysys.stages.audit_requests import (
    AuditOptions,
    _drawn_from_examples,
    _drawn_from_log,
    _Neighbourhoods,
    _with_positions,
    _with_query,
    _with_session,
    _with_week,
)
from raysys.stages.features_settings import FeaturesSettings, FromLog
from raysys.stages.features_start import planned_features
from raysys.stages.text_vectors import make_vectors
from raysys.storage import (
    Manifest,
    Workspace,
    is_done,
    is_left_over,
    read_manifest,
    replacing,
    writer_mark,
)

HORIZON = 5_000
_TOLD = 6  # leaks, and differences, told one by one on the terminal
_STYLE = {
    "leaks": "bold red", "differs": "bold red", "constant": "yellow", "no event": "dim",
    "ok": "green", "large": "bold yellow", "moderate": "yellow", "stable": "dim",
}  # fmt: skip


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
    planned = planned_features(settings, workspace)
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
        inputs={**planned.inputs, **_features_input(workspace, there)},
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
    """A folder to work in, beside the outcome; what a killed run left goes."""
    for leftover in workspace.root.glob(".audit.scratch.*.tmp"):
        mark = leftover.name.removeprefix(".audit.scratch.").removesuffix(".tmp")
        if is_left_over(leftover, mark):
            shutil.rmtree(leftover, ignore_errors=True)
    folder = workspace.root / f".audit.scratch.{writer_mark()}.tmp"
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
    make = partial(make_vectors, settings.plan, workspace, scratch / "models")
    work.write_resources(workspace.root, make)
    work.write_attributes(workspace.ingest / "users.parquet")
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
        else:
            requests = [_with_session(each, log) for each in requests]
        drawing.note = f"{len(requests):,}"
    bounds = fold_bounds(settings, log.last + 1)
    weeks = span_of_weeks(log, bounds[0], bounds[-1])
    work.write_promotions(workspace.ingest / "promotions.parquet", *weeks)
    empty, known = work.live(), work.weeks()
    empty.promotions = work.promotions()
    requests = [_with_week(each, known, empty.promotions) for each in requests]
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
    changing = ("state", "sessions", "_by_user", "_proposing")  # the last reads the state's tables
    shared = {id(each): each for name, each in vars(empty).items() if name not in changing}
    return copy.deepcopy(empty, shared)
