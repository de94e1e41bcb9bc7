"""The life of bundles and keys: `raysys bundles`, `promote`, `rollback`, `key …`, `replay`."""

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

Pointer = Annotated[str, typer.Option("--as", help="The name, such as champion.")]


def bundles(
    workspace: Folder = WORKSPACE,
    history: Annotated[bool, typer.Option("--history", help="How names changed, and why.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """List bundles with their names and figures."""
    from raysys import terminal
    from raysys.storage import Workspace

    with terminal.session():
        stage = import_module("raysys.stages.life")
        stage.show_bundles(Workspace(workspace), history=history, as_json=as_json)


def promote(
    bundle: Annotated[str, typer.Argument(help="An id, or a name such as challenger.")],
    name: Annotated[
        str | None, typer.Option("--as", help="Name to give; champion, or text-TASK.")
    ] = None,
    workspace: Folder = WORKSPACE,
    force: Annotated[bool, typer.Option("--force", help="Even if its figures are worse.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Judge, and change nothing.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make a bundle the champion, unless its figures are worse."""
    from raysys import terminal
    from raysys.storage import Workspace

    with terminal.session(quiet=quiet, verbose=verbose):
        stage = import_module("raysys.stages.life")
        judged = stage.promote(Workspace(workspace), bundle, name, force=force, look=dry_run)
        typer.echo(f"{'' if judged.passes else 'worse: '}{judged.reason}")
    raise typer.Exit(0 if judged.passes or force else 1)


def rollback(name: Pointer = "champion", workspace: Folder = WORKSPACE) -> None:
    """Give a name back to the bundle that had it before."""
    from raysys import terminal
    from raysys.storage import Workspace

    with terminal.session():
        stage = import_module("raysys.stages.life")
        typer.echo(f"{name}: {stage.rollback(Workspace(workspace), name)}")


key_app = typer.Typer(help="API keys of a served application: create, list, revoke.")

KeysFile = Annotated[
    Path | None, typer.Option("--keys", help="File of the keys; keys.json in the workspace.")
]


@key_app.callback()
def key() -> None:
    """API keys of a served application: create, list, revoke."""


@key_app.command("create")
def key_create(
    name: Annotated[str, typer.Argument(help="Whose it is, such as storefront.")],
    role: Annotated[list[str], typer.Option("--role", help="read, events or admin; repeatable.")],
    days: Annotated[float | None, typer.Option("--days", help="Until it expires.")] = None,
    per_second: Annotated[
        int | None, typer.Option("--per-second", min=1, help="Requests that it may send.")
    ] = None,
    keys: KeysFile = None,
    workspace: Folder = WORKSPACE,
) -> None:
    """Make a key and show it, once."""
    from raysys import terminal
    from raysys.stages import keys as stage

    with terminal.session():
        stage.create(keys or workspace / stage.FILE, name, role, days, per_second)


@key_app.command("list")
def key_list(
    keys: KeysFile = None,
    workspace: Folder = WORKSPACE,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """List keys, never the secrets."""
    from raysys import terminal
    from raysys.stages import keys as stage

    with terminal.session():
        stage.show(keys or workspace / stage.FILE, as_json=as_json)


@key_app.command("revoke")
def key_revoke(
    key: Annotated[str, typer.Argument(help="Its id, or a name: then all keys of that name.")],
    keys: KeysFile = None,
    workspace: Folder = WORKSPACE,
) -> None:
    """Refuse a key from now on."""
    from raysys import terminal
    from raysys.stages import keys as stage

    with terminal.session():
        stage.revoke(keys or workspace / stage.FILE, key)


def replay(
    request_id: Annotated[str, typer.Argument(help="Of the answer.")],
    shown_lists: Annotated[
        Path | None,
        typer.Option("--shown-lists", "-s", help="Their folder, if not in the workspace."),
    ] = None,
    workspace: Folder = WORKSPACE,
    registry: Annotated[
        Path | None, typer.Option("--registry", help="Where the bundle lies now, if it moved.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Give a recorded answer again, and say whether it is the same."""
    from raysys import terminal
    from raysys.storage import Workspace

    with terminal.session():
        stage = import_module("raysys.stages.replay")
        folder = shown_lists or Workspace(workspace).shown_lists
        same = stage.run(request_id, folder, registry, machine=as_json)
    raise typer.Exit(0 if same else 1)
