"""In which precision a step computes, and how to know that memory ran out."""

from __future__ import annotations

import logging

import torch

from raysys.text import encoder
from raysys.text.training.settings import TrainingSettings

log = logging.getLogger("raysys")

_SIGNS = ("not enough memory", "can't allocate memory", "out of memory", "ALLOC_FAILED")


def computes_in_bf16(settings: TrainingSettings, device: torch.device) -> bool:
    """Whether matrix products run in bfloat16; weights and their updates stay in float32."""
    with encoder.autocast(device):
        fast = torch.is_autocast_enabled(device.type)
    if settings.precision == "bf16" and not fast:
        log.warning("bf16 is emulated on this hardware, which is slower than fp32")
    return fast if settings.precision == "auto" else settings.precision == "bf16"


def autocast(device: torch.device, bf16: bool) -> torch.autocast:
    """The context in which the loss is computed."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or (torch has no class for it) on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
