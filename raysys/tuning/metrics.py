"""What a trial reports: how well its model does on validation, and what it costs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from raysys.ensemble.cost import one_thread
from raysys.ensemble.ranking import Judgements, divide, ndcg
from raysys.errors import UserError
from raysys.features.batch import Batch
from raysys.learners.protocol import Model
from raysys.tuning.space import unknown

NDCG_10 = "ndcg@10"
LATENCY, SIZE, SECONDS = "latency_ms", "size_mb", "seconds"
COSTS = (LATENCY, SIZE, SECONDS)
REPORTED = (NDCG_10, "ndcg@5", "ndcg@20", "recall@10", "recall@20", "mrr", *COSTS)
OF_TEXTS: Final[Mapping[str, tuple[str, ...]]] = {
    "classify": ("macro_f1", "accuracy", "accuracy_level_1", "calibration_error", *COSTS),
    "sentiment": ("macro_f1", "accuracy", "rating_rmse", "calibration_error", *COSTS),
    "entities": ("micro_f1", "macro_f1", "precision", "recall", "calibration_error", *COSTS),
    "relevance": (NDCG_10, "rmse", "relevant_f1", "brier", "calibration_error", *COSTS),
}
"""What a trial of a text learner reports, by task; the criterion of `raysys text fit` first."""
LOWER_IS_BETTER = (*COSTS, "rmse", "rating_rmse", "brier", "calibration_error")
ASKED = 100
"""Candidates of the request whose latency is measured."""
QUIET = 0.1
"""Quantile of timed calls that counts: other trials make calls slower, and none faster."""


def ranking_figures(judgements: Judgements, scores: npt.NDArray[np.float32]) -> dict[str, float]:
    """The ranking metrics of `REPORTED`: means over requests with something relevant.

    Equal scores are ordered by item number, as in every report.
    """
    ranks = judgements.ranks(scores)

    def mean(values: npt.NDArray[np.float64]) -> float:
        known = values[~np.isnan(values)]
        return float(known.mean()) if len(known) else 0.0

    found = {f"ndcg@{k}": mean(ndcg(judgements, ranks, k)) for k in (10, 5, 20)}
    relevant = judgements.n_relevant.astype(np.float64)
    for k in (10, 20):
        within = np.bincount(judgements.owner[ranks <= k], minlength=judgements.n_requests)
        found[f"recall@{k}"] = mean(divide(within.astype(np.float64), relevant, judgements.judged))
    first = np.zeros(judgements.n_requests)
    np.maximum.at(first, judgements.owner, 1.0 / ranks)
    found["mrr"] = mean(np.where(judgements.judged, first, np.nan))
    return found


def latency_ms(model: Model, batch: Batch, repeats: int = 21) -> float:
    """Milliseconds in which a model scores one request of 100 candidates, see `quiet_ms`.

    Args:
        model: fitted.
        batch: any rows of its plan; the first 100, repeated where there are fewer.
        repeats: timed calls.
    """
    rows = np.resize(np.arange(len(batch)), ASKED)
    request = replace(
        batch.take_requests(np.array([0])),
        features=batch.features[rows],
        item=batch.item[rows],
        offsets=np.array([0, ASKED], dtype=np.int64),
        label=None,
        weight=None,
        sampling_probability=None,
    )
    return quiet_ms(lambda: model.score(request), repeats)


def quiet_ms(call: Callable[[], object], repeats: int = 21) -> float:
    """Milliseconds of a call on one thread, as `raysys train` measures members.

    What the quickest tenth of the timed calls keeps to, after three that are not timed: the median
    says how many trials ran beside this one, by which no constraint should judge it.
    """
    taken = []
    with one_thread():
        for _ in range(3 + repeats):
            began = time.perf_counter()
            call()
            taken.append(time.perf_counter() - began)
    return float(np.quantile(taken[3:], QUIET) * 1000)


class Saved(Protocol):
    """What has a size."""

    def save(self, folder: Path) -> None:
        """Write into an existing empty folder."""


def size_mb(model: Saved) -> float:
    """Megabytes (10⁶ bytes) of a model as a bundle would hold it."""
    with tempfile.TemporaryDirectory() as place:
        model.save(Path(place))
        return sum(path.stat().st_size for path in Path(place).rglob("*") if path.is_file()) / 1e6


def check_metrics(
    metric: str,
    constraints: dict[str, float],
    direction: str,
    reported: Sequence[str] = REPORTED,
) -> None:
    """Hold an objective and constraints against what a trial reports.

    Raises:
        UserError: no trial reports such a metric; a constraint that is no cost; a direction that
            looks for the worst.
    """
    if metric not in reported:
        raise unknown("no trial reports", metric, reported, where="objective.metric")
    for name in constraints:
        if name not in COSTS:
            raise unknown("no cost is called", name, COSTS, where="constraints")
    wanted = "min" if metric in LOWER_IS_BETTER else "max"
    if direction != wanted:
        raise UserError(
            f"{direction} would look for the worst {metric}",
            where="objective.direction",
            mend=f"set it to {wanted}",
        )
