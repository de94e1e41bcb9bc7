"""Fits of `raysys train` that a kill or an error cut off: the same command takes them up again."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from raysys.catalogue import Catalogue
from raysys.ensemble.folds import K, fit_forward
from raysys.features.examples import Examples
from raysys.learners import load_model
from raysys.learners.protocol import Context, Learner, Model, Resources
from raysys.progress import task
from raysys.storage import CheckpointFolder, write_atomic
from raysys.tuning.settings import DataSettings

log = logging.getLogger("raysys")

_CHECKPOINT_STEPS: Final = 200  # between two checkpoints of a fit


@dataclass(frozen=True)
class Member:
    """A learner ready to fit, what it may use, and what of the training rows it reads."""

    learner: Learner[Any]
    resources: Resources
    rows: DataSettings


def fit_members(
    members: Mapping[str, Member],
    fits: Mapping[K, Examples],
    catalogue: Catalogue,
    work: Path,
    seed: int,
) -> tuple[dict[str, dict[K, Model]], dict[str, float]]:
    """Models by learner and the fold or share they score, saved as they come; seconds by learner.

    Args:
        members: by name.
        fits: what is fitted on, by the fold, or the share of groups, that is scored.
        catalogue: every item.
        work: what outlives a kill: models go into `models`, and are not fitted again.
        seed: of everything random.
    """
    models: dict[str, dict[K, Model]] = {}
    seconds: dict[str, float] = {}
    with task("train: learners", len(members)) as fitting:
        for name, member in members.items():
            done, place = work / "fits" / f"{name}.json", work / "models" / name
            if done.is_file():
                log.info("train: %s was fitted before this run was cut off", name)
                folders = {fold: place / folder_of(fold) for fold in fits}
                models[name] = {k: load_model(name, f, catalogue) for k, f in folders.items()}
            else:
                began = time.monotonic()
                context = context_of(catalogue, work, name, seed, member.resources)
                views = {fold: replace(v, **member.rows.model_dump()) for fold, v in fits.items()}
                with task(f"train: {name}"):
                    models[name] = fit_forward(member.learner, views, context)
                took = round(time.monotonic() - began, 2)
                shutil.rmtree(place, ignore_errors=True)
                for fold, model in models[name].items():
                    (place / folder_of(fold)).mkdir(parents=True)
                    model.save(place / folder_of(fold))
                write_atomic(done, json.dumps({"seconds": took}) + "\n")
                shutil.rmtree(context.scratch, ignore_errors=True)
            seconds[name] = json.loads(done.read_text(encoding="utf-8"))["seconds"]
            fitting.advance()
    return models, seconds


def folder_of(scored: int | str) -> str:
    """Of the model that scores a fold of time, `fold=2`, or a share of groups, `user=0`."""
    return f"fold={scored}" if isinstance(scored, int) else scored


def context_of(
    catalogue: Catalogue, work: Path, name: str, seed: int, resources: Resources
) -> Context:
    """A learner's own: what Ray left of a killed fit is cleared away, checkpoints stay."""
    scratch = work / "scratch" / name
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    checkpoint = CheckpointFolder(work / "checkpoints" / name, _CHECKPOINT_STEPS)
    return Context(catalogue, scratch, seed, resources, checkpoint)
