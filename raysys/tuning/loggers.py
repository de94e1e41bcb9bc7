"""TensorBoard and MLflow, through the callbacks that Ray has for them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raysys.errors import missing_extra
from raysys.tuning.schedulers import JOB

TENSORBOARD, MLFLOW = "tensorboard", "mlflow"


def check_loggers(names: Sequence[str]) -> None:
    """Look for the packages of the loggers that are asked for, before the first trial.

    Raises:
        UserError: one is missing; names the extra that brings it.
    """
    if TENSORBOARD in names:
        try:
            import tensorboardX  # noqa: F401
        except ImportError:
            raise missing_extra("tensorboardX", TENSORBOARD) from None
    if MLFLOW in names:
        try:
            import mlflow  # noqa: F401
        except ImportError:
            raise missing_extra("mlflow-skinny", MLFLOW) from None


def loggers(names: Sequence[str], folder: Path, study: str, uri: str) -> list[Any]:
    """Ray's callbacks for some loggers.

    Args:
        names: of them.
        folder: of the search; TensorBoard's files lie in `tensorboard/`, a run a trial.
        study: of the trials.
        uri: of MLflow's server; empty: `mlflow.db` in the folder.
    """
    found: list[Any] = []
    if TENSORBOARD in names:
        found.append(_tensorboard(folder / "tensorboard" / study))
    if MLFLOW in names:
        found.append(_mlflow(uri or f"sqlite:///{folder.resolve()}/mlflow.db", folder.name, study))
    return found


def _tensorboard(folder: Path) -> Any:
    from ray.tune.logger import TBXLoggerCallback

    class ByTrial(TBXLoggerCallback):
        """Ray's, with files where they outlive the run, named by the journal's numbers."""

        def log_trial_start(self, trial: Any) -> None:
            if trial in self._trial_writer:
                self._trial_writer[trial].close()
            place = folder / f"trial-{trial.config[JOB]['number']:04d}"
            self._trial_writer[trial] = self._summary_writer_cls(str(place), flush_secs=30)
            self._trial_result[trial] = {}

    return ByTrial()


def _mlflow(uri: str, experiment: str, study: str) -> Any:
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    for name in ("mlflow", "alembic"):  # they tell of every table that they make
        logging.getLogger(name).setLevel(logging.WARNING)

    class Named(MLflowLoggerCallback):
        """Ray's, with names that MLflow takes: it allows no `@`."""

        def log_trial_result(self, iteration: int, trial: Any, result: dict[str, Any]) -> None:
            renamed = {name.replace("@", "_at_"): value for name, value in result.items()}
            super().log_trial_result(iteration, trial, renamed)

    return Named(tracking_uri=uri, experiment_name=experiment, tags={"study": study})
