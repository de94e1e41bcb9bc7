"""Whether there is a GPU, and whether something really ran on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from raysys.learners.protocol import Resources

ONE = Resources(workers=1, cpus_per_worker=1.0, gpus_per_worker=1.0)


def require_gpu() -> None:
    """Skip the module that asks where torch finds no GPU."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU here", allow_module_level=True)


@contextmanager
def on_the_gpu() -> Iterator[None]:
    """What is done within takes memory of the GPU in this process: so it ran there."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    yield
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() > before, "nothing was put on the GPU"
