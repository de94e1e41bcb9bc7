"""`raysys train`: learners fitted forward in time, their ensemble, and a bundle to serve.

With `ensemble_only` nothing is fitted but the ensemble, on the base scores of an earlier run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from raysys.catalogue import Catalogue
from raysys.cluster import ray_session
from raysys.ensemble import BaseScores, Ensemble
from raysys.ensemble.out_of_fold import GROUPS
from raysys.errors import UserError
from raysys.features.examples import Examples
from raysys.learners import load_model, make_learner
from raysys.learners.protocol import Context, Model, Resources, TextEncoder
from raysys.monitoring.reference import Reference
from raysys.progress import task
from raysys.registry import Registry, write_reranker, write_search
from raysys.stages.named_files import named_files
from raysys.stages.out_of_fold import (
    base_scores,
    held_out,
    lessons_of,
    on_validation,
    require_scores,
)
from raysys.stages.reference import reference_of
from raysys.stages.reranking import RerankerSettings, SecondStage, fit_reranker
from raysys.stages.stacking import Stacking, groups_of, label_window_ms, require_lessons, stack
from raysys.stages.train_fits import Member, context_of, fit_members
from raysys.stages.train_settings import (
    TrainSettings,
    chosen_reranker,
    chosen_rows,
    chosen_settings,
)
from raysys.stages.unseen import require_served
from raysys.storage import (
    Manifest,
    Workspace,
    is_done,
    read_manifest,
    replacing,
    working_folder,
)
from raysys.tuning.settings import DataSettings

log = logging.getLogger("raysys")

RERANKER = "reranker"


def run(settings: TrainSettings, workspace: Workspace, *, force: bool = False) -> Manifest:
    """Fit, stack and publish; point `publish_as` at the new bundle.

    Learners that a killed run with the same plan had fitted are not fitted again; those that leave
    checkpoints go on from theirs, after an error as well.

    Raises:
        UserError: no features yet, settings that no learner takes, data nothing learns from, or
            with `ensemble_only` no base scores of a learner.
    """
    upstream = read_manifest(workspace.features)
    fitted = _fitted(workspace, upstream) if settings.ensemble_only else None
    chosen = chosen_settings(settings, workspace)
    learners = {
        name: make_learner(name, values, where=f"learners.{name}")
        for name, values in chosen.items()
    }
    if fitted is not None:
        chosen = _as_fitted(chosen, fitted, workspace)
        told = fitted.settings.get("rows", {})
        rows = {name: DataSettings.model_validate(each) for name, each in told.items()}
    else:
        rows = chosen_rows(settings, workspace)
    reranker = _reranker(settings, workspace, fitted)
    if fitted is not None:
        inputs = fitted.inputs
    else:
        named = named_files([chosen, reranker[0].settings if reranker else None])
        inputs = {"features": upstream.fingerprint, **named}
    planned = Manifest(
        stage="train",
        inputs=inputs,
        settings={
            **settings.model_dump(mode="json", exclude={"publish_as"}),
            "chosen": chosen,
            "rows": {name: each.model_dump() for name, each in rows.items()},
            "chosen_reranker": None if reranker is None else _as_json(*reranker),
        },
    )
    registry = Registry(workspace.registry)
    if not force and is_done(workspace.train, planned):
        done = read_manifest(workspace.train)
        bundle = done.figures.get("bundle")
        if bundle in registry.list():
            if settings.publish_as not in registry.pointers():
                registry.point(settings.publish_as, bundle)
            return done
    started = time.monotonic()
    validation = int(upstream.figures["folds"]["validation"])
    examples = Examples(workspace.features, (0,))
    for folds in (range(validation), (validation,)):
        require_lessons(examples.with_folds(*folds))
    last, window = examples.with_folds(validation), label_window_ms(upstream)
    if fitted is not None:
        require_scores(settings, workspace.train / "base_scores")
    lessons = lessons_of(settings, examples, validation)
    groups_of(lessons, settings.ensemble)
    reads = {name: learner.reads(examples.names) for name, learner in learners.items()}
    require_served(reads, upstream)  # what is known of it before hours of fits
    catalogue = Catalogue.load(workspace.features / "catalogue.parquet")
    work = None if fitted is not None else working_folder(workspace.train, planned, force)
    with _cluster(settings), replacing(workspace.train) as folder:
        if work is not None:
            held = held_out(settings, examples, validation, window, work)
            members = {
                name: Member(
                    *(learner, settings.learner_resources.get(name, settings.resources).here()),
                    rows.get(name, DataSettings()),
                )
                for name, learner in learners.items()
            }
            models, seconds = fit_members(members, held.fits, catalogue, work, settings.seed)
            shutil.copytree(work / "models", folder / "models", copy_function=_link)
            with task("train: out-of-fold scores", len(models) * len(held.fits)) as scoring:
                scores = base_scores(held, models, examples, scoring.advance)
                scores.write(folder / "base_scores")
                if held.groups is not None:
                    shutil.copy2(held.groups.table, folder / "base_scores" / GROUPS)
            served = {name: by_fold[validation] for name, by_fold in models.items()}
            known: Mapping[str, float] = {}
        else:
            assert fitted is not None
            with task("train: models and base scores of the run before"):
                for part in ("models", "base_scores"):
                    shutil.copytree(workspace.train / part, folder / part, copy_function=_link)
                stored = examples.with_folds(*sorted({*lessons.folds, validation}))
                scores = BaseScores.read(folder / "base_scores", stored)
                served = {
                    name: load_model(
                        name, folder / "models" / name / f"fold={validation}", catalogue
                    )
                    for name in learners
                    if name not in settings.without
                }
            seconds = fitted.figures.get("seconds", {})
            known = fitted.figures.get("latency_ms", {})
        require_served({name: model.requires for name, model in served.items()}, upstream)
        families = {
            name: learner.family
            for name, learner in learners.items()
            if name not in settings.without
        }
        with task("train: ensemble") as stacking:
            made = stack(scores, families, served, lessons, settings.ensemble, window, known)
            made.ensemble.save(folder / "ensemble.json")
            stacking.note = made.ensemble.fallbacks["full"].method.replace("_", " ")
        served = {name: served[name] for name in made.ensemble.members}
        second = None
        if reranker is not None:
            with task(f"train: {reranker[0].learner}, the second stage"):
                if fitted is not None and (workspace.train / RERANKER).is_dir():
                    shutil.copytree(workspace.train / RERANKER, folder / RERANKER)
                second = _second_stage(
                    settings,
                    *reranker,
                    examples,
                    validation,
                    made.ensemble,
                    scores,
                    catalogue,
                    folder,
                    work,
                )
        with task("train: reference"):
            reference = reference_of(
                workspace, settings.surface, last, scores, made.ensemble, catalogue, settings.seed
            )
        with task("train: bundle") as publishing:
            bundle = _publish(
                settings, workspace, served, made, second, catalogue, planned, upstream, reference
            )
            publishing.note = bundle
        planned.seconds = time.monotonic() - started
        planned.counts = {
            "learners": len(learners),
            "requests": scores.n_requests,
            "rows": len(scores.label),
        }
        planned.figures = {
            "bundle": bundle,
            **made.figures(),
            **made.costs(),
            **({} if second is None else {"reranker": second.figures}),
            "left_out": list(settings.without),
            "label_window_hours": window / 3_600_000,
            "seconds": seconds,
        }
        if lessons.folds != last.folds:
            planned.figures["validation_ndcg10"] = on_validation(made.ensemble, scores, last)
        augmented = {name: dict(model.augmented) for name, model in served.items()}
        if second is not None:
            augmented[RERANKER] = dict(second.model.augmented)
        planned.figures["augmented"] = {
            name: copies for name, copies in augmented.items() if copies
        }
        planned.write(folder)
    if work is not None:
        shutil.rmtree(work.parent, ignore_errors=True)
    return planned


def _cluster(settings: TrainSettings) -> contextlib.AbstractContextManager[Any]:
    """Ray; the ensemble alone needs none."""
    return contextlib.nullcontext() if settings.ensemble_only else ray_session()


def _publish(
    settings: TrainSettings,
    workspace: Workspace,
    served: Mapping[str, Model],
    made: Stacking,
    second: SecondStage | None,
    catalogue: Catalogue,
    planned: Manifest,
    upstream: Manifest,
    reference: Reference,
) -> str:
    """The id of a new bundle, which `publish_as` then points at."""
    registry = Registry(workspace.registry)
    bundle = registry.publish(
        lambda fresh: write_bundle(
            fresh, workspace, served, made.ensemble, catalogue, reference, second
        ),
        name_hint=settings.name,
        surface=settings.surface,
        learners=made.ensemble.families,
        data={"features": upstream.fingerprint, **upstream.inputs},
        settings=planned.settings,
        figures=made.figures(),
    )
    registry.point(settings.publish_as, bundle)
    return bundle


def _second_stage(
    settings: TrainSettings,
    told: RerankerSettings,
    rows: DataSettings,
    examples: Examples,
    validation: int,
    ensemble: Ensemble,
    scores: BaseScores,
    catalogue: Catalogue,
    folder: Path,
    work: Path | None,
) -> SecondStage:
    """Fitted on what lies before the validation fold, weighed on that.

    Args:
        settings: of the stage.
        told: of the second stage.
        rows: of its training examples, which of them and how they weigh.
        examples: of all folds.
        validation: the fold it is weighed on.
        ensemble: fitted.
        scores: out-of-fold base scores.
        catalogue: every item.
        folder: of the outcome.
        work: what outlives a kill; None: it is not fitted, but lies in `folder`.
    """
    lessons = replace(examples.with_folds(*range(validation)), **rows.model_dump())
    if work is None:
        context = Context(catalogue, folder, settings.seed)
    else:
        context = context_of(catalogue, work, RERANKER, settings.seed, Resources())
    return fit_reranker(
        told,
        None if work is None else lessons,
        examples.with_folds(validation),
        scores,
        ensemble,
        context,
        folder / RERANKER,
    )


def _reranker(
    settings: TrainSettings, workspace: Workspace, fitted: Manifest | None
) -> tuple[RerankerSettings, DataSettings] | None:
    """The second stage and its rows, as a search found them, or as the run before fitted it.

    Raises:
        UserError: see `chosen_reranker`.
    """
    told = settings.reranker
    if fitted is None or told is None:
        return chosen_reranker(settings, workspace)
    before = fitted.settings.get("chosen_reranker") or fitted.settings.get("reranker") or {}
    own = before["settings"] if before.get("learner") == told.learner else told.settings
    rows = DataSettings.model_validate(before.get("rows", {}))
    return told.model_copy(update={"settings": own}), rows


def _as_json(told: RerankerSettings, rows: DataSettings) -> dict[str, Any]:
    """What a manifest says of the second stage that was fitted."""
    return {"learner": told.learner, "settings": told.settings, "rows": rows.model_dump()}


def _fitted(workspace: Workspace, upstream: Manifest) -> Manifest:
    """The run before, whose models and base scores are taken.

    Raises:
        UserError: there is none, or it was of other features.
    """
    fitted = read_manifest(workspace.train)
    if fitted.inputs.get("features") != upstream.fingerprint:
        raise UserError(
            "the base scores are of other features than those that are there now",
            where=str(workspace.train),
            mend="run `raysys train` without --ensemble-only",
        )
    return fitted


def _as_fitted(
    chosen: dict[str, dict[str, Any]], fitted: Manifest, workspace: Workspace
) -> dict[str, dict[str, Any]]:
    """Settings with which the learners were fitted; who was not is an error.

    Raises:
        UserError: no base scores of a learner; names those that there are.
    """
    known = fitted.settings.get("chosen", {})
    for name, values in chosen.items():
        if name not in known or not (workspace.train / "models" / name).is_dir():
            raise UserError(
                f"no base scores of {name}",
                where=str(workspace.train),
                mend=f"there are those of {', '.join(known)}: leave it out, or run "
                "`raysys train` without --ensemble-only",
            )
        if values != known[name]:
            log.warning("train: %s was fitted with other settings than those given now", name)
    return {name: known[name] for name in chosen}


def _link(source: str, target: str) -> None:
    """A second name of a file that nobody changes, or a copy where that cannot be."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def write_bundle(
    folder: Path,
    workspace: Workspace,
    models: Mapping[str, Model],
    ensemble: Ensemble,
    catalogue: Catalogue,
    reference: Reference | None = None,
    second: SecondStage | None = None,
) -> None:
    """Fill an empty folder with all that serving needs; see `registry.py` for its shape."""
    shutil.copytree(workspace.features / "state", folder / "features")
    for name, model in models.items():
        place = folder / "learners" / name
        place.mkdir(parents=True)
        model.save(place)
    ensemble.save(folder / "ensemble.json")
    if reference is not None:
        reference.save(folder)
    encoders = [model for model in models.values() if isinstance(model, TextEncoder)]
    write_search(folder / "search", catalogue, encoders[0] if encoders else None)
    if second is not None:
        write_reranker(folder, second.learner, second.model, second.top, second.weight)
