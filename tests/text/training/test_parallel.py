"""DDP and FSDP over gloo in two processes, without Ray: each does what one process does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import Tensor, nn

from raysys.text.training import TrainingSettings, train
from raysys.text.training.loop import Loop
from raysys.text.training.objective import Tensors
from raysys.text.training.parallel import World
from tests.text.training.tasks import FindsWord

pytestmark = pytest.mark.slow

BASE: dict[str, Any] = {
    "epochs": 2, "learning_rate": 3e-3, "dropout": 0.0, "evaluate_every": {"steps": 3},
    "precision": "fp32",  # sums in another order are another number in bfloat16
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "micro": {"micro_batch_size": 3, "weight_decay": 0.3, "clip": 0.1},
    "lora": {"lora": {"rank": 2}, "trainable_layers": 1},
    "frozen": {"trainable_layers": 1, "layer_decay": 0.5, "gradient_checkpointing": True},
}
N = 41  # the last step of an epoch has one example: one of two workers has none
CUT = 7


class CutShort(FindsWord):
    """Raises in the training step after so many, in every worker."""

    batches = 0

    def loss(self, module: nn.Module, batch: Tensors) -> Tensor:
        self.batches += torch.is_grad_enabled()
        if self.batches == CUT:
            raise KeyboardInterrupt
        return super().loss(module, batch)


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    for strategy in ("ddp", "fsdp"):
        world = World(rank=rank, size=2, sharded=strategy == "fsdp")
        for name, extra in VARIANTS.items():
            settings = TrainingSettings(**BASE, **extra, batch_size=4, strategy=strategy)
            place = folder / f"{strategy}-{name}"
            loop = Loop(FindsWord(N), settings, place / "scratch", 3, world)
            loop.run()
            loop.save(place)
        often = TrainingSettings(
            **BASE, **VARIANTS["frozen"], batch_size=4, strategy=strategy,
            checkpoint_every={"steps": 2},
        )  # fmt: skip
        place = folder / f"{strategy}-cut"
        with pytest.raises(KeyboardInterrupt):
            Loop(CutShort(N), often, place / "scratch", 3, world).run()
        loop = Loop(FindsWord(N), often, place / "scratch", 3, world)
        loop.run()
        loop.save(place)
    dist.destroy_process_group()


def weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_file(folder / "model.safetensors")
    return found


def test_two_workers_do_what_one_does(tmp_path: Path) -> None:
    mp.spawn(work, (tmp_path,), nprocs=2)
    for name, extra in VARIANTS.items():
        settings = TrainingSettings(**BASE, **extra, batch_size=8)
        train(FindsWord(N), settings, tmp_path / "one" / name, seed=3)
        expected = weights(tmp_path / "one" / name)
        torch.manual_seed(3)
        fresh = FindsWord(N).build().state_dict()
        for strategy in ("ddp", "fsdp"):
            found = weights(tmp_path / f"{strategy}-{name}")
            assert found.keys() == expected.keys() == fresh.keys()
            for key, tensor in expected.items():
                torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-4, msg=key)
            assert not torch.equal(found["head.weight"], fresh["head.weight"])
    for strategy in ("ddp", "fsdp"):
        whole, cut = weights(tmp_path / f"{strategy}-frozen"), weights(tmp_path / f"{strategy}-cut")
        assert all(torch.equal(whole[key], cut[key]) for key in whole)
