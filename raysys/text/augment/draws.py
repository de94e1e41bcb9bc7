"""Random numbers that belong to a row, whatever the row stands beside.

A generator that is called row after row gives a row other numbers as soon as an earlier one is
missing. Here the k-th number of a row is a function of the row's key and of k: the k-th output of
SplitMix64 (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195) seeded with the key.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
from numba import njit

UInt64 = npt.NDArray[np.uint64]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Float64 = npt.NDArray[np.float64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTOR = np.uint64(0xD1342543DE82EF95)


def keys_of(ids: npt.NDArray[Any] | pl.Series, *names: str | int) -> UInt64:
    """A key for each row: uint64[n].

    Args:
        ids: int[n], or n texts (null is a text of its own).
        names: what else tells one use from another: seed, method, number of the copy.
    """
    if isinstance(ids, pl.Series):
        keys = _text_hash(ids)
    else:
        keys = _mixed(ids.astype(np.uint64) + _GOLDEN)
    for name in names:
        keys = derived(keys, name)
    return keys


def derived(keys: UInt64, name: str | int) -> UInt64:
    """Other keys for the same rows, for another purpose: uint64[n]."""
    number = name if isinstance(name, int) else zlib.crc32(name.encode()) | 1 << 32
    # the factor tells row 1 of seed 2 from row 2 of seed 1
    return _mixed(keys * _FACTOR + _mixed(np.array([number], dtype=np.uint64) + _GOLDEN))


def uniform(keys: UInt64, place: Int64 | int = 0) -> Float64:
    """The draw at `place` of each key, in [0, 1): float64, broadcast over both."""
    at = np.atleast_1d(np.asarray(place)).astype(np.uint64) + np.uint64(1)
    found = _mixed(keys + at * _GOLDEN)
    return (found >> np.uint64(11)).astype(np.float64) * 2.0**-53


def choose(row: Int64, draws: Float64, eligible: Bool, strength: float, spare: int = 0) -> Bool:
    """A share of each row's eligible members, at least one of them: bool[t].

    Args:
        row: int64[t], ascending, the row of each member.
        draws: float64[t]; those with the smallest are chosen.
        eligible: bool[t].
        strength: share of the eligible that is chosen, rounded.
        spare: how many members of a row, eligible or not, must be left unchosen.
    """
    chosen = np.zeros(len(row), dtype=bool)
    some = np.flatnonzero(eligible)
    if not len(some):
        return chosen
    n_rows = int(row[-1]) + 1
    many = np.bincount(row[some], minlength=n_rows)
    wanted = np.maximum(1, np.rint(strength * many)).astype(np.int64)
    wanted = np.minimum(wanted, np.bincount(row, minlength=n_rows) - spare)
    order = some[np.lexsort((draws[some], row[some]))]
    starts = np.concatenate([[0], np.cumsum(many)])
    rank = np.arange(len(order)) - starts[row[order]]
    chosen[order[rank < wanted[row[order]]]] = True
    return chosen


def _mixed(z: UInt64) -> UInt64:
    """SplitMix64's finaliser: every bit of the input moves every bit of the output."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _text_hash(texts: pl.Series) -> UInt64:
    """FNV-1a of the UTF-8 bytes, mixed: the same in every process and version."""
    array = texts.cast(pl.String).fill_null("\0null").to_arrow().cast(pa.large_binary())
    offsets = np.frombuffer(array.buffers()[1], dtype=np.int64)
    offsets = offsets[array.offset : array.offset + len(array) + 1]
    data = array.buffers()[2]
    content = np.frombuffer(data, dtype=np.uint8) if data else np.empty(0, dtype=np.uint8)
    found = np.empty(len(array), dtype=np.uint64)
    _fnv1a(content, offsets, found)
    return _mixed(found)


@njit(cache=True)
def _fnv1a(content, offsets, found):  # type: ignore[no-untyped-def]
    for i in range(len(found)):
        value = np.uint64(0xCBF29CE484222325)
        for at in range(offsets[i], offsets[i + 1]):
            value = (value ^ np.uint64(content[at])) * np.uint64(0x100000001B3)
        found[i] = value
