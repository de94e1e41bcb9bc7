"""`raysys monitor report`: drift and feedback of a deployment, from what it has written."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from raysys.errors import UserError
from raysys.eventlog.entries import LogUnavailable
from raysys.eventlog.opening import open_log
from raysys.eventlog.rolled import Rolled
from raysys.eventlog.settings import LogSettings
from raysys.monitoring.drift import HOUR_MS, DriftFigures, compare, drift_over_time
from raysys.monitoring.feedback import Feedback, feedback
from raysys.monitoring.reference import Outcomes, Reference
from raysys.monitoring.report import Findings, write
from raysys.monitoring.served import EVENTS, Reactions, follow_log, read_events, read_lists
from raysys.monitoring.settings import MonitorArgs
from raysys.monitoring.windows import Windows, now_ms
from raysys.monitoring.words import level, name
from raysys.progress import task
from raysys.registry import Registry
from raysys.storage import Manifest, Workspace, outcome_folder, replacing

_TOLD = 10
_LISTS = 200_000
"""Lists that are joined with their events at most; a report may cost more than a replica's look."""


@dataclass(frozen=True)
class MonitorOptions:
    """What is looked at; what is None lies where the config says, else in the workspace.

    Attributes:
        config: a serve config.
        bundle: name or id of the bundle that was served.
        windows: folder of the counts; lists: of shown lists; events: Parquet file or folder.
        hours: of the window, until now.
        output: folder of the report.
        least_people: queries are named that so many people typed.
    """

    config: str | None = None
    bundle: str | None = None
    windows: Path | None = None
    lists: Path | None = None
    events: Path | None = None
    hours: float | None = None
    output: Path | None = None
    least_people: int | None = None


@dataclass(frozen=True)
class _Places:
    """Where a deployment keeps what it writes."""

    registry: Path
    bundle: str
    args: MonitorArgs
    windows: Path
    lists: Path | None
    log: tuple[LogSettings, Path] | None


def run(
    options: MonitorOptions,
    workspace: Workspace | None,
    console: Console,
    *,
    as_json: bool = False,
) -> bool:
    """Write the report, say what came of it; returns whether something drifted.

    Args:
        options: of the command.
        workspace: as was deployed with; None: without, so that the config says where all lies.
        console: to say it on.
        as_json: for programs.

    Raises:
        UserError: no such bundle or folder, there is nothing to tell of at all, or the folder of
            the report holds other things.
    """
    started = time.monotonic()
    places = _places(options, workspace)
    root = places.registry.parent if workspace is None else workspace.root
    folder = outcome_folder(options.output or root / "monitor" / "report", "monitor")
    registry = Registry(places.registry)
    bundle = registry.resolve(options.bundle or places.bundle)
    until = now_ms()
    hours = options.hours or places.args.window_hours
    span = (until - round(hours * HOUR_MS), until)
    reference = Reference.load(registry.bundles / bundle)
    with task("monitor: drift"):
        drift, over_time, notes = _drift(bundle, reference, places, span)
    with task("monitor: feedback"):
        told, missing = _feedback(options, reference, places, span)
    if drift is None and told is None:
        raise UserError(
            "; ".join([*notes, *missing]),
            where=bundle,
            mend="give `monitor` and `shown_lists` in the args of the config, or other --hours",
        )
    labels = {} if reference is None else reference.labels
    findings = Findings(bundle, *span, drift, over_time, told, (*notes, *missing), labels)
    manifest = Manifest(
        stage="monitor",
        inputs={"bundle": bundle},
        settings={"hours": hours, "thresholds": places.args.thresholds.model_dump(mode="json")},
        counts={
            "answers_counted": 0 if drift is None else drift.window.tally.requests,
            "lists": 0 if told is None else told.lists,
            "events": 0 if told is None else told.events,
        },
        figures={"drifted": findings.drifted, "sentences": list(findings.sentences)},
    )
    with replacing(folder) as fresh:
        write(findings, fresh)
        manifest.seconds = round(time.monotonic() - started, 2)
        manifest.write(fresh)
    if as_json:
        print(json.dumps(findings.to_dict()))
    else:
        _show(findings, console, folder)
    return findings.drifted


def _drift(
    bundle: str, reference: Reference | None, places: _Places, span: tuple[int, int]
) -> tuple[DriftFigures | None, list[DriftFigures], list[str]]:
    """Of the window and of its parts; and why there is none."""
    if reference is None:
        said = "The bundle does not say how its training data were distributed: train again."
        return None, [], [said]
    windows, thresholds = Windows(places.windows, bundle, reference), places.args.thresholds
    window = windows.window(*span)
    if window is None:
        said = f"No answers of {bundle} were counted in this time, in {places.windows}."
        return None, [], [said]
    parts = drift_over_time(bundle, reference, windows, thresholds, span)
    return compare(bundle, reference, window, thresholds), parts, []


def _feedback(
    options: MonitorOptions, reference: Reference | None, places: _Places, span: tuple[int, int]
) -> tuple[Feedback | None, list[str]]:
    """What came of the lists; and why that cannot be told."""
    if places.lists is None or (options.lists is None and not places.lists.is_dir()):
        return None, ["No shown lists are recorded: `shown_lists` in the args of the config."]
    length = span[1] - span[0]
    outcomes: dict[str, Outcomes] = {} if reference is None else dict(reference.outcomes)
    lists = read_lists(places.lists, span[0], span[1] + 1, _LISTS)
    before = read_lists(places.lists, span[0] - length, span[0], _LISTS)
    notes = []
    try:
        with _reactions(options, places) as reactions:
            ids = pl.concat([lists.rows["request_id"], before.rows["request_id"]])
            events = reactions(span[0] - length, ids)
    except LogUnavailable as error:
        raise UserError(str(error), where="events", mend="try again later") from None
    if not len(events):
        notes.append("No event names the list that it reacts to: what came of them is unknown.")
    found = feedback(
        lists,
        events,
        span,
        span[1],
        items=None if reference is None else reference.items,
        reference=outcomes,
        before=before,
        thresholds=places.args.thresholds,
        least_people=options.least_people or places.args.least_people,
    )
    return found, notes


@contextlib.contextmanager
def _reactions(options: MonitorOptions, places: _Places) -> Iterator[Reactions]:
    if options.events is not None:
        yield read_events(options.events)
        return
    if places.log is None or (
        places.log[0].backend == "local" and not (places.log[1] / "head").exists()
    ):
        yield lambda since, ids: pl.DataFrame(schema=EVENTS)
        return
    log = open_log(*places.log)
    try:
        yield follow_log(log, Rolled(places.log[1]))
    finally:
        log.close()


def _places(options: MonitorOptions, workspace: Workspace | None) -> _Places:
    """Where everything lies.

    Raises:
        UserError: the config is none, or deploys nothing of ours that ranks.
    """
    if options.config is None:
        assert workspace is not None
        found = _Places(
            workspace.registry,
            "champion",
            MonitorArgs(),
            workspace.root / "monitor",
            workspace.root / "shown_lists",
            (LogSettings(), workspace.eventlog),
        )
    else:
        found = _of_config(options.config, workspace)
    return replace(
        found, windows=options.windows or found.windows, lists=options.lists or found.lists
    )


def _of_config(config: str, workspace: Workspace | None) -> _Places:
    from raysys.stages.deploy_plan import serve_args  # which imports Ray: seconds

    for args in serve_args(config, workspace):
        if args.bundle is None:
            continue
        return _Places(
            args.registry_path,
            args.pinned or args.bundle,
            args.monitor or MonitorArgs(),
            args.monitor_path,
            None if args.shown_lists is None else args.shown_lists_path,
            None if args.events is None else (args.events, args.events_path),
        )
    raise UserError("this deployment ranks nothing", where=config, mend="name a `bundle`")


def _show(findings: Findings, console: Console, folder: Path) -> None:
    """The furthest moved, what came of the lists, the conclusion last."""
    if findings.drift is not None:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in ("", "PSI", "drift", "missing"):
            table.add_column(column, justify="left" if column in ("", "drift") else "right")
        for each in findings.drift.moved[:_TOLD]:
            style = "bold yellow" if each.over else "dim" if each.level == "stable" else "yellow"
            missing = f"{each.missing[0]:.1%} → {each.missing[1]:.1%}"
            table.add_row(escape(name(each)), f"{each.psi:.3f}", level(each), missing, style=style)
        console.print(table)
    if findings.feedback is not None:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in ("surface", "arm", "lists", "clicks", "purchases", "p99 ms"):
            table.add_column(column, justify="left" if column in ("surface", "arm") else "right")
        for facts in findings.feedback.surfaces[:_TOLD]:
            done = [f"{facts.rates[e].value:.2%}" if e in facts.rates else "–" for e in
                    ("click", "purchase")]  # fmt: skip
            row = (facts.surface, facts.arm, f"{facts.lists:,}", *done, f"{facts.p99_ms:.0f}")
            table.add_row(*map(escape, row))
        console.print(table)
    for sentence in findings.sentences:
        console.print(escape(sentence), soft_wrap=True)
    style = "bold red" if findings.drifted else "bold green"
    console.print("drift" if findings.drifted else "no drift", style=style)
    console.print(f"report: {escape(str(folder / 'report.html'))}", soft_wrap=True)
