"""Which examples make a step, and their way to the device.

Padding is computed like any token. Examples are drawn at random, a window of many batches is put
in order of length, cut into batches, and the batches are shuffled: little is padded, and a step
still sees a random part of the data (the "bucketing" of Khomenko et al. 2016).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from raysys.text.training.objective import Objective, Tensors

Rows = npt.NDArray[np.int64]
AHEAD = 2
"""Steps that are put together while the GPU computes."""


@dataclass(frozen=True)
class MicroBatch:
    """What goes through the model at once.

    Attributes:
        rows: int64[b], its examples.
        tensors: as collated; pinned where they go to a GPU.
        weight: its part of the step, see `Objective.weight`; 0: only keeps workers in step.
    """

    rows: Rows
    tensors: Tensors
    weight: float


class Order:
    """The order of examples: by seed and epoch alone, so that any step can be found again.

    Args:
        lengths: int64[n], see `Objective.lengths`.
        batch_size: examples a step and worker.
        window: batches put in order of length together.
        seed: of the run.
        rank: this worker.
        workers: in all.
    """

    def __init__(
        self, lengths: Rows, batch_size: int, window: int, seed: int, rank: int = 0,
        workers: int = 1,
    ) -> None:  # fmt: skip
        self.lengths = lengths
        self.seed = seed
        self._size = batch_size * workers
        self._window = window
        self._rank = rank
        self._workers = workers
        self._epoch: tuple[int, list[Rows]] = (-1, [])

    @property
    def per_epoch(self) -> int:
        """Steps in which every example comes up once."""
        return math.ceil(len(self.lengths) / self._size)

    def of_step(self, step: int) -> Rows:
        """The examples of a step, of all workers, those of like length side by side: int64[m]."""
        epoch, place = divmod(step, self.per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._batches(epoch))
        return self._epoch[1][place]

    def _batches(self, epoch: int) -> list[Rows]:
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(len(self.lengths)).astype(np.int64)
        if self._window == 1:
            return [order[at : at + self._size] for at in range(0, len(order), self._size)]
        batches = []
        for first in range(0, len(order), self._size * self._window):
            window = order[first : first + self._size * self._window]
            window = window[np.argsort(self.lengths[window], kind="stable")]
            cut = [window[at : at + self._size] for at in range(0, len(window), self._size)]
            batches += [cut[place] for place in rng.permutation(len(cut))]
        return batches

    def micro_batches(self, step: int, size: int) -> list[tuple[Rows, bool]]:
        """This worker's part of a step, `size` examples at most at a time.

        Every worker gets as many micro-batches, for what they sum together must be called as often
        by each. Who has none left takes an example again, which does not count (False).
        """
        rows = self.of_step(step)
        parts = math.ceil(math.ceil(len(rows) / self._workers) / size)
        mine = rows[self._rank :: self._workers]
        return [
            (part, True) if len(part) else (rows[:1], False) for part in np.array_split(mine, parts)
        ]


class Feed:
    """Batches of the steps of one epoch, collated ahead of the GPU.

    Args:
        objective: collates.
        order: says which examples.
        device: where batches will go.
        rank: this worker, which draws its own masks.
    """

    def __init__(self, objective: Objective, order: Order, device: torch.device, rank: int) -> None:
        self._objective = objective
        self._order = order
        self._rank = rank
        self._pinned = device.type == "cuda"
        self._ahead = self._pinned

    def step(self, step: int, size: int) -> list[MicroBatch]:
        """The micro-batches of one step."""
        rng = np.random.default_rng([self._order.seed, step, self._rank])
        found = []
        for rows, counts in self._order.micro_batches(step, size):
            tensors = self._objective.collate(rows, rng)
            weight = self._objective.weight(rows, tensors) if counts else 0.0
            if self._pinned:
                tensors = {name: each.pin_memory() for name, each in tensors.items()}
            found.append(MicroBatch(rows, tensors, weight))
        return found

    def steps(self, first: int, end: int, size: int) -> Iterator[list[MicroBatch]]:
        """Those of some steps in a row, all of one epoch."""
        if not self._ahead:
            for step in range(first, end):
                yield self.step(step, size)
            return
        with ThreadPoolExecutor(1, "collate") as pool:
            waiting: deque[Future[list[MicroBatch]]] = deque()
            try:
                for step in range(first, end):
                    while len(waiting) <= AHEAD and step + len(waiting) < end:
                        waiting.append(pool.submit(self.step, step + len(waiting), size))
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()


def placed(tensors: Tensors, device: torch.device) -> Tensors:
    """A batch on its device; from pinned memory the copy runs beside the computation."""
    return {name: each.to(device, non_blocking=True) for name, each in tensors.items()}
