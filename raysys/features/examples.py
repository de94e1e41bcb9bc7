"""Examples on disk: Parquet by fold, whole requests in each file, read back as a `Batch`.

    features/examples/fold=K/part-P.parquet   schema.EXAMPLE_KEYS, then the features (float32)
    features/requests/fold=K/part-P.parquet   schema.REQUESTS, the same requests in the same order

Folds are blocks of time: 0 … f-1 train, f validation, f+1 the report period.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysys import schema
from raysys.errors import UserError
from raysys.features.batch import Batch


@dataclass(frozen=True)
class Examples:
    """A view of the examples under a features folder; picklable, reads lazily.

    Attributes:
        root: the features folder, readable by every worker.
        folds: which folds, in time order.
        last_fraction: with `part`, where the view is cut by time (for early stopping).
        part: `all`, `head` (the requests before the cut) or `tail` (after it).
        shard: (rank, world): every world-th request, starting with number rank.
    """

    root: Path
    folds: tuple[int, ...]
    last_fraction: float = 0.1
    part: str = "all"
    shard: tuple[int, int] = (0, 1)

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
        """Names of the features, in column order."""
        columns = pq.read_schema(self.files("examples")[0]).names
        return tuple(columns[len(schema.EXAMPLE_KEYS) :])

    def requests(self) -> pa.Table:
        """The requests of this view (`schema.REQUESTS`), in time order."""
        tables = [pq.read_table(path, partitioning=None) for path in self.files("requests")]
        table = pa.concat_tables(tables).sort_by("request")  # ordinals follow time
        count = table.num_rows
        if self.part != "all":
            cut = count - max(1, round(count * self.last_fraction))
            table = table.slice(0, cut) if self.part == "head" else table.slice(cut)
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
        requests = self.requests()
        ordinals = requests["request"].to_numpy()
        kept = pa.array(np.sort(ordinals), pa.int32())
        parts = []
        for path in self.files("examples"):
            table = pq.read_table(path, partitioning=None)
            wanted = pc.is_in(table["request"], value_set=kept)
            if retrieved_only:
                wanted = pc.and_(wanted, table["retrieved"])
            parts.append(table.filter(wanted))
        table = pa.concat_tables(parts)
        position = np.empty(int(ordinals.max()) + 1 if len(ordinals) else 0, dtype=np.int64)
        position[ordinals] = np.arange(len(ordinals))
        group = position[table["request"].to_numpy()]
        if len(group) and (np.diff(group) < 0).any():
            order = np.argsort(group, kind="stable")
            table, group = table.take(pa.array(order)), group[order]
        sizes = np.bincount(group, minlength=len(ordinals))
        names = self.names
        features = np.empty((table.num_rows, len(names)), dtype=np.float32)
        for column, name in enumerate(names):
            features[:, column] = table[name].to_numpy()
        history = requests["history"].combine_chunks()
        ends = history.offsets.to_numpy()
        values = history.values.to_numpy()
        return Batch(
            names=names,
            features=features,
            item=table["item"].to_numpy(),
            offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
            history=[values[a:b] for a, b in pairwise(ends)],
            user=requests["user"].to_numpy(),
            label=table["label"].to_numpy(),
            weight=table["weight"].to_numpy(),
            n_relevant=requests["n_relevant"].to_numpy(),
            request=ordinals,
        )
