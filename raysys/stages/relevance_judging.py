"""What members of a relevance benchmark said, judged: NDCG@10 and RMSE by query, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raysys.evaluation.intervals import Bootstrap, Interval
from raysys.learners.relevance_blend import folds_by_query
from raysys.stages.benchmark_pairs import Judged
from raysys.text.models import PACKAGED
from raysys.text.pairs import Float32, Pairs, ndcg_by_query

LEAST_PRODUCTS = 5
FEW = 0.1
"""Of the queries that have an order at all: below, those with five products speak for nobody."""
SPLITS = ("train", "validation", "test")
WEIGHTED = "weighted_grades"
"""The ensemble that is always there."""


@dataclass
class Member:
    """What one member says of every pair, and what it took.

    Attributes:
        said: float32[n] by split; of training pairs out of fold.
        settings: that it was fitted with.
        seconds: of fitting and scoring.
    """

    said: dict[str, Float32]
    settings: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Ground:
    """Pairs by split, the folds of the training queries, and how texts are read.

    Attributes:
        language: of the stems, as Snowball names it.
        model: where transformers start, and whose cosines are features.
    """

    tables: dict[str, pa.Table]
    pairs: dict[str, Pairs]
    seed: int
    language: str = "english"
    model: str = PACKAGED

    @classmethod
    def of(
        cls, judged: Judged, seed: int, *, language: str = "english", model: str = PACKAGED
    ) -> Ground:
        """Of pairs that are divided already."""
        tables = {name: judged.split(name) for name in SPLITS}
        pairs = {name: Pairs.of(each) for name, each in tables.items()}
        return cls(tables, pairs, seed, language, model)

    def folds(self, count: int) -> npt.NDArray[np.int64]:
        """The fold of every training pair."""
        return folds_by_query(self.pairs["train"], count, self.seed)


@dataclass(frozen=True)
class Judge:
    """NDCG@10 by query, gains above the lowest grade, and RMSE, drawn by query."""

    pairs: Pairs
    least: int
    low: float

    def ndcg(self, said: Float32) -> npt.NDArray[np.float64]:
        """Of each query, NaN where it has too few products or nothing relevant."""
        gain = (self.pairs.grade - self.low).clip(0).astype(np.float32)
        names, values = ndcg_by_query(said, gain, self.pairs.query)
        return np.where(np.bincount(self.pairs.query)[names] >= self.least, values, np.nan)

    def rmse(self, said: Float32, draws: Bootstrap) -> Interval:
        """Root of the mean squared error of the grades."""
        query = np.unique(self.pairs.query, return_inverse=True)[1]
        error = (said - self.pairs.grade).astype(np.float64) ** 2
        sums = np.stack([draws.sums(error, query), draws.sums(np.ones(len(error)), query)], axis=1)
        totals = draws.replicate(sums)
        return draws.interval(float(np.sqrt(error.mean())), np.sqrt(totals[:, 0] / totals[:, 1]))


def figures_of(
    ground: Ground,
    members: Mapping[str, Member],
    ensembles: Mapping[str, tuple[dict[str, Float32], dict[str, Any]]],
) -> dict[str, Any]:
    """Figures of the test queries; which ensemble orders them is chosen on validation queries."""
    test, low = ground.pairs["test"], float(ground.pairs["train"].grade.min())
    least = least_products(np.bincount(test.query))
    judge, held = Judge(test, least, low), Judge(ground.pairs["validation"], least, low)
    draws = Bootstrap(np.unique(test.query))
    ndcg = {name: judge.ndcg(member.said["test"]) for name, member in members.items()}
    best = max(members, key=lambda name: _mean(ndcg[name]))
    chosen = best_on_validation(ensembles, held)
    mine = judge.ndcg(ensembles[chosen][0]["test"])
    return {
        "least_products": least,
        "judged_queries": int((~np.isnan(mine)).sum()),
        "members": {
            name: {
                "ndcg10": draws.mean(ndcg[name]).to_dict(),
                "rmse": judge.rmse(member.said["test"], draws).to_dict(),
                "seconds": round(member.seconds, 1),
                "settings": member.settings,
            }
            for name, member in members.items()
        },
        "ensemble": {
            "ndcg10": draws.mean(mine).to_dict(),
            "rmse": judge.rmse(ensembles[WEIGHTED][0]["test"], draws).to_dict(),
            "by": chosen,
            **{name: told for name, (_, told) in ensembles.items()},
        },
        "best_member": best,
        "gain": draws.difference(mine, ndcg[best]).to_dict(),
    }


def least_products(sizes: npt.NDArray[np.int64]) -> int:
    """How many products a query needs to be judged by order: five; two where few have five.

    Args:
        sizes: int64[q], products of each test query.
    """
    many, some = ((sizes >= least).sum() for least in (LEAST_PRODUCTS, 2))
    return LEAST_PRODUCTS if many and many >= FEW * some else 2


def best_on_validation(
    ensembles: Mapping[str, tuple[dict[str, Float32], dict[str, Any]]], held: Judge
) -> str:
    """The ensemble that orders the validation queries best, if it is not by chance.

    Weighted grades, one number a member fitted on all training queries, unless another is better
    by more than a standard error of the paired difference (the rule of Breiman et al., CART, 1984):
    on a hundred queries the best of three is mostly the luckiest.
    """
    values = {name: held.ndcg(said["validation"]) for name, (said, _) in ensembles.items()}
    best = max(values, key=lambda name: _mean(values[name]))
    ahead = values[best] - values[WEIGHTED]
    ahead = ahead[~np.isnan(ahead)]
    if len(ahead) > 1 and ahead.mean() > ahead.std(ddof=1) / np.sqrt(len(ahead)):
        return best
    return WEIGHTED


def _mean(values: npt.NDArray[np.float64]) -> float:
    """Mean of what has a value; 0 where nothing has."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0
