"""What learners that train through Ray Train share: where a run lives, what it may use, its end."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from raysys.cluster import fit, scaling
from raysys.errors import UserError
from raysys.learners.protocol import Context
from raysys.storage import write_atomic

_MAX_FAILURES: Final = 2
_STOPPED: Final = "stopped.json"


def run_configs(learner: str, context: Context, *, resumes: bool = False) -> dict[str, Any]:
    """`scaling_config` and `run_config` of a run of its own below `context.scratch`.

    Args:
        learner: its name.
        context: of the fit.
        resumes: workers that die are started again, as they go on from a checkpoint.
    """
    from ray.train import FailureConfig, RunConfig

    name = f"{learner}-{uuid.uuid4().hex[:8]}"  # a name seen before would resume that run
    return {
        "scaling_config": scaling(context.resources),
        "run_config": RunConfig(
            name=name,
            storage_path=str(context.scratch),
            failure_config=FailureConfig(max_failures=_MAX_FAILURES if resumes else 0),
        ),
    }


@contextmanager
def stopping(place: Path | None) -> Iterator[None]:
    """Within a worker that is started again when it fails: a user's mistake is no such failure.

    It is written down in a folder, and the worker ends well; `trained` raises it. None: it is
    raised here.
    """
    from raysys.text.training.parts import out_of_memory_told

    try:
        with out_of_memory_told():
            yield
    except UserError as error:
        if place is None:
            raise
        place.mkdir(parents=True, exist_ok=True)
        write_atomic(place / _STOPPED, json.dumps([error.what, error.where, error.mend]))


def threads_of(context: Context) -> int:
    """CPU threads of each worker."""
    return max(1, int(context.resources.cpus_per_worker))


@contextmanager
def trained(trainer: Any, place: Path | None = None) -> Iterator[Path]:
    """Run a trainer to its end, give the folder of its checkpoint, then remove the run.

    Args:
        trainer: of Ray Train.
        place: the folder of `stopping` in its workers.

    Raises:
        UserError: raised by a worker: a user's mistake there stays one.
        ray.train.TrainingFailedError: anything else that went wrong there.
    """
    run = trainer.run_config
    if place is not None:
        (place / _STOPPED).unlink(missing_ok=True)
    result = fit(trainer)
    if place is not None and (place / _STOPPED).is_file():
        what, where, mend = json.loads((place / _STOPPED).read_text(encoding="utf-8"))
        raise UserError(what, where=where, mend=mend)
    with result.checkpoint.as_directory() as folder:
        yield Path(folder)
    shutil.rmtree(Path(run.storage_path) / run.name, ignore_errors=True)
