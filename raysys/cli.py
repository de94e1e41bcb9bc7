"""The command line: one command a stage; argument parsing and nothing else."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from raysys import __version__


class _Stages(TyperGroup):
    """Lists the stages in the order a shop runs them, groups among them."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Names in that order."""
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: 0.5 if name == "features" else names.index(name))


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

Config = Annotated[str, typer.Option("--config", "-c", help="A YAML file or a preset's name.")]
Folder = Annotated[Path, typer.Option("--workspace", "-w", help="Folder of the pipeline.")]
Force = Annotated[bool, typer.Option("--force", help="Run even if the outcome is there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also what Ray and others log.")]

WORKSPACE = Path("runs/default")
DEMO_WORKSPACE = Path("runs/demo")
PRESET = "complete_journey"
_NAMES = {"input": "paths"}  # of options that YAML calls otherwise


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


@app.command()
def ingest(
    config: Config = PRESET,
    workspace: Folder = WORKSPACE,
    force: Force = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Read, check and clean a shop's logs and catalogue."""
    _run("ingest", config, workspace, force=force, quiet=quiet, verbose=verbose)


features_app = typer.Typer(help="Replay history into examples; explain and audit features.")
app.add_typer(features_app, name="features")


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
        _run("features", config, workspace, force=force, quiet=quiet, verbose=verbose)
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
        model = import_module("raysys.stages.features").FeaturesSettings
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
        model = import_module("raysys.stages.features").FeaturesSettings
        settings = load_settings(model, find_config(config, "features"))
        options = stage.AuditOptions(requests, seed, reference, current)
        sound = stage.run(settings, Workspace(workspace), options, as_json=as_json)
    raise typer.Exit(0 if sound else 1)


@app.command()
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
    force: Force = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Fit learners out-of-fold, stack them, publish a bundle."""
    told = {"ensemble_only": ensemble_only, "without": without}
    options = {name: value for name, value in told.items() if value}
    _run("train", config, workspace, options, force=force, quiet=quiet, verbose=verbose)


@app.command()
def tune(
    config: Config = "tune_configs/lightgbm_ranker.yaml",
    workspace: Folder = WORKSPACE,
    force: Force = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Search a learner's settings; resumes when cut off."""
    _run("tune", config, workspace, force=force, quiet=quiet, verbose=verbose)


@app.command()
def compress(
    config: Config = PRESET,
    workspace: Folder = WORKSPACE,
    force: Force = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make a bundle's transformer smaller and faster, within a stated loss."""
    _run("compress", config, workspace, force=force, quiet=quiet, verbose=verbose)


@app.command()
def evaluate(
    config: Config = PRESET,
    workspace: Folder = WORKSPACE,
    force: Force = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Judge the ensemble and its members on the last period."""
    _run("evaluate", config, workspace, force=force, quiet=quiet, verbose=verbose)


text_app = typer.Typer(help="Learn from texts: classes, entities, sentiment, relevance.")
app.add_typer(text_app, name="text")


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
    _run("text", config, workspace, force=force, quiet=quiet, verbose=verbose)


@text_app.command()
def pretrain(
    config: Config = PRESET,
    workspace: Folder = WORKSPACE,
    force: Force = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Teach a transformer the shop's language: masks, pairs, behaviour."""
    _run("pretrain", config, workspace, force=force, quiet=quiet, verbose=verbose)


@app.command()
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
    workspace: Folder = WORKSPACE,
    force: Force = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Predict for files of texts with a fitted text task."""
    told = {"bundle": bundle, "paths": given, "output": output, "text": column, "query": query}
    options = {name: value for name, value in told.items() if value}
    lacks = [name for name in ("bundle", "input", "output") if not told[_NAMES.get(name, name)]]
    if config is None and lacks:
        raise typer.BadParameter(f"give --{lacks[0]}, or a --config that says it")
    _run("score", config, workspace, options, force=force, quiet=quiet, verbose=verbose)


benchmark_app = typer.Typer(help="Rank files of public formats; settings chosen within a budget.")
app.add_typer(benchmark_app, name="benchmark")


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
    file: Annotated[Path, typer.Argument(help="CSV, TSV, JSON lines or Parquet, perhaps gzipped.")],
    query_col: Annotated[str, typer.Option("--query-col", help="Column of the query.")],
    text_col: Annotated[
        list[str], typer.Option("--text-col", help="Column of the item's text; repeatable.")
    ],
    label_col: Annotated[str, typer.Option("--label-col", help="Column of the grade, a number.")],
    minutes: Minutes = 60,
    queries: Annotated[
        int | None, typer.Option("--queries", min=10, help="At most so many, drawn at random.")
    ] = None,
    seed: Seed = 0,
    out: Out = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Judged pairs of query and text, unseen queries: NDCG@10 and RMSE."""
    options = {
        "query_col": query_col,
        "text_cols": text_col,
        "label_col": label_col,
        "minutes": minutes,
        "queries": queries,
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


@app.command()
def deploy(
    config: Config = "serve_configs/local.yaml",
    workspace: Folder = WORKSPACE,
    force: Force = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Serve the champion over HTTP."""
    _run("deploy", config, workspace, force=force, quiet=quiet, verbose=verbose)


Pointer = Annotated[str, typer.Option("--as", help="The name, such as champion.")]


@app.command()
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


@app.command()
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


@app.command()
def rollback(name: Pointer = "champion", workspace: Folder = WORKSPACE) -> None:
    """Give a name back to the bundle that had it before."""
    from raysys import terminal
    from raysys.storage import Workspace

    with terminal.session():
        stage = import_module("raysys.stages.life")
        typer.echo(f"{name}: {stage.rollback(Workspace(workspace), name)}")


key_app = typer.Typer(help="API keys of a served application: create, list, revoke.")
app.add_typer(key_app, name="key")

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


@app.command()
def replay(
    request_id: Annotated[str, typer.Argument(help="Of the answer.")],
    exposures: Annotated[
        Path, typer.Option("--exposures", "-e", help="Folder that the serve config names.")
    ] = Path("runs/exposures"),
    registry: Annotated[
        Path | None, typer.Option("--registry", help="Where the bundle lies now, if it moved.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable.")] = False,
) -> None:
    """Give a recorded answer again, and say whether it is the same."""
    from raysys import terminal

    with terminal.session():
        stage = import_module("raysys.stages.replay")
        same = stage.run(request_id, exposures, registry, machine=as_json)
    raise typer.Exit(0 if same else 1)


experiment_app = typer.Typer(help="A/B tests: check, plan, analyse; policies on logged data.")
app.add_typer(experiment_app, name="experiment")

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
        Path | None, typer.Option("--exposures", help="Parquet file or folder.")
    ] = None,
    events: Events = None,
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
        options = stage.AnalyseOptions(name, exposures, events, users, output)
        stage.run_analysis(file, Workspace(workspace), options)


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
            events=events,
            reward=reward,
            estimators=stage.estimators(estimator or ()),
            settings=stage.OffPolicySettings(clip, resamples, seed=seed),
            output=output,
        )


@app.command()
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
    """Let shoppers whose tastes are known visit a shop that is served."""
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


events_app = typer.Typer(help="The event log: how it stands; roll it to Parquet.")
app.add_typer(events_app, name="events")

Deployed = Annotated[
    str | None,
    typer.Option("--config", "-c", help="The deployment's serve config; else the workspace's log."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable.")]


@events_app.callback()
def events() -> None:
    """The event log: how it stands; roll it to Parquet."""


@events_app.command()
def status(config: Deployed = None, workspace: Folder = WORKSPACE, as_json: AsJson = False) -> None:
    """Say how many events there are, and how many are not rolled yet."""
    _events("status", config, workspace, as_json=as_json)


@events_app.command()
def roll(config: Deployed = None, workspace: Folder = WORKSPACE, as_json: AsJson = False) -> None:
    """Write all that is not in Parquet yet, for `raysys ingest`."""
    _events("roll", config, workspace, as_json=as_json)


@events_app.command()
def compact(
    config: Deployed = None, workspace: Folder = WORKSPACE, as_json: AsJson = False
) -> None:
    """Roll, then drop from the log what the Parquet files hold."""
    _events("compact", config, workspace, as_json=as_json)


def _events(what: str, config: str | None, workspace: Path, *, as_json: bool) -> None:
    from raysys import terminal
    from raysys.storage import Workspace

    with terminal.session() as console:
        stage = import_module("raysys.stages.events")
        stage.run(what, config, Workspace(workspace), console, as_json=as_json)


@app.command()
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


@app.command()
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


def _run(
    stage: str,
    config: str | None,
    workspace: Path,
    options: dict[str, Any] | None = None,
    *,
    force: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Load the settings of a stage, run it, say what came of it."""
    from raysys import terminal
    from raysys.config import find_config, load_yaml, parse_settings
    from raysys.storage import Workspace

    with terminal.session(quiet=quiet, verbose=verbose) as console:
        path = find_config(config, stage) if config is not None else None
        module = import_module(f"raysys.stages.{stage}")
        content = {**(load_yaml(path) if path else {}), **(options or {})}
        model = getattr(module, f"{stage.capitalize()}Settings")
        settings = parse_settings(model, content, where=str(path or f"raysys {stage}"))
        manifest = module.run(settings, Workspace(workspace), force=force)
        if not quiet:
            folder = getattr(Workspace(workspace), stage, workspace)
            if hasattr(module, "folder_of"):  # a stage with a folder for each of its outcomes
                folder = module.folder_of(settings, Workspace(workspace))
            terminal.show_manifest(console, manifest, folder)
            if hasattr(module, "show"):  # a stage that has more to say than counts
                module.show(manifest, console)


def main() -> None:
    """The console script `raysys`."""
    app()


if __name__ == "__main__":
    main()
