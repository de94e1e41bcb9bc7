"""`train`: an objective to its end, in this process or through Ray Train."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from raysys.cluster import Resources
from raysys.text.encoder import autocast
from raysys.text.training.objective import Objective
from raysys.text.training.settings import TrainingSettings

Report = Callable[[int, float], None]
"""Told (step, the objective's criterion) at each evaluation; may raise to end the run."""


@dataclass(frozen=True)
class Fitted:
    """A finished run.

    Attributes:
        folder: what `Objective.save` wrote.
        figures: of the last evaluation of the weights that were kept.
        steps: optimiser steps taken.
        seconds: of training, evaluations included.
        examples_per_s: examples trained on a second, evaluations excluded.
        history: one entry an evaluation: step, loss and figures.
    """

    folder: Path
    figures: dict[str, float]
    steps: int
    seconds: float
    examples_per_s: float
    history: list[dict[str, float]] = field(default_factory=list)


def train(
    objective: Objective,
    settings: TrainingSettings,
    folder: Path,
    *,
    seed: int = 0,
    resources: Resources | None = None,
    report: Report | None = None,
) -> Fitted:
    """Train, and write the outcome into `folder` (new or empty).

    Args:
        objective: what is trained.
        settings: how.
        folder: for `Objective.save`.
        seed: of the order of examples, new weights, masks and dropout.
        resources: workers, CPUs and GPUs of a Ray Train run; None: in this very process.
        report: told the criterion as it goes; in this process only.

    Raises:
        UserError: nothing to train on, a loss that is no number, too little memory for one example.
    """
    torch.manual_seed(seed)
    device = torch.device("cuda" if resources and resources.gpus_per_worker else "cpu")
    module = objective.build().to(device)
    n = len(objective.lengths())
    per_epoch = math.ceil(n / settings.batch_size)
    steps = settings.max_steps or max(1, round(per_epoch * settings.epochs))
    optimiser = torch.optim.AdamW(
        module.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    warm = max(1, math.ceil(settings.warm_up * steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda at: min((at + 1) / warm, (steps - at) / max(1, steps - warm))
    )
    began, seen = time.monotonic(), 0
    module.train()
    for step in range(steps):
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(n)
        rows = order[place * settings.batch_size : (place + 1) * settings.batch_size]
        batch = objective.collate(rows, np.random.default_rng([seed, step, 0]))
        batch = {name: each.to(device) for name, each in batch.items()}
        with autocast(device):
            loss = objective.loss(module, batch)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if settings.clip is not None:
            nn.utils.clip_grad_norm_(module.parameters(), settings.clip)
        optimiser.step()
        schedule.step()
        seen += len(rows)
    spent = time.monotonic() - began
    module.eval()
    with torch.inference_mode():
        figures = dict(objective.evaluate(module))
    if report is not None and objective.criterion in figures:
        report(steps, figures[objective.criterion])
    folder.mkdir(parents=True, exist_ok=True)
    objective.save(module.to("cpu"), folder)
    return Fitted(folder, figures, steps, time.monotonic() - began, seen / spent)
