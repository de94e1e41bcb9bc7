"""Judge scorers side by side on one period: every metric with its interval, slices, differences.

All scorers rank the same candidates of the same requests, and all intervals come from the same
draws of users, so that differences are paired.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from raysys.ensemble.ranking import Judgements, ndcg
from raysys.evaluation.intervals import Bootstrap, Interval
from raysys.evaluation.metrics import (
    Float32,
    Float64,
    Reliability,
    auc,
    brier,
    coverage,
    distinct,
    entropy,
    log_losses,
    novelty,
    personalisation,
    quantile_bins,
    ranking_metrics,
    recall,
    reliability,
    top_items,
)
from raysys.evaluation.slices import Slice

RECALL_AT = (1, 2, 3, 5, 10, 20, 30, 50, 75, 100, 150, 200)
BINS = 20
AUC_CELLS = 400


@dataclass(frozen=True)
class Scorer:
    """Somebody who scored all candidates of the period.

    Attributes:
        name: as the report shows it.
        kind: `ensemble`, `fallback`, `learner` or `baseline`.
        score: float32[n].
        probability: float32[n], of being relevant.
    """

    name: str
    kind: str
    score: Float32
    probability: Float32


@dataclass(frozen=True)
class Period:
    """What was relevant in the period, and what is known around it.

    Attributes:
        judgements: of the candidates of all requests.
        bootstrap: draws of users or requests, shared by all metrics.
        user: int32[r].
        kind: int32[n_items], the kind of every item for diversity; -1 unknown.
        purchases: float64[n_items], how often each item was bought before the period.
        slices: see `slices.py`.
    """

    judgements: Judgements
    bootstrap: Bootstrap
    user: npt.NDArray[np.int32]
    kind: npt.NDArray[np.int32]
    purchases: Float64
    slices: Sequence[Slice] = ()


@dataclass(frozen=True)
class Verdict:
    """What became of one scorer.

    Attributes:
        name: of the scorer.
        kind: of the scorer.
        metrics: by name, with intervals; list-wide ones (coverage, personalisation) without.
        ndcg: float64[r], NDCG@10 of every request, NaN where nothing was relevant.
        recall_curve: mean recall at each of `RECALL_AT`.
        reliability: of the probabilities, in bins with as many rows each.
        slices: NDCG@10 by (group, slice).
    """

    name: str
    kind: str
    metrics: dict[str, Interval]
    ndcg: Float64
    recall_curve: list[float]
    reliability: Reliability
    slices: dict[tuple[str, str], Interval] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the single requests, as JSON can say it."""
        curve = self.reliability
        filled = curve.count > 0
        return {
            "kind": self.kind,
            "metrics": {name: value.to_dict() for name, value in self.metrics.items()},
            "recall_curve": self.recall_curve,
            "reliability": {
                "rows": curve.count[filled].astype(int).tolist(),
                "promised": curve.promised[filled].tolist(),
                "observed": curve.observed[filled].tolist(),
            },
        }


def judge(period: Period, scorer: Scorer) -> Verdict:
    """Every metric of one scorer."""
    judgements, bootstrap = period.judgements, period.bootstrap
    ranks = judgements.ranks(scorer.score)
    values = ranking_metrics(judgements, ranks)
    metrics = {name: bootstrap.mean(value) for name, value in values.items()}
    bins = quantile_bins(scorer.probability, BINS)
    metrics |= _probabilities(period, scorer, bins)
    metrics |= _lists(period, scorer)
    ten = {}
    for part in period.slices:
        inside = part.judgements
        ten[part.group, part.name] = bootstrap.mean(ndcg(inside, inside.ranks(scorer.score), 10))
    return Verdict(
        name=scorer.name,
        kind=scorer.kind,
        metrics=metrics,
        ndcg=values["ndcg@10"],
        recall_curve=[float(np.nanmean(recall(judgements, ranks, k))) for k in RECALL_AT],
        reliability=reliability(bins, scorer.probability, judgements.label),
        slices=ten,
    )


def score_all(scorers: Sequence[Callable[[], Scorer]]) -> list[Scorer]:
    """What makes scorers done, some at a time; in the given order."""
    with ThreadPoolExecutor(_at_once()) as pool:
        return list(pool.map(lambda make: make(), scorers))


def _at_once() -> int:
    """Each holds a few numbers a row; beyond some there is nothing to gain."""
    return min(4, os.cpu_count() or 1)


def judge_all(
    period: Period, scorers: Sequence[Scorer], judged: Callable[[], object] = lambda: None
) -> dict[str, Verdict]:
    """Verdicts by name of the scorer, in the given order.

    Args:
        period: of all scorers.
        scorers: their names must differ.
        judged: called after each.
    """
    verdicts = {}
    with ThreadPoolExecutor(_at_once()) as pool:
        for verdict in pool.map(lambda scorer: judge(period, scorer), scorers):
            verdicts[verdict.name] = verdict
            judged()
    return verdicts


def differences(bootstrap: Bootstrap, verdicts: dict[str, Verdict], of: str) -> dict[str, Interval]:
    """NDCG@10 of one scorer minus that of each other, paired by request."""
    mine = verdicts[of].ndcg
    return {
        name: bootstrap.difference(mine, verdict.ndcg)
        for name, verdict in verdicts.items()
        if name != of
    }


def _probabilities(
    period: Period, scorer: Scorer, bins: npt.NDArray[np.int64]
) -> dict[str, Interval]:
    """Metrics of the probabilities over all rows of the period, which lie in these bins."""
    bootstrap, label = period.bootstrap, period.judgements.label
    p = scorer.probability
    sizes = np.diff(period.judgements.offsets)
    request = np.repeat(np.arange(period.judgements.n_requests), sizes)
    return {
        "auc": bootstrap.auc(_fine_cells(p), label, request, auc(p, label)),
        "log_loss": bootstrap.row_mean(log_losses(p, label), request),
        "brier": bootstrap.row_mean(brier(p, label), request),
        "calibration_error": bootstrap.calibration_error(bins, p, label, request),
    }


def _lists(period: Period, scorer: Scorer) -> dict[str, Interval]:
    """What the first ten places hold, whatever was relevant."""
    top = top_items(period.judgements, scorer.score, 10)
    _, first = np.unique(
        np.where(period.user < 0, -1 - np.arange(len(period.user)), period.user), return_index=True
    )
    return {
        "distinct_categories@10": period.bootstrap.mean(distinct(top, period.kind) * 10),
        "category_entropy@10": period.bootstrap.mean(entropy(top, period.kind)),
        "novelty@10": period.bootstrap.mean(novelty(top, period.purchases)),
        "coverage@10": _plain(coverage(top, len(period.kind))),
        "personalisation@10": _plain(personalisation(top[first])),
    }


def _fine_cells(p: Float32) -> npt.NDArray[np.int64]:
    """Bins for AUC: finer where few rows are, since there the relevant ones are."""
    half = AUC_CELLS // 2
    shares = np.concatenate([np.linspace(0, 0.9, half), np.linspace(0.9, 1, half)[:-1]])
    edges = np.unique(np.quantile(p, shares, method="lower"))
    return np.searchsorted(edges, p, side="left").astype(np.int64)


def _plain(value: float) -> Interval:
    """A property of all lists together: drawing users again would change what it means."""
    return Interval(value, float("nan"), float("nan"))
