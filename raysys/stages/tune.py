"""`raysys tune`: search a learner's settings on the train folds, judged on the validation fold."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from raysys.catalogue import Catalogue
from raysys.cluster import ray_session
from raysys.config import Settings, StageSettings
from raysys.features.examples import Examples
from raysys.learners import learner_class
from raysys.learners.protocol import Resources
from raysys.learners.resources import resources_here
from raysys.progress import task
from raysys.storage import Manifest, Workspace, digest, is_done, read_manifest, write_atomic
from raysys.tuning.report import write_best, write_report
from raysys.tuning.sample import sample_requests
from raysys.tuning.search import (
    FAILED,
    JOURNAL,
    METRIC,
    STOPPED,
    Budget,
    Objective,
    best_of,
    open_study,
    search,
    trials_of,
)
from raysys.tuning.space import Space, check_space, starting_point

CAUSES = "search.json"


class TrialResources(Settings):
    """What each trial may use; GPUs count only where there are any, and trials may share one."""

    cpus: float = Field(1.0, gt=0)
    gpus: float = Field(0.0, ge=0)


class EarlyStopping(Settings):
    """ASHA: trials that lag behind others at the same step are stopped.

    Attributes:
        grace: steps (trees, epochs) that every trial gets; 0: no trial is stopped.
        reduction: one trial in so many goes on past each rung (grace, grace × reduction, …).
    """

    grace: int = Field(20, ge=0)
    reduction: int = Field(3, ge=2)


class TuneSettings(StageSettings):
    """The YAML of `raysys tune`.

    Attributes:
        name: of the search, and of its folder; the learner's name when empty.
        learner: whose settings are searched.
        settings: what is set but not searched.
        space: what is searched: ranges and choices.
        trials: how many in all; raise it to go on with a finished search.
        minutes: wall clock at most; running trials are cut off then.
        concurrent: trials side by side; null: as many as there is room for.
        resources: of each trial.
        early_stopping: ASHA's.
        sample_requests: fit on about so many requests; null: all.
        sample_validation: judge on about so many requests of the validation fold; null: all.
        seed: of proposals and fits.
    """

    kind_name: ClassVar[str] = "tune"

    name: str = Field("", pattern=r"^[A-Za-z0-9_.-]*$")
    learner: str
    settings: dict[str, Any] = {}
    space: Space = Field(min_length=1)
    trials: int = Field(24, ge=1, le=100_000)
    minutes: float = Field(60, gt=0)
    concurrent: int | None = Field(None, ge=1)
    resources: TrialResources = TrialResources()
    early_stopping: EarlyStopping = EarlyStopping()
    sample_requests: int | None = Field(None, ge=10)
    sample_validation: int | None = Field(None, ge=10)
    seed: int = Field(17, ge=0)

    @property
    def folder_name(self) -> str:
        """Of this search below `workspace.tune`."""
        return self.name or self.learner


def run(settings: TuneSettings, workspace: Workspace, *, force: bool = False) -> Manifest:
    """Search, and write `best.yaml`, `report.html`, `trials.json` into `workspace.tune/NAME`.

    A search that was cut off goes on, also with more trials or minutes than before; anything else
    that changed (learner, space, data, sample, seed) starts anew.

    Raises:
        UserError: no examples yet, settings or a space the learner refuses, or no trial completed.
    """
    where = f"tune {settings.folder_name}"
    model = learner_class(settings.learner).settings_model
    start = check_space(settings.space, settings.settings, model, where=where)
    upstream = read_manifest(workspace.features)
    planned = Manifest(
        stage="tune",
        inputs={"features": upstream.fingerprint},
        settings=settings.model_dump(mode="json"),
    )
    folder = folder_of(settings, workspace)
    if not force and is_done(folder, planned):
        return read_manifest(folder)
    began = time.monotonic()
    _go_on_or_start_anew(folder, _causes(settings, planned), force=force)
    folds = upstream.figures["folds"]
    with task("read examples"):
        examples = Examples(workspace.features, tuple(folds["train"]))
        judged = examples.with_folds(folds["validation"])
        if settings.sample_requests:
            examples = sample_requests(examples, settings.sample_requests, folder / "fitted")
        if settings.sample_validation:
            judged = sample_requests(judged, settings.sample_validation, folder / "judged")
        validation = judged.batch()
    catalogue = Catalogue.load(workspace.features / "catalogue.parquet")
    with ray_session():
        wanted = settings.resources
        resources = resources_here(
            Resources(cpus_per_worker=wanted.cpus, gpus_per_worker=wanted.gpus)
        )
        stopping = settings.early_stopping
        trials = search(
            Objective(
                learner=settings.learner,
                fixed=settings.settings,
                examples=examples,
                validation=validation,
                catalogue=catalogue,
                scratch=(folder / "scratch").resolve(),
                seed=settings.seed,
                resources=resources,
                grace=stopping.grace,
            ),
            settings.space,
            Budget(
                trials=settings.trials,
                minutes=settings.minutes,
                concurrent=settings.concurrent,
                resources=resources,
                grace=stopping.grace,
                reduction=stopping.reduction,
            ),
            folder,
            start=starting_point(settings.space, start),
        )
    shutil.rmtree(folder / "scratch", ignore_errors=True)
    with task("report"):
        write_best(folder / "best.yaml", settings.learner, settings.settings, trials)
        write_report(folder / "report.html", settings.learner, settings.space, trials)
        write_atomic(
            folder / "trials.json",
            json.dumps([trial.__dict__ for trial in trials], indent=1) + "\n",
        )
    best = best_of(trials)
    planned.counts = {
        "trials": len(trials),
        "stopped": sum(trial.state == STOPPED for trial in trials),
        "failed": sum(trial.state == FAILED for trial in trials),
        "requests": validation.n_requests,
    }
    planned.figures = {METRIC: best.score, "trial": best.number, "best": best.values}
    planned.seconds = time.monotonic() - began
    planned.write(folder)
    return planned


def folder_of(settings: TuneSettings, workspace: Workspace) -> Path:
    """Where the search of these settings lives."""
    return workspace.tune / settings.folder_name


def _causes(settings: TuneSettings, planned: Manifest) -> str:
    """Fingerprint of all that a trial's score depends on; budgets are not part of it."""
    content = settings.model_dump(mode="json")
    for budget in ("trials", "minutes", "concurrent", "name"):
        del content[budget]
    return digest([content, planned.inputs])


def _go_on_or_start_anew(folder: Path, causes: str, *, force: bool) -> None:
    """Keep the folder of the same search, empty that of another, or of one that only failed."""
    file = folder / CAUSES
    same = file.is_file() and json.loads(file.read_text(encoding="utf-8"))["causes"] == causes
    if folder.exists() and (force or not same or _only_failed(folder)):
        shutil.rmtree(folder)
    write_atomic(file, json.dumps({"causes": causes}) + "\n")
    (folder / "scratch").mkdir(exist_ok=True)


def _only_failed(folder: Path) -> bool:
    """Whether trials ended and none was of use: their reason may be mended by now."""
    if not (folder / JOURNAL).is_file():
        return False
    trials = trials_of(open_study(folder, seed=0))
    return bool(trials) and all(trial.state == FAILED for trial in trials)
