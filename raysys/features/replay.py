"""History replayed: at each request the features as they stood then, never a moment later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from raysys import schema
from raysys.features.live import LiveFeatures
from raysys.features.log import EventColumns
from raysys.retrieval.covisitation import CoVisitation

Int32 = npt.NDArray[np.int32]


@dataclass
class Recall:
    """How much of what was bought the candidates held."""

    requests: int = 0
    candidates: int = 0
    relevant: int = 0
    found: int = 0


def replay(
    live: LiveFeatures,
    events: EventColumns,
    requests: pl.DataFrame,
    relevant: pl.DataFrame,
    neighbourhoods: Sequence[tuple[int, CoVisitation]],
    folder: Path,
    part: int,
    history: int,
    advance: Callable[[int], None] = lambda done: None,
) -> dict[int, Recall]:
    """Walk through time and write the examples of some requests.

    Args:
        live: empty state; afterwards it stands at the last request.
        events: the whole log; at a request, events strictly before it have been counted.
        requests: the requests of this part, in time order (see `build_requests`).
        relevant: request, item, label of at least these requests.
        neighbourhoods: (from, co-visitation): the one to use from that moment on, each fitted
            on events before that moment only; the first from the very beginning.
        folder: the features folder; writes `examples/fold=K/part-P.parquet` and `requests/…`.
        part: P.
        history: items of the user kept with each request.
        advance: told how many requests are done.

    Returns:
        per fold, how much of what was bought was among the candidates.
    """
    bought = _per_request(requests, relevant)
    recalls: dict[int, Recall] = {}
    position, epoch = 0, 0
    for fold in requests["fold"].unique().sort():
        block = requests.filter(fold=fold)
        writer = _Writer(live.names)
        recall = recalls.setdefault(int(fold), Recall())
        for row in block.iter_rows(named=True):
            time = int(row["time"])
            until = position + int(np.searchsorted(events.time[position:], time))
            live.apply(events.slice(position, until))
            position = until
            while epoch + 1 < len(neighbourhoods) and neighbourhoods[epoch + 1][0] <= time:
                epoch += 1
            live.covisitation = neighbourhoods[epoch][1]
            user, (items, labels) = int(row["user"]), bought[int(row["request"])]
            found = live.candidates(user, time).items
            missed = np.isin(items, found, invert=True)
            every = np.concatenate([found, items[missed]]).astype(np.int32)
            batch = live.batch(user, every, time, row["store_id"], row["week"], history=history)
            writer.add(int(row["request"]), every, len(found), items, labels, batch.features)
            writer.moment(live.history(user, history), live.orders(user))
            recall.requests += 1
            recall.candidates += len(found)
            recall.relevant += len(items)
            recall.found += int((~missed).sum())
            if recall.requests % 50 == 0:
                advance(sum(r.requests for r in recalls.values()))
        writer.write(folder, int(fold), part, block)
    advance(len(requests))
    return recalls


def _per_request(
    requests: pl.DataFrame, relevant: pl.DataFrame
) -> dict[int, tuple[Int32, npt.NDArray[np.float32]]]:
    """Items and gains of each request, by ordinal."""
    mine = relevant.filter(pl.col("request").is_in(requests["request"].implode()))
    groups = mine.group_by("request", maintain_order=True).agg("item", "label")
    return {
        request: (np.array(items, dtype=np.int32), np.array(labels, dtype=np.float32))
        for request, items, labels in groups.iter_rows()
    }


class _Writer:
    """Gathers the examples of one fold and part, then writes them at once."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.keys: list[pa.RecordBatch] = []
        self.features: list[npt.NDArray[np.float32]] = []
        self.histories: list[Int32] = []
        self.orders: list[int] = []

    def add(
        self,
        request: int,
        items: Int32,
        n_retrieved: int,
        relevant: Int32,
        labels: npt.NDArray[np.float32],
        features: npt.NDArray[np.float32],
    ) -> None:
        """Examples of one request: first what was retrieved, then what was missed."""
        label = np.zeros(len(items), dtype=np.float32)
        order = np.argsort(relevant)
        at = np.minimum(np.searchsorted(relevant[order], items), len(relevant) - 1)
        hit = relevant[order][at] == items
        label[hit] = labels[order][at][hit]
        self.keys.append(
            pa.record_batch(
                [
                    pa.array(np.full(len(items), request, dtype=np.int32)),
                    pa.array(items),
                    pa.array(label),
                    pa.array(np.ones(len(items), dtype=np.float32)),
                    pa.array(np.arange(len(items)) < n_retrieved),
                ],
                schema=schema.EXAMPLE_KEYS,
            )
        )
        self.features.append(features)

    def moment(self, history: Int32, n_orders: int) -> None:
        """What was known of the user at the request."""
        self.histories.append(history)
        self.orders.append(n_orders)

    def write(self, folder: Path, fold: int, part: int, requests: pl.DataFrame) -> None:
        """Write both files of this fold and part."""
        keys = pa.Table.from_batches(self.keys, schema=schema.EXAMPLE_KEYS).combine_chunks()
        matrix = np.concatenate(self.features)
        columns = {name: matrix[:, at] for at, name in enumerate(self.names)}
        table = pa.table(
            {**{n: keys[n] for n in keys.column_names}, **columns},
            schema=pa.schema(
                [*schema.EXAMPLE_KEYS, *(pa.field(name, pa.float32()) for name in self.names)]
            ),
        )
        rows = requests.with_columns(
            timestamp=pl.col("time").cast(pl.Datetime("ms", "UTC")),
            history=pl.Series(self.histories, dtype=pl.List(pl.Int32)),
            n_orders=pl.Series(self.orders, dtype=pl.Int32),
        ).select(schema.REQUESTS.names)
        for kind, content in (
            ("examples", table),
            ("requests", rows.to_arrow().cast(schema.REQUESTS)),
        ):
            path = folder / kind / f"fold={fold}" / f"part-{part:03d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(content, path, compression="zstd", compression_level=1)
