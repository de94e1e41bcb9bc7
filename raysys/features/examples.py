"""Examples on disk: Parquet by fold, whole requests in each file, read back as a `Batch`.

    features/examples/fold=K/part-P.parquet   schema.EXAMPLE_KEYS, then the features (float32)
    features/requests/fold=K/part-P.parquet   schema.REQUESTS, the same requests in the same order

Folds are blocks of time: 0 … f-1 train, f validation, f+1 the report period.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysys import schema
from raysys.errors import UserError
from raysys.features.batch import Batch

_BLOCK_ROWS: Final = 8192  # written at a time, all columns of them


@dataclass(frozen=True)
class Share:
    """Some requests of a view, by a table that says which share each belongs to.

    Attributes:
        table: Parquet, readable by every worker, with the columns `request` and `share`; a request
            that is not in it is in no view.
        number: of the share.
        inside: the requests of that share; False: those of all others.
    """

    table: Path
    number: int
    inside: bool

    def of(self, requests: pa.Table) -> pa.Table:
        """Those of the requests that belong to it, in their order."""
        shares = pq.read_table(self.table, columns=["request", "share"], partitioning=None)
        test = pc.equal if self.inside else pc.not_equal
        kept = shares.filter(test(shares["share"], self.number))["request"]
        wanted = pa.array(kept.to_numpy(), requests["request"].type)
        return requests.filter(pc.is_in(requests["request"], value_set=wanted))


@dataclass(frozen=True)
class Examples:
    """A view of the examples under a features folder; picklable, reads lazily.

    Attributes:
        root: the features folder, readable by every worker.
        folds: which folds, in time order.
        last_fraction: with `part`, where the view is cut by time (for early stopping).
        part: `all`, `head` (the requests before the cut) or `tail` (after it).
        shard: (rank, world): every world-th request, starting with number rank.
        negatives: at most so many candidates of a request that were not wanted, drawn by a hash of
            request and item; 0: all. The tail keeps all: it is there to judge by.
        window_days: requests of the last so many days alone; None: all. The tail is that of all.
        share: those requests alone; None: all.
    """

    root: Path
    folds: tuple[int, ...]
    last_fraction: float = 0.1
    part: str = "all"
    shard: tuple[int, int] = (0, 1)
    negatives: int = 0
    window_days: float | None = None
    share: Share | None = None

    def files(self, kind: str) -> list[Path]:
        """Parquet files of `examples` or `requests`, in time order.

        Raises:
            UserError: a fold without files.
        """
        found: list[Path] = []
        for fold in self.folds:
            files = sorted((self.root / kind / f"fold={fold}").glob("*.parquet"))
            if not files:
                raise UserError(
                    f"no {kind} of fold {fold}", where=str(self.root), mend="run `raysys features`"
                )
            found.extend(files)
        return found

    def with_folds(self, *folds: int) -> Examples:
        """The same features folder, other folds."""
        return replace(self, folds=tuple(folds))

    def head_and_tail(self, last_fraction: float = 0.1) -> tuple[Examples, Examples]:
        """Cut by time: everything before the last fraction of requests, and that last fraction."""
        cut = replace(self, last_fraction=last_fraction)
        return replace(cut, part="head"), replace(cut, part="tail")

    def of_worker(self, rank: int, world: int) -> Examples:
        """The requests of one of `world` workers."""
        return replace(self, shard=(rank, world))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the features, in column order.

        Raises:
            UserError: examples that an earlier version wrote.
        """
        columns = pq.read_schema(self.files("examples")[0]).names
        keys = schema.EXAMPLE_KEYS.names
        if columns[: len(keys)] != keys:
            raise UserError(
                "examples of an earlier version: their columns do not begin with "
                + ", ".join(keys),
                where=str(self.root),
                mend="run `raysys features --force`",
            )
        return tuple(columns[len(keys) :])

    def requests(self) -> pa.Table:
        """The requests of this view (`schema.REQUESTS`), in time order."""
        tables = [pq.read_table(path, partitioning=None) for path in self.files("requests")]
        table = pa.concat_tables(tables).sort_by("request")  # ordinals follow time
        if self.share is not None:
            table = self.share.of(table)
        count = table.num_rows
        if self.part != "all":
            cut = max(0, count - max(1, round(count * self.last_fraction)))
            table = table.slice(0, cut) if self.part == "head" else table.slice(cut)
        if self.window_days is not None and self.part != "tail" and table.num_rows:
            first = pc.max(table["timestamp"]).as_py() - timedelta(days=self.window_days)
            table = table.filter(pc.greater(table["timestamp"], pa.scalar(first)))
        rank, world = self.shard
        if world > 1:
            table = table.take(pa.array(np.arange(rank, table.num_rows, world)))
        return table

    def batch(self, *, retrieved_only: bool = True) -> Batch:
        """Read the view into memory, requests in time order.

        Args:
            retrieved_only: leave out what was bought but not retrieved. Keep it so for fitting
                and for judging: such rows do not exist when serving, and they would teach that
                an implausible candidate must be a purchase. `n_relevant` counts them all the same.
        """
        names, requests = self.names, self.requests()
        ordinals = requests["request"].to_numpy()
        position = np.empty(int(ordinals.max()) + 1 if len(ordinals) else 0, dtype=np.int64)
        position[ordinals] = np.arange(len(ordinals))
        keys, kept = self._keys(ordinals, retrieved_only)
        group = position[keys["request"].to_numpy()]
        order = np.argsort(group, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        features = self._features(kept, place)
        keys = keys.take(pa.array(order))
        sizes = np.bincount(group, minlength=len(ordinals))
        history = requests["history"].combine_chunks()
        ends = history.offsets.to_numpy()
        values = history.values.to_numpy()
        batch = Batch(
            names=names,
            features=features,
            item=keys["item"].to_numpy(),
            offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            history=[values[a:b] for a, b in pairwise(ends)],
            user=requests["user"].to_numpy(),
            label=keys["label"].to_numpy(),
            weight=keys["weight"].to_numpy(),
            n_relevant=requests["n_relevant"].to_numpy(),
            request=ordinals,
            sampling_probability=keys["sampling_probability"].to_numpy(),
            queries=_queries(requests),
        )
        return batch if self.part == "tail" else _with_negatives(batch, self.negatives)

    def _keys(
        self, ordinals: npt.NDArray[np.int32], retrieved_only: bool
    ) -> tuple[pa.Table, list[pa.ChunkedArray]]:
        """Keys of the rows of the given requests, file by file, and which rows of each file."""
        wanted = pa.array(np.sort(ordinals), pa.int32())
        parts, kept = [], []
        for path in self.files("examples"):
            table = pq.read_table(path, columns=schema.EXAMPLE_KEYS.names, partitioning=None)
            chosen = pc.is_in(table["request"], value_set=wanted)
            if retrieved_only:
                chosen = pc.and_(chosen, table["retrieved"])
            parts.append(table.filter(chosen))
            kept.append(chosen)
        return pa.concat_tables(parts), kept

    def _features(
        self, kept: list[pa.ChunkedArray], place: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """Features of the kept rows, each at its place; one file in memory at a time.

        They are nearly all that examples weigh, so they are held once.
        """
        features = np.empty((len(place), len(self.names)), dtype=np.float32)
        at = 0
        for path, chosen in zip(self.files("examples"), kept, strict=True):
            table = pq.read_table(path, columns=list(self.names), partitioning=None)
            table = table.filter(chosen)
            columns = [table[name].to_numpy() for name in self.names]
            for start in range(0, table.num_rows, _BLOCK_ROWS):  # what is written stays in cache
                stop = min(start + _BLOCK_ROWS, table.num_rows)
                rows = place[at + start : at + stop]
                for column, values in enumerate(columns):
                    features[rows, column] = values[start:stop]
            at += table.num_rows
        return features


def _queries(requests: pa.Table) -> list[str | None] | None:
    """What was searched for; None where that is not written, or nothing was."""
    if "query" not in requests.column_names or requests["query"].null_count == len(requests):
        return None
    found: list[str | None] = requests["query"].to_pylist()
    return found


def _with_negatives(batch: Batch, most: int) -> Batch:
    """At most so many unwanted candidates a request; 0: all.

    Which ones depends on request and item alone, so that every view of them draws the same.
    """
    if not most:
        return batch
    assert batch.label is not None and batch.weight is not None and batch.request is not None
    mixed = batch.request[batch.group].astype(np.uint64) << np.uint64(32)
    mixed |= batch.item.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # SplitMix64
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    wanted = batch.label > 0
    order = np.lexsort((mixed, wanted, batch.group))
    rank = np.empty(len(batch), dtype=np.int64)
    rank[order] = np.arange(len(batch)) - batch.offsets[:-1][batch.group]
    return batch.take_rows(np.flatnonzero(wanted | (rank < most)))
