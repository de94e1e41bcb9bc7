"""`raysys text fit`: from a shop's texts to a fitted, judged and published text task."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from raysys import schema
from raysys.cluster import Resources, ray_session
from raysys.datasets import labelled
from raysys.datasets.splits import SPLITS, Divided
from raysys.evaluation.text_judge import Cut
from raysys.evaluation.text_report import NAMES, TextEvaluation, conclusion, write_text_report
from raysys.learners.label_model import LabelModel
from raysys.learners.relevance_model import RelevanceModel
from raysys.learners.text import load_text_model, make_text_learner, save_text_model
from raysys.learners.text_blend import blend
from raysys.learners.text_protocol import Task, TextContext, TextLearner
from raysys.progress import task
from raysys.registry import TEXT, Registry, write_text
from raysys.stages.named_files import named_files
from raysys.stages.text_augmentation import copies_of, require_copies_fit, with_copies
from raysys.stages.text_judging import Fit, Outcome, judge
from raysys.stages.text_relevant import calibrate, cut_of, told
from raysys.stages.text_settings import TextSettings
from raysys.stages.text_sources import inputs_of, read_and_divide, text_columns, with_columns
from raysys.stages.tuned import tuned_file, tuned_settings
from raysys.storage import (
    Manifest,
    Workspace,
    is_done,
    read_manifest,
    replacing,
    working_folder,
    write_atomic,
)
from raysys.text.augment.table import AUGMENTED, counts

log = logging.getLogger("raysys")

ROWS = "rows.parquet"
COPIES = "copies.parquet"
BLEND = "text_blend"

_COLUMNS = 4  # figures in the terminal's table
_WIDE = 160


def folder_of(settings: TextSettings, workspace: Workspace) -> Path:
    """Where the outcome lies."""
    return workspace.text / settings.title


def run(settings: TextSettings, workspace: Workspace, *, force: bool = False) -> Manifest:
    """Read, divide, fit, choose, judge, publish, and point `text-TASK` at the bundle.

    Learners that a killed run had fitted are not fitted again. What searches found for them goes
    over their settings, and is told in the manifest.

    Raises:
        UserError: files that are not there or do not fit, settings that no learner takes, data
            that nothing learns from.
    """
    folder = folder_of(settings, workspace)
    settings = _with_tuned(settings, workspace)
    learners = {
        name: make_text_learner(name, values, task=settings.task, where=f"learners.{name}")
        for name, values in settings.learners.items()
    }
    require_copies_fit(settings, learners)
    settings = with_columns(settings)
    found = labelled.find(settings.files)
    named = named_files([settings.learners, settings.augmentation.model_dump(mode="json")])
    planned = Manifest(
        stage="text",
        inputs={**inputs_of(settings, found, workspace), **named},
        settings=settings.model_dump(mode="json"),
    )
    registry = Registry(workspace.registry)
    if not force and is_done(folder, planned):
        done = read_manifest(folder)
        if done.figures.get("bundle") in registry.list():
            return done
    started = time.monotonic()
    work = working_folder(folder, planned, force)
    (work / "models").mkdir(exist_ok=True)
    unlabelled = any(learner.unlabelled for learner in learners.values())
    read, divided = read_and_divide(settings, found, workspace, unlabelled)
    tables = with_copies(settings, tables_of(settings.task, divided.rows))
    copies = copies_of(tables["train"])
    cut = cut_of(settings, tables)
    with _cluster_if_wanted(settings):
        fits = {
            name: _fit(name, learner, tables, settings, work, cut)
            for name, learner in learners.items()
        }
    if settings.blend:
        fits |= _blended(fits, learners, tables, work)
    with task("text: judging", len(fits)) as judging:
        outcome = judge(settings, divided.rows, tables, fits, judging.advance, cut)
    figures = outcome.figures()
    with task("text: bundle") as publishing:
        chosen = outcome.chosen
        columns, join = text_columns(settings)
        bundle = registry.publish(
            lambda fresh: write_text(fresh, chosen, fits[chosen].model, columns, join),
            name_hint=settings.title,
            surface=TEXT,
            learners={chosen: fits[chosen].family},
            data=planned.inputs,
            settings=planned.settings,
            figures=figures,
        )
        registry.point(settings.title, bundle)
        publishing.note = bundle
    aside = pl.concat([read.aside, divided.aside])
    with replacing(folder) as fresh:
        divided.rows.write_parquet(fresh / ROWS)
        if aside.height:
            aside.write_parquet(fresh / "quarantine.parquet")
        if copies is not None:
            pq.write_table(copies, fresh / COPIES, compression="zstd")
        for name, said in outcome.said.items():
            (fresh / "predictions").mkdir(exist_ok=True)
            pq.write_table(said, fresh / "predictions" / f"{name}.parquet", compression="zstd")
        shutil.copytree(work / "models", fresh / "models")
        planned.counts = _counts(read, divided, aside)
        planned.figures = {
            "task": settings.task,
            "bundle": bundle,
            "pointer": settings.title,
            "split": divided.by,
            "notes": list(divided.notes),
            "mended": {name: count for name, count in read.notes.items() if count},
            "augmented": {} if copies is None else counts(copies[AUGMENTED]),
            "seconds": {name: round(fit.seconds, 2) for name, fit in fits.items()},
            **figures,
        }
        if cut is not None:
            models = {name: fit.model for name, fit in fits.items()}
            planned.figures["relevant"] = told(cut, models)
        with task("text: report"):
            write_text_report(_evaluation(settings, outcome, fits, divided, planned), fresh)
        planned.seconds = round(time.monotonic() - started, 2)
        planned.write(fresh)
    shutil.rmtree(work.parent, ignore_errors=True)
    return planned


def tables_of(kind: Task, rows: pl.DataFrame) -> dict[str, pa.Table]:
    """By split, `LABELLED_TEXTS` or `LABELLED_PAIRS`."""
    target = schema.LABELLED_PAIRS if kind == "relevance" else schema.LABELLED_TEXTS
    if kind == "relevance":
        rows = rows.with_columns(pl.coalesce("item_id", "text").alias("item_id"))
    return {
        name: rows.filter(pl.col("split") == name).select(target.names).to_arrow().cast(target)
        for name in SPLITS
    }


def _with_tuned(settings: TextSettings, workspace: Workspace) -> TextSettings:
    """Settings whose learners have what searches found; nothing is left to be looked up.

    Raises:
        UserError: a file of tuned settings is missing, damaged, or is another learner's.
    """
    found = {
        name: tuned_file(
            *(name, settings.tuned, workspace), look=settings.use_tuned, text=settings.title
        )
        for name in settings.learners
    }
    for name, path in found.items():
        if path is not None:
            log.info("text: settings of %s are those of %s", name, path)
    learners = {
        name: tuned_settings(name, own, found[name]) for name, own in settings.learners.items()
    }
    return settings.model_copy(update={"learners": learners, "tuned": {}, "use_tuned": False})


@contextlib.contextmanager
def _cluster_if_wanted(settings: TextSettings) -> Iterator[None]:
    """Ray, if any fit asks for resources."""
    if settings.resources is None and not settings.learner_resources:
        yield
        return
    with ray_session():
        yield


def _fit(
    name: str,
    learner: TextLearner[Any],
    tables: Mapping[str, pa.Table],
    settings: TextSettings,
    work: Path,
    cut: Cut | None,
) -> Fit:
    """Fit, calibrate what grades and save, or take what a killed run had saved."""
    done, model_folder = work / "fits" / f"{name}.json", work / "models" / name
    if done.is_file():
        content = json.loads(done.read_text(encoding="utf-8"))
        log.info("text: %s was fitted before this run was cut off", name)
        return Fit(load_text_model(model_folder), learner.family, **content)
    scratch = work / "scratch" / name
    scratch.mkdir(parents=True, exist_ok=True)
    wanted = settings.learner_resources.get(name, settings.resources)
    resources: Resources | None = None if wanted is None else wanted.here()
    began = time.monotonic()
    with task(f"text: {name}") as fitting:
        context = TextContext(scratch, settings.seed, resources)
        model = learner.fit(tables["train"], tables["validation"], context)
        if isinstance(model, RelevanceModel) and cut is not None:
            calibrate(name, model, tables["validation"], cut)
        shutil.rmtree(model_folder, ignore_errors=True)
        save_text_model(name, model, model_folder)
        fitted = getattr(model, "fitted", None)
        history = list(fitted.history) if fitted is not None else []
        fit = Fit(model, learner.family, time.monotonic() - began, history)
        fitting.note = f"{len(tables['train']):,} texts"
    write_atomic(done, json.dumps({"seconds": fit.seconds, "history": history}) + "\n")
    shutil.rmtree(scratch, ignore_errors=True)
    return fit


def _blended(
    fits: Mapping[str, Fit],
    learners: Mapping[str, TextLearner[Any]],
    tables: Mapping[str, pa.Table],
    work: Path,
) -> dict[str, Fit]:
    """The average of those learners that label texts, if more than one is worth a weight.

    It gives labels from the probability on that its members were told; there is none where they
    were told different things.
    """
    able = {
        name: (name, fit.model) for name, fit in fits.items() if isinstance(fit.model, LabelModel)
    }
    if len(able) < 2 or BLEND in fits:
        return {}
    told = [learners[name].settings.thresholds for name in able]
    if any(each != told[0] for each in told):
        log.warning(
            "text: no blend is tried: %s are told different `thresholds`; give them the same, or "
            "name a `text_blend` with its own among the learners",
            " and ".join(able),
        )
        return {}
    began = time.monotonic()
    with task(f"text: {BLEND}") as blending:
        model = blend(able, tables["train"], tables["validation"], thresholds=told[0])
        weights = {**model.weights, **model.rating_weights}
        blending.note = ", ".join(f"{name} {model.weights.get(name, 0):.2f}" for name in able)
    if len(weights) < 2:
        return {}
    folder = work / "models" / BLEND
    shutil.rmtree(folder, ignore_errors=True)
    save_text_model(BLEND, model, folder)
    return {BLEND: Fit(model, "blend", time.monotonic() - began, [])}


def _counts(read: labelled.Labelled, divided: Divided, aside: pl.DataFrame) -> dict[str, int]:
    counts = {"rows": read.read}
    counts |= {name: int((divided.rows["split"] == name).sum()) for name in SPLITS}
    counts["aside"] = aside.height
    reasons = (
        aside["reason"].value_counts(sort=True).sort("count", "reason", descending=[True, False])
    )
    counts |= {f"aside.{reason}": int(count) for reason, count in reasons.rows()}
    return counts


def _evaluation(
    settings: TextSettings,
    outcome: Outcome,
    fits: Mapping[str, Fit],
    divided: Divided,
    planned: Manifest,
) -> TextEvaluation:
    return TextEvaluation(
        task=settings.task,
        title=settings.title,
        bundle=planned.figures["bundle"],
        counts=planned.counts,
        notes=divided.notes,
        criterion=outcome.criterion,
        chosen=outcome.chosen,
        baseline=outcome.baseline,
        against=outcome.against,
        gain=outcome.gain,
        families={name: fit.family for name, fit in fits.items()},
        seconds={name: fit.seconds for name, fit in fits.items()},
        histories={name: fit.history for name, fit in fits.items()},
        validation=outcome.validation,
        test=outcome.test,
        said=outcome.said[outcome.chosen],
        examples=settings.examples,
        relevant=planned.figures.get("relevant"),
    )


def show(manifest: Manifest, console: Console) -> None:
    """The learners on the test, best on validation first; who won, and where it went."""
    figures = manifest.figures
    criterion, chosen = figures["criterion"], figures["chosen"]
    validation, test = figures["validation"], figures["test"]
    names = sorted(test, key=lambda name: -validation[name][criterion]["value"])
    keys = list(dict.fromkeys(key for name in names for key in test[name]))[:_COLUMNS]
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("learner", no_wrap=True)
    for key in keys:
        table.add_column(NAMES.get(key, key.replace("_", " ")), justify="right", no_wrap=True)
    table.add_column("fit", justify="right", no_wrap=True)
    for name in names:
        cells = [_cell(test[name].get(key)) for key in keys]
        style = "bold" if name == chosen else ""
        table.add_row(escape(name), *cells, f"{figures['seconds'][name]:.1f} s", style=style)
    # elsewhere than on a terminal nothing says how wide a line may be
    wide = console if console.is_terminal else Console(file=console.file, width=_WIDE)
    wide.print(table)
    said = conclusion(chosen, figures["baseline"], figures["against"], figures["gain"], criterion)
    console.print(escape(said), style="bold green", soft_wrap=True)
    for note in figures["notes"]:
        console.print(f"note: {escape(note)}", style="yellow", soft_wrap=True)
    pointer, bundle = figures["pointer"], figures["bundle"]
    console.print(f"  published: {escape(pointer)} → {escape(bundle)}", soft_wrap=True)


def _cell(figure: Mapping[str, float | None] | None) -> str:
    """A value and, where there is one, half its interval."""
    if figure is None or figure["value"] is None:
        return ""
    low, high = figure["low"], figure["high"]
    spread = "" if low is None or high is None else f" ±{(high - low) / 2:.3f}"
    return f"{figure['value']:.3f}{spread}"
