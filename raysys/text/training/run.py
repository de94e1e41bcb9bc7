"""`train`: an objective to its end, in this process or through Ray Train."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from raysys import progress
from raysys.cluster import Resources, device_here
from raysys.text.training.loop import Loop, Standing
from raysys.text.training.objective import Objective
from raysys.text.training.parallel import World
from raysys.text.training.settings import TrainingSettings

Report = Callable[[int, float], None]
"""Told (step, the objective's `reported`) at each evaluation; may raise to end the run."""


@dataclass(frozen=True)
class Fitted:
    """A finished run.

    Attributes:
        folder: what `Objective.save` wrote, and `history.json`.
        figures: of the last evaluation of the weights that were kept.
        steps: optimiser steps taken.
        seconds: of training, evaluations and earlier attempts included.
        examples_per_s: examples trained on a second, evaluations and checkpoints excluded.
        history: one entry an evaluation: step, epoch, training loss since the one before, learning
            rate, and figures.
        tokens_per_s: as `examples_per_s`, in what `Objective.lengths` counts.
        micro_batch_size: examples that went through the model at once, in the end.
    """

    folder: Path
    figures: dict[str, float]
    steps: int
    seconds: float
    examples_per_s: float
    history: list[dict[str, float]] = field(default_factory=list)
    tokens_per_s: float = 0.0
    micro_batch_size: int = 0

    @classmethod
    def of(cls, folder: Path, at: Standing) -> Fitted:
        """What a loop that came to its end has to say."""
        return cls(
            folder=folder,
            figures=at.figures,
            steps=at.step,
            seconds=at.elapsed,
            examples_per_s=at.examples / max(at.seconds, 1e-9),
            history=at.history,
            tokens_per_s=at.tokens / max(at.seconds, 1e-9),
            micro_batch_size=at.micro_batch_size,
        )


def train(
    objective: Objective,
    settings: TrainingSettings,
    folder: Path,
    *,
    seed: int = 0,
    resources: Resources | None = None,
    report: Report | None = None,
    scratch: Path | None = None,
) -> Fitted:
    """Train, and write the outcome into `folder` (new or empty).

    A run that was cut off, by a kill or an error, leaves its last checkpoint in `scratch`; called
    again with the same objective, settings and seed it goes on from there, to the same weights.

    Args:
        objective: what is trained.
        settings: how.
        folder: for `Objective.save`.
        seed: of the order of examples, new weights, masks and dropout.
        resources: workers, CPUs and GPUs of a Ray Train run; None: in this very process, on its
            GPU where it has one. One worker gives the same either way.
        report: told as it goes; in this process only.
        scratch: a folder that all workers see; checkpoints and best weights lie there in
            `NAME.training` (NAME as of `folder`) until the run has ended. None: beside `folder`.

    Raises:
        UserError: nothing to train on, a loss that is no number, too little memory for one example.
    """
    place = (scratch or folder.parent) / f"{folder.name}.training"
    place.mkdir(parents=True, exist_ok=True)
    if resources is None:
        standing = _here(objective, settings, folder, place, seed, report)
    else:
        from raysys.text.training.distributed import train_distributed

        standing = train_distributed(objective, settings, folder, place, seed, resources)
    shutil.rmtree(place, ignore_errors=True)
    return Fitted.of(folder, standing)


def _here(
    objective: Objective,
    settings: TrainingSettings,
    folder: Path,
    scratch: Path,
    seed: int,
    report: Report | None,
) -> Standing:
    device = torch.device(device_here())
    gpus = [torch.cuda.current_device()] if device.type == "cuda" else []
    with torch.random.fork_rng(gpus), progress.task(objective.title) as task:

        def advance(step: int, steps: int, note: str) -> None:
            task.total, task.note = steps, note
            task.reach(step)

        loop = Loop(
            objective, settings, scratch, seed, World(device), report=report, progress=advance
        )
        standing = loop.run()
        loop.save(folder)
    return standing
