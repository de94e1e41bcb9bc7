"""Fine-tuning the towers: which requests make a batch, and the steps over them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raysys.features.batch import Batch
from raysys.storage import CheckpointFolder
from raysys.text.augment.pairs import PairCopies
from raysys.text.encoder import States, autocast
from raysys.text.histories import PAD, history_codes
from raysys.text.items import ItemTexts
from raysys.text.towers import Towers, sampled_softmax_loss
from raysys.text.training.astray import require_finite, require_finite_weights
from raysys.text.training.parts import Parts
from raysys.text.training.resuming import resumed, write_state

_WHERE: Final = "two_tower"
_SMALLER: Final = "take a smaller model, fewer max_tokens or a smaller batch_size"


@dataclass(frozen=True)
class Course:
    """How the towers are fine-tuned; see `TwoTowerSettings` for the meaning of each."""

    steps: int
    batch_size: int
    history_sample: int
    negatives: int
    learning_rate: float
    head_learning_rate: float
    warm_up: float
    weight_decay: float
    temperature: float
    popularity_correction: float


@dataclass(frozen=True)
class Lesson:
    """One batch, in codes of texts.

    Attributes:
        texts: int64[m], distinct texts of the batch.
        history: int64[b, length], rows of `texts` or -1.
        columns: int64[c], rows of `texts`, each once.
        positive: bool[b, c].
        weight: float32[b], of each request; None: all the same.
    """

    texts: npt.NDArray[np.int64]
    history: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]
    positive: npt.NDArray[np.bool_]
    weight: npt.NDArray[np.float32] | None = None


class Requests:
    """The requests one can learn from: with a history, and with something wanted.

    Args:
        batch: labelled rows.
        texts: of the catalogue.
        length: of histories, in distinct texts.
        copies: of requests of the batch, with changed histories; None: none.
    """

    def __init__(
        self, batch: Batch, texts: ItemTexts, length: int, copies: PairCopies | None = None
    ) -> None:
        assert batch.label is not None
        codes = texts.codes[batch.item]
        wanted = batch.label > 0
        history = history_codes(batch.history, texts, length)
        count = np.bincount(batch.group, wanted, minlength=batch.n_requests)
        self.useful = np.flatnonzero((count > 0) & (history[:, 0] != PAD))
        self.history = history
        bounds = batch.offsets
        self.positives: list[npt.NDArray[np.int32]] = []
        self.others: list[npt.NDArray[np.int32]] = []
        for a, b in pairwise(bounds):
            positive = np.unique(codes[a:b][wanted[a:b]])
            self.positives.append(positive)
            self.others.append(np.setdiff1d(codes[a:b], positive))
        popular = np.bincount(codes[wanted], minlength=len(texts)).astype(np.float64)
        shown = np.bincount(codes, minlength=len(texts)).astype(np.float64)
        self._chance = popular / max(popular.sum(), 1.0), shown / max(shown.sum(), 1.0)
        self._mean_positives = float(count[self.useful].mean()) if len(self.useful) else 1.0
        self.weight: npt.NDArray[np.float32] | None = None
        if copies is not None:
            self._add(copies)

    def _add(self, copies: PairCopies) -> None:
        """Take copies as further requests that want the same."""
        n_requests = len(self.history)
        self.weight = copies.weight_of(n_requests)
        self.useful = np.concatenate([self.useful, n_requests + np.arange(len(copies))])
        self.history = np.concatenate([self.history, copies.history])
        self.positives += [self.positives[row] for row in copies.row]
        self.others += [self.others[row] for row in copies.row]

    def log_q(self, negatives: int) -> npt.NDArray[np.float32]:
        """Log of how likely each text is to be drawn as a column, float32[n_texts]."""
        share = self._mean_positives / (self._mean_positives + negatives)
        chance = share * self._chance[0] + (1 - share) * self._chance[1]
        floor = 0.1 / max(1, len(chance))
        return np.log(np.maximum(chance, floor)).astype(np.float32)

    def lessons(self, course: Course, seed: int) -> Iterator[Lesson]:
        """`course.steps` batches; every request comes up before one comes up again.

        Beside the others' purchases each request brings some of its own candidates that it did
        not want: they are what the model will have to tell apart, most being old acquaintances.
        """
        rng = np.random.default_rng(seed)
        queue = np.empty(0, dtype=np.int64)
        for _ in range(course.steps):
            while len(queue) < min(course.batch_size, len(self.useful)):
                queue = np.concatenate([queue, rng.permutation(self.useful)])
            rows, queue = queue[: course.batch_size], queue[course.batch_size :]
            yield self._lesson(rows, course, rng)

    def _lesson(
        self, rows: npt.NDArray[np.int64], course: Course, rng: np.random.Generator
    ) -> Lesson:
        history = self.history[rows].astype(np.int64)
        for row in history:  # a part of a long history, positions kept: cheaper, and it varies
            held = np.flatnonzero(row != PAD)
            if len(held) > course.history_sample:
                kept = rng.choice(held, course.history_sample, replace=False)
                dropped = np.setdiff1d(held, kept)
                row[dropped] = PAD
        negatives = []
        for row in rows:
            others = self.others[row]
            n = min(course.negatives, len(others))
            negatives.append(rng.choice(others, n, replace=False))
        columns = np.unique(np.concatenate([*(self.positives[row] for row in rows), *negatives]))
        texts = np.unique(np.concatenate([columns, history[history != PAD]]))
        positive = np.zeros((len(rows), len(columns)), dtype=bool)
        for at, row in enumerate(rows):
            positive[at, np.searchsorted(columns, self.positives[row])] = True
        return Lesson(
            texts=texts.astype(np.int64),
            history=np.where(history == PAD, PAD, np.searchsorted(texts, history)),
            columns=np.searchsorted(texts, columns),
            positive=positive,
            weight=None if self.weight is None else self.weight[rows],
        )


def fine_tune(
    towers: Towers,
    states: States,
    requests: Requests,
    course: Course,
    *,
    seed: int,
    device: torch.device,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
    after_step: Callable[[int, float], None] | None = None,
    checkpoint: CheckpointFolder | None = None,
    parts: int = 1,
) -> None:
    """Fine-tune `towers` in place: AdamW, linear warm-up, then linear decay to nothing.

    Where memory runs out a step goes on in parts; texts of the batch stay each other's negatives.

    Args:
        towers: begin as they are.
        states: of every text of the catalogue, then of the further ones of copies.
        requests: of this worker.
        course: steps, rates and the like.
        seed: of the order of requests and of their negatives.
        device: to run on.
        wrap: what makes the module a distributed one; None: alone.
        after_step: told (step from 1, loss).
        checkpoint: where the training leaves its state, and takes it up from, alone.
        parts: of a step, to begin with.

    Raises:
        UserError: a loss, gradients or weights that are no numbers; not enough memory for one
            text.
        MorePartsNeeded: memory ran out in one of several workers.
    """
    towers.to(device).train(False)  # gradients yes, dropout no: so few steps need none
    module = wrap(towers) if wrap else towers
    head = towers.head()
    body = list(towers.upper.parameters())
    optimiser = torch.optim.AdamW(
        [
            {"params": body, "lr": course.learning_rate, "weight_decay": course.weight_decay},
            {
                "params": head,
                "lr": course.head_learning_rate,
                "weight_decay": 0.0,
            },
        ]
    )
    warm = max(1, math.ceil(course.warm_up * course.steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min((step + 1) / warm, (course.steps - step) / max(1, course.steps - warm)),
    )
    log_q = torch.from_numpy(requests.log_q(course.negatives)) * course.popularity_correction
    memory = Parts(_WHERE, "one text", _SMALLER, number=parts, alone=wrap is None)

    def gradients(parts: int, lesson: Lesson) -> Tensor:
        """Of a batch; its loss."""
        towers.parts = parts
        padded, mask = states.padded(torch.from_numpy(lesson.texts), device)
        of_columns = log_q[torch.from_numpy(lesson.texts[lesson.columns])].to(device)
        with autocast(device):
            scores: Tensor = module(
                padded,
                mask,
                torch.from_numpy(lesson.history).to(device),
                torch.from_numpy(lesson.columns).to(device),
            )
        positive = torch.from_numpy(lesson.positive).to(device)
        weight = None if lesson.weight is None else torch.from_numpy(lesson.weight).to(device)
        loss = sampled_softmax_loss(
            scores.float(), positive, of_columns, course.temperature, weight
        )
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    done = resumed(checkpoint, towers, optimiser, schedule)
    for step, lesson in enumerate(requests.lessons(course, seed), start=1):
        if step <= done:
            continue  # drawn all the same: the draws that follow depend on it
        optimiser.zero_grad(set_to_none=True)
        of_lesson = partial(gradients, lesson=lesson)
        loss = memory.compute(step, len(lesson.texts), of_lesson, optimiser.zero_grad)
        norm = nn.utils.clip_grad_norm_(towers.parameters(), 1.0)
        told = float(loss)
        require_finite(
            *(told, float(norm), step, course.steps, towers, optimiser, checkpoint), where=_WHERE
        )
        optimiser.step()
        schedule.step()
        if after_step is not None:
            after_step(step, told)
        if checkpoint is not None and (checkpoint.due(step) or step == course.steps):
            write_state(checkpoint, step, towers, optimiser)
    require_finite_weights(towers, course.steps, where=_WHERE)
    towers.to("cpu")
