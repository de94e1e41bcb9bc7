"""`raysys benchmark …`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

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


Form = Annotated[
    Literal["auto", "events", "lists"],
    typer.Option("--format", help="What a row is; told by the content if left out."),
]
SessionCol = Annotated[str | None, typer.Option("--session-col", help="Column of the session.")]
UserCol = Annotated[str | None, typer.Option("--user-col", help="Column of the user.")]
ItemCol = Annotated[str | None, typer.Option("--item-col", help="Column of the item.")]
TimeCol = Annotated[str | None, typer.Option("--time-col", help="Column of the time.")]


@benchmark_app.command()
def sessions(
    train: Annotated[
        Path, typer.Argument(help="Sessions in time order, or events: CSV, JSON lines, Parquet, ….")
    ],
    test: Annotated[
        Path | None,
        typer.Argument(help="Sessions, events or cases; left out: the last day of TRAIN."),
    ] = None,
    form: Form = "auto",
    session_col: SessionCol = None,
    user_col: UserCol = None,
    item_col: ItemCol = None,
    time_col: TimeCol = None,
    test_days: Annotated[
        float, typer.Option("--test-days", min=0.01, help="Without TEST: days of TRAIN that it is.")
    ] = 1,
    minutes: Minutes = 60,
    seed: Seed = 0,
    out: Out = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """The next click among all items: P@20 and MRR@20.

    A column of a file without a header is named by its place: 1, 2, ….
    """
    columns = _columns(session_col, user_col, item_col, time_col)
    options = {"minutes": minutes, "seed": seed, "columns": columns, "form": form}
    options["test_days"] = test_days
    files = (train,) if test is None else (train, test)
    _benchmark("sessions", files, options, out, quiet=quiet, verbose=verbose)


@benchmark_app.command()
def sequences(
    file: Annotated[
        Path, typer.Argument(help="Lines `user item item …`, or events: CSV, JSON lines, ….")
    ],
    attributes: Annotated[
        Path | None,
        typer.Option("--attributes", help="JSON; STEM_attributes.json beside it if left out."),
    ] = None,
    form: Form = "auto",
    session_col: SessionCol = None,
    user_col: UserCol = None,
    item_col: ItemCol = None,
    time_col: TimeCol = None,
    minutes: Minutes = 60,
    seed: Seed = 0,
    out: Out = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Each user's last item among all items: HIT@10 and NDCG@10.

    A column of a file without a header is named by its place: 1, 2, ….
    """
    columns = _columns(session_col, user_col, item_col, time_col)
    options: dict[str, Any] = {"attributes": attributes, "minutes": minutes, "seed": seed}
    options |= {"columns": columns, "form": form}
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


def _columns(session: str | None, user: str | None, item: str | None, time: str | None) -> Any:
    """Columns that are named, as the readers take them."""
    from raysys.datasets.sequence_names import Columns

    return Columns(session=session, user=user, item=item, time=time)


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
