"""Texts of a log as codes: what repeats in a column is hashed, compared and placed once.

Ingest writes columns that repeat as dictionaries, and Parquet hands these over as they are, so
that no row's text is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

Int32 = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Coded:
    """A column of texts.

    Attributes:
        codes: int32[n], place among the names, -1 for null.
        names: String[k], distinct, none null; each comes in some row.
    """

    codes: Int32
    names: pl.Series

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> Coded:
        """An Arrow column, dictionary-encoded or not."""
        if not pa.types.is_dictionary(column.type):
            column = column.dictionary_encode()
        whole = column.unify_dictionaries().combine_chunks()
        codes = pc.fill_null(whole.indices.cast(pa.int32()), -1).to_numpy(zero_copy_only=False)
        names = pl.Series(values=whole.dictionary).cast(pl.String)
        return cls(codes, names)

    def rows(self, values: npt.NDArray[Any], missing: Any) -> npt.NDArray[Any]:
        """Of each row what its name has: `values[n of names]` by name, `missing` for null."""
        return np.append(values, values.dtype.type(missing))[self.codes]

    def map(self, change: Callable[[pl.Expr], pl.Expr]) -> Coded:
        """Other texts in the place of these; null ones go, equal ones stay apart."""
        names = self.names.to_frame("name").select(change(pl.col("name"))).to_series()
        kept = names.is_not_null().to_numpy()
        codes = np.where(kept, np.cumsum(kept) - 1, -1).astype(np.int32)
        return Coded(self.rows(codes, -1), names.drop_nulls())

    @staticmethod
    def coalesced(columns: Sequence[Coded]) -> Coded:
        """Of each row the first text that is not null; names of several columns may be equal."""
        codes = np.full(len(columns[0].codes), -1, dtype=np.int32)
        names: list[pl.Series] = []
        shift = 0
        for column in columns:
            codes = np.where((codes < 0) & (column.codes >= 0), column.codes + shift, codes)
            names.append(column.names)
            shift += len(column.names)
        return Coded(codes, pl.concat(names)).used()

    def used(self) -> Coded:
        """Without the names that no row has."""
        there = np.zeros(len(self.names) + 1, dtype=np.bool_)
        there[self.codes] = True
        there = there[:-1]
        if there.all():
            return self
        codes = np.where(there, np.cumsum(there) - 1, -1).astype(np.int32)
        return Coded(self.rows(codes, -1), self.names.filter(pl.Series(there)))


@dataclass(frozen=True)
class Pairs:
    """Two columns of texts, where the second is not null.

    Attributes:
        codes: int32[n], place among the pairs, -1 where the second is null.
        names: the distinct pairs in order of appearance, as columns named like those.
    """

    codes: Int32
    names: pl.DataFrame

    @classmethod
    def of(cls, first: tuple[str, Coded], second: tuple[str, Coded]) -> Pairs:
        """Of two columns, each with its name; the first has no null where the second has none."""
        (one, a), (other, b) = first, second
        fan = len(b.names)
        there = b.codes >= 0
        keys = a.codes[there].astype(np.int64) * fan + b.codes[there]
        coded = pc.dictionary_encode(pa.array(keys))
        distinct = coded.dictionary.to_numpy()
        codes = np.full(len(b.codes), -1, dtype=np.int32)
        codes[there] = coded.indices.to_numpy()
        names = pl.DataFrame(
            {
                one: a.names.gather(distinct // max(1, fan)),
                other: b.names.gather(distinct % max(1, fan)),
            }
        )
        return cls(codes, names)

    def rows(self, values: npt.NDArray[Any], missing: Any) -> npt.NDArray[Any]:
        """See `Coded.rows`."""
        return np.append(values, values.dtype.type(missing))[self.codes]


def read_coded(
    paths: Sequence[Path], texts: Sequence[str], others: Sequence[str]
) -> tuple[dict[str, Coded], pl.DataFrame]:
    """Columns of some Parquet files in order of their `timestamp`, those of one moment as they lie.

    Args:
        paths: the files, one after the other.
        texts: columns of texts.
        others: further columns; `timestamp` comes too.

    Returns:
        the texts by column, and the other columns.
    """
    columns = dict.fromkeys([*texts, "timestamp", *others])
    table = pq.read_table(
        [str(path) for path in paths],
        columns=list(columns),
        read_dictionary=list(texts),
        partitioning=None,
    )
    time = table["timestamp"].cast(pa.int64()).to_numpy()
    if (np.diff(time) < 0).any():
        table = table.take(pa.array(np.argsort(time, kind="stable")))
    rest = pl.from_arrow(table.select([*dict.fromkeys(["timestamp", *others])]))
    assert isinstance(rest, pl.DataFrame)
    return {name: Coded.of(table[name]).used() for name in dict.fromkeys(texts)}, rest
