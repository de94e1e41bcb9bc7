"""Similarity of vectors, computed the same for one request and for a million rows.

Sums run over the dimensions in order and in float64: a matrix product would round differently for
other numbers of rows, and history and serving would disagree in the last bits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from raysys.features.resources import Matrix

Int32 = npt.NDArray[np.int32]
Float64 = npt.NDArray[np.float64]

_CHUNK = 8192  # rows whose mean vectors are in memory at once


def similarity_to_last(matrix: Matrix, items: Int32, last: Int32) -> Float64:
    """Cosine of each item's vector with the mean of the vectors of last items.

    Args:
        matrix: float16 or float32[n_items, d]; rows of zeros are no vectors, and are left out.
        items: int32[n].
        last: int32[n, k], or int32[1, k] for all; -1 beyond the last.

    Returns:
        float64[n], NaN where either side has no vector.
    """
    used, place = np.unique(np.concatenate([items, last.ravel()]), return_inverse=True)
    few = matrix[used].astype(np.float32)  # the row of -1 is somebody's, and is never read
    mine, theirs = (
        place[: len(items)],
        np.where(last < 0, -1, place[len(items) :].reshape(last.shape)),
    )
    out = np.empty(len(items), dtype=np.float64)
    for start in range(0, len(items), _CHUNK):
        part = slice(start, start + _CHUNK)
        means = _means(few, theirs if len(last) == 1 else theirs[part])
        _cosines(few, mine[part], means, out[part])
    return out


def similarity_to(matrix: Matrix, items: Int32, others: npt.NDArray[np.float32]) -> Float64:
    """Cosine of each item's vector with another: float64[n], NaN where either is all zeros.

    Args:
        matrix: float16 or float32[n_items, d].
        items: int32[n].
        others: float[n, d], or float[1, d] for all.
    """
    used, place = np.unique(items, return_inverse=True)
    few = matrix[used].astype(np.float32)
    out = np.empty(len(items), dtype=np.float64)
    for start in range(0, len(items), _CHUNK):
        part = slice(start, start + _CHUNK)
        chunk = others if len(others) == 1 else others[part]
        _cosines(few, place[part], chunk.astype(np.float64), out[part])
    return out


@njit(cache=True)
def _means(few, last):  # type: ignore[no-untyped-def]
    means = np.zeros((len(last), few.shape[1]), dtype=np.float64)
    for row in range(len(last)):
        count = 0
        for at in last[row]:
            if at < 0:
                continue
            known = False
            for d in range(few.shape[1]):
                means[row, d] += few[at, d]
                known = known or few[at, d] != 0.0
            count += known
        if count > 1:
            for d in range(few.shape[1]):
                means[row, d] /= count
    return means


@njit(cache=True)
def _cosines(few, items, others, out):  # type: ignore[no-untyped-def]
    for row in range(len(items)):
        other = 0 if len(others) == 1 else row
        dot, mine, theirs = 0.0, 0.0, 0.0
        for d in range(few.shape[1]):
            a, b = np.float64(few[items[row], d]), others[other, d]
            dot += a * b
            mine += a * a
            theirs += b * b
        out[row] = dot / np.sqrt(mine * theirs) if mine > 0.0 and theirs > 0.0 else np.nan
