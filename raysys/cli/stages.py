"""One command a stage of the pipeline, and the demo."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from raysys.cli.options import (
    DEMO_WORKSPACE,
    PRESET,
    WORKSPACE,
    Config,
    Folder,
    Force,
    Quiet,
    Verbose,
    run_stage,
)


def ingest(
    config: Config = PRESET,
    workspace: Folder = WORKSPACE,
    force: Force = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Read, check and clean a shop's logs and catalogue."""
    run_stage("ingest", config, workspace, force=force, quiet=quiet, verbose=verbose)


features_app = typer.Typer(help="Replay history into examples; explain and audit features.")


@features_app.callback(invoke_without_command=True)
def features(
    context: typer.Context,
    config: Config = PRESET,
    workspace: Folder = WORKSPACE,
    force: Force = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Replay history into examples with labels and features."""
    if context.invoked_subcommand is None:
        run_stage("features", config, workspace, force=force, quiet=quiet, verbose=verbose)
        return
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            word = context.invoked_subcommand
            raise typer.BadParameter(f"--{name} belongs behind `{word}`: raysys features {word} …")


@features_app.command()
def explain(
    config: Config = PRESET,
    feature: Annotated[
        str | None, typer.Option("--feature", help="Only this one; all when left out.")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="As Markdown, for your own documentation.")
    ] = False,
) -> None:
    """Say what each feature is, from which events, and why it cannot leak."""
    from raysys import terminal
    from raysys.config import find_config, load_settings

    with terminal.session():
        stage = import_module("raysys.stages.explain")
        model = import_module("raysys.stages.features_settings").FeaturesSettings
        settings = load_settings(model, find_config(config, "features"))
        stage.run(settings, feature, as_markdown=markdown)


@features_app.command()
def audit(
    config: Config = PRESET,
    workspace: Folder = WORKSPACE,
    requests: Annotated[
        int, typer.Option("--requests", min=1, help="How many to draw, over all folds.")
    ] = 200,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the draw.")] = 0,
    reference: Annotated[
        str, typer.Option("--reference", help="Drift from: train, validation, FROM..TO, a folder.")
    ] = "train",
    current: Annotated[
        str, typer.Option("--current", help="Drift to: report, validation, FROM..TO, a folder.")
    ] = "report",
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Shuffle the future and prove that no feature moves; measure drift."""
    from raysys import terminal
    from raysys.config import find_config, load_settings
    from raysys.storage import Workspace

    with terminal.session(quiet=quiet, verbose=verbose):
        stage = import_module("raysys.stages.audit")
        model = import_module("raysys.stages.features_settings").FeaturesSettings
        settings = load_settings(model, find_config(config, "features"))
        options = stage.AuditOptions(requests, seed, reference, current)
        sound = stage.run(settings, Workspace(workspace), options, as_json=as_json)
    raise typer.Exit(0 if sound else 1)


def train(
    config: Config = PRESET,
    workspace: Folder = WORKSPACE,
    ensemble_only: Annotated[
        bool,
        typer.Option("--ensemble-only", help="Refit the ensemble on base scores that are there."),
    ] = False,
    without: Annotated[
        list[str] | None,
        typer.Option("--without", help="A learner that gets no say in the ensemble; repeatable."),
    ] = None,
    publish_as: Annotated[
        str | None,
        typer.Option("--as", help="What points at the bundle: champion, challenger, …"),
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Fit learners out-of-fold, stack them, publish a bundle."""
    told = {"ensemble_only": ensemble_only, "without": without, "publish_as": publish_as}
    options = {name: value for name, value in told.items() if value}
    run_stage("train", config, workspace, options, force=force, quiet=quiet, verbose=verbose)


def tune(
    config: Config = "tune_configs/lightgbm_ranker.yaml",
    workspace: Folder = WORKSPACE,
    force: Force = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Search a learner's settings; resumes when cut off."""
    run_stage("tune", config, workspace, force=force, quiet=quiet, verbose=verbose)


def compress(
    config: Config = PRESET,
    workspace: Folder = WORKSPACE,
    force: Force = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make a bundle's transformer smaller and faster.

    What it may lose is stated, and held to.
    """
    run_stage("compress", config, workspace, force=force, quiet=quiet, verbose=verbose)


def evaluate(
    config: Config = PRESET,
    workspace: Folder = WORKSPACE,
    force: Force = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Judge the ensemble and its members on the last period."""
    run_stage("evaluate", config, workspace, force=force, quiet=quiet, verbose=verbose)


def deploy(
    config: Config = "serve_configs/local.yaml",
    workspace: Annotated[
        Path | None,
        typer.Option(
            "--workspace",
            "-w",
            help="Folder of the pipeline to serve; left out: the registry that the config names.",
        ),
    ] = None,
    force: Force = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Serve the champion over HTTP."""
    run_stage("deploy", config, workspace, force=force, quiet=quiet, verbose=verbose)


def demo(
    workspace: Folder = DEMO_WORKSPACE,
    exit_after_check: Annotated[
        bool, typer.Option("--exit", help="End after checking the answers.")
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """All of the above on a real shop's year, then serve it."""
    from raysys import terminal
    from raysys.storage import Workspace

    with terminal.session(quiet=quiet, verbose=verbose):
        stage = import_module("raysys.stages.demo")
        stage.run(Workspace(workspace), exit_after_check=exit_after_check)


def doctor(
    workspace: Folder = WORKSPACE,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Check versions, Ray, GPU, memory, disk, ports, auth."""
    from raysys import terminal
    from raysys.stages import doctor as stage
    from raysys.storage import Workspace

    with terminal.session():
        healthy = stage.run(Workspace(workspace), as_json=as_json)
    raise typer.Exit(0 if healthy else 1)
