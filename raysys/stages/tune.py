"""`raysys tune`: search a learner's settings, fitted on train and judged on validation.

Of a ranker these are folds of `raysys features`; of a text learner, splits of `raysys text fit`.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from raysys.catalogue import Catalogue
from raysys.cluster import ray_session
from raysys.config import Settings, parse_settings
from raysys.ensemble import BaseScores, Ensemble, EnsembleSettings
from raysys.ensemble.bench import Beside
from raysys.errors import UserError
from raysys.features.examples import Examples
from raysys.learners import learner_class, make_learner
from raysys.learners.protocol import Resources
from raysys.learners.resources import resources_here
from raysys.progress import task
from raysys.stages.named_files import named_files
from raysys.stages.stacking import beside_of, groups_of, label_window_ms, require_lessons
from raysys.stages.tune_rows import FeatureRuns, check_features, features_start
from raysys.stages.tune_texts import TextTask, check_texts, require_no_texts
from raysys.stages.unseen import require_served
from raysys.storage import Manifest, Workspace, digest, is_done, read_manifest, write_atomic
from raysys.tuning.ensemble import ENSEMBLE, EnsembleObjective
from raysys.tuning.loggers import check_loggers
from raysys.tuning.metrics import check_metrics
from raysys.tuning.objective import LearnerObjective, Objective, Rows
from raysys.tuning.population import check_population
from raysys.tuning.report import Found, write_best, write_report
from raysys.tuning.sample import sample_requests
from raysys.tuning.search import random_search, refit_full, search
from raysys.tuning.settings import DataSettings, Full, Pbt, Proxy, TuneSettings
from raysys.tuning.space import Scalar, check_space, inside, of_namespace, starting_point
from raysys.tuning.study import (
    FAILED,
    FULL,
    INFEASIBLE,
    SEARCH,
    STOPPED,
    Run,
    best_of,
    has_study,
    only_failed,
    open_study,
    running,
)
from raysys.tuning.warm import warm_points

__all__ = ["TuneSettings", "folder_of", "run", "settings_model"]

CAUSES = "search.json"
BUDGETS = (
    *("trials", "minutes", "core_hours", "gpu_hours", "concurrent", "name", "plateau", "full"),
    *("warm_start", "compare_random", "retries", "logging", "mlflow_uri"),
)
"""What may change when a search goes on."""


def run(settings: TuneSettings, workspace: Workspace, *, force: bool = False) -> Manifest:
    """Search, and write `best.yaml`, `report.html`, `trials.json` into `workspace.tune/NAME`.

    A search that was cut off goes on, also with more trials or minutes than before; anything else
    that changed (learner, space, data, proxy, seed) starts anew.

    Raises:
        UserError: no examples or texts yet, settings or a space the learner refuses, validation
            without anything wanted, or no trial completed.
    """
    if settings.text is None:
        require_no_texts(settings)
        upstream = read_manifest(workspace.features)
        start = check(settings, upstream.settings, _items(workspace))
        inputs = {"features": upstream.fingerprint}
        if settings.learner == ENSEMBLE:
            inputs["train"] = read_manifest(workspace.train).fingerprint
    else:
        texts = TextTask.open(workspace, settings.text)
        settings, start = texts.prepared(settings)
        inputs = texts.inputs
    choices = [getattr(each, "choices", ()) for each in settings.space.values()]
    inputs |= named_files([settings.settings, choices])
    planned = Manifest(stage="tune", inputs=inputs, settings=settings.model_dump(mode="json"))
    folder = folder_of(settings, workspace)
    if not force and is_done(folder, planned):
        return read_manifest(folder)
    began = time.monotonic()
    _go_on_or_start_anew(folder, _causes(settings, planned), force=force)
    warm: list[tuple[Mapping[str, Scalar], Mapping[str, Any]]] = []
    if settings.warm_start is not None:
        points = warm_points(settings.warm_start, settings.learner, settings.space, start)
        warm = [(point, {}) for point in points]
    with ray_session():
        wanted = settings.resources
        resources = resources_here(
            Resources(cpus_per_worker=wanted.cpus, gpus_per_worker=wanted.gpus)
        )
        objectives = (
            _objectives(settings, workspace, upstream, folder, resources)
            if settings.text is None
            else texts.objectives(settings, folder)
        )
        own = start if inside(settings.space, start) else None
        plan = Run(
            *(SEARCH, folder, _scratch(folder, SEARCH), settings.space, settings, resources, own),
            last=_last(settings),
        )
        trials = search(objectives(SEARCH), plan, start=own, first=warm)
        found = Found(settings, trials, resources.cpus_per_worker, resources.gpus_per_worker)
        if settings.compare_random:
            found.random = random_search(objectives("random"), plan, trials, own)
        if _full(settings) is not None:
            found.full = refit_full(objectives(FULL), plan, trials, own)
    _clear(folder, population=isinstance(settings.scheduler, Pbt))
    with task("report"):
        write_best(folder / "best.yaml", found)
        write_report(folder / "report.html", found)
        content = {name: [t.__dict__ for t in trials] for name, trials in found.studies.items()}
        write_atomic(folder / "trials.json", json.dumps(content, indent=1) + "\n")
    best = best_of(found.chosen_among, settings.objective)
    planned.counts = {
        "trials": len(trials),
        "stopped": sum(trial.state == STOPPED for trial in trials),
        "failed": sum(trial.state == FAILED for trial in trials),
        "infeasible": sum(trial.state == INFEASIBLE for trial in trials),
    }
    planned.figures = {
        settings.objective.metric: best.score,
        "trial": best.number,
        "best": best.values,
        "core_seconds": round(found.cost(trials), 1),
    }
    planned.seconds = time.monotonic() - began
    planned.write(folder)
    return planned


def check(
    settings: TuneSettings, features: Mapping[str, Any], items: int | None = None
) -> dict[str, Scalar]:
    """Hold a search against what it searches, before anything is read.

    Args:
        settings: the YAML.
        features: settings of the features stage, as its manifest holds them; of no use where
            texts are learned from.
        items: how many the catalogue has; None: unknown.

    Returns:
        The values that a search starts from: the settings of the YAML, else the defaults.

    Raises:
        UserError: whatever cannot work.
    """
    if settings.text is not None:
        return check_texts(settings)
    require_no_texts(settings)
    where = f"tune {settings.folder_name}"
    space = settings.space
    own = of_namespace(space, "")
    model = settings_model(settings)
    values = check_space(own, settings.settings, model, where=where)
    point = starting_values(own, values, items)
    data, stage = of_namespace(space, "data"), of_namespace(space, "features")
    if settings.learner == ENSEMBLE and (data or stage):
        raise UserError(
            "an ensemble is fitted on stored base scores: it has no settings of data",
            where=f"{where}: space",
        )
    defaults = check_space(data, {}, DataSettings, where=f"{where}: data")
    point |= {f"data.{name}": value for name, value in starting_values(data, defaults).items()}
    if stage:
        check_features(stage, features, where=f"{where}: features")
        started = features_start(stage, features)
        point |= {f"features.{name}": value for name, value in started.items()}
    check_metrics(settings.objective.metric, settings.constraints, settings.objective.direction)
    check_loggers(settings.logging)
    if settings.learner == ENSEMBLE:
        if any(name.split(".")[0] == "keep" for name in (*settings.settings, *space)):
            raise UserError(
                "members are dropped by `raysys train`, which measures what they cost",
                where=f"{where}: keep",
                mend="leave keep out here",
            )
        if "block_by" in space:
            raise UserError(
                "block_by says by what every trial is judged: figures of different blocks cannot "
                "be compared",
                where=f"{where}: space.block_by",
                mend="give it under settings",
            )
        if settings.scheduler.kind != "none" or settings.proxy is not None:
            raise UserError(
                "an ensemble is fitted at once: nothing to stop early, and no proxy",
                where=where,
                mend="set scheduler: none, and leave proxy out",
            )
        return point
    learner = learner_class(settings.learner)
    if isinstance(settings.scheduler, Pbt):
        check_population(list(space), learner.changeable, settings.learner, learner.steps)
    if (
        settings.proxy is not None
        and settings.proxy.steps < 1
        and make_learner(settings.learner, dict(settings.settings)).length() is None
    ):
        raise UserError(
            f"{settings.learner} has no steps to take fewer of by these settings",
            where="proxy.steps",
        )
    return point


def settings_model(settings: TuneSettings) -> type[Settings]:
    """The model of what is searched: a learner's settings, or the ensemble's."""
    if settings.learner == ENSEMBLE:
        return EnsembleSettings
    return learner_class(settings.learner).settings_model


def starting_values(
    space: Mapping[str, Any], start: Settings, items: int | None = None
) -> dict[str, Scalar]:
    """A model's own values of what is searched, inside the space or not."""
    return starting_point(space, start, anywhere=True, items=items) or {}


def _items(workspace: Workspace) -> int | None:
    """How many items the catalogue has; None where features left none."""
    path = workspace.features / "catalogue.parquet"
    return pq.read_metadata(path).num_rows if path.is_file() else None


def folder_of(settings: TuneSettings, workspace: Workspace) -> Path:
    """Where the search of these settings lives."""
    return workspace.tune / settings.folder_name


def _objectives(
    settings: TuneSettings,
    workspace: Workspace,
    upstream: Manifest,
    folder: Path,
    resources: Resources,
) -> Any:
    """What gives the objective of each study."""
    folds = upstream.figures["folds"]
    every = Examples(workspace.features, tuple(folds["train"]))
    judged = every.with_folds(folds["validation"])
    if settings.learner == ENSEMBLE:
        require_lessons(judged)
        trained = Ensemble.load(workspace.train / "ensemble.json")
        judged = every.with_folds(*(trained.folds or judged.folds))  # others where by group
        scores = BaseScores.read(workspace.train / "base_scores", judged).together(judged.folds)
        families = trained.families
        batch, window = judged.batch(), label_window_ms(upstream)

        def beside(tried: EnsembleSettings) -> Beside:
            return beside_of(judged, batch, tried, window)

        groups_of(judged, parse_settings(EnsembleSettings, settings.settings, where=ENSEMBLE))

        def of_ensemble(study: str) -> Objective:
            place = _scratch(folder, study)
            return EnsembleObjective(
                scores, families, settings.settings, place, beside=beside, batch=batch
            )

        return of_ensemble
    _require_served(settings, every.names, upstream)
    catalogue = Catalogue.load(workspace.features / "catalogue.parquet")
    searched = bool(of_namespace(settings.space, "features"))

    def of_learner(study: str) -> Objective:
        proxy = (settings.proxy if study != FULL else None) or Proxy()
        with task("read examples"):
            examples, validation = every, judged
            if proxy.requests:
                examples = sample_requests(every, proxy.requests, folder / "fitted")
            if proxy.validation_requests:
                validation = sample_requests(judged, proxy.validation_requests, folder / "judged")
            for each, whole, name in (
                (examples, every, "requests"),
                (validation, judged, "validation_requests"),
            ):
                few = each.root != whole.root
                require_lessons(each, f"raise proxy.{name}: these are a sample" if few else None)
            rows = Rows(examples, validation.batch())
        return LearnerObjective(
            learner=settings.learner,
            fixed=settings.settings,
            rows=FeatureRuns(rows, workspace, folder / "features", upstream.settings, proxy)
            if searched
            else rows,
            catalogue=catalogue,
            folder=_scratch(folder, study),
            seed=settings.seed,
            resources=resources,
            grace=settings.grace if study == SEARCH else 0,
            every=settings.every,
            share=proxy.steps,
        )

    return of_learner


def _require_served(settings: TuneSettings, names: tuple[str, ...], upstream: Manifest) -> None:
    """See `unseen.require_served`; where the features are searched, `raysys train` tells."""
    if not any(name.rpartition(".")[2] in ("features", "exclude") for name in settings.space):
        learner = make_learner(settings.learner, dict(settings.settings))
        require_served({settings.learner: learner.reads(names)}, upstream)


def _full(settings: TuneSettings) -> Full | None:
    """How the best are refitted; a population's always are: its settings changed on the way."""
    if settings.full is None and isinstance(settings.scheduler, Pbt):
        return Full()
    return settings.full


def _last(settings: TuneSettings) -> int:
    """Steps after which a member of a population is done."""
    if not isinstance(settings.scheduler, Pbt):
        return 0
    return settings.scheduler.interval * (settings.trials // settings.scheduler.population)


def _scratch(folder: Path, study: str) -> Path:
    """Where the trials of a study keep their checkpoints."""
    return (folder / "scratch" / study).resolve()


def _clear(folder: Path, *, population: bool) -> None:
    """Remove all checkpoints but those from which a search goes on if it is given more.

    These are those of trials that a budget cut off, and of all members of a population.
    """
    scratch = folder / "scratch"
    for place in scratch.iterdir():
        if population and place.name == SEARCH:
            continue
        there = has_study(folder, place.name)
        cut_off = running(open_study(folder, name=place.name)) if there else []
        kept = {f"trial-{number}" for number in cut_off}
        for each in place.iterdir():
            if each.name not in kept:
                if each.is_dir():
                    shutil.rmtree(each, ignore_errors=True)
                else:
                    each.unlink(missing_ok=True)
    for empty in (*scratch.iterdir(), scratch):
        with contextlib.suppress(OSError):  # it holds what is kept
            empty.rmdir()


def _causes(settings: TuneSettings, planned: Manifest) -> str:
    """Fingerprint of all that a trial's score depends on; budgets are not part of it."""
    content = settings.model_dump(mode="json")
    for budget in BUDGETS:
        del content[budget]
    return digest([content, planned.inputs])


def _go_on_or_start_anew(folder: Path, causes: str, *, force: bool) -> None:
    """Keep the folder of the same search; empty that of another, or of one that only failed."""
    file = folder / CAUSES
    same = file.is_file() and json.loads(file.read_text(encoding="utf-8"))["causes"] == causes
    if folder.exists() and (force or not same or _failed(folder)):
        shutil.rmtree(folder)
    write_atomic(file, json.dumps({"causes": causes}) + "\n")
    (folder / "scratch").mkdir(exist_ok=True)


def _failed(folder: Path) -> bool:
    """Whether a search left nothing but failures, see `only_failed`."""
    return has_study(folder, SEARCH) and only_failed(open_study(folder))
