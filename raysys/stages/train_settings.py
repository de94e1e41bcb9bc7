"""What `raysys train` may be told, and what of it a search chose."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from raysys.config import Settings, StageSettings, load_yaml, parse_settings
from raysys.ensemble import EnsembleSettings
from raysys.learners.protocol import Resources
from raysys.learners.resources import cpus_of_a_node, resources_here
from raysys.stages.reranking import RerankerSettings
from raysys.stages.tuned import tuned_file, tuned_settings
from raysys.storage import Workspace
from raysys.tuning.settings import DataSettings


class ResourceSettings(Settings):
    """What one fit may use.

    Attributes:
        workers: processes that share a fit.
        cpus_per_worker: null: what the largest node can give, at most 8.
        gpus_per_worker: may be a fraction; counts only where there are GPUs.
    """

    workers: int = Field(default=1, ge=1)
    cpus_per_worker: float | None = Field(default=None, gt=0)
    gpus_per_worker: float = Field(default=0.0, ge=0)

    def here(self) -> Resources:
        """On the cluster that is there.

        Raises:
            UserError: more than it has.
        """
        import ray

        cpus = self.cpus_per_worker or cpus_of_a_node(self.workers)
        wanted = Resources(self.workers, cpus, self.gpus_per_worker)
        return resources_here(wanted) if ray.is_initialized() else wanted


class OutOfFold(Settings):
    """Which rows get out-of-fold scores, and what the models that score them leave out.

    Attributes:
        by: `time`: as a bare number says. `user`, `query` or `session`: the training rows are
            scored as well, each by a model that was fitted without its whole group, and the
            ensemble is fitted on those scores; the validation fold stays one of time.
        folds: by time, how many folds are scored; else how many shares the groups are cut into.
        purge_hours: by time, requests so close before the fold that is scored are left out of
            the fit; null: as long as the windows of labels in `raysys features`.
    """

    by: Literal["time", "user", "query", "session"] = "time"
    folds: int = Field(default=4, ge=1)
    purge_hours: float | None = Field(default=0.0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _number(cls, told: Any) -> Any:
        return {"folds": told} if isinstance(told, int) and not isinstance(told, bool) else told

    @model_serializer(mode="wrap")
    def _short(self, whole: SerializerFunctionWrapHandler) -> Any:
        # manifests of earlier versions have the number, and a run is known by what it says
        return self.folds if self == OutOfFold(folds=self.folds) else whole(self)

    @model_validator(mode="after")
    def _possible(self) -> OutOfFold:
        if self.by != "time" and self.folds < 2:
            raise ValueError("folds: one share of all groups leaves nothing to fit on")
        if self.by != "time" and self.purge_hours != 0:
            raise ValueError(
                f"purge_hours: groups of a {self.by} overlap in time by their nature; leave it "
                "out, or take by: time"
            )
        return self


class TrainSettings(StageSettings):
    """The YAML of `raysys train`.

    Attributes:
        learners: name -> its settings; the ensemble's members, in this order.
        tuned: name -> a YAML file that `raysys tune` wrote; what is in it goes over `learners`,
            and over `reranker` if that is the learner's name.
        use_tuned: without such a line, take what was found in this workspace (`tune/NAME`).
        out_of_fold: how many folds get out-of-fold scores: the validation fold, whose scores the
            ensemble is fitted on, then those before it, each by a model of its own. Or by what
            rows are held out, and how: see `OutOfFold`.
        ensemble: how base scores become one.
        reranker: a second stage that looks at the best few of a list for a query; null: none.
        without: learners that have no say in the ensemble, though they are fitted and scored.
        ensemble_only: fit the ensemble anew on the base scores of the run before, and publish a
            bundle of its models; learners that run did not fit are an error.
        resources: of every fit.
        learner_resources: name -> resources, for learners that need others.
        surface: which lists the bundle is for.
        name: readable beginning of the bundle's id.
        publish_as: what points at the new bundle. Where `champion` is served (`follow`), give
            another name, such as `challenger`: `raysys promote` asks whether it is better.
        seed: of everything random.
    """

    kind_name: ClassVar[str] = "train"

    learners: dict[str, dict[str, Any]] = Field(min_length=1)
    tuned: dict[str, str] = Field(default_factory=dict)
    use_tuned: bool = True
    out_of_fold: OutOfFold = OutOfFold(folds=1)
    ensemble: EnsembleSettings = EnsembleSettings()
    reranker: RerankerSettings | None = None
    without: tuple[str, ...] = ()
    ensemble_only: bool = False
    resources: ResourceSettings = ResourceSettings()
    learner_resources: dict[str, ResourceSettings] = Field(default_factory=dict)
    surface: str = "recommend"
    name: str = "bundle"
    publish_as: str = Field(default="champion", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,99}$")
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _names_are_learners(self) -> TrainSettings:
        second = set() if self.reranker is None else {self.reranker.learner}
        for where in ("tuned", "learner_resources", "without"):
            named = second | set(self.learners) if where == "tuned" else set(self.learners)
            for name in getattr(self, where):
                if name not in named:
                    raise ValueError(f"{where}.{name}: not among the learners above")
        if not set(self.learners) - set(self.without):
            raise ValueError("without: no learner is left")
        return self


def chosen_settings(settings: TrainSettings, workspace: Workspace) -> dict[str, dict[str, Any]]:
    """Settings of every learner: those of the YAML, then what a search found.

    Raises:
        UserError: a file of tuned settings is missing or is another learner's.
    """
    return {
        name: _settings_of(settings, name, own, workspace)
        for name, own in settings.learners.items()
    }


def chosen_reranker(
    settings: TrainSettings, workspace: Workspace
) -> tuple[RerankerSettings, DataSettings] | None:
    """The second stage with what a search found for its learner, and the rows that it learns from.

    Raises:
        UserError: a file of tuned settings is missing, damaged, or is another learner's.
    """
    told = settings.reranker
    if told is None:
        return None
    found = _settings_of(settings, told.learner, told.settings, workspace)
    rows = _rows_of(settings, told.learner, workspace)
    return told.model_copy(update={"settings": found}), rows or DataSettings()


def chosen_rows(settings: TrainSettings, workspace: Workspace) -> dict[str, DataSettings]:
    """What of the training rows each learner reads, where a search found that less is better.

    Raises:
        UserError: a file of tuned settings is missing or damaged.
    """
    found = {name: _rows_of(settings, name, workspace) for name in settings.learners}
    return {name: rows for name, rows in found.items() if rows is not None}


def _rows_of(settings: TrainSettings, name: str, workspace: Workspace) -> DataSettings | None:
    path = _tuned(settings, name, workspace)
    content = load_yaml(path).get("data") if path else None
    return parse_settings(DataSettings, content, where=f"{path}: data") if content else None


def _tuned(settings: TrainSettings, name: str, workspace: Workspace) -> Path | None:
    return tuned_file(name, settings.tuned, workspace, look=settings.use_tuned)


def _settings_of(
    settings: TrainSettings, name: str, own: dict[str, Any], workspace: Workspace
) -> dict[str, Any]:
    return tuned_settings(name, own, _tuned(settings, name, workspace))
