"""How likely each position is looked at, estimated from the clicks of an ordinary log.

The model is position-based: P(click) = θ_k · γ, with the propensity θ_k that position k is
examined and the relevance γ of the item for the query (Richardson et al. 2007). Only ratios of θ
can be known from clicks, so position 1 has propensity 1. Nothing is randomised for it
(intervention-free): items must just have been shown at different positions for the same query
(or surface), because rankings were tested, retrained or personalised.

`all_pairs` (default) and `adjacent` harvest such changes (Agarwal et al., WSDM 2019): an item
shown n_k times at k and n_k' times at k' has the same relevance at both, so weighted clicks
c_k n_k' / (n_k + n_k') and c_k' n_k / (n_k + n_k'), summed over items, stand to each other as θ_k
to θ_k'. The weights are those of Mantel and Haenszel (1959; Greenland and Robins 1985 for ratios
of risks): items that were seldom seen count little. `adjacent` multiplies the ratios of
neighbours. `all_pairs` maximises the likelihood over all pairs of positions; with the Poisson
likelihood of rare clicks the nuisance r_kk' of the paper (eq. 8) drops out and what is left is a
Bradley-Terry model, which the MM iteration solves (Hunter, Annals of Statistics 2004).

`em` fits θ and a γ for every (query, item) by expectation maximisation, `regression_em` lets γ
follow from features (Wang et al., WSDM 2018), which works where items hardly move, and leans on
features that know relevance.

What none of them can know: if an item moved *because* its relevance for the query changed (a
season, another user), that change is taken for position bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from numba import njit
from pydantic import Field

from raysys.config import Settings
from raysys.errors import UserError

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

BLOCKS = 500
"""Clusters are dealt into at most so many blocks, which the bootstrap draws."""


class PositionBiasSettings(Settings):
    """How propensities are estimated.

    Attributes:
        method: `all_pairs`, `adjacent`, `em` or `regression_em`; see the module.
        positions: propensities of positions 1 … this; rows beyond are left out.
        resamples: bootstrap draws for the intervals; 0: none.
        confidence: of the intervals.
        iterations: of MM and EM, at most; they end when nothing moves.
        seed: of the draws.
    """

    method: Literal["all_pairs", "adjacent", "em", "regression_em"] = "all_pairs"
    positions: int = Field(20, ge=2, le=500)
    resamples: int = Field(200, ge=0)
    confidence: float = Field(0.95, gt=0, lt=1)
    iterations: int = Field(500, ge=1)
    seed: int = Field(17, ge=0)


@dataclass(frozen=True)
class Propensities:
    """Examination by position, relative to position 1.

    Attributes:
        method: as in the settings.
        value: float64[k], of positions 1 … k; value[0] is 1; NaN where the log cannot tell.
        low, high: float64[k], bounds of the interval, NaN without bootstrap.
        impressions, clicks: int64[k], what was seen at each position.
    """

    method: str
    value: Float64
    low: Float64
    high: Float64
    impressions: Int64
    clicks: Int64

    def of(self, position: npt.NDArray[np.integer]) -> Float64:
        """Propensity at each position (from 1): float64[n].

        Positions beyond the last, and those that the log cannot tell, have that of the nearest
        known position before them.
        """
        known = np.where(np.isfinite(self.value) & (self.value > 0), np.arange(len(self.value)), 0)
        nearest = self.value[np.maximum.accumulate(known)]
        return nearest[np.clip(position, 1, len(nearest)) - 1]


def estimate_propensities(
    query: npt.NDArray[Any],
    item: npt.NDArray[Any],
    position: npt.NDArray[np.integer],
    click: npt.NDArray[Any],
    settings: PositionBiasSettings,
    *,
    cluster: npt.NDArray[Any] | None = None,
    features: npt.NDArray[np.float32] | None = None,
) -> Propensities:
    """Propensities from n impressions, in any order.

    Args:
        query: [n], what the list answered (query, or surface), as numbers or texts; item: [n].
        position: int[n], from 1; others are left out.
        click: [n], above 0 where clicked.
        settings: method, positions, bootstrap.
        cluster: [n], what the bootstrap draws whole: the query (default), or the user.
        features: float32[n, f], needed by `regression_em`; of each (query, item) the first row
            counts.

    Raises:
        UserError: no impressions with a position, nothing that was shown both at position 1 and
            elsewhere (and clicked), or features missing.
    """
    kept = np.flatnonzero((position >= 1) & (position <= settings.positions))
    if not len(kept):
        raise UserError("no impression has a position", where="position bias")
    if settings.method == "regression_em" and features is None:
        raise UserError("regression_em needs features", where="position bias: method")
    k = int(position[kept].max())
    table = _count(query[kept], item[kept], position[kept] - 1, click[kept],
                   (query if cluster is None else cluster)[kept])  # fmt: skip
    x = None if features is None else features[kept][table.row_of_pair]
    weights = _resample(table.n_blocks, settings)
    if settings.method in ("all_pairs", "adjacent"):
        sums = _harvest(
            *(table.pair_starts, table.position, table.n, table.clicks, table.block),
            *(table.n_blocks, k),
        )
        solve = _chain if settings.method == "adjacent" else _bradley_terry
        # the estimate by itself: it must not depend on the draws, nor on threads of a product
        whole = solve(sums.sum(axis=0, keepdims=True), settings.iterations)
        draws = solve(np.tensordot(weights[1:], sums, axes=1), settings.iterations)
        estimates = np.vstack([whole, draws])
    else:
        estimates = _em(table, k, weights, settings, x)
    if not np.isfinite(estimates[0, 1:]).any():
        raise UserError(
            "no item was shown both at position 1 and at others, or none of these was clicked",
            where="position bias",
            mend="take a longer log, or surfaces whose rankings change",
        )
    low = high = np.full(k, np.nan)
    if settings.resamples:
        tail = (1 - settings.confidence) / 2
        low, high = np.full(k, np.nan), np.full(k, np.nan)
        for at in range(k):
            known = estimates[1:, at][np.isfinite(estimates[1:, at])]
            if len(known) and np.isfinite(estimates[0, at]):
                # a percentile interval holds its own estimate unless the draws are few
                bounds = np.quantile(known, [tail, 1 - tail])
                low[at] = min(bounds[0], estimates[0, at])
                high[at] = max(bounds[1], estimates[0, at])
    place = table.position
    return Propensities(
        settings.method,
        estimates[0],
        low,
        high,
        np.bincount(place, table.n, k).astype(np.int64),
        np.bincount(place, table.clicks, k).astype(np.int64),
    )


def inverse_propensity_weights(
    position: npt.NDArray[np.integer], propensities: Propensities, clip: float = 10.0
) -> npt.NDArray[np.float32]:
    """Weight of a click at each position: float32[n], 1 / propensity, at most `clip`.

    Clicks weighted so are, in expectation, what they would be if every position were examined
    (Joachims, Swaminathan and Schnabel, WSDM 2017, eq. 5). Weigh clicks only: what was not
    clicked says nothing by itself. Clipping trades some of the bias back for less variance.
    """
    return np.minimum(1.0 / propensities.of(position), clip).astype(np.float32)


@dataclass(frozen=True)
class _Table:
    """Impressions counted by pair (query, item), position and block; m rows, pair by pair.

    Attributes:
        pair, position, block: int64[m]; n, clicks: float64[m].
        pair_starts: int64[pairs + 1]; row_of_pair: int64[pairs], its first impression.
    """

    pair: Int64
    position: Int64
    block: Int64
    n: Float64
    clicks: Float64
    pair_starts: Int64
    row_of_pair: Int64
    n_blocks: int


def _count(
    query: npt.NDArray[Any],
    item: npt.NDArray[Any],
    position: npt.NDArray[np.integer],
    click: npt.NDArray[Any],
    cluster: npt.NDArray[Any],
) -> _Table:
    frame = pl.DataFrame(
        {"query": query, "item": item, "position": position, "click": click > 0, "of": cluster}
    )
    frame = frame.with_row_index("row").drop_nulls("of")
    clusters = frame["of"].n_unique()
    # narrow columns: a log has tens of millions of impressions
    frame = frame.select(
        *("row", "query", "item", "click"),
        pl.col("position").cast(pl.UInt16),
        block=((pl.col("of").rank("dense") - 1) % BLOCKS).cast(pl.UInt16),
    )
    counted = (
        frame.group_by("query", "item", "block", "position")
        .agg(n=pl.len(), clicks=pl.col("click").sum(), row=pl.col("row").min())
        .sort("query", "item", "block", "position")
    )
    pair = counted.select(pl.struct("query", "item").rle_id()).to_series().to_numpy()
    starts = np.flatnonzero(np.diff(pair, prepend=-1))
    return _Table(
        pair.astype(np.int64),
        counted["position"].to_numpy().astype(np.int64),
        counted["block"].to_numpy().astype(np.int64),
        counted["n"].to_numpy().astype(np.float64),
        counted["clicks"].to_numpy().astype(np.float64),
        np.append(starts, len(pair)).astype(np.int64),
        np.minimum.reduceat(counted["row"].to_numpy(), starts).astype(np.int64),
        min(BLOCKS, clusters),
    )


def _resample(n_blocks: int, settings: PositionBiasSettings) -> Float64:
    """How often each block counts: float64[1 + resamples, blocks]; the first row is all ones."""
    rng = np.random.default_rng(settings.seed)
    drawn = rng.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), settings.resamples)
    return np.vstack([np.ones((1, n_blocks)), drawn]).astype(np.float64)


@njit(cache=True)
def _harvest(starts, position, n, clicks, block, n_blocks, k):  # type: ignore[no-untyped-def]
    """Weighted clicks at j of what was shown at j and l as well: float64[blocks, k, k].

    The weights of a pair (query, item) come from all its impressions, its clicks from the block.
    """
    sums = np.zeros((n_blocks, k, k))
    seen = np.zeros(k)
    for pair in range(len(starts) - 1):
        low, high = starts[pair], starts[pair + 1]
        for row in range(low, high):
            seen[position[row]] += n[row]
        for row in range(low, high):
            j = position[row]
            if clicks[row] > 0:
                for other in range(k):
                    if other != j and seen[other] > 0:
                        weight = seen[other] / (seen[j] + seen[other])
                        sums[block[row], j, other] += clicks[row] * weight
        for row in range(low, high):
            seen[position[row]] = 0.0
    return sums


def _chain(sums: Float64, iterations: int) -> Float64:
    """Products of the ratios of neighbouring positions: float64[draws, k]."""
    k = sums.shape[1]
    at = np.arange(k - 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = sums[:, at + 1, at] / sums[:, at, at + 1]
    ratio[~np.isfinite(ratio)] = np.nan
    return np.hstack([np.ones((len(sums), 1)), np.cumprod(ratio, axis=1)])


def _bradley_terry(sums: Float64, iterations: int) -> Float64:
    """The θ under which weighted clicks fall to either position of a pair: float64[draws, k].

    MM (Hunter 2004, eq. 3): θ_j ← W_j / Σ_l (w_jl + w_lj) / (θ_j + θ_l), for all draws at once.
    """
    together = sums + sums.transpose(0, 2, 1)
    wins = sums.sum(axis=2)
    theta = np.ones(wins.shape)
    for _ in range(iterations):
        total = theta[:, :, None] + theta[:, None, :]
        expected = (together / np.maximum(total, 1e-300)).sum(axis=2)
        with np.errstate(invalid="ignore", divide="ignore"):
            new = np.where(expected > 0, wins / expected, theta)
        scale = new[:, :1].copy()
        scale[scale <= 0] = 1.0
        new /= scale
        moved = np.abs(new - theta).max(initial=0.0)
        theta = new
        if moved < 1e-9:
            break
    known = _with_first(together > 0) & (wins[:, :1] > 0)
    return np.where(known, theta, np.nan)


def _with_first(linked: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which positions are linked to the first by pairs, in any number of steps: bool[draws, k]."""
    reached = np.zeros(linked.shape[:2], dtype=np.bool_)
    reached[:, 0] = True
    for _ in range(linked.shape[1]):
        more = reached | (linked & reached[:, :, None]).any(axis=1)
        if (more == reached).all():
            break
        reached = more
    return reached


def _em(
    table: _Table,
    k: int,
    weights: Float64,
    settings: PositionBiasSettings,
    features: npt.NDArray[np.float32] | None,
) -> Float64:
    """Propensities by EM, of everything and of every draw: float64[draws, k]."""
    out = np.full((len(weights), k), np.nan)
    n_pairs = len(table.pair_starts) - 1
    theta, gamma = np.full(k, 0.5), np.full(n_pairs, 0.5)
    for draw, weight in enumerate(weights):
        n, clicks = table.n * weight[table.block], table.clicks * weight[table.block]
        if features is None or settings.method == "em":
            found, relevance = _em_table(
                *(table.pair, table.position, n, clicks, theta.copy(), gamma.copy()),
                settings.iterations,
            )
        else:
            found, relevance = _em_regression(table, n, clicks, theta, gamma, features, settings)
        if draw == 0:  # draws begin where everything together ended
            theta, gamma = found, relevance
        seen = np.bincount(table.position, n, k) > 0
        if found[0] > 0:
            out[draw] = np.where(seen, found / found[0], np.nan)
    return out


@njit(cache=True)
def _em_table(pair, position, n, clicks, theta, gamma, iterations):  # type: ignore[no-untyped-def]
    """EM with a relevance for every pair (Wang et al. 2018, eq. 1-3, without the regression)."""
    for _ in range(iterations):
        seen, examined = np.zeros(len(theta)), np.zeros(len(theta))
        shown, wanted = np.zeros(len(gamma)), np.zeros(len(gamma))
        for row in range(len(pair)):
            t, g = theta[position[row]], gamma[pair[row]]
            missed = n[row] - clicks[row]
            neither = max(1.0 - t * g, 1e-12)
            seen[position[row]] += n[row]
            examined[position[row]] += clicks[row] + missed * t * (1.0 - g) / neither
            shown[pair[row]] += n[row]
            wanted[pair[row]] += clicks[row] + missed * g * (1.0 - t) / neither
        moved = 0.0
        for at in range(len(theta)):
            if seen[at] > 0:
                moved = max(moved, abs(theta[at] - examined[at] / seen[at]))
                theta[at] = examined[at] / seen[at]
        for at in range(len(gamma)):
            if (
                shown[at] > 0
            ):  # one impression of either kind beforehand: pairs seen once say little
                gamma[at] = (wanted[at] + 0.5) / (shown[at] + 1.0)
        if moved < 1e-6:
            break
    return theta, gamma


def _em_regression(
    table: _Table,
    n: Float64,
    clicks: Float64,
    theta: Float64,
    gamma: Float64,
    features: npt.NDArray[np.float32],
    settings: PositionBiasSettings,
) -> tuple[Float64, Float64]:
    """EM whose relevance is a LightGBM model of the features, fitted on expected relevance."""
    import lightgbm

    k, pairs = len(theta), len(gamma)
    params = {
        "objective": "cross_entropy", "num_leaves": 31, "learning_rate": 0.2, "verbosity": -1,
        "min_data_in_leaf": 20, "num_threads": 1, "seed": settings.seed, "deterministic": True,
        "force_row_wise": True,
    }  # fmt: skip
    shown = np.bincount(table.pair, n, pairs)
    some = np.flatnonzero(shown > 0)
    seen = np.maximum(np.bincount(table.position, n, k), 1e-12)
    data = lightgbm.Dataset(
        features[some], label=np.zeros(len(some)), weight=shown[some], params=params,
        free_raw_data=False,
    ).construct()  # fmt: skip
    for _ in range(min(settings.iterations, 30)):
        t, g = theta[table.position], gamma[table.pair]
        missed, neither = n - clicks, np.maximum(1 - t * g, 1e-12)
        examined = np.bincount(table.position, clicks + missed * t * (1 - g) / neither, k)
        wanted = np.bincount(table.pair, clicks + missed * g * (1 - t) / neither, pairs)
        new = examined / seen
        data.set_label(np.clip(wanted[some] / shown[some], 0, 1))
        gamma = np.asarray(lightgbm.train(params, data, 30).predict(features), dtype=np.float64)
        moved = np.abs(new / new[0] - theta / theta[0]).max()
        theta = new
        if moved < 1e-3:
            break
    return theta, gamma
