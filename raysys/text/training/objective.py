"""What is trained: an objective builds the module, makes batches, says the loss and judges."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

Tensors = dict[str, Tensor]


class Objective(ABC):
    """One task of a transformer, as the loop sees it. Pickled to the workers of a Ray Train run.

    Attributes:
        criterion: which figure of `evaluate` decides when to stop and what to keep.
        maximise: whether more of it is better.
    """

    criterion: ClassVar[str] = "loss"
    maximise: ClassVar[bool] = False

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

        Args:
            rows: int64[b], which examples.
            rng: for masks and other draws; seeded by run, step and worker, so that a run that
                resumes draws what it would have drawn.
        """

    @abstractmethod
    def loss(self, module: nn.Module, batch: Tensors) -> Tensor:
        """Mean loss of a batch, a scalar with gradient.

        Calls `module` itself exactly once and reads no attribute of it: it may be wrapped (DDP,
        FSDP).
        """

    def evaluate(self, module: nn.Module) -> Mapping[str, float]:
        """Figures on validation data; empty: nothing to judge by. The module is in eval mode."""
        return {}

    def refresh(self, module: nn.Module, epoch: int) -> None:
        """Before each epoch (from 0) but the first: mine hard negatives again, say."""
        return

    @abstractmethod
    def save(self, module: nn.Module, folder: Path) -> None:
        """Write the trained module into an empty folder: safetensors and JSON, no pickle."""
