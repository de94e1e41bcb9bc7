"""The Ray cluster a stage runs on: the one it was submitted to, or a local one it starts.

Nothing asks how many nodes there are. On a cluster (`ray job submit`, or RAY_ADDRESS set) the
stage connects; elsewhere it starts a small local Ray and takes it down again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import psutil

from raysys.errors import UserError

log = logging.getLogger("raysys")

QUIET = {
    "RAY_DEDUP_LOGS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_V2_ENABLED": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}

_CLIENT_PORT: Final = 10001  # of Ray's client, where an address names none


@dataclass(frozen=True)
class Resources:
    """What one fit may use, for Ray Train's ScalingConfig."""

    workers: int = 1
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0


def scaling(resources: Resources) -> Any:
    """Ray Train's ScalingConfig for some resources."""
    from ray.train import ScalingConfig

    each = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker:
        each["GPU"] = resources.gpus_per_worker
    return ScalingConfig(
        num_workers=resources.workers,
        use_gpu=resources.gpus_per_worker > 0,
        resources_per_worker=each,
    )


def device_here() -> str:
    """`cuda` where this process may use a GPU, else `cpu`; as PyTorch names devices.

    A worker of Ray may use the GPUs that were reserved for it. Without a reservation it sees those
    of its machine all the same: Ray hides nothing from who asked for nothing.
    """
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        in_worker = ray.get_runtime_context().worker.mode == ray.WORKER_MODE
        if in_worker and not ray.get_gpu_ids():
            return "cpu"
    return "cuda"


def fit(trainer: Any) -> Any:
    """Run one of Ray Train's trainers to its end, give its result.

    Raises:
        UserError: raised by a worker: a user's mistake there stays one.
        ray.train.TrainingFailedError: anything else that went wrong there.
    """
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


def settle_environment() -> None:
    """Choose what the environment does not say; Ray reads some of it as soon as it is imported."""
    for key, value in QUIET.items():
        os.environ.setdefault(key, value)
    _ask_this_machine_directly()
    if "ray" not in sys.modules:  # it has read this one: `ray.init` sees to a token by itself
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _ask_this_machine_directly() -> None:
    """A proxy knows nothing of what runs here, such as Ray's dashboard and what we serve."""
    names = ("no_proxy", "NO_PROXY")
    said = [os.environ[name] for name in names if name in os.environ]  # the first one is heeded
    for name, other in zip(names, (said[:1], said[-1:]), strict=True):
        known = [host.strip() for host in ",".join(other).split(",") if host.strip()]
        if known != ["*"]:
            os.environ[name] = ",".join(dict.fromkeys([*known, "127.0.0.1", "localhost", "::1"]))


@contextlib.contextmanager
def ray_session(*, dashboard: bool = False, log_to_driver: bool = False) -> Iterator[None]:
    """Ray for the time of a stage; inside an open session it does nothing.

    Args:
        dashboard: start Ray's dashboard with a local cluster.
        log_to_driver: show what workers print.

    Raises:
        UserError: RAY_ADDRESS names a cluster, and none answers there.
    """
    settle_environment()
    import ray

    if ray.is_initialized():
        yield
        return
    if os.environ.get("RAY_ADDRESS"):
        _connect(log_to_driver)
    else:
        ray.init(
            address="local",
            include_dashboard=dashboard,
            dashboard_host="127.0.0.1",
            log_to_driver=log_to_driver,
            logging_level=logging.WARNING,
            object_store_memory=object_store_bytes(),
        )
    _quieten()
    try:
        yield
    finally:
        ray.shutdown()


def reach(address: str, seconds: float) -> None:
    """Try whether something listens where `HOST:PORT` or `SCHEME://HOST:PORT` says.

    Raises:
        OSError, ValueError: nothing does, or that is no address.
    """
    parts = urlsplit(address if "//" in address else f"//{address}")
    place = (parts.hostname or "", parts.port or _CLIENT_PORT)
    socket.create_connection(place, timeout=seconds).close()


def _connect(log_to_driver: bool) -> None:
    """Connect to the cluster that RAY_ADDRESS names."""
    import ray

    address = os.environ["RAY_ADDRESS"]
    try:
        if address not in ("auto", "local"):
            reach(address, seconds=10)  # `ray.init` would try for minutes
        ray.init(log_to_driver=log_to_driver)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{address}: no cluster to work on: {str(error).splitlines()[0]}",
            where="RAY_ADDRESS",
            mend="start that cluster, give HOST:6379, or unset it",
        ) from None


def stay_until_interrupted() -> None:
    """Return when Ctrl-C comes.

    The signal may reach a thread of Ray's, and then nothing wakes a main thread that waits on a
    lock for ever: it looks by itself, twice a second.
    """
    never = threading.Event()
    with contextlib.suppress(KeyboardInterrupt):
        while not never.wait(0.5):
            pass


def object_store_bytes() -> int:
    """Shared memory for a local cluster: a tenth of the machine's, 256 MB to 4 GB."""
    total = psutil.virtual_memory().total
    return int(min(4 << 30, max(256 << 20, total // 10)))


def quieten_ray_data() -> None:
    """Progress goes through `raysys.progress`; Ray Data's own bars and logs would double it.

    Apart from `ray_session`, since importing Ray Data takes seconds: for who uses it.
    """
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def _quieten() -> None:
    """Of Ray's own loggers, warnings only."""
    for name in ("ray", "ray.data", "ray.train", "ray.tune", "ray.serve"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # it warns that the bars are off, which is what was asked for
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
