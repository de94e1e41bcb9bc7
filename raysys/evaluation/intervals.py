"""Bootstrap intervals: requests are drawn with all their rows, and users with all their requests.

A user's requests resemble each other, so the unit that is drawn is the user by default (cluster
bootstrap, Field and Welsh, JRSS B 2007): drawing single requests would promise too much. Intervals
are percentiles (Efron 1979). Everything judged with one `Bootstrap` shares its draws, so that
differences are paired.

A metric enters as sums by cluster, and a replicate is a product of a matrix of counts with them:
a thousand replicates cost one matrix product, for log loss, Brier, AUC and calibration too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value and its interval; NaN where there is nothing to say."""

    value: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether it has ends."""
        return not np.isnan(self.low)

    def to_dict(self) -> dict[str, float | None]:
        """For JSON, where NaN is null."""
        return {
            name: None if np.isnan(value) else float(value) for name, value in vars(self).items()
        }


def signed(value: float) -> str:
    """`+0.0123`, or a dash where there is nothing to say."""
    return "–" if np.isnan(value) else f"{value:+.4f}"


class Bootstrap:
    """Draws of users (or requests), made once and used for every metric.

    Args:
        cluster: int[r], the user of every request; each negative number is a cluster of its own.
            Give `np.arange(r)` to draw requests.
        resamples: draws.
        seed: of the draws.
        confidence: of the intervals.
    """

    def __init__(
        self,
        cluster: npt.NDArray[np.integer],
        *,
        resamples: int = 1000,
        seed: int = 0,
        confidence: float = 0.95,
    ) -> None:
        cluster = cluster.astype(np.int64)
        strangers = cluster < 0
        cluster = np.where(strangers, cluster.max(initial=0) + 1 + np.arange(len(cluster)), cluster)
        labels, self.cluster = np.unique(cluster, return_inverse=True)
        self.n_clusters = len(labels)
        self.confidence = confidence
        rng = np.random.default_rng(seed)
        drawn = [self._draw(rng) for _ in range(resamples)]
        self._weights = np.stack(drawn) if drawn else np.zeros((0, self.n_clusters), np.float32)

    def _draw(self, rng: np.random.Generator) -> npt.NDArray[np.float32]:
        """How often each cluster is drawn: float32[clusters], summing to their number."""
        chosen = rng.integers(0, self.n_clusters, self.n_clusters)
        return np.bincount(chosen, minlength=self.n_clusters).astype(np.float32)

    def sums(self, values: Float64, row_cluster: npt.NDArray[np.int64] | None = None) -> Float64:
        """Values summed by cluster: float64[clusters]; NaN counts as absent."""
        owner = self.cluster if row_cluster is None else row_cluster
        summed = np.bincount(owner, weights=np.nan_to_num(values), minlength=self.n_clusters)
        return summed.astype(np.float64)

    def replicate(self, sums: Float64) -> Float64:
        """Totals in every draw: float64[resamples, …] of sums float64[clusters, …]."""
        flat = sums.reshape(self.n_clusters, -1)
        scale = np.abs(flat).max(axis=0, initial=0.0)
        scale[scale == 0] = 1.0  # float32 products need like magnitudes
        totals = (self._weights @ (flat / scale).astype(np.float32)).astype(np.float64) * scale
        return totals.reshape(len(self._weights), *sums.shape[1:])

    def mean(self, values: Float64) -> Interval:
        """Mean of the requests that have a value (float64[r], NaN: none), with its interval."""
        return self.interval(_nanmean(values), self._means(values))

    def difference(self, values: Float64, other: Float64) -> Interval:
        """Mean of `values` minus mean of `other`, paired: both are judged on the same draws."""
        both = np.where(np.isnan(values) | np.isnan(other), np.nan, values - other)
        return self.mean(both)

    def row_mean(self, values: Float64, request: npt.NDArray[np.int64]) -> Interval:
        """Mean over rows, float64[n] of the given requests: log loss, Brier score."""
        owner = self.cluster[request]
        sums = np.stack([self.sums(values, owner), self.sums(np.ones(len(values)), owner)], axis=1)
        totals = self.replicate(sums)
        return self.interval(float(values.mean()), totals[:, 0] / totals[:, 1])

    def auc(
        self,
        cell: npt.NDArray[np.int64],
        label: npt.NDArray[np.float32],
        request: npt.NDArray[np.int64],
        exact: float,
    ) -> Interval:
        """AUC over all rows, replicated from histograms of the scores by cluster.

        Args:
            cell: int64[n], each row's bin of scores, in rising order; some hundreds are plenty.
            label: float32[n], above 0 where relevant.
            request: int64[n], the request of every row.
            exact: the AUC of all rows; replicates are shifted by what binning costs there.
        """
        bins = int(cell.max(initial=0)) + 1
        owner = self.cluster[request] * bins + cell
        relevant = label > 0
        size = self.n_clusters * bins
        shape = (self.n_clusters, bins)
        good = np.bincount(owner[relevant], minlength=size).reshape(shape).astype(np.float64)
        bad = np.bincount(owner[~relevant], minlength=size).reshape(shape).astype(np.float64)
        replicates = _binned_auc(self.replicate(good), self.replicate(bad))
        binned = _binned_auc(good.sum(axis=0, keepdims=True), bad.sum(axis=0, keepdims=True))[0]
        return self.interval(exact, replicates + (exact - binned))

    def calibration_error(
        self,
        cell: npt.NDArray[np.int64],
        probability: npt.NDArray[np.float32],
        label: npt.NDArray[np.float32],
        request: npt.NDArray[np.int64],
    ) -> Interval:
        """Expected calibration error over fixed bins; its replicates lean upwards, as it is ≥ 0."""
        bins = int(cell.max(initial=0)) + 1
        owner = self.cluster[request] * bins + cell
        gap = probability.astype(np.float64) - (label > 0)
        sums = np.bincount(owner, weights=gap, minlength=self.n_clusters * bins)
        by_cluster = sums.astype(np.float64).reshape(self.n_clusters, bins)
        rows = self.sums(np.ones(len(cell)), self.cluster[request])
        replicates = np.abs(self.replicate(by_cluster)).sum(axis=1) / self.replicate(rows)
        exact = float(np.abs(by_cluster.sum(axis=0)).sum() / max(len(cell), 1))
        return self.interval(exact, replicates)

    def interval(self, value: float, replicates: Float64) -> Interval:
        """Percentile interval of replicates; of one cluster there is none: all draws are alike."""
        kept = replicates[np.isfinite(replicates)]
        if not len(kept) or self.n_clusters < 2:
            return Interval(value, float("nan"), float("nan"))
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(kept, [tail, 1 - tail])
        return Interval(value, float(low), float(high))

    def _means(self, values: Float64) -> Float64:
        """The mean in every draw: float64[resamples], NaN where no value was drawn."""
        sums = np.stack([self.sums(values), self.sums((~np.isnan(values)) * 1.0)], axis=1)
        totals = self.replicate(sums)
        with np.errstate(invalid="ignore", divide="ignore"):
            return totals[:, 0] / totals[:, 1]


def _nanmean(values: Float64) -> float:
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if len(kept) else float("nan")


def _binned_auc(good: Float64, bad: Float64) -> Float64:
    """AUC of histograms float64[draws, bins], ties within a bin counting half."""
    below = np.cumsum(bad, axis=1) - bad
    wins = (good * (below + bad / 2)).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(wins / (good.sum(axis=1) * bad.sum(axis=1)), dtype=np.float64)
