"""A run that was cut off gives, to the last bit, the weights of one that was not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from raysys.text.training import TrainingSettings, train
from raysys.text.training.batches import placed
from raysys.text.training.objective import Identity, Tensors
from tests.text.training.tasks import FindsWord, device_of

SETTINGS: dict[str, Any] = {
    "epochs": 3, "batch_size": 8, "learning_rate": 3e-3, "evaluate_every": {"steps": 2},
    "checkpoint_every": {"steps": 3},
}  # fmt: skip


class Cut(FindsWord):
    """Raises in the batch after so many."""

    def __init__(self, after: int | None = None, **how: Any) -> None:
        super().__init__(**how)
        self.after, self.batches = after, 0

    def loss(self, module: nn.Module, batch: Tensors) -> Tensor:
        if module.training:
            self.batches += 1
        if self.batches == self.after:
            raise KeyboardInterrupt
        return super().loss(module, batch)


class Mines(Cut):
    """Turns labels by what the model said when the epoch began, as miners of negatives do."""

    flipped: Any = None

    def refresh(self, module: nn.Module, epoch: int) -> None:
        batch = super().collate(np.arange(self.n), np.random.default_rng(0))
        batch = placed(batch, device_of(module))
        said = module(batch["ids"], batch["mask"])[:, 0].float().cpu().numpy()
        self.flipped = said > np.median(said)

    def state(self) -> Tensors:
        return {} if self.flipped is None else {"flipped": torch.from_numpy(self.flipped)}

    def restore(self, state: Tensors) -> None:
        self.flipped = state["flipped"].numpy()

    def collate(self, rows: Any, rng: np.random.Generator) -> Tensors:
        batch = super().collate(rows, rng)
        if self.flipped is not None and rows.max() < self.n:
            batch["label"] = batch["label"] ^ torch.from_numpy(self.flipped[rows]).long()
        return batch


def weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_file(folder / "model.safetensors")
    return found


def assert_same(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert (one / "history.json").read_text() == (other / "history.json").read_text()


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        (Cut, {}),
        (Mines, {}),
        (Cut, {"lora": {"rank": 2, "dropout": 0.1}, "keep": "last"}),
        (Cut, {"micro_batch_size": 3, "layer_decay": 0.7, "patience": 3}),
    ],
)
def test_goes_on_in_the_middle_of_an_epoch(
    tmp_path: Path, kind: type[Cut], extra: dict[str, Any]
) -> None:
    settings = TrainingSettings(**SETTINGS, **extra)
    train(kind(), settings, tmp_path / "whole", seed=5)
    at_once = 3 if "micro_batch_size" in extra else 1
    for after in (4, 8, 14):
        scratch, out = tmp_path / f"scratch-{after}", tmp_path / f"cut-{after}"
        with pytest.raises(KeyboardInterrupt):
            train(kind(after * at_once), settings, out, seed=5, scratch=scratch)
        kept = (after - 1) // 3 * 3
        left = [path.name for path in (scratch / f"{out.name}.training").glob("step-*")]
        assert left == [f"step-{kept:09d}"]
        again = kind()
        fitted = train(again, settings, out, seed=5, scratch=scratch)
        assert_same(tmp_path / "whole", out)
        assert again.batches == (fitted.steps - kept) * at_once  # the rest only
        assert not list(scratch.iterdir())


def test_a_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    settings = TrainingSettings(**SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        train(Cut(8), settings, tmp_path / "out")
    files = [path for path in (tmp_path / "out.training").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    for path in files:
        load_file(path) if path.suffix == ".safetensors" else json.loads(path.read_text())


@pytest.mark.parametrize(
    ("settings", "n", "seed"), [({"learning_rate": 1e-3}, 40, 5), ({}, 39, 5), ({}, 40, 6)]
)
def test_a_checkpoint_of_another_run_is_left_aside(
    tmp_path: Path, settings: dict[str, Any], n: int, seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    scratch = tmp_path / "scratch"
    with pytest.raises(KeyboardInterrupt):
        train(Cut(8), TrainingSettings(**SETTINGS), tmp_path / "cut", seed=5, scratch=scratch)
    changed = TrainingSettings(**{**SETTINGS, **settings})
    train(Cut(n=n), changed, tmp_path / "cut", seed=seed, scratch=scratch)
    train(Cut(n=n), changed, tmp_path / "whole", seed=seed)
    assert "starting anew" in caplog.text
    assert_same(tmp_path / "whole", tmp_path / "cut")


class Judged(FindsWord):
    """Its last text, which the fingerprint's first batch lacks, may have another label."""

    def __init__(self, changed: bool, after: int = 10**9) -> None:
        super().__init__()
        self.labels[self.n - 1] ^= changed
        self.after = after

    def identity(self) -> Identity:
        return {"labels": self.labels}

    def loss(self, module: nn.Module, batch: Tensors) -> Tensor:
        self.after -= torch.is_grad_enabled()
        if self.after < 0:
            raise KeyboardInterrupt
        return super().loss(module, batch)


@pytest.mark.parametrize("changed", [False, True])
def test_a_checkpoint_of_other_labels_is_left_aside(
    tmp_path: Path, changed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    settings, scratch = TrainingSettings(**SETTINGS), tmp_path / "scratch"
    with pytest.raises(KeyboardInterrupt):
        train(Judged(False, 8), settings, tmp_path / "cut", seed=5, scratch=scratch)
    train(Judged(changed), settings, tmp_path / "cut", seed=5, scratch=scratch)
    train(Judged(changed), settings, tmp_path / "whole", seed=5)
    assert ("starting anew" in caplog.text) == changed
    assert_same(tmp_path / "whole", tmp_path / "cut")


def test_checkpoints_by_the_clock(tmp_path: Path) -> None:
    often = {**SETTINGS, "checkpoint_every": {"seconds": 1e-9}}
    with pytest.raises(KeyboardInterrupt):
        train(Cut(8), TrainingSettings(**often), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out.training").glob("step-*")] == ["step-000000007"]
