"""Sorting inside compiled code: short, as numba's own sorts take ten seconds to compile.

A new environment compiles each kernel once, in every process that comes to need it at the time.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def ascending(values):  # type: ignore[no-untyped-def]
    """Places of numbers from the least to the largest, NaN last, of equals the first first.

    Args:
        values: int or float[n].

    Returns:
        int64[n]; what `np.argsort(values, kind="stable")` gives, by a merge from the bottom up.
    """
    n = len(values)
    order = np.arange(n)
    other = np.empty(n, dtype=np.int64)
    width = 1
    while width < n:
        for start in range(0, n, 2 * width):
            middle, end = min(start + width, n), min(start + 2 * width, n)
            left, right = start, middle
            for at in range(start, end):
                take_right = left == middle
                if left < middle and right < end:
                    a, b = values[order[left]], values[order[right]]
                    take_right = b < a or (a != a and b == b)
                if take_right:
                    other[at] = order[right]
                    right += 1
                else:
                    other[at] = order[left]
                    left += 1
        order, other = other, order
        width *= 2
    return order


@njit(cache=True, nogil=True)
def largest(values, k):  # type: ignore[no-untyped-def]
    """The k-th largest (from 1) of float32[n] without NaN, by quickselect (Hoare 1961)."""
    some = values.copy()
    low, high, wanted = 0, len(some) - 1, len(some) - k
    while low < high:
        pivot = some[(low + high) // 2]
        left, right = low, high
        while left <= right:
            while some[left] < pivot:
                left += 1
            while some[right] > pivot:
                right -= 1
            if left <= right:
                some[left], some[right] = some[right], some[left]
                left += 1
                right -= 1
        if wanted <= right:
            high = right
        elif wanted >= left:
            low = left
        else:
            break
    return some[wanted]
