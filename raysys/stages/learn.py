"""`raysys learn`: from new events to a challenger, by warming up the champion; once, or for ever.

A round brings in what is new, lets the champion's state, neighbourhoods, learners and weights go on
from where they are, and compares the two on a recent past that nothing was learned from. If the
gate lets it, the challenger is published under a name of its own. The champion is not touched
unless `publish.promote` says so.

    learn/rounds/NUMBER/   report.html, report.json, manifest.json; the out-of-fold base scores
                           that the ensemble was fitted on
    learn/journal.jsonl    a line a round
    learn/.work/           the round that is under way, or was cut off (`learn_round`)
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from raysys.config import find_config, load_settings, parse_settings
from raysys.errors import UserError
from raysys.features.plan import FeaturePlan
from raysys.ingest.spread import InProcess
from raysys.registry import BundleManifest, Registry
from raysys.stages import ingest as ingest_stage
from raysys.stages.features_settings import FeaturesSettings
from raysys.stages.learn_events import PARTS
from raysys.stages.learn_gate import judge_round, verdict
from raysys.stages.learn_log import LearnedLog
from raysys.stages.learn_publish import promote, publish
from raysys.stages.learn_report import JSON, write_report
from raysys.stages.learn_round import SCORES, STEP, Plan, Round
from raysys.stages.learn_settings import LearnSettings
from raysys.storage import Manifest, Workspace, digest, is_done, read_manifest

__all__ = ["LearnSettings", "folder_of", "journal", "run", "show", "unfinished"]

log = logging.getLogger("raysys")

JOURNAL = "journal.jsonl"
WORK = ".work"


def run(
    settings: LearnSettings,
    workspace: Workspace,
    *,
    force: bool = False,
    trigger: str = "it was asked for",
    events: LearnedLog | None = None,
) -> Manifest:
    """One round; what a killed one had finished is not done again.

    Args:
        settings: the YAML.
        workspace: with features, a log, and a registry.
        force: a round although nothing is new since the last one.
        trigger: why, for the report.
        events: the log, if it is open already.

    Raises:
        UserError: no champion, or none that these features can go on from; another round runs.
    """
    with _alone(workspace):
        made, planned = _begun(settings, workspace, force=force, trigger=trigger, events=events)
        if made is None:
            return planned
        place = _rounds(workspace) / f"{made.plan.number:06d}"
        if not (place / JSON).is_file():
            _conclude(made, workspace, planned)
            place.parent.mkdir(parents=True, exist_ok=True)
            (made.folder / "report").rename(place)
        _note(workspace, json.loads((place / JSON).read_text(encoding="utf-8")))
        shutil.rmtree(made.folder)
        return read_manifest(place)


def journal(workspace: Workspace) -> list[dict[str, Any]]:
    """What became of each round, the oldest first; a line that a crash cut off is left out."""
    path = workspace.learn / JOURNAL
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    told = []
    for line in lines:
        with contextlib.suppress(ValueError):
            told.append(json.loads(line))
    return told


def unfinished(workspace: Workspace) -> bool:
    """Whether a round was cut off."""
    return Plan.read(workspace.learn / WORK) is not None


def folder_of(settings: LearnSettings, workspace: Workspace) -> Path:
    """Where the newest round's report lies."""
    return max(_rounds(workspace).glob("[0-9]*"), default=workspace.learn)


def show(manifest: Manifest, console: Console) -> None:
    """What came of the round, in a line or two."""
    figures = manifest.figures
    console.print(f"  {figures['outcome'].replace('_', ' ')}: {figures['reason']}", soft_wrap=True)
    if figures["challenger"]:
        console.print(
            f"  challenger: {figures['challenger']}; {figures['promoted']}", soft_wrap=True
        )


def _begun(
    settings: LearnSettings,
    workspace: Workspace,
    *,
    force: bool,
    trigger: str,
    events: LearnedLog | None,
) -> tuple[Round | None, Manifest]:
    """The round that was cut off, or a new one; None, and the last manifest: nothing is new."""
    registry = Registry(workspace.registry)
    told = settings.model_dump(mode="json", exclude={"follow"})
    work = workspace.learn / WORK
    plan = Plan.read(work)
    holder = registry.resolve(settings.champion)
    if plan is not None and holder == _published(work):
        holder = plan.champion  # cut off after it had promoted what it made
    champion = registry.verify(holder)
    bundle = registry.bundles / champion.id
    features = _features(workspace, champion, bundle)
    fits = plan is not None and (plan.champion, plan.settings) == (champion.id, digest(told))
    if plan is None or not fits or not (work / "events" / STEP).is_file():
        position = _bring_in(settings, workspace, events)
        number = 1 + max((int(p.name) for p in _rounds(workspace).glob("[0-9]*")), default=0)
        plan = Plan(
            *(number, champion.id, digest(told), read_manifest(workspace.ingest).outcome),
            *(trigger, time.time_ns() // 1_000_000, position),
        )
        shutil.rmtree(work, ignore_errors=True)
    else:
        log.info("learn: round %d was cut off, and goes on", plan.number)
    planned = Manifest(
        stage="learn", inputs={"bundle": champion.id, "ingest": plan.ingest}, settings=told
    )
    last = folder_of(settings, workspace)
    if not work.exists():
        if not force and is_done(last, planned):
            return None, read_manifest(last)
        work.mkdir(parents=True)
        plan.write(work)
    return Round(work, plan, settings, bundle, features, workspace.ingest), planned


def _conclude(made: Round, workspace: Workspace, planned: Manifest) -> None:
    """All steps, the gate, the publishing, the report."""
    enough = made.learn()
    figures = made.step("gate", partial(judge_round, made)) if enough else None
    outcome: dict[str, Any] = {"outcome": "too_few", "challenger": "", "promoted": ""}
    if figures is None:
        held = made.told["relived"]["requests"]["gate"]
        outcome["reason"] = (
            f"{held:,} settled requests in the gate's {made.settings.window.gate_days:g} days, "
            f"{made.settings.window.min_requests:,} are wanted"
        )
    else:
        judged = verdict(figures, better=made.settings.gate.need == "better")
        outcome |= {"outcome": "published" if judged.passes else "refused", "reason": judged.reason}
        if judged.passes:
            registry = Registry(workspace.registry)
            outcome |= made.step("published", lambda _: publish(made, registry, figures, workspace))
            outcome["promoted"] = promote(made, registry, outcome["challenger"], figures)
            outcome.pop("seconds")
    told = _told(made, figures) | outcome
    planned.seconds = told["seconds"]
    planned.counts = {"events": told["events"], **told["requests"]}
    planned.figures = {
        **outcome,
        "round": made.plan.number,
        "difference": figures and figures["difference"][figures["metric"]],
    }

    def report(out: Path) -> None:
        write_report(told, out)
        scores = made.folder / "blend" / SCORES
        if scores.is_dir():
            shutil.copytree(scores, out / SCORES)
        planned.write(out)

    made.step("report", report)


def _told(made: Round, figures: dict[str, Any] | None) -> dict[str, Any]:
    """What the report says of a round, but for its outcome."""
    relived, events = made.told["relived"], made.told["events"]
    unchanged = {
        name.removeprefix("learner-").replace("blend", "ensemble"): told["why"]
        for name, told in made.told.items()
        if told.get("changed") is False
    }
    weights = {}
    if figures is not None:
        both = {"champion": made.champion.ensemble, "challenger": made.ensemble()}
        weights = {name: ensemble.fallbacks["full"].share for name, ensemble in both.items()}
    times = {name: told["seconds"] for name, told in made.told.items()}
    starts = dict(zip(PARTS, map(_moment, relived["bounds"]), strict=False))
    return {
        "round": made.plan.number,
        "began": _moment(made.plan.began),
        "trigger": made.plan.trigger,
        "champion": made.plan.champion,
        "position": made.plan.position,
        "events": events["events"],
        "users": events["users"],
        "new_users": relived.get("new_users", 0),
        "new_items": relived.get("new_items", 0),
        "window": {"starts": starts, "end": _moment(relived["bounds"][-1])},
        "requests": relived["requests"],
        "found": relived.get("found", [0, 0, 0]),
        "gate": figures,
        "against": made.settings.gate.against,
        "blend": made.told.get("blend"),
        "unchanged": unchanged,
        "weights": weights,
        "times": times,
        "seconds": round(sum(times.values()), 2),
    }


def _features(workspace: Workspace, champion: BundleManifest, bundle: Path) -> FeaturesSettings:
    """How the champion's features were made.

    Raises:
        UserError: not from what lies here.
    """
    told = read_manifest(workspace.features)
    where = str(workspace.features)
    settings = parse_settings(FeaturesSettings, told.settings, where=where)
    plan = load_settings(FeaturePlan, bundle / "features" / "plan.yaml")
    if plan.model_dump(mode="json") != settings.plan.model_dump(mode="json"):
        raise UserError(
            f"{champion.id} reads other features than those that are made here",
            where=where,
            mend="give --workspace of the champion's own, or train on these features",
        )
    return settings


def _bring_in(settings: LearnSettings, workspace: Workspace, events: LearnedLog | None) -> int:
    """Roll the log and ingest what is new; the offset up to which the log is in."""
    opened = events or LearnedLog(settings, workspace)
    try:
        position = opened.roll()
    finally:
        if events is None:
            opened.close()
    if settings.ingest is not None:
        told = load_settings(ingest_stage.IngestSettings, find_config(settings.ingest, "ingest"))
        # what is new is little: a cluster is used where there is one, but none is started
        spread = None if os.environ.get("RAY_ADDRESS") else InProcess()
        ingest_stage.run(told, workspace, spread=spread)
    return position


def _note(workspace: Workspace, told: dict[str, Any]) -> None:
    """A line in the journal, once."""
    lines = journal(workspace)
    if lines and lines[-1]["round"] == told["round"]:
        return
    gate = told["gate"]
    line = {
        name: told[name]
        for name in (
            *("round", "began", "trigger", "outcome", "reason", "champion", "challenger"),
            *("promoted", "position", "events", "requests", "times", "seconds"),
        )
    }
    if gate:
        metric = gate["metric"]
        line |= {
            "metric": metric,
            "champion_figure": gate["champion"][metric]["value"],
            "challenger_figure": gate["challenger"][metric]["value"],
            "difference": gate["difference"][metric],
        }
    path = workspace.learn / JOURNAL
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # the rest of a line that a crash cut off
                file.write(b"\n")
        file.write(json.dumps(line).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _published(work: Path) -> str:
    """The bundle that a round has published; empty: none yet."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return str(json.loads((work / "published" / STEP).read_text())["challenger"])
    return ""


def _moment(ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(ms / 1000))


def _rounds(workspace: Workspace) -> Path:
    return workspace.learn / "rounds"


@contextlib.contextmanager
def _alone(workspace: Workspace) -> Iterator[None]:
    """One round at a time; the lock goes with the process.

    Raises:
        UserError: another process is at it.
    """
    workspace.learn.mkdir(parents=True, exist_ok=True)
    with (workspace.learn / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                "another `raysys learn` is at work here",
                where=str(workspace.learn),
                mend="stop it, or wait until its round is over",
            ) from None
        yield
