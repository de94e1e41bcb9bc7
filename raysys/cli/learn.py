"""`raysys learn`."""

from __future__ import annotations

from typing import Annotated

import typer

from raysys.cli.options import (
    PRESET,
    WORKSPACE,
    Config,
    Folder,
    Force,
    Quiet,
    Verbose,
    run_stage,
)


def learn(
    config: Config = PRESET,
    workspace: Folder = WORKSPACE,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until Ctrl-C: a round whenever one is due.")
    ] = False,
    force: Force = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Learn on from the champion with new events.

    The outcome is published as challenger if it is no worse.
    """
    if not follow:
        run_stage("learn", config, workspace, force=force, quiet=quiet, verbose=verbose)
        return
    from raysys import terminal
    from raysys.config import find_config, load_settings
    from raysys.storage import Manifest, Workspace

    with terminal.session(quiet=quiet, verbose=verbose) as console:
        from raysys.stages import learn as stage
        from raysys.stages.learn_follow import follow as go_on

        settings = load_settings(stage.LearnSettings, find_config(config, "learn"))
        folder = Workspace(workspace)

        def told(manifest: Manifest) -> None:
            if not quiet:
                terminal.show_manifest(console, manifest, stage.folder_of(settings, folder))
                stage.show(manifest, console)

        go_on(settings, folder, told)
