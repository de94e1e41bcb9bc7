"""Metrics of rankings by request, of probabilities over all rows, and of what the lists hold.

Ranking metrics take the ranks of the relevant rows (`Judgements.ranks`) and give one value a
request, NaN where nothing was relevant. Denominators count everything relevant, retrieved or not
(`n_relevant`): what retrieval missed costs every learner the same. Equal scores are ordered by
item number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from raysys.ensemble.ranking import Judgements, divide, ndcg

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Ranks = npt.NDArray[np.int32]

__all__ = [
    "Judgements",
    "Reliability",
    "auc",
    "average_precision",
    "brier",
    "coverage",
    "distinct",
    "entropy",
    "hit_rate",
    "log_losses",
    "ndcg",
    "novelty",
    "personalisation",
    "ranking_metrics",
    "recall",
    "reciprocal_rank",
    "reliability",
    "top_items",
]


def reciprocal_rank(judgements: Judgements, ranks: Ranks) -> Float64:
    """One over the rank of the first relevant item: float64[r]; its mean is MRR.

    0 where retrieval missed all of them.
    """
    best = np.zeros(judgements.n_requests)
    np.maximum.at(best, judgements.owner, 1.0 / ranks)
    return np.where(judgements.judged, best, np.nan)


def recall(judgements: Judgements, ranks: Ranks, k: int) -> Float64:
    """Share of all relevant items that stand on the first k places: float64[r]."""
    return divide(_within(judgements, ranks, k), _relevant(judgements), judgements.judged)


def hit_rate(judgements: Judgements, ranks: Ranks, k: int) -> Float64:
    """1 where a relevant item stands on the first k places, else 0: float64[r]."""
    hit = (_within(judgements, ranks, k) > 0).astype(np.float64)
    return np.where(judgements.judged, hit, np.nan)


def average_precision(judgements: Judgements, ranks: Ranks, k: int) -> Float64:
    """Precision at the ranks of the relevant items within k, over min(n_relevant, k): float64[r].

    Its mean is MAP@k. With all relevant items retrieved and k at the length of the list it is
    scikit-learn's `average_precision_score`.
    """
    order = np.lexsort((ranks, judgements.owner))
    owner, rank = judgements.owner[order], ranks[order]
    sizes = np.bincount(owner, minlength=judgements.n_requests)
    first = np.concatenate([[0], np.cumsum(sizes)])[:-1]
    nth = np.arange(len(owner)) - first[owner] + 1
    precision = np.where(rank <= k, nth / rank, 0.0)
    total = np.bincount(owner, weights=precision, minlength=judgements.n_requests)
    most = np.minimum(_relevant(judgements), k)
    return divide(total.astype(np.float64), most, judgements.judged)


def ranking_metrics(
    judgements: Judgements, ranks: Ranks, recall_at: tuple[int, ...] = (10, 50)
) -> dict[str, Float64]:
    """Every ranking metric of one scorer, float64[r] each, by the name reports use."""
    return {
        "ndcg@10": ndcg(judgements, ranks, 10),
        "mrr": reciprocal_rank(judgements, ranks),
        "map@10": average_precision(judgements, ranks, 10),
        **{f"recall@{k}": recall(judgements, ranks, k) for k in recall_at},
        "hit_rate@10": hit_rate(judgements, ranks, 10),
    }


def auc(probability: Float32, label: Float32) -> float:
    """Chance that a relevant row, drawn from all requests, scores above an irrelevant one.

    Ties count half (Mann and Whitney 1947). NaN where one of the kinds is missing.
    """
    relevant = label > 0
    values, cell = np.unique(probability, return_inverse=True)
    good = np.bincount(cell[relevant], minlength=len(values)).astype(np.float64)
    bad = np.bincount(cell[~relevant], minlength=len(values)).astype(np.float64)
    if not good.sum() or not bad.sum():
        return float("nan")
    below = np.cumsum(bad) - bad
    return float((good * (below + bad / 2)).sum() / (good.sum() * bad.sum()))


def log_losses(probability: Float32, label: Float32) -> Float64:
    """Negative log likelihood of every row, in nats: float64[n]; its mean is the log loss."""
    p = np.clip(probability.astype(np.float64), 1e-15, 1 - 1e-15)
    return -np.where(label > 0, np.log(p), np.log1p(-p))


def brier(probability: Float32, label: Float32) -> Float64:
    """Squared error of every row: float64[n]; its mean is the Brier score."""
    return (probability.astype(np.float64) - (label > 0)) ** 2


@dataclass(frozen=True)
class Reliability:
    """What was promised and what came, by bins of the promise.

    Attributes:
        count: float64[bins], rows.
        promised: float64[bins], mean probability; NaN where empty.
        observed: float64[bins], share relevant; NaN where empty.
    """

    count: Float64
    promised: Float64
    observed: Float64

    @property
    def error(self) -> float:
        """Expected calibration error: mean distance of the two, by rows (Naeini et al. 2015)."""
        filled = self.count > 0
        gap = np.abs(self.promised[filled] - self.observed[filled])
        return float((gap * self.count[filled]).sum() / max(self.count.sum(), 1.0))


def reliability(cell: npt.NDArray[np.int64], probability: Float32, label: Float32) -> Reliability:
    """Reliability over given bins.

    Args:
        cell: int64[n], the bin of every row, see `quantile_bins`.
        probability: float32[n].
        label: float32[n], above 0 where relevant.
    """
    bins = int(cell.max(initial=0)) + 1
    count = np.bincount(cell, minlength=bins).astype(np.float64)
    with np.errstate(invalid="ignore"):
        promised = np.bincount(cell, weights=probability, minlength=bins) / count
        observed = np.bincount(cell, weights=label > 0, minlength=bins) / count
    return Reliability(count, promised, observed)


def quantile_bins(values: Float32, bins: int) -> npt.NDArray[np.int64]:
    """The bin (0 … bins-1) of every value, with about as many rows each: int64[n].

    Equal values share a bin, so there may be fewer.
    """
    edges = np.unique(np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1], method="lower"))
    return np.searchsorted(edges, values, side="left").astype(np.int64)


def top_items(judgements: Judgements, scores: Float32, k: int) -> npt.NDArray[np.int32]:
    """The first k items of every request: int32[r, k], -1 where the list is shorter.

    Of equal scores the item of the lower number comes first.
    """
    top = np.full((judgements.n_requests, k), -1, dtype=np.int32)
    _fill_top(np.ascontiguousarray(scores), judgements.item, judgements.offsets, top)
    return top


@njit(cache=True, nogil=True)
def _fill_top(scores, item, offsets, top):  # type: ignore[no-untyped-def]
    """By insertion: hardly a row of a long list comes in front of the k-th."""
    k = top.shape[1]
    best = np.empty(k, scores.dtype)
    for request in range(len(offsets) - 1):
        held = 0
        for row in range(offsets[request], offsets[request + 1]):
            score, number = scores[row], item[row]
            at = held
            while at and (
                best[at - 1] < score or (best[at - 1] == score and top[request, at - 1] > number)
            ):
                at -= 1
            if at == k:
                continue
            held = min(held + 1, k)
            for place in range(held - 1, at, -1):
                best[place] = best[place - 1]
                top[request, place] = top[request, place - 1]
            best[at] = score
            top[request, at] = number


def coverage(top: npt.NDArray[np.int32], n_items: int) -> float:
    """Share of the catalogue that appears in any of the lists."""
    return len(np.unique(top[top >= 0])) / max(n_items, 1)


def distinct(top: npt.NDArray[np.int32], kind: npt.NDArray[np.int32]) -> Float64:
    """Distinct kinds (say categories) in every list, in parts of its length: float64[r].

    Args:
        top: int32[r, k] from `top_items`.
        kind: int32[n_items], the kind of every item; -1 (unknown) counts as one kind.
    """
    request, _ = _kind_counts(top, kind)
    kinds = np.bincount(request, minlength=len(top)).astype(np.float64)
    length = (top >= 0).sum(axis=1).astype(np.float64)
    return divide(kinds, length, length > 0)


def entropy(top: npt.NDArray[np.int32], kind: npt.NDArray[np.int32]) -> Float64:
    """Entropy of the kinds in every list, in bits (Shannon): float64[r]."""
    request, count = _kind_counts(top, kind)
    length = np.bincount(request, weights=count, minlength=len(top))
    share = count / length[request]
    bits = np.bincount(request, weights=-share * np.log2(share), minlength=len(top))
    return np.where(length > 0, bits, np.nan)


def personalisation(top: npt.NDArray[np.int32]) -> float:
    """How different two lists are on average: 1 minus their overlap in parts of k.

    0: everybody sees the same; 1: no two lists share an item. Exact over all pairs: an item in c
    of r lists is shared by c (c - 1) / 2 pairs. Give one list a user.
    """
    r, k = top.shape
    if r < 2:
        return float("nan")
    count = np.unique(top[top >= 0], return_counts=True)[1].astype(np.float64)
    return float(1.0 - (count * (count - 1)).sum() / (r * (r - 1.0) * k))


def novelty(top: npt.NDArray[np.int32], purchases: Float64) -> Float64:
    """Mean surprise of the items in every list, in bits: float64[r].

    The surprise of an item is -log2 of its share of all purchases (Zhou et al., PNAS 2010), with
    one purchase added to each item.

    Args:
        top: int32[r, k] from `top_items`.
        purchases: float64[n_items], how often each was bought before.
    """
    surprise = -np.log2((purchases + 1.0) / (purchases.sum() + len(purchases)))
    filled = top >= 0
    total = np.where(filled, surprise[top], 0.0).sum(axis=1)
    length = filled.sum(axis=1).astype(np.float64)
    return divide(total, length, length > 0)


def _kind_counts(
    top: npt.NDArray[np.int32], kind: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Every (request, kind) that occurs: the request, and how many of its items are of it."""
    request, place = np.nonzero(top >= 0)
    width = int(kind.max(initial=0)) + 2
    pair = request * width + kind[top[request, place]] + 1
    pairs, count = np.unique(pair, return_counts=True)
    return pairs // width, count


def _within(judgements: Judgements, ranks: Ranks, k: int) -> Float64:
    """Relevant items on the first k places: float64[r]."""
    owner = judgements.owner[ranks <= k]
    return np.bincount(owner, minlength=judgements.n_requests).astype(np.float64)


def _relevant(judgements: Judgements) -> Float64:
    return judgements.n_relevant.astype(np.float64)
