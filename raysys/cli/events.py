"""`raysys events …`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from raysys.cli.options import DeployedWith, deployed_with

events_app = typer.Typer(help="The event log: how it stands; roll it to Parquet.")

Deployed = Annotated[
    str | None,
    typer.Option("--config", "-c", help="The deployment's serve config; else the workspace's log."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable.")]


@events_app.callback()
def events() -> None:
    """The event log: how it stands; roll it to Parquet."""


@events_app.command()
def status(
    config: Deployed = None, workspace: DeployedWith = None, as_json: AsJson = False
) -> None:
    """Say how many events there are, and how many are not rolled yet."""
    _events("status", config, workspace, as_json=as_json)


@events_app.command()
def roll(config: Deployed = None, workspace: DeployedWith = None, as_json: AsJson = False) -> None:
    """Write all that is not in Parquet yet, for `raysys ingest`."""
    _events("roll", config, workspace, as_json=as_json)


@events_app.command()
def compact(
    config: Deployed = None, workspace: DeployedWith = None, as_json: AsJson = False
) -> None:
    """Roll, then drop from the log what the Parquet files hold."""
    _events("compact", config, workspace, as_json=as_json)


def _events(what: str, config: str | None, workspace: Path | None, *, as_json: bool) -> None:
    from raysys import terminal

    with terminal.session() as console:
        stage = import_module("raysys.stages.events")
        stage.run(what, config, deployed_with(config, workspace), console, as_json=as_json)
