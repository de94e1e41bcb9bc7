"""The loop: steps, evaluations and checkpoints of one run, the same alone or beside others."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raysys.errors import UserError
from raysys.text.training import lora
from raysys.text.training.batches import Feed, MicroBatch, Order, placed
from raysys.text.training.checkpoints import (
    Checkpoints,
    moments_of,
    set_moments,
    set_weights,
    trained,
    weights_of,
)
from raysys.text.training.layers import compile_layers, prepare
from raysys.text.training.objective import Objective, digest
from raysys.text.training.optimiser import adamw, factor, set_rates
from raysys.text.training.parallel import World, settle
from raysys.text.training.precision import autocast, computes_in_bf16, is_out_of_memory
from raysys.text.training.settings import TrainingSettings

log = logging.getLogger("raysys")

HISTORY = "history.json"
_STEP, _EVALUATION, _REFRESH = range(3)
"""What random numbers are drawn for."""
_TOLD = 16
"""Of each weight, so many values tell two models apart."""
_OPERATION = {"checkpoint_every", "max_failures"}
"""Settings that change nothing in the outcome."""


class SmallerMicroBatches(Exception):  # noqa: N818  not an error: the run starts again with them
    """Memory ran out in one of several workers; says how many examples to go on with."""


@dataclass
class Standing:
    """Where a run stands: all that a checkpoint knows beside weights and moments.

    Attributes:
        step: steps done.
        micro_batch_size: examples that go through the model at once.
        best: criterion so far; None: never judged.
        best_step: after which it was.
        figures: of the weights that would be kept.
        stale: evaluations since.
        losses: of the steps since the last evaluation, summed.
        counted: how many they are.
        examples: trained on.
        tokens: trained on.
        seconds: of steps and their batches, without evaluations and checkpoints.
        elapsed: seconds of everything, of earlier attempts too.
        history: one entry an evaluation.
    """

    micro_batch_size: int
    step: int = 0
    best: float | None = None
    best_step: int | None = None
    figures: dict[str, float] = field(default_factory=dict)
    stale: int = 0
    losses: float = 0.0
    counted: int = 0
    examples: int = 0
    tokens: int = 0
    seconds: float = 0.0
    elapsed: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


class Loop:
    """One run in one worker.

    Args:
        objective: what is trained.
        settings: how.
        scratch: where its checkpoints live, seen by all workers.
        seed: of everything random.
        world: this worker among all.
        report: told (step, the objective's `reported`) at each evaluation.
        progress: told how many steps are done.
        micro_batch_size: at most, where memory is known to be short.
    """

    def __init__(
        self,
        objective: Objective,
        settings: TrainingSettings,
        scratch: Path,
        seed: int,
        world: World,
        *,
        report: Callable[[int, float], None] | None = None,
        progress: Callable[[int, int, str], None] | None = None,
        micro_batch_size: int | None = None,
    ) -> None:
        self.objective = objective
        self.settings = settings
        self.scratch = scratch
        self.seed = seed
        self.world = world
        self._report = report
        self._progress = progress
        lengths = np.asarray(objective.lengths(), dtype=np.int64)
        if not len(lengths):
            raise UserError("there is not one example to train on", mend="give more data")
        self.order = Order(
            lengths, settings.batch_size, settings.length_window, seed, world.rank, world.size
        )
        self.steps = settings.max_steps or max(1, round(self.order.per_epoch * settings.epochs))
        micro = min(settings.micro_batch_size or settings.batch_size, settings.batch_size)
        self.at = Standing(min(micro, micro_batch_size or micro))
        self._micro_limit = self.at.micro_batch_size
        self._shrunk = False  # within an epoch: what is collated ahead is too large
        self._want_checkpoint = False
        self._checkpointed = self._clock = time.monotonic()
        self._feed = Feed(objective, self.order, world.device, world.rank)

    # ── the run ──────────────────────────────────────────────────────────────────────────────

    def run(self) -> Standing:
        """Train to the end; afterwards the module holds the weights to be kept.

        Raises:
            UserError: a loss that is no number; too little memory.
        """
        try:
            return self._run()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"not enough memory for the model, its optimiser or an evaluation: {error}",
                where=self.objective.title,
                mend="take a smaller model, lora, or strategy: fsdp over several workers",
            ) from error

    def _run(self) -> Standing:
        began = time.monotonic()
        self._set_up()
        before = self.at.elapsed
        while self.at.step < self.steps and not self._patience_is_over():
            epoch = self.at.step // self.order.per_epoch
            if self.at.step and self.at.step % self.order.per_epoch == 0:
                with self._judging(_REFRESH):
                    self.objective.refresh(self.module, epoch)
            end = min(self.steps, (epoch + 1) * self.order.per_epoch)
            self._clock = time.monotonic()
            for batches in self._feed.steps(self.at.step, end, self.at.micro_batch_size):
                self._step(batches)
                self.at.elapsed = before + time.monotonic() - began
                if self._evaluation_is_due():
                    self._evaluate()
                if self._checkpoint_is_due():
                    self._write_checkpoint()
                if self._patience_is_over() or self._shrunk:
                    break
                self._clock = time.monotonic()
            self._shrunk = False
        best = self.at.best_step
        if self.settings.keep == "best" and best is not None and best != self.at.step:
            set_weights(self.module, self._checkpoints.best(best))
        self.at.elapsed = before + time.monotonic() - began
        return self.at

    def _set_up(self) -> None:
        settings, world = self.settings, self.world
        self.module, self._adapters = self._built()
        fingerprint = self._fingerprint()  # before sharding changes the shapes
        self.module.to(world.device)
        self._bf16 = computes_in_bf16(settings, world.device)
        if settings.compile:
            compile_layers(self.module.backbone, world.device)  # type: ignore[arg-type]
        self._wrapped = world.wrap(self.module, self._bf16)
        self.module.train()
        sharded = world.sharded and world.size > 1
        fused = world.device.type == "cuda" or not sharded
        self._optimiser = adamw(self.module, settings, fused=fused)
        self._checkpoints = Checkpoints(self.scratch, fingerprint)
        if self._checkpoints.foreign():
            log.warning(
                "the checkpoint in %s is of other data or settings: starting anew", self.scratch
            )
        last = self._checkpoints.last()
        if last is not None:
            self._resume(last)

    def _built(self) -> tuple[nn.Module, Any]:
        """The module as it is trained, and what merges its adapters."""
        torch.manual_seed(self.seed)
        module = self.objective.build()
        return module, prepare(module, self.settings)

    def _fingerprint(self) -> str:
        """Of all that decides the outcome: data (their lengths, a first batch, what the objective
        knows of them), settings, and a few of the weights that it begins with."""
        rows = np.arange(min(8, len(self.order.lengths)), dtype=np.int64)
        batch = self.objective.collate(rows, np.random.default_rng(0))
        content = {
            "settings": self.settings.model_dump(mode="json", exclude=_OPERATION),
            "seed": self.seed,
            "workers": self.world.size,
            "trained": [[name, list(tensor.shape)] for name, tensor in trained(self.module)],
            "objective": digest(self.objective.identity()),
        }
        found = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
        found.update(self.order.lengths.tobytes())
        for _, weight in self.module.named_parameters():
            few = weight.detach().flatten()[:_TOLD].contiguous()
            found.update(few.view(torch.uint8).numpy().tobytes())
        for name in sorted(batch):
            found.update(name.encode())
            found.update(batch[name].contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    # ── one step ─────────────────────────────────────────────────────────────────────────────

    def _step(self, batches: list[MicroBatch]) -> None:
        at = self.at
        rate = set_rates(self._optimiser, factor(self.settings, at.step, self.steps))
        loss, norm = self._gradients(batches)
        if not math.isfinite(loss) or not math.isfinite(norm):
            self._stop(loss, norm, rate, batches)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        rows = self.order.of_step(at.step)
        at.step += 1
        at.losses += loss
        at.counted += 1
        at.examples += len(rows)
        at.tokens += int(self.order.lengths[rows].sum())
        at.seconds += time.monotonic() - self._clock
        if self._progress is not None:
            self._progress(at.step, self.steps, f"{at.examples / at.seconds:,.0f} examples/s")

    def _gradients(self, batches: list[MicroBatch]) -> tuple[float, float]:
        """Loss and norm of the gradients of a step; in smaller parts where memory runs out."""
        while True:
            self._seed(_STEP)
            try:
                return self._summed(batches)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # out of the handler: the error held every activation
            batches = self._halved(batches)

    def _summed(self, batches: list[MicroBatch]) -> tuple[float, float]:
        """Gradients of the micro-batches, each by its weight, summed to those of the step."""
        world, device = self.world, self.world.device
        own = torch.tensor([each.weight for each in batches], dtype=torch.float64)
        late = self._checkpoint_is_late()
        totals = torch.tensor([float(own.sum()), float(late)], dtype=torch.float32, device=device)
        world.sum(totals)
        part = own.to(device, torch.float32) * world.size / totals[0].clamp(min=1e-12)
        loss = torch.zeros((), device=device)
        for number, each in enumerate(batches):
            last = number == len(batches) - 1
            with world.accumulating(self._wrapped, last):
                with autocast(device, self._bf16):
                    of_batch = self.objective.loss(self._wrapped, placed(each.tensors, device))
                weighted = of_batch.float() * part[number]
                weighted.backward()  # type: ignore[no-untyped-call]
            loss += weighted.detach()
        world.sum(loss)
        limit = math.inf if self.settings.clip is None else self.settings.clip
        norm: Any = nn.utils.clip_grad_norm_(self._trainable(), limit)
        if hasattr(norm, "full_tensor"):
            norm = norm.full_tensor()
        values = torch.stack([loss / world.size, norm.float(), totals[1]]).tolist()
        self._want_checkpoint = values[2] > 0
        return values[0], values[1]

    def _trainable(self) -> list[nn.Parameter]:
        return [each for each in self.module.parameters() if each.requires_grad]

    def _halved(self, batches: list[MicroBatch]) -> list[MicroBatch]:
        """The same step in micro-batches of half the size, after memory ran out."""
        self._optimiser.zero_grad(set_to_none=True)
        if self.world.device.type == "cuda":
            torch.cuda.empty_cache()
        largest = max(len(each.rows) for each in batches)
        if largest == 1:
            raise UserError(
                f"not enough memory for one example of {self._tokens(batches)} tokens",
                where="micro_batch_size",
                mend="read fewer tokens of each text, take a smaller model, lora, "
                "gradient_checkpointing: true, or strategy: fsdp over several workers",
            )
        size = largest // 2
        log.warning(
            "out of memory at step %d with %d examples at once: going on with %d, so that a step "
            "sums more of them up", self.at.step + 1, largest, size,
        )  # fmt: skip
        if self.world.size > 1:  # the others wait within the step: all begin again
            raise SmallerMicroBatches(size)
        self.at.micro_batch_size = size
        self._shrunk = True
        return self._feed.step(self.at.step, size)

    def _tokens(self, batches: list[MicroBatch]) -> int:
        return max(int(self.order.lengths[each.rows].max()) for each in batches)

    def _stop(self, loss: float, norm: float, rate: float, batches: list[MicroBatch]) -> None:
        """End a run that went astray; the weights before this step are still good."""
        self._optimiser.zero_grad(set_to_none=True)
        kept = self._write_checkpoint()
        rows = np.sort(self.order.of_step(self.at.step))
        shown = ", ".join(map(str, rows[:8])) + (" …" if len(rows) > 8 else "")
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"its gradients are {norm}"
        raise UserError(
            f"{what} at step {self.at.step + 1} of {self.steps}, learning rate {rate:.3g}, "
            f"examples {shown}; the weights before it are kept in {kept}",
            where=self.objective.title,
            mend="take a lower learning_rate or a longer warm_up, a smaller clip, "
            "precision: fp32; or look at those examples",
        )

    def _seed(self, purpose: int) -> None:
        """Seed torch for what comes next: by position, so that nothing need be remembered."""
        parts = [self.seed, self.at.step, self.world.rank, purpose]
        torch.manual_seed(int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]))

    # ── evaluations ──────────────────────────────────────────────────────────────────────────

    def _evaluation_is_due(self) -> bool:
        every, step = self.settings.evaluate_every, self.at.step
        if step == self.steps:
            return True
        if every.steps is not None:
            return step % every.steps == 0
        assert every.epochs is not None
        each = every.epochs * self.order.per_epoch - 1e-9  # 0.1 · 30 is a little more than 3
        return int(step / each) > int((step - 1) / each)

    def _evaluate(self) -> None:
        at = self.at
        figures: dict[str, float] = {}
        if self.world.rank == 0 or self.world.sharded:
            with self._judging(_EVALUATION):
                figures = {k: float(v) for k, v in self.objective.evaluate(self.module).items()}
        figures = self.world.agree(figures)
        entry = {
            "step": at.step,
            "epoch": at.step / self.order.per_epoch,
            "training_loss": at.losses / max(1, at.counted),
            "learning_rate": max(group["lr"] for group in self._optimiser.param_groups),
        }
        at.history.append({**entry, **figures})
        at.losses, at.counted = 0.0, 0
        criterion = figures.get(self.objective.criterion)
        better = criterion is not None and self._improves(criterion)
        if better or criterion is None or self.settings.keep == "last":
            at.figures = figures
        if criterion is None:
            return
        at.stale += 1
        if better:
            at.best, at.best_step, at.stale = criterion, at.step, 0
            if self.settings.keep == "best":
                self._keep_best()
        log.info("step %d of %d: %s", at.step, self.steps, _shown(at.history[-1]))
        if self._report is not None and self.world.rank == 0:
            self._report(at.step, figures[self.objective.reported or self.objective.criterion])

    def _improves(self, criterion: float) -> bool:
        if not math.isfinite(criterion) or self.at.best is None:
            return math.isfinite(criterion)
        return criterion > self.at.best if self.objective.maximise else criterion < self.at.best

    def _keep_best(self) -> None:
        weights = weights_of(self.module)
        if self.world.rank == 0:
            self._checkpoints.write_best(self.at.step, weights)

    def _patience_is_over(self) -> bool:
        patience = self.settings.patience
        return patience is not None and self.at.stale >= patience

    @contextmanager
    def _judging(self, purpose: int) -> Iterator[None]:
        """The module in eval mode, without gradients, under the autocast of training."""
        self._seed(purpose)
        self.module.eval()
        with torch.no_grad(), autocast(self.world.device, self._bf16):
            yield
        settle(self.module)
        self.module.train()

    # ── checkpoints ──────────────────────────────────────────────────────────────────────────

    def _checkpoint_is_late(self) -> bool:
        every = self.settings.checkpoint_every
        if every is None or every.seconds is None or self.world.rank:
            return False
        return time.monotonic() - self._checkpointed >= every.seconds

    def _checkpoint_is_due(self) -> bool:
        every = self.settings.checkpoint_every
        if every is None or self.at.step == self.steps:
            return False
        return self._want_checkpoint or bool(every.steps and self.at.step % every.steps == 0)

    def _write_checkpoint(self) -> Path:
        weights = weights_of(self.module)
        moments = moments_of(self.module, self._optimiser)
        place = self.scratch
        if self.world.rank == 0:
            state = {"standing": asdict(self.at)}
            objective: dict[str, Tensor] = self.objective.state()
            place = self._checkpoints.write(
                self.at.step, state, weights, moments, objective, self.at.best_step
            )
        self._checkpointed = time.monotonic()
        return self.world.agree(place)

    def _resume(self, last: Path) -> None:
        self.at = Standing(**self._checkpoints.state(last)["standing"])
        self.at.micro_batch_size = min(self.at.micro_batch_size, self._micro_limit)
        weights, moments, objective = self._checkpoints.tensors(last)
        set_weights(self.module, weights)
        set_moments(self.module, self._optimiser, moments)
        if objective:
            self.objective.restore(objective)
        log.info("going on after step %d of %d from %s", self.at.step, self.steps, last)

    # ── the outcome ──────────────────────────────────────────────────────────────────────────

    def save(self, folder: Path) -> None:
        """Write the outcome and its history; every worker must call this, the first one writes."""
        weights = weights_of(self.module) if self.world.sharded and self.world.size > 1 else None
        if self.world.rank:
            return
        module, adapters = self.module, self._adapters
        if weights is not None:  # a sharded module cannot be saved: one is built anew, whole
            module, adapters = self._built()
            set_weights(module, weights)
        module.to("cpu").eval()
        if adapters is not None:
            lora.merge(adapters)
        folder.mkdir(parents=True, exist_ok=True)
        self.objective.save(module, folder)
        content = {"steps": self.at.step, "kept": self.at.best_step, "history": self.at.history}
        (folder / HISTORY).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _shown(entry: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in entry.items() if name != "step")
