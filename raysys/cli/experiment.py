"""`raysys experiment …` and `raysys simulate`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from raysys.cli.options import (
    WORKSPACE,
    Folder,
    Quiet,
    Verbose,
)

experiment_app = typer.Typer(help="A/B tests: check, plan, analyse; policies on logged data.")

Experiments = Annotated[
    Path,
    typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="YAML of the experiments."),
]
Named = Annotated[
    str | None, typer.Option("--experiment", "-e", help="Its name, if the file has several.")
]
Events = Annotated[
    Path | None, typer.Option("--events", help="Parquet file or folder; the workspace's if unset.")
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the report.")]


@experiment_app.callback()
def experiment() -> None:
    """A/B tests: check, plan, analyse; policies on logged data."""


@experiment_app.command()
def check(
    file: Experiments,
    against: Annotated[
        Path | None,
        typer.Option("--against", exists=True, dir_okay=False, help="The YAML that runs now."),
    ] = None,
) -> None:
    """Refuse experiments that are wrong, or changes that would spoil one that runs."""
    from raysys import terminal

    with terminal.session():
        import_module("raysys.stages.experiment").check(file, against)


@experiment_app.command()
def plan(
    file: Experiments,
    name: Named = None,
    events: Events = None,
    days: Annotated[int, typer.Option("--days", min=1, help="Of the log, as a trial.")] = 28,
    mean: Annotated[
        float | None, typer.Option("--mean", help="Of the primary metric, instead of a log.")
    ] = None,
    deviation: Annotated[
        float | None, typer.Option("--deviation", help="Between users; of a share not needed.")
    ] = None,
    correlation: Annotated[
        float, typer.Option("--correlation", min=-0.99, max=0.99, help="With the days before.")
    ] = 0.0,
    users_per_day: Annotated[
        float | None, typer.Option("--users-per-day", min=0, help="That come new.")
    ] = None,
    workspace: Folder = WORKSPACE,
) -> None:
    """Say how many users and days an experiment needs."""
    from raysys import terminal
    from raysys.storage import Workspace

    with terminal.session():
        stage = import_module("raysys.stages.experiment")
        options = stage.PlanOptions(name, events, days, mean, deviation, correlation, users_per_day)
        stage.run_plan(file, Workspace(workspace), options)


@experiment_app.command()
def analyse(
    file: Experiments,
    name: Named = None,
    exposures: Annotated[
        Path | None,
        typer.Option("--exposures", help="Parquet file or folder; the workspace's if unset."),
    ] = None,
    events: Annotated[
        list[Path] | None,
        typer.Option(
            "--events",
            help="Parquet, or the folder of an event log; repeatable. The workspace's if unset.",
        ),
    ] = None,
    users: Annotated[
        Path | None, typer.Option("--users", help="A table of one row a user, instead of both.")
    ] = None,
    output: Output = None,
    workspace: Folder = WORKSPACE,
) -> None:
    """Compare the arms, say the verdict, write the report."""
    from raysys import terminal
    from raysys.storage import Workspace

    with terminal.session():
        stage = import_module("raysys.stages.experiment")
        options = stage.AnalyseOptions(name, exposures, events or (), users, output)
        lists = import_module("raysys.stages.experiment_lists")
        lists.run(file, Workspace(workspace), options)


@experiment_app.command("off-policy")
def off_policy(
    log: Annotated[
        Path,
        typer.Argument(metavar="LOG", help="A row a slot; or recorded answers, with --events."),
    ],
    policy: Annotated[
        Path | None, typer.Option("--policy", help="Table of the judged policy's probabilities.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", help="Or the log's column that has them.")
    ] = None,
    bundle: Annotated[
        str | None,
        typer.Option("--bundle", help="Or a bundle that ranks the recorded lists again."),
    ] = None,
    registry: Annotated[
        Path | None, typer.Option("--registry", help="Of the bundles, if they have moved.")
    ] = None,
    events: Annotated[
        Path | None, typer.Option("--events", help="That answer the recorded lists.")
    ] = None,
    reward: Annotated[str, typer.Option("--reward", help="Type of event that counts.")] = "click",
    estimator: Annotated[
        list[str] | None,
        typer.Option("--estimator", help="ips, snips, clipped, dm, dr; repeatable; all if unset."),
    ] = None,
    clip: Annotated[
        float | None, typer.Option("--clip", min=0, help="Limit of the weights of clipped.")
    ] = None,
    resamples: Annotated[int, typer.Option("--resamples", min=100, max=100_000)] = 1000,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    output: Output = None,
    workspace: Folder = WORKSPACE,
) -> None:
    """Estimate what a policy would have earned on a log of another."""
    from raysys import terminal
    from raysys.storage import Workspace

    with terminal.session():
        stage = import_module("raysys.stages.experiment")
        stage.run_off_policy(
            log,
            Workspace(workspace),
            policy=policy,
            target=target,
            bundle=bundle,
            registry=registry,
            events=events,
            reward=reward,
            estimators=stage.estimators(estimator or ()),
            settings=stage.OffPolicySettings(clip, resamples, seed=seed),
            output=output,
        )


def simulate(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", exists=True, dir_okay=False, help="A YAML file; options go over it."
        ),
    ] = None,
    url: Annotated[
        str | None, typer.Option("--url", help="Of the shop; http://127.0.0.1:8000 if unset.")
    ] = None,
    seconds: Annotated[float | None, typer.Option("--seconds", help="Most that it takes.")] = None,
    rate: Annotated[float | None, typer.Option("--rate", help="Visits a second.")] = None,
    output: Output = None,
    workspace: Folder = WORKSPACE,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Let shoppers of known tastes visit a shop that is served."""
    from raysys import terminal
    from raysys.config import load_yaml, parse_settings
    from raysys.storage import Workspace

    with terminal.session(quiet=quiet, verbose=verbose):
        stage = import_module("raysys.stages.simulate")
        content = load_yaml(config) if config else {}
        content |= {"url": url} if url else {}
        told = {"seconds": seconds, "rate": rate}
        drive = {name: value for name, value in told.items() if value is not None}
        content["drive"] = {**(content.get("drive") or {}), **drive}
        where = str(config or "raysys simulate")
        settings = parse_settings(stage.SimulateSettings, content, where=where)
        stage.run(settings, Workspace(workspace), output)
