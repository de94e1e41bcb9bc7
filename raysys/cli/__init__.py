"""The command line: one command a stage; argument parsing and nothing else."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from typer.core import TyperGroup

from raysys import __version__
from raysys.cli import benchmark, events, experiment, learn, life, monitor, stages, text

_ORDER = (
    *("ingest", "features", "train", "tune", "compress", "evaluate"),
    *("text", "score", "benchmark"),
    *("deploy", "bundles", "promote", "rollback", "key", "replay", "events", "monitor"),
    "learn",
    *("experiment", "simulate", "demo", "doctor"),
)


class _Stages(TyperGroup):
    """Lists commands and groups in the order a shop comes to them."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Names in that order."""
        return sorted(super().list_commands(ctx), key=_ORDER.index)


app = typer.Typer(
    name="raysys",
    cls=_Stages,
    help="Learning to rank for online shops on Ray: from behaviour logs to a served ensemble.",
    epilog="Start with `raysys demo`. If something is wrong: `raysys doctor`.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"raysys {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    from raysys.cluster import settle_environment

    # before anything imports transformers, which talks to the terminal as it loads, or Ray
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    settle_environment()


app.command()(stages.ingest)
app.add_typer(stages.features_app, name="features")
for each in (stages.train, stages.tune, stages.compress, stages.evaluate):
    app.command()(each)
app.add_typer(text.text_app, name="text")
app.command()(text.score)
app.add_typer(benchmark.benchmark_app, name="benchmark")
app.command()(stages.deploy)
app.command()(life.bundles)
app.command()(life.promote)
app.command()(life.rollback)
app.add_typer(life.key_app, name="key")
app.command()(life.replay)
app.add_typer(experiment.experiment_app, name="experiment")
app.command()(experiment.simulate)
app.add_typer(events.events_app, name="events")
app.add_typer(monitor.monitor_app, name="monitor")
app.command()(learn.learn)
app.command()(stages.demo)
app.command()(stages.doctor)


def main() -> None:
    """The console script `raysys`."""
    app()
