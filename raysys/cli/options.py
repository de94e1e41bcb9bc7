"""Options that commands share, and how one runs a stage."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from raysys.storage import Workspace

Config = Annotated[str, typer.Option("--config", "-c", help="A YAML file or a preset's name.")]
Folder = Annotated[Path, typer.Option("--workspace", "-w", help="Folder of the pipeline.")]
Force = Annotated[bool, typer.Option("--force", help="Run even if the outcome is there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also what Ray and others log.")]
DeployedWith = Annotated[
    Path | None,
    typer.Option(
        "--workspace",
        "-w",
        help="Folder of the pipeline, as given to `deploy`; left out: what --config says.",
    ),
]

WORKSPACE = Path("runs/default")
DEMO_WORKSPACE = Path("runs/demo")
PRESET = "complete_journey"


def deployed_with(config: str | None, workspace: Path | None) -> Workspace | None:
    """What a deployment was given as its workspace; the usual one where no config says more."""
    from raysys.storage import Workspace

    if workspace is None:
        return None if config is not None else Workspace(WORKSPACE)
    return Workspace(workspace)


def run_stage(
    stage: str,
    config: str | None,
    workspace: Path | None,
    options: dict[str, Any] | None = None,
    *,
    force: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Load the settings of a stage, run it, say what came of it.

    Args:
        workspace: None: for a stage whose settings say where what it needs lies.
    """
    from raysys import terminal
    from raysys.config import find_config, load_yaml, parse_settings
    from raysys.storage import Workspace

    with terminal.session(quiet=quiet, verbose=verbose) as console:
        path = find_config(config, stage) if config is not None else None
        module = import_module(f"raysys.stages.{stage}")
        content = {**(load_yaml(path) if path else {}), **(options or {})}
        model = getattr(module, f"{stage.capitalize()}Settings")
        settings = parse_settings(model, content, where=str(path or f"raysys {stage}"))
        given = Workspace(workspace) if workspace is not None else None
        manifest = module.run(settings, given, force=force)
        if not quiet:
            if hasattr(module, "folder_of"):  # a stage with a folder for each of its outcomes
                folder = module.folder_of(settings, given)
            else:
                folder = getattr(given, stage, workspace)
            terminal.show_manifest(console, manifest, folder)
            if hasattr(module, "show"):  # a stage that has more to say than counts
                module.show(manifest, console)
