"""Base scores made comparable: within each request, to mean 0 and a common spread.

A base score means something within its request only, and every learner has a scale of its own.
Two forms: `standard` (z-scores: keep how far ahead somebody is) and `rank` (normal quantiles of
the ranks: immune to outliers). A request whose candidates a learner cannot tell apart gets zeros,
so that learner has no say there. The same code runs over millions of rows and when serving one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
from numba import njit

from raysys.retrieval.sorting import ascending

Form = Literal["standard", "rank"]
FORMS: tuple[Form, ...] = ("standard", "rank")


def normalise(
    scores: npt.NDArray[np.float32], offsets: npt.NDArray[np.int64], form: Form
) -> npt.NDArray[np.float32]:
    """Normalised scores, float32[n], in the order of `scores`.

    Args:
        scores: float32[n], finite.
        offsets: int64[r + 1]; requests may be empty or hold one candidate.
        form: `standard` or `rank`.
    """
    scores = np.ascontiguousarray(scores, dtype=np.float32)
    offsets = np.ascontiguousarray(offsets, dtype=np.int64)
    return _standard(scores, offsets) if form == "standard" else _normal_ranks(scores, offsets)


def every_form(
    base: Mapping[str, npt.NDArray[np.float32]], offsets: npt.NDArray[np.int64]
) -> dict[tuple[str, Form], npt.NDArray[np.float32]]:
    """What `normalise` gives of every member in both forms, in fewer calls."""
    from scipy.special import ndtri

    offsets = np.ascontiguousarray(offsets, dtype=np.int64)
    scores = {name: np.ascontiguousarray(each, dtype=np.float32) for name, each in base.items()}
    found: dict[tuple[str, Form], npt.NDArray[np.float32]] = {
        (name, "standard"): _standard(each, offsets) for name, each in scores.items()
    }
    ranks = np.empty((len(scores), int(offsets[-1])))
    for row, each in zip(ranks, scores.values(), strict=True):
        row[:] = _mid_ranks(each, offsets)
    for name, row in zip(scores, ndtri(ranks).astype(np.float32), strict=True):
        found[name, "rank"] = row
    return found


def mid_ranks(
    scores: npt.NDArray[np.float32], offsets: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Ranks within each request, the lowest score first, as (rank - 1/2) / n: float32[n].

    Equal scores share their middle rank.
    """
    scores = np.ascontiguousarray(scores, dtype=np.float32)
    offsets = np.ascontiguousarray(offsets, dtype=np.int64)
    return np.asarray(_mid_ranks(scores, offsets), dtype=np.float32)


def _normal_ranks(
    scores: npt.NDArray[np.float32], offsets: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Normal quantiles of mid-ranks, (rank - 1/2) / n; equal scores get equal values."""
    from scipy.special import ndtri

    return ndtri(_mid_ranks(scores, offsets)).astype(np.float32)


@njit(cache=True, nogil=True)
def _standard(scores, offsets):  # type: ignore[no-untyped-def]
    result = np.zeros(len(scores), dtype=np.float32)
    for request in range(len(offsets) - 1):
        start, stop = offsets[request], offsets[request + 1]
        if stop - start < 2:
            continue
        mean = 0.0
        for row in range(start, stop):
            mean += np.float64(scores[row])
        mean /= stop - start
        square = 0.0
        for row in range(start, stop):
            square += (np.float64(scores[row]) - mean) ** 2
        spread = np.sqrt(square / (stop - start))
        if spread <= 1e-6 * abs(mean) + 1e-30:  # equal up to rounding
            continue
        for row in range(start, stop):
            result[row] = (np.float64(scores[row]) - mean) / spread
    return result


@njit(cache=True, nogil=True)
def _mid_ranks(scores, offsets):  # type: ignore[no-untyped-def]
    result = np.full(len(scores), 0.5)
    for request in range(len(offsets) - 1):
        start, stop = offsets[request], offsets[request + 1]
        count = stop - start
        order = ascending(scores[start:stop])
        first = 0
        while first < count:
            last = first
            while last + 1 < count and (
                scores[start + order[last + 1]] == scores[start + order[first]]
            ):
                last += 1
            middle = (first + last + 1) / (2.0 * count)
            for place in range(first, last + 1):
                result[start + order[place]] = middle
            first = last + 1
    return result
