"""The state of a short training in this process, for one that is killed and taken up again.

Beside weights and moments it holds the state of torch's random numbers, for dropout. What numpy
draws is drawn again instead. (Trainings that run for hours have more to keep: `checkpoints`.)
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from raysys.storage import CheckpointFolder
from raysys.text.training.checkpoints import moments_of, set_moments, set_weights, weights_of

WEIGHTS, MOMENTS, CHANCE, STATE = (
    "weights.safetensors",
    "moments.safetensors",
    "chance.safetensors",
    "state.json",
)


def write_state(
    folder: CheckpointFolder,
    step: int,
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write the checkpoint after so many steps, and remove the one before.

    Args:
        folder: of this training.
        step: done so far.
        module: being trained.
        optimiser: over its parameters.
        more: what else `restored` is to give back, as JSON has it.
    """
    chance = {"cpu": torch.get_rng_state()}
    device = next(module.parameters()).device
    if device.type == "cuda":
        chance["cuda"] = torch.cuda.get_rng_state(device)
    with folder.writing(step) as fresh:
        save_file(weights_of(module), fresh / WEIGHTS)
        save_file(moments_of(module, optimiser), fresh / MOMENTS)
        save_file(chance, fresh / CHANCE)
        content = {**(more or {}), "step": step}
        (fresh / STATE).write_text(json.dumps(content) + "\n", encoding="utf-8")


def restored(
    folder: CheckpointFolder | None, module: nn.Module, optimiser: torch.optim.Optimizer
) -> dict[str, Any]:
    """Put a module, its optimiser and torch's random numbers where the last checkpoint left them.

    Args:
        folder: of this training; None: it starts anew.
        module: on its device, weights of the beginning.
        optimiser: over its parameters, unused.

    Returns:
        `step`, how many are done, and what `write_state` was given beside; empty without a
        checkpoint.
    """
    last = folder.last() if folder is not None else None
    if last is None:
        return {}
    set_weights(module, load_file(last / WEIGHTS))
    set_moments(module, optimiser, load_file(last / MOMENTS))
    chance = load_file(last / CHANCE)
    torch.set_rng_state(chance["cpu"])
    if "cuda" in chance:
        torch.cuda.set_rng_state(chance["cuda"], next(module.parameters()).device)
    found: dict[str, Any] = json.loads((last / STATE).read_text(encoding="utf-8"))
    return found


def resumed(
    folder: CheckpointFolder | None,
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> int:
    """Put a module, its optimiser and schedule where the last checkpoint left them.

    Args:
        folder: of this training; None: it starts anew.
        module: on its device, weights of the beginning.
        optimiser: over its parameters, unused.
        schedule: over the optimiser, at its beginning.

    Returns:
        The steps done; 0 without a checkpoint.
    """
    done = int(restored(folder, module, optimiser).get("step", 0))
    with warnings.catch_warnings():  # it misses the optimiser's steps
        warnings.simplefilter("ignore", UserWarning)
        for _ in range(done):
            schedule.step()
    return done
