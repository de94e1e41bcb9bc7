"""What is trained: an objective builds the module, makes batches, says the loss and judges."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel
from torch import Tensor, nn

Tensors = dict[str, Tensor]
Identity = Mapping[str, object]


def digest(content: object) -> str:
    """Hexadecimal hash of arrays, pydantic models, dataclasses, and what JSON has, nested.

    Raises:
        TypeError: something else is among it.
    """
    found = hashlib.blake2b(digest_size=16)
    for part in _parts(content):
        found.update(part)
    return found.hexdigest()


def _parts(content: object) -> Iterator[bytes | memoryview]:
    """Bytes that differ where the content does."""
    if isinstance(content, np.ndarray) and content.dtype != object:
        yield f"array {content.dtype} {content.shape} ".encode()
        yield np.ascontiguousarray(content).reshape(-1).view(np.uint8).data
    elif isinstance(content, BaseModel):
        yield from _parts(content.model_dump(mode="json", exclude={"training"}))
    elif is_dataclass(content):
        yield from _parts({each.name: getattr(content, each.name) for each in fields(content)})
    elif isinstance(content, Mapping):
        yield f"mapping {len(content)} ".encode()
        for name, value in content.items():
            yield f"{name!r}: ".encode()
            yield from _parts(value)
    elif isinstance(content, list | tuple):
        yield f"list {len(content)} ".encode()
        for value in content:
            yield from _parts(value)
    elif content is None or isinstance(content, str | int | float):
        yield f"{content!r} ".encode()
    else:
        raise TypeError(f"{type(content).__name__} has no digest")


class Objective(ABC):
    """One task of a transformer, as the loop sees it.

    Pickled to the workers of a Ray Train run, through Ray's object store: large arrays are shared
    there between the workers of a machine, and cannot be written to.

    Attributes:
        criterion: which figure of `evaluate` decides when to stop and what to keep.
        maximise: whether more of it is better.
        reported: which figure is told to whoever compares runs of other losses, more of it being
            better; empty: the criterion.
        title: what progress calls it.
    """

    criterion: ClassVar[str] = "loss"
    maximise: ClassVar[bool] = False
    reported: ClassVar[str] = ""
    title: ClassVar[str] = "training"

    @abstractmethod
    def build(self) -> nn.Module:
        """The module, on the CPU, in float32; its attribute `backbone` is the transformer.

        Called in each worker after the seeds are set, so that new weights agree.
        """

    @abstractmethod
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens (or something that grows with them) of every training example: int64[n].

        Its length is the number of examples; the loop puts examples of like length together.
        """

    @abstractmethod
    def collate(self, rows: npt.NDArray[np.int64], rng: np.random.Generator) -> Tensors:
        """The batch of some training examples, padded, on the CPU.

        Called from a thread of its own on a GPU, ahead of the step, but never across a `refresh`.

        Args:
            rows: int64[b], which examples.
            rng: for masks and other draws; seeded by run, step and worker, so that a run that
                resumes draws what it would have drawn. The micro-batches of a step share it, one
                after the other.
        """

    @abstractmethod
    def loss(self, module: nn.Module, batch: Tensors) -> Tensor:
        """Mean loss of a batch, a scalar with gradient; runs under autocast.

        Calls `module` itself exactly once and reads no attribute of it: it may be wrapped (DDP,
        FSDP).
        """

    def weight(self, rows: npt.NDArray[np.int64], batch: Tensors) -> float:
        """How much of its step a micro-batch is: its examples.

        A loss that is a mean over tokens says how many, for the step to be the mean over all.
        """
        return float(len(rows))

    def identity(self) -> Identity:
        """What of it decides the outcome: labels, texts, which loss and its weights.

        A checkpoint of another identity is not gone on from. Models are known by their weights
        and need not be named; nor need lengths, and what is called `training`. Everything that
        `digest` takes; empty: lengths and a first batch tell all.
        """
        return {}

    def evaluate(self, module: nn.Module) -> Mapping[str, float]:
        """Figures on validation data; empty: nothing to judge by.

        The module is in eval mode, without gradients and under the autocast of training. Under
        FSDP every worker evaluates, and may call `module` or `module.backbone`, no other part.
        """
        return {}

    def refresh(self, module: nn.Module, epoch: int) -> None:
        """Before each epoch (from 0) but the first: mine hard negatives again, say.

        The module is as in `evaluate`. What it leaves in the objective belongs into `state`.
        """
        return

    def state(self) -> Tensors:
        """What `refresh` left, on the CPU, for checkpoints: a run resumes without mining again."""
        return {}

    def restore(self, state: Tensors) -> None:
        """Take back what `state` gave, if anything; called before a run goes on."""
        return

    @abstractmethod
    def save(self, module: nn.Module, folder: Path) -> None:
        """Write the trained module into an empty folder: safetensors and JSON, no pickle.

        The module is whole, on the CPU, in eval mode; adapters are merged. The loop adds
        `history.json`.
        """
