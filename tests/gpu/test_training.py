"""The training loop on a GPU: in bfloat16, from pinned memory, cut off, and short of memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raysys.errors import UserError
from raysys.text.training import TrainingSettings, train
from raysys.text.training.objective import Tensors
from tests.gpu.device import on_the_gpu, require_gpu
from tests.text.training.tasks import FindsWord, device_of
from tests.text.training.test_resume import SETTINGS, Cut, weights

require_gpu()

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 8, "learning_rate": 3e-3}
MIB = 2**20


class Watched(FindsWord):
    """Remembers where batches and weights are, and in what is computed."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.seen: set[tuple[str, str, bool]] = set()
        self.pinned: set[bool] = set()

    def loss(self, module: nn.Module, batch: Tensors) -> Tensor:
        if module.training:
            where = (device_of(module).type, batch["ids"].device.type)
            self.seen.add((*where, torch.is_autocast_enabled("cuda")))
        return super().loss(module, batch)


@pytest.mark.parametrize(("precision", "bf16"), [("auto", True), ("bf16", True), ("fp32", False)])
def test_trains_there_in_the_precision_asked_for(
    tmp_path: Path, precision: Any, bf16: bool
) -> None:
    objective = Watched(n=200, layers=1)
    settings = TrainingSettings(
        epochs=6, batch_size=20, learning_rate=1e-2, dropout=0.0, precision=precision
    )
    with on_the_gpu():
        fitted = train(objective, settings, tmp_path / "out")
    assert objective.seen == {("cuda", "cuda", bf16)}
    assert fitted.history[-1]["training_loss"] < 0.3 < fitted.history[0]["training_loss"]


def test_batches_are_pinned_ahead_of_the_steps() -> None:
    from raysys.text.training.batches import Feed, Order

    objective = FindsWord()
    order = Order(objective.lengths(), 8, 4, seed=0)
    for batches in Feed(objective, order, torch.device("cuda"), 0).steps(0, order.per_epoch, 8):
        assert all(each.is_pinned() for one in batches for each in one.tensors.values())


def test_what_was_cut_off_goes_on_to_nearly_the_same_weights(tmp_path: Path) -> None:
    """To the last bit on a CPU; here as far as sums repeat that have no order."""
    settings = TrainingSettings(**SETTINGS)
    train(FindsWord(), settings, tmp_path / "whole", seed=3)
    with pytest.raises(KeyboardInterrupt):
        train(Cut(after=9), settings, tmp_path / "cut", seed=3)
    assert list((tmp_path / "cut.training").rglob("*.safetensors"))
    train(Cut(), settings, tmp_path / "cut", seed=3)
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert max(float((whole[name] - cut[name]).abs().max()) for name in whole) < 1e-2


class Hungry(FindsWord):
    """Wants 64 MiB of the GPU for every example of a batch."""

    def loss(self, module: nn.Module, batch: Tensors) -> Tensor:
        size = (len(batch["ids"]), 16 * MIB)
        held = torch.ones(size, device=device_of(module)) if module.training else None
        found = super().loss(module, batch)
        return found if held is None else found * held[0, 0]


@contextmanager
def only(mib: int) -> Iterator[None]:
    """So much of the GPU's memory for this process."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(mib * MIB / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_short_of_memory_it_takes_half_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = TrainingSettings(**{**QUICK, "batch_size": 32}, dropout=0.0, precision="fp32")
    plain = train(FindsWord(n=64), settings, tmp_path / "plain")
    with only(1024), caplog.at_level(logging.WARNING):
        fitted = train(Hungry(n=64), settings, tmp_path / "hungry")
    assert plain.micro_batch_size == 32 and fitted.micro_batch_size in (4, 8)
    assert "out of memory" in caplog.text
    one, other = weights(tmp_path / "plain"), weights(tmp_path / "hungry")
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-3


def test_one_example_that_does_not_fit_is_said(tmp_path: Path) -> None:
    with only(48), pytest.raises(UserError, match="not enough memory"):
        train(Hungry(n=16), TrainingSettings(**QUICK), tmp_path / "out")


def test_random_numbers_of_the_caller_go_on(tmp_path: Path) -> None:
    torch.cuda.manual_seed(3)
    expected = torch.rand(2, device="cuda")
    torch.cuda.manual_seed(3)
    train(FindsWord(), TrainingSettings(max_steps=1), tmp_path / "out")
    np.testing.assert_array_equal(torch.rand(2, device="cuda").cpu(), expected.cpu())
