"""What a run that was cut off needs to go on, to the last bit: safetensors and JSON, no pickle.

A checkpoint holds the weights that are trained (of adapters these alone), the optimiser's moments
and where the run stands. Random numbers need no place in it: every step draws from a seed of its
own. Weights that were best so far lie beside it. A checkpoint is written under another name and
moved into place, then the one before is removed: a kill leaves one that is whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raysys.text.training.parallel import like, whole

STATE = "state.json"
WEIGHTS = "weights.safetensors"
OPTIMISER = "optimiser.safetensors"
OBJECTIVE = "objective.safetensors"


def trained(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Trainable parameters and the buffers that are saved, each once, by name."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            yield name, parameter
    saved = module.state_dict(keep_vars=True)
    for name, buffer in module.named_buffers():
        if name in saved:
            yield name, buffer


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Copies on the CPU of what is trained; every worker must call this."""
    return {name: whole(tensor) for name, tensor in trained(module)}


@torch.no_grad()
def set_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put back what `weights_of` gave, or as much of it as the module trains."""
    for name, tensor in trained(module):
        tensor.copy_(like(weights[name], tensor))


def moments_of(module: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state by `parameter/what`; every worker must call this."""
    found = {}
    for name, parameter in module.named_parameters():
        for what, value in optimiser.state.get(parameter, {}).items():
            found[f"{name}/{what}"] = whole(value)
    return found


def set_moments(
    module: nn.Module, optimiser: torch.optim.Optimizer, moments: Mapping[str, Tensor]
) -> None:
    """Put back what `moments_of` gave."""
    parameters = dict(module.named_parameters())
    fused = bool(optimiser.defaults.get("fused"))
    for key, value in moments.items():
        name, _, what = key.rpartition("/")
        parameter = parameters[name]
        if what != "step":
            value = like(value, parameter)
        elif fused:  # there the count of steps lives with the weights
            value = value.to(parameter.device)
        optimiser.state[parameter][what] = value


class Checkpoints:
    """The checkpoint and the best weights of one run.

    Args:
        folder: of the run, seen by all workers.
        fingerprint: of data, settings and seed; a checkpoint with another is none of ours.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._folder = folder
        self._fingerprint = fingerprint

    def last(self) -> Path | None:
        """The newest checkpoint of this run."""
        for folder in sorted(self._folder.glob("step-*"), reverse=True):
            if self.state(folder)["fingerprint"] == self._fingerprint:
                return folder
        return None

    def foreign(self) -> bool:
        """Whether there is a checkpoint, but of another run."""
        return self.last() is None and any(self._folder.glob("step-*"))

    @staticmethod
    def state(folder: Path) -> dict[str, Any]:
        """Where the run of a checkpoint stood."""
        content: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
        return content

    def write(
        self,
        step: int,
        state: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        moments: Mapping[str, Tensor],
        objective: Mapping[str, Tensor],
        best: int | None,
    ) -> Path:
        """Write the checkpoint after so many steps, and remove those before it.

        Args:
            step: steps done.
            state: where the run stands, as JSON has it.
            weights: see `weights_of`.
            moments: see `moments_of`.
            objective: see `Objective.state`.
            best: the step whose weights are the best so far; others' are removed.
        """
        place = self._folder / f"step-{step:09d}"
        beside = self._folder / f"new-{step:09d}"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        save_file(dict(weights), beside / WEIGHTS)
        save_file(dict(moments), beside / OPTIMISER)
        save_file({name: each.contiguous() for name, each in objective.items()}, beside / OBJECTIVE)
        content = {"fingerprint": self._fingerprint, "step": step, **state}
        (beside / STATE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(place, ignore_errors=True)
        beside.rename(place)
        kept = {place.name, f"best-{best or 0:09d}.safetensors"}
        for other in [*self._folder.glob("step-*"), *self._folder.glob("new-*")]:
            if other.name not in kept:
                shutil.rmtree(other, ignore_errors=True)
        for other in self._folder.glob("best-*"):
            if other.name not in kept:
                other.unlink()
        return place

    @staticmethod
    def tensors(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Weights, moments and the objective's state of a checkpoint."""
        weights, moments, objective = (
            load_file(folder / name) for name in (WEIGHTS, OPTIMISER, OBJECTIVE)
        )
        return weights, moments, objective

    def write_best(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Keep the weights after so many steps as the best; earlier ones go with a checkpoint."""
        self._folder.mkdir(parents=True, exist_ok=True)
        beside = self._folder / "new-best.safetensors"
        save_file(dict(weights), beside)
        beside.rename(self._best(step))

    def best(self, step: int) -> dict[str, Tensor]:
        """Weights that `write_best` kept."""
        found: dict[str, Tensor] = load_file(self._best(step))
        return found

    def _best(self, step: int) -> Path:
        return self._folder / f"best-{step:09d}.safetensors"
