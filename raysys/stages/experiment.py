"""`raysys experiment`: check, plan, analyse; and the value of a policy from another's log."""

from __future__ import annotations

import datetime as dt
import difflib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from raysys.config import load_settings
from raysys.errors import UserError
from raysys.experiments.analysis import ExperimentAnalysis, analyse
from raysys.experiments.change import check_change
from raysys.experiments.definition import Experiment, ExperimentsSettings
from raysys.experiments.event_sources import events_of
from raysys.experiments.logged import (
    PolicyColumn,
    logged_rows,
    read_log,
    read_policy,
    read_served,
)
from raysys.experiments.off_policy import (
    ESTIMATORS,
    Estimator,
    OffPolicySettings,
    PolicyValue,
    evaluate_policy,
    warnings,
)
from raysys.experiments.off_policy_report import ends, write_off_policy_report
from raysys.experiments.planning import Baseline, Plan, baseline_of, plan, sentence
from raysys.experiments.report import write_experiment_report
from raysys.experiments.users import (
    read_events,
    read_exposures,
    read_user_table,
    user_table,
)
from raysys.experiments.verdict import told, verdict
from raysys.progress import task
from raysys.serving.would_show import would_show
from raysys.storage import Manifest, Workspace, file_digest, outcome_folder, replacing


@dataclass(frozen=True)
class AnalyseOptions:
    """What the command line asks for.

    Attributes:
        experiment: its name; None: the only one of the file.
        exposures: Parquet file or folder; None: the workspace's, where a deployment leaves them.
        events: Parquet files, folders, or event logs; none: what ingest wrote and the event log, as
            far as the workspace has them.
        users: a table with a row a user, instead of both.
        output: folder of the report; None: `experiments/NAME` of the workspace.
    """

    experiment: str | None = None
    exposures: Path | None = None
    events: Sequence[Path] = ()
    users: Path | None = None
    output: Path | None = None


@dataclass(frozen=True)
class PlanOptions:
    """What the command line asks for.

    Attributes:
        experiment: its name; None: the only one of the file.
        events: a log to learn the baseline from; None: the workspace's, unless mean is given.
        days: of it that stand for the experiment.
        mean, deviation: of the primary metric, instead of a log.
        correlation: with its covariate.
        users_per_day: that come new.
    """

    experiment: str | None = None
    events: Path | None = None
    days: int = 28
    mean: float | None = None
    deviation: float | None = None
    correlation: float = 0.0
    users_per_day: float | None = None


def check(path: Path, against: Path | None = None) -> None:
    """Check a file of experiments, alone and against the one that is running; say what it holds.

    Raises:
        UserError: what is wrong, or what must not change while it runs.
    """
    settings = load_settings(ExperimentsSettings, path)
    console = Console()
    now = dt.datetime.now(dt.UTC)
    table = Table("experiment", "state", "surfaces", "layer", "arms", "decides", box=None)
    for each in settings.experiments:
        state = "planned" if now < each.start else "runs" if each.runs_at(now) else "over"
        layer = each.layer
        place = "" if layer is None else f"{layer.name} [{layer.from_:f}, {layer.to:f})"
        arms = ", ".join(f"{arm.name} {float(arm.share):.4g}" for arm in each.arms)
        surfaces = ", ".join(each.surfaces) or "all"
        table.add_row(*map(escape, (each.name, state, surfaces, place, arms, each.primary)))
    console.print(table)
    if against is None:
        console.print("sound")
        return
    old = load_settings(ExperimentsSettings, against)
    for change in check_change(old, settings, where=str(path), now=now) or ["nothing changed"]:
        console.print(escape(change))
    console.print("sound, and these changes may go live")


def run_analysis(path: Path, workspace: Workspace, options: AnalyseOptions) -> ExperimentAnalysis:
    """Analyse an experiment; write report and manifest, print the verdict.

    Raises:
        UserError: see `user_table`, `read_user_table`, `analyse` and `outcome_folder`.
    """
    started = time.monotonic()
    settings = load_settings(ExperimentsSettings, path)
    experiment = pick(settings, options.experiment, path)
    folder = outcome_folder(
        options.output or workspace.root / "experiments" / experiment.name, "experiment"
    )
    metrics = [settings.metric(name) for name in experiment.metrics]
    with task("experiment: reading"):
        if options.users is not None:
            table = read_user_table(options.users, experiment, metrics)
            inputs = {"users": options.users}
        else:
            exposures = exposures_of(workspace, options)
            events = options.events or _events_of(workspace)
            known = read_exposures(exposures)
            table = user_table(experiment, metrics, known, events_of(events))
            inputs = {"exposures": exposures}
            inputs |= {f"events {n}": path for n, path in enumerate(events, start=1)}
    with task("experiment: comparing arms"):
        found = analyse(experiment, settings, table)
    manifest = Manifest(
        stage="experiment",
        inputs={name: print_of(source) for name, source in inputs.items()},
        settings=experiment.model_dump(mode="json", by_alias=True),
        counts={**found.users, "crossed": found.crossed, "forced": found.forced},
        figures={"verdict": verdict(found), "srm_p": found.srm_p},
    )
    with replacing(folder) as fresh, task("experiment: report"):
        write_experiment_report(found, fresh)
        manifest.seconds = time.monotonic() - started
        manifest.write(fresh)
    _show_analysis(found, folder)
    return found


def run_plan(path: Path, workspace: Workspace, options: PlanOptions) -> Plan:
    """Print how many users and days an experiment needs.

    Raises:
        UserError: see `baseline_of` and `plan`; or half of the figures are given.
    """
    settings = load_settings(ExperimentsSettings, path)
    experiment = pick(settings, options.experiment, path)
    if experiment.by_lists:
        raise UserError(
            f"{experiment.name} mixes its arms within users, for which no number is planned",
            where=str(path),
            mend="let it run: its intervals hold however often one looks (docs: experiments)",
        )
    if options.mean is None and (options.deviation is not None or options.correlation):
        raise UserError(
            "--deviation and --correlation are of a --mean",
            mend="give --mean too, or leave them to the log",
        )
    if options.mean is not None and options.events is not None:
        raise UserError("--mean says what --events would", mend="give one of them")
    if options.mean is not None:
        deviation = options.deviation
        metric = settings.metric(experiment.primary)
        if deviation is None and metric.value == "any" and 0 < options.mean < 1:
            deviation = (options.mean * (1 - options.mean)) ** 0.5
        if deviation is None:
            raise UserError("--mean needs --deviation, that of one user")
        daily = (options.users_per_day,) * 7 if options.users_per_day else ()
        baseline = Baseline(options.mean, deviation, options.correlation, daily)
    else:
        source = options.events or workspace.ingest / "events"
        with task("experiment: reading the log"):
            events = read_events(source)
            metric = settings.metric(experiment.primary)
            baseline = baseline_of(experiment, metric, events, days=options.days)
        if options.users_per_day:  # as is planned, whoever came when the log was written
            baseline = replace(baseline, arrivals=(options.users_per_day,) * 7)
    found = plan(experiment, baseline)
    console = Console()
    console.print(
        f"{experiment.primary}: mean {baseline.mean:.5g} of a user, deviation "
        f"{baseline.deviation:.5g}, correlation with the days before {baseline.correlation:.2f}"
    )
    console.print(sentence(experiment, found))
    if found.users_without_cuped > found.users:
        console.print(f"Without CUPED {found.users_without_cuped:,} users would be needed.")
    for name, count in found.by_arm.items():
        console.print(f"  {escape(name)}: {count:,}")
    console.print(f"Set expected_users: {found.users}, before it starts.")
    if found.detectable:
        table = Table("after", "users", "lift that is found", box=None)
        for days, users, lift in found.detectable:
            table.add_row(f"{days // 7} weeks", f"{users:,}", f"{lift:.1%}")
        console.print(table)
    return found


def run_off_policy(
    log_path: Path,
    workspace: Workspace,
    *,
    policy: Path | None = None,
    target: str | None = None,
    bundle: str | None = None,
    registry: Path | None = None,
    events: Path | None = None,
    reward: str = "click",
    estimators: tuple[Estimator, ...] = (),
    settings: OffPolicySettings | None = None,
    output: Path | None = None,
) -> dict[Estimator, PolicyValue]:
    """Value of a policy from a log; writes report and manifest, prints the table.

    With `events` the log is what a deployment recorded of its answers, and `reward` the type of
    event that counts. A `bundle` (of `registry`, where it is not that of the deployment) is judged
    by what it would have shown in the recorded lists whose features were recorded.

    Raises:
        UserError: none or several of `policy`, `target` and `bundle`, or bad tables; see
            `outcome_folder` too.
    """
    if sum(given is not None for given in (policy, target, bundle)) != 1:
        mend = "give one of --policy, a table, --target, a column, and --bundle"
        raise UserError("say what is judged", mend=mend)
    if bundle is not None and events is None:
        raise UserError(
            "a bundle is judged on recorded answers", mend="give --events: what came of them"
        )
    started = time.monotonic()
    folder = outcome_folder(output or workspace.root / "off_policy", "off_policy")
    how = settings or OffPolicySettings()
    judged: PolicyColumn | pl.DataFrame
    left_out: list[str] = []
    if bundle is not None:
        with task("off-policy: ranking the shown lists again") as ranking:
            found_ = would_show(log_path, bundle, registry=registry, advance=ranking.advance)
            ranking.note = f"{found_.lists:,} lists"
        left_out = [f"{n:,} lists left out: {why}." for why, n in found_.left_out.items()]
    with task("off-policy: reading"):
        served = events is not None
        log = read_served(log_path, Path(str(events)), reward) if served else read_log(log_path)
        if bundle is not None:
            judged = found_.policy
            log = log.join(judged.select("request_id").unique(), on="request_id", how="semi")
        else:
            judged = PolicyColumn(target) if target is not None else read_policy(Path(str(policy)))
        rows = logged_rows(log, judged)
    with task("off-policy: estimating"):
        found = evaluate_policy(rows, estimators or None, how)
        notes = [*warnings(rows), *left_out]
    name = bundle or (log_path if policy is None else policy).name.split(".")[0]
    manifest = Manifest(
        stage="off_policy",
        inputs={
            what: print_of(path)
            for what, path in (("log", log_path), ("policy", policy), ("events", events))
            if path is not None
        },
        settings=vars(how) | {"target": target, "bundle": bundle, "reward": reward},
        counts={"rows": len(rows)},
        figures={each: value.interval.to_dict() for each, value in found.items()},
    )
    with replacing(folder) as fresh:
        write_off_policy_report(name, rows, found, notes, fresh)
        manifest.seconds = time.monotonic() - started
        manifest.write(fresh)
    _show_values(found, notes, folder)
    return found


def estimators(names: Sequence[str]) -> tuple[Estimator, ...]:
    """Checked names of estimators.

    Raises:
        UserError: there is no such one.
    """
    known = {str(name): name for name in ESTIMATORS}
    for name in names:
        if name not in known:
            raise UserError(f"no estimator {name!r}", mend=f"one of: {', '.join(known)}")
    return tuple(known[name] for name in names)


def pick(settings: ExperimentsSettings, name: str | None, path: Path) -> Experiment:
    """The experiment that is meant.

    Raises:
        UserError: there is none of that name, or several and none is named.
    """
    names = [each.name for each in settings.experiments]
    if name is None:
        if len(names) == 1:
            return settings.experiments[0]
        raise UserError(
            "several experiments", where=str(path), mend=f"give --experiment: {', '.join(names)}"
        )
    found = settings.find(name)
    if found is None:
        near = difflib.get_close_matches(name, names, n=1)
        raise UserError(
            f"no experiment {name!r}",
            where=str(path),
            mend=f"did you mean {near[0]!r}?" if near else f"one of: {', '.join(names)}",
        )
    return found


def exposures_of(workspace: Workspace, options: AnalyseOptions) -> Path:
    """Where the exposures lie.

    Raises:
        UserError: nothing is there.
    """
    exposures = options.exposures or workspace.exposures
    if options.exposures is None and not exposures.exists():
        raise UserError(
            "nothing to analyse",
            where=str(exposures),
            mend="give --exposures (and --events), or --users",
        )
    return exposures


def _events_of(workspace: Workspace) -> list[Path]:
    """What ingest wrote and the event log, as far as they are there.

    Raises:
        UserError: neither is.
    """
    found = [path for path in (workspace.ingest / "events", workspace.eventlog) if path.exists()]
    if not found:
        raise UserError("no events", where=str(workspace.root), mend="give --events")
    return found


def _show_analysis(found: ExperimentAnalysis, folder: Path) -> None:
    console = Console()
    for line in verdict(found):
        console.print(f"[bold]{escape(line)}[/]")
    table = Table("metric", "role", "arm", "lift", "adjusted p", "", box=None)
    for c in found.comparisons:
        row = (c.metric, c.role, c.arm, told(c.relative), f"{c.p_adjusted:.2g}", c.state)
        table.add_row(*map(escape, row))
    console.print(table)
    console.print(f"report: {escape(str(folder / 'report.html'))}", soft_wrap=True)


def _show_values(found: dict[Estimator, PolicyValue], notes: list[str], folder: Path) -> None:
    console = Console()
    table = Table("estimator", "value", "95% interval", "gain over the log", "", box=None)
    for name, value in found.items():
        value_, gain = value.interval, value.gain
        table.add_row(name, f"{value_.value:.4g}", ends(value_), f"{gain.value:+.3g}", ends(gain))
    console.print(table)
    first = next(iter(found.values()))
    console.print(
        f"logged: {first.logged.value:.5g}; {first.rows:,} rows, worth {first.effective:,.0f}"
    )
    for note in notes:
        console.print(f"[yellow]{escape(note)}[/]")
    console.print(f"report: {escape(str(folder / 'report.html'))}", soft_wrap=True)


def print_of(path: Path) -> str:
    """Fingerprint of a file, or of all Parquet files of a folder."""
    if path.is_file():
        return file_digest(path)[:16]
    files = sorted(path.glob("**/*.parquet"))
    return json.dumps([[str(f.relative_to(path)), f.stat().st_size] for f in files])[:2000]
