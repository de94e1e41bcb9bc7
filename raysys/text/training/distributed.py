"""The same run through Ray Train: workers, their death, and what they tell the caller.

Checkpoints lie in the run's own folder rather than in Ray Train's, for a worker that is started
again, a run after memory ran out, and a second call of `train` all go on from them alike.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from raysys import progress
from raysys.cluster import Resources, fit, scaling
from raysys.errors import UserError
from raysys.text.training.loop import Loop, SmallerMicroBatches, Standing
from raysys.text.training.objective import Objective
from raysys.text.training.parallel import World
from raysys.text.training.settings import TrainingSettings

log = logging.getLogger("raysys")

OUTCOME = "outcome"
STANDING = "standing.json"
STOPPED = "stopped.json"
MICRO_BATCH = "micro_batch.json"
PROGRESS = "progress.json"


def train_distributed(
    objective: Objective,
    settings: TrainingSettings,
    folder: Path,
    scratch: Path,
    seed: int,
    resources: Resources,
) -> Standing:
    """Train in Ray Train's workers; see `train`.

    Raises:
        UserError: what stopped a worker, where the user can mend it.
        ray.train.TrainingFailedError: workers died more often than `max_failures` allows.
    """
    scratch = scratch.resolve()
    for name in (STOPPED, MICRO_BATCH, PROGRESS):
        (scratch / name).unlink(missing_ok=True)
    shutil.rmtree(scratch / OUTCOME, ignore_errors=True)
    with _watched(objective.title, scratch):
        while not _attempt(objective, settings, scratch, seed, resources):
            log.warning("starting again with smaller micro-batches")
    shutil.copytree(scratch / OUTCOME, folder, dirs_exist_ok=True)
    return Standing(**_read(scratch / STANDING))


def _attempt(
    objective: Objective,
    settings: TrainingSettings,
    scratch: Path,
    seed: int,
    resources: Resources,
) -> bool:
    """One Ray Train run; False: memory ran out and the next one will take less."""
    from ray.train import FailureConfig, RunConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    known = _micro_batch_size(scratch)
    name = f"training-{uuid.uuid4().hex[:8]}"  # a name seen before would resume that run
    trainer = TorchTrainer(
        _work,
        train_loop_config={
            "objective": objective,  # with the function, Ray Train puts it into the object store
            "settings": settings,
            "scratch": scratch,
            "seed": seed,
            "threads": max(1, int(resources.cpus_per_worker)),
        },
        scaling_config=scaling(resources),
        run_config=RunConfig(
            name=name,
            storage_path=str(scratch),
            failure_config=FailureConfig(max_failures=settings.max_failures),
        ),
    )
    try:
        fit(trainer)
    except TrainingFailedError:
        _raise_if_stopped(scratch)
        if _micro_batch_size(scratch) == known:
            raise
        return False
    finally:
        shutil.rmtree(scratch / name, ignore_errors=True)
    _raise_if_stopped(scratch)
    return True


def _work(config: dict[str, Any]) -> None:
    """What each worker does."""
    import ray.train
    import ray.train.torch

    scratch: Path = config["scratch"]
    settings: TrainingSettings = config["settings"]
    if (scratch / STOPPED).exists():  # Ray Train would try again what cannot succeed
        return
    torch.set_num_threads(config["threads"])
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    context = ray.train.get_context()
    world = World(
        device=device,
        rank=context.get_world_rank(),
        size=context.get_world_size(),
        sharded=settings.strategy == "fsdp",
    )
    try:
        loop = Loop(
            config["objective"], settings, scratch, config["seed"], world,
            progress=_Teller(scratch) if world.rank == 0 else None,
            micro_batch_size=_micro_batch_size(scratch),
        )  # fmt: skip
        standing = loop.run()
        loop.save(scratch / OUTCOME)
    except SmallerMicroBatches as error:
        _write(scratch / MICRO_BATCH, error.args[0])
        raise
    except UserError as error:
        _write(scratch / STOPPED, [error.what, error.where, error.mend])
        if world.size > 1:  # the others may wait for this one
            raise
        return
    if world.rank == 0:
        _write(scratch / STANDING, asdict(standing))


def _raise_if_stopped(scratch: Path) -> None:
    if (scratch / STOPPED).exists():
        what, where, mend = _read(scratch / STOPPED)
        raise UserError(what, where=where, mend=mend) from None


def _micro_batch_size(scratch: Path) -> int | None:
    place = scratch / MICRO_BATCH
    return int(_read(place)) if place.exists() else None


class _Teller:
    """Writes down how far the run is, once a second, for the process that waits for it."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._told = 0.0

    def __call__(self, step: int, steps: int, note: str) -> None:
        now = time.monotonic()
        if now - self._told >= 1 or step == steps:
            self._told = now
            _write(self._scratch / PROGRESS, [step, steps, note])


@contextmanager
def _watched(title: str, scratch: Path) -> Iterator[None]:
    """Show the progress of the workers as one's own."""
    over = threading.Event()
    with progress.task(title) as task:

        def look() -> None:
            if (scratch / PROGRESS).exists():
                step, task.total, task.note = _read(scratch / PROGRESS)
                task.reach(step)

        def watch() -> None:
            while not over.wait(1.0):
                look()

        watcher = threading.Thread(target=watch, name="watch-training", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
            look()


def _read(place: Path) -> Any:
    return json.loads(place.read_text(encoding="utf-8"))


def _write(place: Path, content: Any) -> None:
    """Write JSON whole, or not at all."""
    beside = place.with_name(f"{place.name}.{uuid.uuid4().hex[:8]}")
    beside.write_text(json.dumps(content), encoding="utf-8")
    beside.rename(place)
