"""`raysys experiment analyse`: of users, or of single lists where arms are mixed within users."""

from __future__ import annotations

import time
from pathlib import Path

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from raysys.config import load_settings
from raysys.errors import UserError
from raysys.experiments.definition import ExperimentsSettings
from raysys.experiments.event_sources import answering
from raysys.experiments.lists_report import ListsJudged, judge_lists, write_lists_report
from raysys.experiments.users import read_exposures
from raysys.progress import task
from raysys.stages.experiment import (
    AnalyseOptions,
    exposures_of,
    pick,
    print_of,
    run_analysis,
)
from raysys.storage import Manifest, Workspace, outcome_folder, replacing


def run(path: Path, workspace: Workspace, options: AnalyseOptions) -> None:
    """Analyse an experiment of any kind.

    Raises:
        UserError: see `run_analysis` and `run_lists_analysis`.
    """
    settings = load_settings(ExperimentsSettings, path)
    by_lists = pick(settings, options.experiment, path).by_lists
    (run_lists_analysis if by_lists else run_analysis)(path, workspace, options)


def run_lists_analysis(path: Path, workspace: Workspace, options: AnalyseOptions) -> ListsJudged:
    """Analyse an experiment with `interleave` or `bandit`; write report and manifest, print what it
    has found.

    Raises:
        UserError: see `judge_lists` and `outcome_folder`; or a table of users is given.
    """
    started = time.monotonic()
    settings = load_settings(ExperimentsSettings, path)
    experiment = pick(settings, options.experiment, path)
    folder = outcome_folder(
        options.output or workspace.root / "experiments" / experiment.name, "experiment"
    )
    metric = settings.metric(experiment.primary)
    if options.users is not None:
        raise UserError(
            f"{experiment.name} mixes its arms within users",
            where="--users",
            mend="give --exposures and --events: what came of each list is looked at",
        )
    exposures = exposures_of(workspace, options)
    logs = options.events or [workspace.eventlog]
    inputs = {"exposures": exposures} | {f"events {n}": p for n, p in enumerate(logs, start=1)}
    with task("experiment: what came of the lists"):
        known = read_exposures(exposures)
        answers = pl.concat([answering(path) for path in logs])
        found = judge_lists(experiment, metric, known, answers)
    manifest = Manifest(
        stage="experiment",
        inputs={name: print_of(source) for name, source in inputs.items()},
        settings=experiment.model_dump(mode="json", by_alias=True),
        counts=found.lists,
        figures={"verdict": [found.sentence], **found.figures},
    )
    with replacing(folder) as fresh, task("experiment: report"):
        write_lists_report(found, fresh)
        manifest.seconds = time.monotonic() - started
        manifest.write(fresh)
    console = Console()
    console.print(f"[bold]{escape(found.sentence)}[/]")
    table = Table(*found.header, box=None)
    for row in found.rows:
        table.add_row(*map(escape, row))
    console.print(table)
    console.print(f"report: {escape(str(folder / 'report.html'))}", soft_wrap=True)
    return found
