"""A weighted average by greedy selection: add, with replacement, whichever member helps most.

Caruana, Niculescu-Mizil, Crew and Ksikes, "Ensemble selection from libraries of models",
ICML 2004. It optimises NDCG itself, its weights are never negative, and a useless member gets
none.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from raysys.ensemble.ranking import Judgements, ndcg


def select(
    normalised: npt.NDArray[np.float32], judgements: Judgements, *, rounds: int = 20, k: int = 10
) -> npt.NDArray[np.float64]:
    """Weights of the members: float64[m], not negative, summing to 1.

    Args:
        normalised: float32[m, n], each member's normalised base scores, out of fold.
        judgements: of the same n rows.
        rounds: members drawn; the weights are multiples of 1 / rounds or coarser.
        k: of the NDCG that is maximised.
    """
    members = len(normalised)
    total = np.zeros(normalised.shape[1], dtype=np.float32)
    counts = np.zeros(members)
    best, best_counts = -np.inf, counts
    for _ in range(rounds):
        values = [
            float(np.nanmean(ndcg(judgements, judgements.ranks(total + member), k)))
            for member in normalised
        ]
        winner = int(np.argmax(values))
        total += normalised[winner]
        counts[winner] += 1
        if values[winner] > best:  # the best prefix wins: later rounds may only dilute
            best, best_counts = values[winner], counts.copy()
    return best_counts / best_counts.sum()
