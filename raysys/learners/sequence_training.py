"""The training loop of the sequence transformer: batches of like length, a clock, a falling rate.

An epoch passes over all sequences, or over the later ones more often than the earlier; every place
of a sequence is an example (all prefixes in one causal pass), or a drawn part of them is hidden
and guessed. The rate falls with whichever runs out first, epochs or time, so that training that
the clock ends has cooled down like any other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from raysys.learners.sequence_encoder import Encoder, Padded, padded
from raysys.learners.sequence_popularity import ageing
from raysys.learners.sequence_protocol import Float32, Float64, Int64, SequenceContext, Sequences
from raysys.learners.sequence_softmax import Competitors, Sampler, seen_before, softmax_loss
from raysys.progress import task
from raysys.text.training.astray import require_finite
from raysys.text.training.parts import Parts, out_of_memory_told
from raysys.text.training.resuming import restored, write_state

_WHERE: Final = "sequence_transformer"
_SMALLER: Final = "take a smaller width, max_length or batch_size, or negatives"


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Attributes:
        epochs: passes over the sequences, may be broken.
        batch_size: places a step.
        learning_rate: at its highest.
        warm_up: share of the steps in which it rises.
        weight_decay: of all weights but biases and norms.
        temperature: of the softmax.
        smoothing: of the labels.
        negatives, negative_power: see `Sampler`.
        half_life: of sequences, see `ageing`: how often they are drawn; 0: always.
        masked: share of places hidden; 0: causal.
    """

    epochs: float
    batch_size: int
    learning_rate: float
    warm_up: float
    weight_decay: float
    temperature: float
    smoothing: float
    negatives: int
    negative_power: float
    half_life: float
    masked: float


class Trainer:
    """Trains an encoder step by step.

    Args:
        encoder: is changed.
        train: pieces of at most the encoder's length, of two items or more.
        schedule: how long and how fast.
        context: seed, deadline, and who is told.
        device: where it is trained.
        share: float64[s], how often each piece is drawn beside its age, 0 … 1; None: always.
    """

    def __init__(
        self,
        encoder: Encoder,
        train: Sequences,
        schedule: Schedule,
        context: SequenceContext,
        device: str = "cpu",
        share: Float64 | None = None,
    ) -> None:
        self.encoder = encoder.to(device)
        self.train = train
        self.schedule = schedule
        self.context = context
        self.device = device
        self.rng = np.random.default_rng(context.seed)
        self.share = ageing(train, schedule.half_life) * (1.0 if share is None else share)
        counts = np.bincount(train.items, np.repeat(self.share, train.sizes), context.n_items)
        self.sampler = Sampler(counts.astype(float), schedule.negatives, schedule.negative_power)
        decayed = [p for p in encoder.parameters() if p.dim() > 1]
        free = [p for p in encoder.parameters() if p.dim() <= 1]
        groups = [
            {"params": decayed, "weight_decay": schedule.weight_decay},
            {"params": free, "weight_decay": 0.0},
        ]
        rate = schedule.learning_rate
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)
        self.steps = 0
        self.memory = Parts(_WHERE, "one sequence", _SMALLER)

    def run(self, told: Callable[[int], None]) -> int:
        """Train to the end of the epochs or of the time; `told` is called after every epoch.

        A training that was killed goes on after the last epoch of its checkpoint, to the same
        weights on CPUs.

        Returns:
            The epochs that were begun, those before a kill included.

        Raises:
            UserError: not enough memory, not even for one sequence; a loss that is no number.
        """
        with out_of_memory_told(_WHERE, _SMALLER):
            return self._run(told)

    def _run(self, told: Callable[[int], None]) -> int:
        places = float((self.share * (self.train.sizes - 1)).sum())
        steps = max(1, math.ceil(places * self.schedule.epochs / self.schedule.batch_size))
        began, left = time.monotonic(), self.context.seconds_left
        torch.manual_seed(self.context.seed)
        step, epoch, loss = self._restored()
        self.steps = steps
        with task("train the sequence transformer", steps) as shown:
            while step < steps:
                self.encoder.train()
                for batch in self._epoch():
                    passed = (time.monotonic() - began) / left if left > 0 else 1.0
                    at = max(step / steps, passed)
                    if at >= 1:
                        break
                    for group in self.optimizer.param_groups:
                        group["lr"] = self.schedule.learning_rate * self._pace(at)
                    now = self._step(step + 1, batch)
                    loss += (now - loss) * max(0.02, 1 / (step + 1))
                    step += 1
                    shown.reach(step)
                    shown.note = f"epoch {epoch + 1}, loss {loss:.3f}"
                epoch += 1
                told(epoch)
                self._keep(step, epoch, loss, last=step >= steps)
                if time.monotonic() >= self.context.deadline:
                    break
        return epoch

    def _restored(self) -> tuple[int, int, float]:
        """Steps and epochs that are done, and the loss, as the last checkpoint has them."""
        state = restored(self.context.checkpoint, self.encoder, self.optimizer)
        if not state:
            return 0, 0, 0.0
        self.rng.bit_generator.state = state["draws"]
        return int(state["step"]), int(state["epoch"]), float(state["loss"])

    def _keep(self, step: int, epoch: int, loss: float, *, last: bool) -> None:
        """Write a checkpoint if one is due; told of by epochs, as the context counts them."""
        folder = self.context.checkpoint
        if folder is not None and (folder.due(epoch) or last):
            draws = self.rng.bit_generator.state
            state = {"epoch": epoch, "loss": loss, "draws": draws}
            write_state(folder, step, self.encoder, self.optimizer, state)

    def _pace(self, at: float) -> float:
        """Share of the highest rate when `at` (0 … 1) of the training is done."""
        warm_up = self.schedule.warm_up
        if at < warm_up:
            return at / warm_up + 1e-3
        return 0.5 * (1 + math.cos(math.pi * (at - warm_up) / (1 - warm_up)))

    def _epoch(self) -> Iterator[Sequences]:
        """Batches of sequences of like length, about `batch_size` places each, in random order."""
        drawn = np.flatnonzero(self.rng.random(len(self.train)) < self.share)
        if not len(drawn):
            drawn = np.arange(len(self.train))
        size = self.train.sizes[drawn]
        order = np.lexsort((self.rng.random(len(drawn)), size))
        drawn, size = drawn[order], size[order] - 1
        share = 1.0 if not self.schedule.masked else self.schedule.masked
        place = np.cumsum(size) * share // self.schedule.batch_size
        bounds = np.flatnonzero(np.diff(place, prepend=-1))
        runs = np.split(drawn, bounds[1:])
        for run in self.rng.permutation(len(runs)):
            yield self.train.take(runs[run])

    def _step(self, step: int, batch: Sequences) -> float:
        """The update number `step`, from 1; the loss before it.

        Where memory runs out it is made of parts, which compete with the same items: the loss of
        the batch stays what it is.
        """
        asked = (self._hidden if self.schedule.masked else self._causal)(batch)
        competitors = self.sampler.draw(asked.targets, asked.seen.row, asked.seen.item, self.rng)

        def gradients(parts: int) -> torch.Tensor:
            total = torch.zeros((), device=self.device)
            for some in np.array_split(np.arange(len(batch)), parts):
                rows = slice(int(some[0]), int(some[-1]) + 1)
                mine, theirs = asked.of(rows, competitors)
                loss = self._loss(mine, theirs) * (len(mine.targets) / len(asked.targets))
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach()
            return total

        forget = self.optimizer.zero_grad
        forget()
        loss = self.memory.compute(step, len(batch), gradients, forget)
        norm = torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), 5.0)
        told = float(loss)
        # checkpoints are written by epochs, with what was drawn: there is one of the last
        require_finite(
            told, float(norm), step, self.steps, self.encoder, self.optimizer, None, where=_WHERE
        )
        self.optimizer.step()
        return told

    def _loss(self, asked: _Asked, competitors: Competitors) -> torch.Tensor:
        """The mean over the places that are asked."""
        inputs, seen = asked.inputs, asked.seen
        known, where = np.unique(inputs.items.numpy(), return_inverse=True)
        encoder, device = self.encoder, self.device
        mask = encoder.shape.n_items
        real = known[known < mask]
        rows = encoder.item_vectors(torch.from_numpy(real).to(device))
        if len(real) < len(known):
            rows = torch.cat([rows, encoder.mask_vector()])
        given = Padded(
            inputs.items.to(device),
            inputs.there.to(device),
            None if inputs.gaps is None else inputs.gaps.to(device),
        )
        index = torch.from_numpy(where.reshape(inputs.items.shape)).to(device)
        hidden = encoder(given, rows, index)[torch.from_numpy(asked.there).to(device)]
        asking = hidden[torch.from_numpy(seen.row).to(device)]
        again = encoder.again(asking, torch.from_numpy(seen.back).to(device))
        rivals = competitors.items
        items = encoder.item_vectors(
            None if rivals is None else torch.from_numpy(rivals).to(device)
        )
        told = self.schedule
        return softmax_loss(hidden / told.temperature, items, again, competitors, told.smoothing)

    def _causal(self, batch: Sequences) -> _Asked:
        """All but the last item goes in; at every place the next is the target."""
        given = batch.without_last(np.arange(len(batch)))
        inputs = padded(given, time_gaps=self.encoder.shape.time_gaps)
        first = np.zeros(len(batch.items), dtype=bool)
        first[batch.offsets[:-1]] = True
        seen = Seen(*seen_before(given.items, given.offsets, True))
        return _Asked(inputs, inputs.there.numpy(), batch.items[~first].astype(np.int64), seen)

    def _hidden(self, batch: Sequences) -> _Asked:
        """Drawn places are hidden, of every other sequence the last: that is what will be asked."""
        whole = padded(batch, time_gaps=self.encoder.shape.time_gaps)
        there = whole.there.numpy()
        hide = (self.rng.random(there.shape) < self.schedule.masked) & there
        rows = np.arange(len(batch))
        last = batch.sizes - 1
        only = self.rng.random(len(batch)) < 0.5
        hide[only] = False
        lacking = only | ~hide.any(axis=1)
        hide[rows[lacking], last[lacking]] = True
        items = whole.items.numpy().copy()
        targets = items[hide]
        items[hide] = self.encoder.shape.n_items
        given = batch.without_last(rows)
        # of what was seen only the last place is told: only there is it what will be asked
        before = Seen(*seen_before(given.items, given.offsets, False))
        ends = np.flatnonzero(last[np.nonzero(hide)[0]] == np.nonzero(hide)[1])
        place = np.full(len(batch), -1)
        place[np.nonzero(hide)[0][ends]] = ends
        kept = (place[before.row] >= 0) & only[before.row]
        seen = Seen(place[before.row][kept], before.item[kept], before.back[kept])
        return _Asked(Padded(torch.from_numpy(items), whole.there, whole.gaps), hide, targets, seen)


@dataclass(frozen=True)
class Seen:
    """Items that places have already seen: int64[m] each, see `seen_before`."""

    row: Int64
    item: Int64
    back: Int64


@dataclass(frozen=True)
class _Asked:
    """What a step reads, where it is asked, what is right, and what was seen there."""

    inputs: Padded
    there: npt.NDArray[np.bool_]
    targets: Int64
    seen: Seen

    def of(self, rows: slice, competitors: Competitors) -> tuple[_Asked, Competitors]:
        """The same of some sequences, and their competitors."""
        a, b = (int(self.there[:at].sum()) for at in (rows.start, rows.stop))
        seen = self.seen
        cells = slice(*np.searchsorted(seen.row, [a, b]).tolist())
        row = seen.row[cells] - a
        given = self.inputs
        gaps = None if given.gaps is None else given.gaps[rows]
        mine = _Asked(
            Padded(given.items[rows], given.there[rows], gaps),
            self.there[rows],
            self.targets[a:b],
            Seen(row, seen.item[cells], seen.back[cells]),
        )
        theirs = replace(
            competitors,
            target=competitors.target[a:b],
            row=row,
            column=competitors.column[cells],
        )
        return mine, theirs


def spectral_start(
    train: Sequences, n_items: int, width: int, seed: int, weight: Float64
) -> Float32:
    """Vectors of items from what stands near what: float32[n_items, width], rows of length one.

    The truncated singular vectors of positive pointwise mutual information, which is what word2vec
    factorises (Levy and Goldberg, NIPS 2014). It takes seconds and saves several epochs.
    """
    from scipy.sparse import csr_matrix
    from sklearn.utils.extmath import randomized_svd

    from raysys.learners.item_knn import pair_counts

    pairs = pair_counts(train, n_items, weight, window=3, distance_decay=1.0)
    pairs = (pairs + pairs.T).tocoo()
    total = np.asarray(pairs.sum(axis=0)).ravel()
    smooth = total**0.75
    ratio = pairs.data * smooth.sum() / (total[pairs.row] * smooth[pairs.col])
    value = np.maximum(np.log(ratio), 0.0)
    matrix = csr_matrix((value, (pairs.row, pairs.col)), (n_items, n_items), dtype=np.float32)
    rank = min(width, n_items - 1)
    left, size, _ = randomized_svd(matrix, rank, n_iter=3, random_state=seed)
    found = np.zeros((n_items, width), dtype=np.float32)
    found[:, :rank] = left * np.sqrt(size)
    length = np.linalg.norm(found, axis=1, keepdims=True)
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((n_items, width)).astype(np.float32) * width**-0.5
    found = np.where(length > 1e-6, found / np.maximum(length, 1e-6), noise)
    return (found + 0.1 * noise).astype(np.float32)
