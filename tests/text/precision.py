"""Arithmetic that is the same on every CPU."""

from __future__ import annotations

import pytest
import torch

from raysys.text import encoder


def in_float32(patch: pytest.MonkeyPatch) -> None:
    """Encoders compute in float32, also where the CPU is fast in bfloat16."""
    patch.setattr(encoder, "autocast", lambda device: torch.autocast(device.type, enabled=False))
