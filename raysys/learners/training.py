"""What learners that train through Ray Train share: where a run lives, what it may use, its end."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raysys.errors import UserError
from raysys.learners.protocol import Context


def run_configs(learner: str, context: Context) -> dict[str, Any]:
    """`scaling_config` and `run_config` of a run of its own below `context.scratch`."""
    from ray.train import RunConfig, ScalingConfig

    resources = context.resources
    each = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        each["GPU"] = resources.gpus_per_worker
    name = f"{learner}-{uuid.uuid4().hex[:8]}"  # a name seen before would resume that run
    return {
        "scaling_config": ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=each,
        ),
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
    result = _result(trainer)
    with result.checkpoint.as_directory() as folder:
        yield Path(folder)
    shutil.rmtree(Path(run.storage_path) / run.name, ignore_errors=True)


def _result(trainer: Any) -> Any:
    from ray.train import TrainingFailedError

    try:
        return trainer.fit()
    except TrainingFailedError as error:
        for failure in getattr(error, "worker_failures", {}).values():
            cause: BaseException | None = failure
            while cause is not None and not isinstance(cause, UserError):
                cause = getattr(cause, "cause", None) or cause.__cause__
            if cause is not None:
                raise cause from None
        raise
