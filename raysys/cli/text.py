"""`raysys text …` and `raysys score`."""

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

_NAMES = {"input": "paths"}  # of options that YAML calls otherwise

text_app = typer.Typer(help="Learn from texts: classes, entities, sentiment, relevance.")


@text_app.callback()
def text() -> None:
    """Learn from texts: classes, entities, sentiment, relevance."""


@text_app.command()
def fit(
    config: Config = PRESET,
    workspace: Folder = WORKSPACE,
    force: Force = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Fit a text task's learners, judge them, publish the best."""
    run_stage("text", config, workspace, force=force, quiet=quiet, verbose=verbose)


@text_app.command()
def pretrain(
    config: Config = PRESET,
    workspace: Folder = WORKSPACE,
    force: Force = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Teach a transformer the shop's language: masks, pairs, behaviour."""
    run_stage("pretrain", config, workspace, force=force, quiet=quiet, verbose=verbose)


def score(
    config: Annotated[
        str | None, typer.Option("--config", "-c", help="A YAML file; options go over it.")
    ] = None,
    bundle: Annotated[
        str | None, typer.Option("--bundle", help="Such as text-sentiment, or a bundle's id.")
    ] = None,
    given: Annotated[
        list[str] | None, typer.Option("--input", "-i", help="File, folder or glob; repeatable.")
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Folder for the predictions.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option("--text", help="Column of the text; repeatable. As fitted when left out."),
    ] = None,
    query: Annotated[
        str | None, typer.Option("--query", help="Column of the query, for relevance.")
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", help="Of entities: find these alone; repeatable. All if left out."),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format", help="Of the files, such as csv or lines. Told by each if left out."
        ),
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option("--delimiter", help="Of CSV files. Told by each if left out.")
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option("--encoding", help="Such as gb18030. Told by each file if left out."),
    ] = None,
    workspace: Folder = WORKSPACE,
    force: Force = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Predict for files of texts with a fitted text task."""
    told = {"bundle": bundle, "paths": given, "output": output, "text": column, "query": query}
    told |= {"labels": label, "format": form, "delimiter": delimiter, "encoding": encoding}
    options = {name: value for name, value in told.items() if value}
    lacks = [name for name in ("bundle", "input", "output") if not told[_NAMES.get(name, name)]]
    if config is None and lacks:
        raise typer.BadParameter(f"give --{lacks[0]}, or a --config that says it")
    run_stage("score", config, workspace, options, force=force, quiet=quiet, verbose=verbose)
