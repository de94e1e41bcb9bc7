"""When a short training goes astray: a loss or weights that are no numbers end it, and say where.

(Trainings that go through `loop` say more: which examples the step had.)
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import nn

from raysys.errors import UserError
from raysys.storage import CheckpointFolder
from raysys.text.training.resuming import write_state

_MEND: Final = "take a lower {rate}, or a longer warm_up where there is one"


def require_finite(
    loss: float,
    norm: float,
    step: int,
    steps: int,
    module: nn.Module,
    optimiser: torch.optim.Optimizer,
    checkpoint: CheckpointFolder | None,
    *,
    where: str,
    rate: str = "learning_rate",
) -> None:
    """End a training before a step that would spoil its weights; those before it are kept.

    Args:
        loss: of the step.
        norm: of its gradients.
        step: from 1.
        steps: of the training.
        module: the weights as they were after the step before.
        optimiser: over them.
        checkpoint: where they are kept; None: nowhere.
        where: the learner, and the part of it.
        rate: the setting that is too high, most of the time.

    Raises:
        UserError: loss or gradients are no numbers.
    """
    if math.isfinite(loss) and math.isfinite(norm):
        return
    kept = ""
    if checkpoint is not None:
        optimiser.zero_grad(set_to_none=True)
        if step > 1:  # before the first there is nothing to keep
            write_state(checkpoint, step - 1, module, optimiser)
            kept = f"; the weights before it are kept in {checkpoint.last()}"
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"its gradients are {norm}"
    highest = max(group["lr"] for group in optimiser.param_groups)
    raise UserError(
        f"{what} at step {step} of {steps}, learning rate {highest:.3g}{kept}",
        where=where,
        mend=_MEND.format(rate=rate),
    )


def require_finite_weights(
    module: nn.Module, steps: int, *, where: str, rate: str = "learning_rate"
) -> None:
    """Refuse what the last step spoilt, of which no loss told any more.

    Raises:
        UserError: a weight is no number.
    """
    for name, value in module.named_parameters():
        if not bool(torch.isfinite(value).all()):
            raise UserError(
                f"after {steps} steps the weights {name} are no numbers",
                where=where,
                mend=_MEND.format(rate=rate),
            )
