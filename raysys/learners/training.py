"""What learners that train through Ray Train share: where a run lives, what it may use, its end."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raysys.cluster import fit, scaling
from raysys.learners.protocol import Context


def run_configs(learner: str, context: Context) -> dict[str, Any]:
    """`scaling_config` and `run_config` of a run of its own below `context.scratch`."""
    from ray.train import RunConfig

    name = f"{learner}-{uuid.uuid4().hex[:8]}"  # a name seen before would resume that run
    return {
        "scaling_config": scaling(context.resources),
        "run_config": RunConfig(name=name, storage_path=str(context.scratch)),
    }


def threads_of(context: Context) -> int:
    """CPU threads of each worker."""
    return max(1, int(context.resources.cpus_per_worker))


@contextmanager
def trained(trainer: Any) -> Iterator[Path]:
    """Run a trainer to its end, give the folder of its checkpoint, then remove the run.

    Raises:
        UserError: raised by a worker: a user's mistake there stays one.
        ray.train.TrainingFailedError: anything else that went wrong there.
    """
    run = trainer.run_config
    result = fit(trainer)
    with result.checkpoint.as_directory() as folder:
        yield Path(folder)
    shutil.rmtree(Path(run.storage_path) / run.name, ignore_errors=True)
