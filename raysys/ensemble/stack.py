"""Stacking: a linear listwise model over normalised base scores.

The loss of a request is the cross-entropy between its relevant items, in equal shares of their
gains, and the softmax of the combined scores (Cao et al., "Learning to rank: from pairwise
approach to listwise approach", ICML 2007: the top-one case of ListNet). It is convex, so the fit
needs no luck, and with a handful of weights it cannot overfit thousands of requests. Weights are
never negative: when a member is lost, the others still mean what they meant.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import numpy.typing as npt
from numba import njit

from raysys.ensemble.ranking import Judgements

Float64 = npt.NDArray[np.float64]

_PIECES: Final = 16  # summed apart: the same sums however many threads there are


def fit_listwise(
    inputs: npt.NDArray[np.float32], judgements: Judgements, *, ridge: float = 1e-4
) -> Float64:
    """Weights of the inputs: float64[p], not negative.

    Args:
        inputs: float32[p, n], normalised base scores, out of fold.
        judgements: of the same n rows; requests without a retrieved relevant item teach nothing.
        ridge: half the penalty on the squared weights, against a mean loss.

    Raises:
        ValueError: no request has a relevant candidate.
    """
    from scipy.optimize import minimize

    columns = np.ascontiguousarray(inputs)
    target = _targets(judgements)
    taught = max(1, len(np.unique(judgements.owner)))
    if not target.any():
        raise ValueError("no relevant candidate to learn from")

    pieces = np.array_split(np.arange(judgements.n_requests), _PIECES)
    parts = [judgements.offsets[piece[0] : piece[-1] + 2] for piece in pieces if len(piece)]

    def loss(weights: Float64) -> tuple[float, Float64]:
        found = list(pool.map(lambda offsets: _loss(weights, columns, target, offsets), parts))
        value, slope = sum(v for v, _ in found), np.sum([s for _, s in found], axis=0)
        penalty = ridge * float(weights @ weights)
        return value / taught + penalty, slope / taught + 2 * ridge * weights

    start = np.full(len(inputs), 1.0 / len(inputs))
    bounds = [(0.0, None)] * len(inputs)
    with ThreadPoolExecutor(min(_PIECES, os.cpu_count() or 1)) as pool:
        found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
    weights = np.asarray(found.x, dtype=np.float64)
    return weights if weights.any() else start  # all members useless: equally so


def _targets(judgements: Judgements) -> npt.NDArray[np.float32]:
    """Each row's share of its request's gains: float32[n], zeros or summing to 1 by request."""
    gain = judgements.label[judgements.relevant].astype(np.float64)
    total = np.bincount(judgements.owner, weights=gain, minlength=judgements.n_requests)
    target = np.zeros(len(judgements.label), dtype=np.float32)
    target[judgements.relevant] = gain / total[judgements.owner]
    return target


@njit(cache=True, nogil=True, fastmath=True)
def _loss(weights, columns, target, offsets):  # type: ignore[no-untyped-def]
    """Summed loss and its gradient; a request at a time, whose columns stay in the cache."""
    p = len(columns)
    slope = np.zeros(p)
    loss = 0.0
    longest = 0
    for request in range(len(offsets) - 1):
        longest = max(longest, offsets[request + 1] - offsets[request])
    logit = np.empty(longest)
    for request in range(len(offsets) - 1):
        start, stop = offsets[request], offsets[request + 1]
        wanted, n = target[start:stop], stop - start
        share = 0.0
        for row in range(n):
            share += wanted[row]
        if share == 0.0:
            continue
        logit[:n] = 0.0
        for j in range(p):  # loops over the rows of a column are vectorised, over a row's are not
            column = columns[j, start:stop]
            for row in range(n):
                logit[row] += weights[j] * column[row]
        top = -np.inf
        for row in range(n):
            top = max(top, logit[row])
        mass = 0.0
        for row in range(n):
            ahead = logit[row] - top
            loss -= wanted[row] * ahead
            logit[row] = np.exp(ahead)
            mass += logit[row]
        loss += np.log(mass)
        for row in range(n):
            logit[row] = logit[row] / mass - wanted[row]
        for j in range(p):
            column, total = columns[j, start:stop], 0.0
            for row in range(n):
                total += logit[row] * column[row]
            slope[j] += total
    return loss, slope
