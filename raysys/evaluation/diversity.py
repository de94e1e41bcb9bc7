"""How differently members rank: what they say is alike, and whether they miss the same things.

An ensemble lives on members that are good and err differently (Krogh and Vedelsby, "Neural network
ensembles, cross validation, and active learning", NIPS 1994).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from raysys.ensemble.normalise import mid_ranks, normalise
from raysys.ensemble.ranking import Judgements

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


def rank_correlation(base: Mapping[str, Float32], offsets: npt.NDArray[np.int64]) -> Float64:
    """Spearman's of every two members, the mean over requests: float64[m, m].

    Requests in which one of the two tells nobody apart are left out for that pair; NaN where none
    is left. Equal scores share their middle rank.

    Args:
        base: float32[n] by member.
        offsets: int64[r + 1].
    """
    # z-scores of the ranks: their mean product within a request is Spearman's correlation
    ranks = [normalise(mid_ranks(said, offsets), offsets, "standard") for said in base.values()]
    sizes = np.diff(offsets)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    told = [np.bincount(owner, each != 0, minlength=len(sizes)) > 0 for each in ranks]
    result = np.full((len(ranks), len(ranks)), np.nan)
    for i, one in enumerate(ranks):
        for j in range(i + 1):
            both = told[i] & told[j]
            if both.any():
                product = one.astype(np.float64) * ranks[j]
                inner = np.bincount(owner, product, minlength=len(sizes))[both] / sizes[both]
                result[i, j] = result[j, i] = inner.mean()
    return result


def error_overlap(judgements: Judgements, base: Mapping[str, Float32], k: int = 10) -> Float64:
    """Of relevant candidates that either member leaves below place k, the share both do.

    float64[m, m]: 1 on the diagonal, and where two members miss the same; 0 where what one
    misses the other finds; NaN where neither misses any.

    Args:
        judgements: of the candidates.
        base: float32[n] by member.
        k: places that are looked at.
    """
    missed = np.stack([judgements.ranks(said) > k for said in base.values()]).astype(np.float64)
    both = missed @ missed.T
    count = missed.sum(axis=1)
    either = count[:, None] + count[None, :] - both
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(either > 0, both / either, np.nan), dtype=np.float64)
