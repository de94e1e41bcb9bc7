"""Through Ray Train: the same weights as in this process, also after a kill; DDP and FSDP."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from raysys.cluster import Resources, ray_session
from raysys.errors import UserError
from raysys.text.training import TrainingSettings, train
from raysys.text.training.objective import Tensors
from tests.text.training.tasks import DiesOnce, FindsWord

pytestmark = pytest.mark.slow

SETTINGS: dict[str, Any] = {
    "epochs": 3, "batch_size": 8, "learning_rate": 3e-3, "checkpoint_every": {"steps": 2},
    "max_failures": 1,
}  # fmt: skip
TWO = Resources(workers=2, cpus_per_worker=0.5)


@pytest.fixture(scope="module", autouse=True)
def ray() -> Iterator[None]:
    with ray_session():
        yield


def weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_file(folder / "model.safetensors")
    return found


def difference(one: Path, other: Path) -> float:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def test_a_killed_worker_changes_nothing(tmp_path: Path) -> None:
    settings = TrainingSettings(**SETTINGS)
    whole = train(FindsWord(), settings, tmp_path / "whole", seed=3)
    marker = tmp_path / "died"
    objective = DiesOnce(marker, after=8)
    found = train(objective, settings, tmp_path / "killed", seed=3, resources=Resources())
    assert marker.exists()
    assert difference(tmp_path / "whole", tmp_path / "killed") == 0
    assert found.history == whole.history
    assert found.figures == whole.figures
    assert found.steps == whole.steps == 15
    assert sorted(path.name for path in tmp_path.iterdir()) == ["died", "killed", "whole"]


class Narrow(FindsWord):
    """One of two workers takes no more than two examples at once; or the loss is no number."""

    bad = False

    def loss(self, module: nn.Module, batch: Tensors) -> Tensor:
        second = torch.distributed.is_initialized() and torch.distributed.get_rank() == 1
        if second and torch.is_grad_enabled() and len(batch["ids"]) > 2:
            raise RuntimeError("DefaultCPUAllocator: not enough memory")
        found = super().loss(module, batch)
        return found * math.nan if self.bad else found


def test_two_workers_do_what_one_does_though_one_is_short_of_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alike = {**SETTINGS, "max_failures": 0, "precision": "fp32"}
    settings = TrainingSettings(**alike, dropout=0.0, strategy="fsdp")
    train(Narrow(n=41), settings, tmp_path / "one", seed=3)
    shared = settings.model_copy(update={"batch_size": 4})
    with caplog.at_level(logging.WARNING, "raysys"):
        fitted = train(Narrow(n=41), shared, tmp_path / "two", seed=3, resources=TWO)
    assert "starting again with smaller micro-batches" in caplog.text
    assert fitted.micro_batch_size == 2
    assert fitted.steps == 18  # of 41 examples an epoch's last step has one: a worker has none
    assert difference(tmp_path / "one", tmp_path / "two") < 1e-4


def test_what_the_user_can_mend_comes_back_from_a_worker(tmp_path: Path) -> None:
    objective = Narrow()
    objective.bad = True
    settings = TrainingSettings(**SETTINGS, micro_batch_size=2, max_steps=4)
    with pytest.raises(UserError, match="the loss is nan at step 1 of 4"):
        train(objective, settings, tmp_path / "bad", resources=TWO)
    assert list((tmp_path / "bad.training").glob("step-000000000/weights.safetensors"))
