"""`raysys monitor …`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from raysys.cli.options import DeployedWith, deployed_with

monitor_app = typer.Typer(help="Drift of what is served, and what came of the lists shown.")


@monitor_app.callback()
def monitor() -> None:
    """Drift of what is served, and what came of the lists shown."""


@monitor_app.command()
def report(
    config: Annotated[
        str | None,
        typer.Option("--config", "-c", help="The deployment's serve config; says where all lies."),
    ] = None,
    workspace: DeployedWith = None,
    bundle: Annotated[
        str | None, typer.Option("--bundle", help="Name or id; the one that is deployed if unset.")
    ] = None,
    windows: Annotated[
        Path | None, typer.Option("--windows", help="Folder of counts (`monitor.folder`).")
    ] = None,
    lists: Annotated[
        Path | None,
        typer.Option("--shown-lists", help="Folder of shown lists (`shown_lists.folder`)."),
    ] = None,
    events: Annotated[
        Path | None,
        typer.Option("--events", help="Parquet file or folder, instead of the event log."),
    ] = None,
    hours: Annotated[
        float | None, typer.Option("--hours", min=0.001, help="Of the window, until now.")
    ] = None,
    fail_on_drift: Annotated[
        bool, typer.Option("--fail-on-drift", help="Exit with 3 if something drifted.")
    ] = False,
    least_people: Annotated[
        int | None,
        typer.Option("--least-people", min=1, help="Name only queries that so many people typed."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the report.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Say whether features, scores and outcomes drift, and what came of the lists shown."""
    from raysys import terminal

    with terminal.session() as console:
        stage = import_module("raysys.stages.monitor")
        options = stage.MonitorOptions(
            config, bundle, windows, lists, events, hours, output, least_people
        )
        drifted = stage.run(options, deployed_with(config, workspace), console, as_json=as_json)
    if fail_on_drift and drifted:
        raise typer.Exit(3)
