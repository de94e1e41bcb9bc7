"""`raysys benchmark …`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from raysys.cli.options import (
    Quiet,
    Verbose,
)

benchmark_app = typer.Typer(help="Rank files of public formats; settings chosen within a budget.")


@benchmark_app.callback()
def benchmark() -> None:
    """Rank files of public formats; settings chosen within a budget."""


Minutes = Annotated[float, typer.Option("--minutes", min=0.05, help="All of it may take.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of everything random.")]
Out = Annotated[Path | None, typer.Option("--out", help="Write the figures here, too.")]


@benchmark_app.command()
def sessions(
    train: Annotated[Path, typer.Argument(help="JSON lines: a session each, in time order.")],
    test: Annotated[Path, typer.Argument(help="JSON lines: session so far and label each.")],
    minutes: Minutes = 60,
    seed: Seed = 0,
    out: Out = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """The next click among all items: P@20 and MRR@20."""
    options = {"minutes": minutes, "seed": seed}
    _benchmark("sessions", (train, test), options, out, quiet=quiet, verbose=verbose)


@benchmark_app.command()
def sequences(
    file: Annotated[Path, typer.Argument(help="Lines: user item item …, in time order.")],
    attributes: Annotated[
        Path | None,
        typer.Option("--attributes", help="JSON; STEM_attributes.json beside it if left out."),
    ] = None,
    minutes: Minutes = 60,
    seed: Seed = 0,
    out: Out = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Each user's last item among all items: HIT@10 and NDCG@10."""
    options = {"attributes": attributes, "minutes": minutes, "seed": seed}
    _benchmark("sequences", (file,), options, out, quiet=quiet, verbose=verbose)


@benchmark_app.command()
def relevance(
    file: Annotated[
        Path, typer.Argument(help="CSV, TSV, JSON lines, Parquet or qrels, perhaps packed.")
    ],
    query_col: Annotated[
        str | None, typer.Option("--query-col", help="Column of the query; else by known names.")
    ] = None,
    text_col: Annotated[
        list[str] | None,
        typer.Option("--text-col", help="Column of the item's text; repeatable; else as above."),
    ] = None,
    label_col: Annotated[
        str | None,
        typer.Option("--label-col", help="Column of the grade: a number or a word; else as above."),
    ] = None,
    grades: Annotated[
        list[str] | None,
        typer.Option("--grades", help='Grades in words from the lowest: "Bad < Fair < Good".'),
    ] = None,
    join: Annotated[
        list[Path] | None,
        typer.Option("--join", help="File of queries or items, joined by its ids; repeatable."),
    ] = None,
    on: Annotated[
        list[str] | None,
        typer.Option("--on", help="Column to join on, or NAME=ITS_NAME; repeatable."),
    ] = None,
    split_col: Annotated[
        str | None, typer.Option("--split-col", help="Column that says train and test.")
    ] = None,
    test: Annotated[
        Path | None, typer.Option("--test", help="File like FILE, whose queries are the test's.")
    ] = None,
    minutes: Minutes = 60,
    queries: Annotated[
        int | None, typer.Option("--queries", min=10, help="At most so many, drawn at random.")
    ] = None,
    language: Annotated[
        str, typer.Option("--language", help="Of the texts, for stems: german, french, …")
    ] = "english",
    model: Annotated[
        str, typer.Option("--model", help="Transformer: packaged, a folder or a Hugging Face id.")
    ] = "all-MiniLM-L6-v2",
    seed: Seed = 0,
    out: Out = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Judged pairs of query and text, unseen queries: NDCG@10 and RMSE."""
    options = {
        "query_col": query_col,
        "text_cols": text_col or (),
        "label_col": label_col,
        "grades": grades or (),
        "joins": join or (),
        "on": on or (),
        "split_col": split_col,
        "test": test,
        "minutes": minutes,
        "queries": queries,
        "language": language,
        "model": model,
        "seed": seed,
    }
    _benchmark("relevance", (file,), options, out, quiet=quiet, verbose=verbose)


def _benchmark(
    name: str,
    files: tuple[Path, ...],
    options: dict[str, Any],
    out: Path | None,
    *,
    quiet: bool,
    verbose: bool,
) -> None:
    """Run a benchmark and print its figures as JSON."""
    import json

    from raysys import terminal
    from raysys.storage import write_atomic

    with terminal.session(quiet=quiet, verbose=verbose):
        report = import_module(f"raysys.stages.benchmark_{name}").run(*files, **options)
        text = json.dumps(report, indent=2) + "\n"
        typer.echo(text, nl=False)
        if out is not None:
            write_atomic(out, text)
