"""AdamW as transformers are trained: rates by layer, no decay on biases and norms, a schedule."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from raysys.errors import UserError
from raysys.text.training.layers import depths
from raysys.text.training.settings import TrainingSettings


def groups(module: nn.Module, settings: TrainingSettings) -> list[dict[str, Any]]:
    """Trainable parameters by rate and decay, in the order of the module.

    The layer l below the top learns at `layer_decay`^l times the rate (Howard and Ruder 2018);
    matrices decay, vectors (biases, norms) do not.
    """
    backbone: nn.Module = module.backbone  # type: ignore[assignment]
    if settings.layer_decay < 1:
        deep = depths(backbone, "layer_decay")
    else:
        deep = dict.fromkeys(map(id, backbone.parameters()), 0)
    head = settings.head_learning_rate or settings.learning_rate
    found: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for parameter in module.parameters():
        if not parameter.requires_grad:
            continue
        below = deep.get(id(parameter))
        decayed = settings.layer_decay ** max(0, below or 0)
        rate = head if below is None else settings.learning_rate * decayed
        found[rate, settings.weight_decay if parameter.ndim > 1 else 0.0].append(parameter)
    return [
        {"params": parameters, "lr": rate, "peak": rate, "weight_decay": decay}
        for (rate, decay), parameters in found.items()
    ]


def adamw(module: nn.Module, settings: TrainingSettings, *, fused: bool) -> torch.optim.AdamW:
    """AdamW over `groups`; `fused`: one pass over all weights, for plain tensors.

    Raises:
        UserError: every weight is frozen.
    """
    found = groups(module, settings)
    if not found:
        raise UserError(
            "no weight is left to train",
            where="trainable_layers",
            mend="train a layer, adapters or a head",
        )
    return torch.optim.AdamW(found, fused=fused)


def factor(settings: TrainingSettings, step: int, steps: int) -> float:
    """What the highest rates are multiplied by in a step (from 0) of so many."""
    warm = max(1, math.ceil(settings.warm_up * steps))
    if step < warm:
        return (step + 1) / warm
    left = (steps - step) / max(1, steps - warm)
    if settings.schedule == "linear":
        return left
    return (1 - math.cos(math.pi * left)) / 2 if settings.schedule == "cosine" else 1.0


def set_rates(optimiser: torch.optim.Optimizer, scale: float) -> float:
    """Set each group's rate for the step; returns the highest."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * scale
    return float(max(group["lr"] for group in optimiser.param_groups))
