"""What an evaluation found: figures of every scorer, of every loss of members, as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from raysys.ensemble.combination import Combination
from raysys.ensemble.cost import Subset
from raysys.evaluation.intervals import Interval
from raysys.evaluation.judge import RECALL_AT, Verdict


@dataclass(frozen=True)
class Loss:
    """What is left when members are lost.

    Attributes:
        what: in words.
        present: members that are left.
        fallback: the combination that answers.
        ndcg: NDCG@10 of that answer.
        gap: minus that of the ensemble, paired.
    """

    what: str
    present: tuple[str, ...]
    fallback: str
    ndcg: Interval
    gap: Interval

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "what": self.what,
            "present": list(self.present),
            "fallback": self.fallback,
            "ndcg@10": self.ndcg.to_dict(),
            "minus_ensemble": self.gap.to_dict(),
        }


@dataclass(frozen=True)
class Evaluation:
    """Everything the report shows.

    Attributes:
        title: of the page.
        bundle: id of the bundle that was judged.
        period: facts of the period for the head of the page: name -> value.
        ceiling: mean share of what a request bought that retrieval returned, in [0, 1].
        cluster: what the bootstrap draws: `user` or `request`.
        resamples: how often.
        verdicts: by scorer; `ensemble` is the one that is served.
        differences: NDCG@10 of the ensemble minus each other's.
        slices: (group, slice) -> requests in it.
        combinations: of the ensemble, by fallback.
        correlation: float64[m, m], Spearman's within requests, of the scores of `learners`.
        overlap: float64[m, m], of what either of two misses the share that both miss.
        learners: names of the members, in the order of `correlation`.
        losses: what is left when a family or a single member is lost.
        dropped: learners without a say in the ensemble, and why.
        milliseconds: of each learner, for 100 candidates on one thread; empty if unknown.
        subsets: of learners, with quality out of fold and cost; empty if unknown.
    """

    title: str
    bundle: str
    period: Mapping[str, object]
    ceiling: float
    cluster: str
    resamples: int
    verdicts: Mapping[str, Verdict]
    differences: Mapping[str, Interval]
    slices: Mapping[tuple[str, str], int]
    combinations: Mapping[str, Combination]
    correlation: npt.NDArray[np.float64]
    overlap: npt.NDArray[np.float64]
    learners: Sequence[str]
    losses: Sequence[Loss] = ()
    dropped: Mapping[str, str] = field(default_factory=dict)
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    subsets: Sequence[Subset] = ()

    @property
    def best_single(self) -> str:
        """The learner or baseline with the highest NDCG@10 on the period."""
        single = [v for v in self.verdicts.values() if v.kind in ("learner", "baseline")]
        return max(single, key=lambda v: v.metrics["ndcg@10"].value).name

    def to_dict(self) -> dict[str, Any]:
        """All figures, as JSON can say them."""
        return {
            "bundle": self.bundle,
            "period": {name: str(value) for name, value in self.period.items()},
            "intervals": {"drawn": self.cluster, "resamples": self.resamples, "confidence": 0.95},
            "retrieved_share": self.ceiling,
            "best_single": self.best_single,
            "scorers": {name: verdict.to_dict() for name, verdict in self.verdicts.items()},
            "recall_at": list(RECALL_AT),
            "ensemble_minus": {name: gap.to_dict() for name, gap in self.differences.items()},
            "slices": [
                {
                    "group": group,
                    "slice": name,
                    "requests": requests,
                    "ndcg@10": {
                        scorer: verdict.slices[group, name].to_dict()
                        for scorer, verdict in self.verdicts.items()
                    },
                }
                for (group, name), requests in self.slices.items()
            ],
            "weights": {name: c.share for name, c in self.combinations.items()},
            "methods": {name: c.method for name, c in self.combinations.items()},
            "calibrations": {
                name: c.served_calibration.to_dict()["kind"]
                for name, c in self.combinations.items()
            },
            "correlation": {
                "learners": list(self.learners),
                "values": numbers(self.correlation),
                "error_overlap": numbers(self.overlap),
            },
            "losses": [loss.to_dict() for loss in self.losses],
            "dropped": dict(self.dropped),
            "latency_ms": dict(self.milliseconds),
            "subsets": [each.to_dict() for each in self.subsets],
        }


def numbers(values: npt.NDArray[np.float64]) -> list[list[float | None]]:
    """A matrix for JSON, where NaN is null."""
    return [[None if np.isnan(v) else round(float(v), 4) for v in row] for row in values]
