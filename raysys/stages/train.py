"""`raysys train`: learners fitted forward in time, their ensemble, and a bundle to serve."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from raysys.catalogue import Catalogue
from raysys.cluster import ray_session
from raysys.config import Settings, StageSettings, load_yaml
from raysys.ensemble import BaseScores, Ensemble, EnsembleSettings, fit_ensemble
from raysys.ensemble.folds import fit_forward, forward_folds, score_forward
from raysys.errors import UserError
from raysys.features.examples import Examples
from raysys.learners import make_learner
from raysys.learners.protocol import Context, Learner, Model, Resources, TextEncoder
from raysys.learners.resources import cpus_of_a_node, resources_here
from raysys.progress import task
from raysys.registry import Registry, write_search
from raysys.storage import Manifest, Workspace, is_done, read_manifest, replacing


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


class TrainSettings(StageSettings):
    """The YAML of `raysys train`.

    Attributes:
        learners: name -> its settings; the ensemble's members, in this order.
        tuned: name -> a YAML file that `raysys tune` wrote; what is in it goes over `learners`.
        use_tuned: without such a line, take what was found in this workspace (`tune/NAME`).
        out_of_fold: how many folds get out-of-fold scores: the validation fold, whose scores the
            ensemble is fitted on, then those before it, each by a model of its own.
        ensemble: how base scores become one.
        resources: of every fit.
        learner_resources: name -> resources, for learners that need others.
        surface: which lists the bundle is for.
        name: readable beginning of the bundle's id.
        seed: of everything random.
    """

    kind_name: ClassVar[str] = "train"

    learners: dict[str, dict[str, Any]] = Field(min_length=1)
    tuned: dict[str, str] = Field(default_factory=dict)
    use_tuned: bool = True
    out_of_fold: int = Field(default=1, ge=1)
    ensemble: EnsembleSettings = EnsembleSettings()
    resources: ResourceSettings = ResourceSettings()
    learner_resources: dict[str, ResourceSettings] = Field(default_factory=dict)
    surface: str = "recommend"
    name: str = "bundle"
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _names_are_learners(self) -> TrainSettings:
        for where in ("tuned", "learner_resources"):
            for name in getattr(self, where):
                if name not in self.learners:
                    raise ValueError(f"{where}.{name}: not among the learners above")
        return self


@dataclass(frozen=True)
class Member:
    """A learner ready to fit, and what it may use."""

    learner: Learner[Any]
    resources: Resources


def run(settings: TrainSettings, workspace: Workspace, *, force: bool = False) -> Manifest:
    """Fit, stack and publish; point `champion` at the new bundle.

    Raises:
        UserError: no features yet, settings that no learner takes, or data nothing learns from.
    """
    upstream = read_manifest(workspace.features)
    chosen = chosen_settings(settings, workspace)
    learners = {
        name: make_learner(name, values, where=f"learners.{name}")
        for name, values in chosen.items()
    }
    planned = Manifest(
        stage="train",
        inputs={"features": upstream.fingerprint},
        settings={**settings.model_dump(mode="json"), "chosen": chosen},
    )
    registry = Registry(workspace.registry)
    if not force and is_done(workspace.train, planned):
        done = read_manifest(workspace.train)
        if done.figures.get("bundle") in registry.list():
            return done
    started = time.monotonic()
    validation = int(upstream.figures["folds"]["validation"])
    examples = Examples(workspace.features, (0,))
    catalogue = Catalogue.load(workspace.features / "catalogue.parquet")
    with ray_session(), replacing(workspace.train) as folder:
        members = {
            name: Member(learner, settings.learner_resources.get(name, settings.resources).here())
            for name, learner in learners.items()
        }
        fits = forward_folds(examples, validation, settings.out_of_fold)
        models, seconds = _fit(members, fits, catalogue, folder, settings.seed)
        with task("train: out-of-fold scores", len(models) * len(fits)) as scoring:
            scores = score_forward(models, examples, scoring.advance)
            scores.write(folder / "base_scores")
        families = {name: member.learner.family for name, member in members.items()}
        with task("train: ensemble") as stacking:
            ensemble = _stack(scores, families, settings.ensemble, workspace)
            ensemble.save(folder / "ensemble.json")
            stacking.note = ensemble.fallbacks["full"].method.replace("_", " ")
        figures = _figures(ensemble)
        with task("train: bundle") as publishing:
            served = {name: by_fold[validation] for name, by_fold in models.items()}
            bundle = registry.publish(
                lambda fresh: write_bundle(fresh, workspace, served, ensemble, catalogue),
                name_hint=settings.name,
                surface=settings.surface,
                learners=families,
                data={"features": upstream.fingerprint, **upstream.inputs},
                settings=planned.settings,
                figures=figures,
            )
            registry.point("champion", bundle)
            publishing.note = bundle
        planned.seconds = time.monotonic() - started
        planned.counts = {
            "learners": len(members),
            "requests": scores.n_requests,
            "rows": len(scores.label),
        }
        planned.figures = {"bundle": bundle, **figures, "seconds": seconds}
        augmented = {name: dict(model.augmented) for name, model in served.items()}
        planned.figures["augmented"] = {name: made for name, made in augmented.items() if made}
        planned.write(folder)
    return planned


def write_bundle(
    folder: Path,
    workspace: Workspace,
    models: Mapping[str, Model],
    ensemble: Ensemble,
    catalogue: Catalogue,
) -> None:
    """Fill an empty folder with all that serving needs; see `registry.py` for its shape."""
    shutil.copytree(workspace.features / "state", folder / "features")
    for name, model in models.items():
        place = folder / "learners" / name
        place.mkdir(parents=True)
        model.save(place)
    ensemble.save(folder / "ensemble.json")
    encoders = [model for model in models.values() if isinstance(model, TextEncoder)]
    write_search(folder / "search", catalogue, encoders[0] if encoders else None)


def _fit(
    members: Mapping[str, Member],
    fits: Mapping[int, Examples],
    catalogue: Catalogue,
    folder: Path,
    seed: int,
) -> tuple[dict[str, dict[int, Model]], dict[str, float]]:
    """Models by learner and the fold they score, saved as they come; seconds by learner."""
    models: dict[str, dict[int, Model]] = {}
    seconds: dict[str, float] = {}
    scratch = folder / "scratch"
    scratch.mkdir()
    with task("train: learners", len(members)) as fitting:
        for name, member in members.items():
            began = time.monotonic()
            context = Context(catalogue, scratch, seed, member.resources)
            with task(f"train: {name}"):
                models[name] = fit_forward(member.learner, fits, context)
            seconds[name] = round(time.monotonic() - began, 2)
            for fold, model in models[name].items():
                place = folder / "models" / name / f"fold={fold}"
                place.mkdir(parents=True)
                model.save(place)
            fitting.advance()
    shutil.rmtree(scratch, ignore_errors=True)
    return models, seconds


def _stack(
    scores: BaseScores,
    families: Mapping[str, str],
    settings: EnsembleSettings,
    workspace: Workspace,
) -> Ensemble:
    """The fitted ensemble; that nothing can be learned is the data's fault, not ours."""
    try:
        return fit_ensemble(scores, families, settings)
    except ValueError as error:
        raise UserError(
            f"the ensemble cannot be fitted: {error}",
            where=str(workspace.features),
            mend="take more events, more requests a fold, or more candidates in `raysys features`",
        ) from None


def _figures(ensemble: Ensemble) -> dict[str, Any]:
    """NDCG@10 on the last out-of-fold fold, weights and methods, for manifests."""
    return {
        "ndcg10": {
            **{name: c.figures["held_out_ndcg"] for name, c in ensemble.alone.items()},
            **{name: c.figures["held_out_ndcg"] for name, c in ensemble.fallbacks.items()},
        },
        "weights": {name: c.share for name, c in ensemble.fallbacks.items()},
        "methods": {name: c.method for name, c in ensemble.fallbacks.items()},
    }


def chosen_settings(settings: TrainSettings, workspace: Workspace) -> dict[str, dict[str, Any]]:
    """Settings of every learner: those of the YAML, then what a search found.

    Raises:
        UserError: a file of tuned settings is missing or is another learner's.
    """
    return {name: _settings_of(settings, name, workspace) for name in settings.learners}


def _settings_of(settings: TrainSettings, name: str, workspace: Workspace) -> dict[str, Any]:
    own = settings.learners[name]
    found = workspace.tune / name / "best.yaml"
    if name in settings.tuned:
        found = Path(settings.tuned[name])
        if not found.is_file():
            raise UserError(
                f"no such file: {settings.tuned[name]!r}",
                where=f"tuned.{name}",
                mend=f"run `raysys tune --config tune_configs/{name}.yaml` first, or leave it out",
            )
    elif not (settings.use_tuned and found.is_file()):
        return own
    content = load_yaml(found)
    if not isinstance(content.get(name), dict):
        raise UserError(
            f"no settings of {name}",
            where=str(found),
            mend=f"it should hold `{name}:` and its settings, as `raysys tune` writes them",
        )
    return {**own, **content[name]}
