"""A small model of the reward, for doubly robust estimates.

It needs to be no better than useful: what it misses is corrected by the weighted residuals. Items
have a rate of their own, drawn towards the common one; a position multiplies all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int = npt.NDArray[np.integer]


@dataclass(frozen=True)
class RewardModel:
    """Rewards by item and position, fitted once a fold without that fold's rows.

    Attributes:
        item: float64[folds, items], rates.
        place: float64[folds, positions], factors; index 0 stands for no position.
        fold: int64[n], of every row of the log: that of its cluster.
    """

    item: Float64
    place: Float64
    fold: npt.NDArray[np.int64]

    def predict(self, row: Int, item: Int, position: Int) -> Float64:
        """Rewards of items in positions, for given rows of the log: float64[m]."""
        fold = self.fold[row]
        return np.asarray(self.item[fold, item] * self.place[fold, position], np.float64)


def fit_reward_model(
    reward: Float64,
    item: Int,
    position: Int,
    n_items: int,
    *,
    cluster: Int,
    folds: int = 3,
    strength: float = 50.0,
) -> RewardModel:
    """Fit by folds of clusters (cross-fitting), so that doubly robust estimates stay unbiased.

    Args:
        reward: float64[n].
        item: int[n], the shown item, below `n_items`.
        position: int[n], from 1; 0 where there are none.
        n_items: items that can be shown.
        cluster: int[n], users or requests; no one's rows are on both sides.
        folds: how many.
        strength: rows of the common rate that each item begins with.
    """
    fold = np.unique(cluster, return_inverse=True)[1].astype(np.int64) % folds
    places = int(position.max(initial=0)) + 1
    by_item, by_place = np.zeros((folds, n_items)), np.ones((folds, places))
    for held in range(folds):
        fit = fold != held
        if not fit.any():
            continue
        common = float(reward[fit].mean())
        shown = np.bincount(item[fit], minlength=n_items)
        earned = np.bincount(item[fit], weights=reward[fit], minlength=n_items)
        rate = (earned + strength * common) / (shown + strength)
        got = np.bincount(position[fit], weights=reward[fit], minlength=places)
        promised = np.bincount(position[fit], weights=rate[item[fit]], minlength=places)
        prior = strength * common
        by_item[held] = rate
        by_place[held] = np.where(
            promised > 0, (got + prior) / np.maximum(promised + prior, 1e-12), 1.0
        )
    return RewardModel(by_item, by_place, fold)
