"""Columns of one family after another, put together to examples, block by block; state likewise."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import safe_open
from safetensors.numpy import load_file

from raysys import schema
from raysys.features.chosen import Block, read_block
from raysys.features.columns import OF_ALL, families
from raysys.features.live import LiveFeatures
from raysys.features.needs import needed, rebuilt
from raysys.features.plan import CoVisitation as CoVisitationFeature
from raysys.features.plan import ShownPosition
from raysys.features.promotions import Promotions
from raysys.features.read import (
    CandidateRows,
    OfRequest,
    feature_columns,
    position_column,
    promotion_column,
)
from raysys.features.sizes import BYTES
from raysys.features.weeks import KnownWeeks
from raysys.retrieval.covisitation import CoVisitation


@dataclass(frozen=True)
class Stitcher:
    """Puts the columns of a block together.

    Attributes:
        live: plan and catalogue; its tables are not read.
        parts: in which families by user were replayed.
        promotions: of the weeks of the requests.
        weeks: those of requests of which the log does not tell.
        neighbourhoods: (from, co-visitation), as in `Retrieval`.
        chosen, columns: what `gather` and `replay_family` wrote.
        out: the features folder.
    """

    live: LiveFeatures
    parts: int
    promotions: Promotions
    weeks: KnownWeeks
    neighbourhoods: Sequence[tuple[int, CoVisitation]]
    chosen: Path
    columns: Path
    out: Path

    def stitch(self, block: Block, split: str, first: int) -> None:
        """Write examples and requests of a block; its requests are numbered from `first` on."""
        paths = [
            self.out / kind / f"fold={block.fold}" / f"part-{block.number:05d}.parquet"
            for kind in ("examples", "requests")
        ]
        if all(path.exists() for path in paths):
            return
        requests = read_block(self.chosen, "requests", block)
        rows = read_block(self.chosen, "rows", block)
        at, item = rows["at"].to_numpy(), rows["item"].to_numpy()
        of = {
            name: requests[name].to_numpy()[at]
            for name in ("user", "time", "store", "session", "query", "week")
        }
        # as `LiveFeatures.batch` takes the newest that it knows
        newest = self.promotions.newest(self.weeks.before(requests["time"].to_numpy()))[at]
        week = np.where(of["week"] < 0, newest, of.pop("week"))
        flags = self.promotions.of_rows(item, of["store"], week)

        def of_request(feature: OfRequest) -> npt.NDArray[Any] | float:
            if isinstance(feature, ShownPosition):
                return position_column(rows["position"].to_numpy())
            if isinstance(feature, CoVisitationFeature):
                return self._covisitation(requests, at, item, feature.history)
            return promotion_column(feature, flags)

        features = feature_columns(
            self.live, CandidateRows(item=item, **of), self._stats(block, at), of_request
        )
        ordinals = np.arange(first, first + len(requests), dtype=np.int32)
        examples = pa.table(
            {
                "request": ordinals[at],
                **{name: rows[name].to_numpy() for name in schema.EXAMPLE_KEYS.names[1:]},
                **{name: features[:, n] for n, name in enumerate(self.live.names)},
            },
            schema=pa.schema(
                [*schema.EXAMPLE_KEYS, *(pa.field(n, pa.float32()) for n in self.live.names)]
            ),
        )
        stores = pl.Series(self.live.stores, dtype=pl.String)
        queries = pl.Series(self.live.queries, dtype=pl.String)
        known = requests.with_columns(
            request=pl.Series(ordinals),
            timestamp=pl.col("time").cast(pl.Datetime("ms", "UTC")),
            store_id=pl.when(pl.col("store") >= 0)
            .then(pl.col("store"))
            .replace_strict(np.arange(len(stores), dtype=np.int32), stores, return_dtype=pl.String),
            week=pl.when(pl.col("week") >= 0).then(pl.col("week")),
            session=pl.when(pl.col("session") >= 0).then(pl.col("session")),
            split=pl.lit(split),
            fold=pl.lit(block.fold, pl.Int32),
            query=pl.when(pl.col("query") >= 0)
            .then(pl.col("query"))
            .replace_strict(
                np.arange(len(queries), dtype=np.int32), queries, return_dtype=pl.String
            ),
        ).select(schema.REQUESTS.names)
        for path, table in zip(
            paths, (examples, known.to_arrow().cast(schema.REQUESTS)), strict=True
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = path.with_suffix(".tmp")
            # numbers hardly repeat: dictionaries of them cost time and room
            pq.write_table(
                table, fresh, compression="zstd", compression_level=1, use_dictionary=False
            )
            fresh.replace(path)

    def _stats(self, block: Block, at: npt.NDArray[np.int32]) -> dict[str, Any]:
        """What every state that is read says of the rows of a block."""
        stats = {}
        for family in families(self.live.plan):
            folders = [
                self.columns / "stats" / f"{family.name}-{part:05d}"
                for part in range(family.parts(self.parts))
            ]
            pieces = [load_file(f / f"{block.number:05d}.safetensors") for f in folders]
            rows = np.concatenate([piece["row"] for piece in pieces])
            place = np.empty(len(rows), dtype=np.int64)
            place[rows] = np.arange(len(rows))
            place = place[at] if family.shared else place
            for name in family.states:
                told = {
                    column: np.concatenate([p[f"{name}.{column}"] for p in pieces])[place]
                    for column in needed(self.live.plan, name)
                }
                if told:
                    stats[name] = rebuilt(self.live.plan, name, told)
        return stats

    def _covisitation(
        self,
        requests: pl.DataFrame,
        at: npt.NDArray[np.int32],
        item: npt.NDArray[np.int32],
        n: int,
    ) -> npt.NDArray[np.float32]:
        """Score of each row with its request's last n items, by the neighbourhood of its time."""
        histories = requests["history"].list.head(n)
        seeds = histories.explode(empty_as_null=False).to_numpy().astype(np.int32)
        seed_ends = np.cumsum(histories.list.len().to_numpy()).astype(np.int64)
        row_ends = np.searchsorted(at, np.arange(len(requests)), side="right").astype(np.int64)
        starts = [start for start, _ in self.neighbourhoods]
        epoch = np.searchsorted(starts[1:], requests["time"].to_numpy(), side="right")
        out = np.zeros(len(item), dtype=np.float32)
        for number in np.unique(epoch):
            which = np.flatnonzero(epoch == number)
            low, high = which[0], which[-1] + 1  # requests are in time order
            self.neighbourhoods[number][1].score_requests(
                seeds, seed_ends, item, row_ends, low, high, out
            )
        return out


def join_state(states: Path, name: str, parts: int, path: Path) -> None:
    """Put the records of all parts of a state into one file, a part's array at a time."""
    with contextlib.ExitStack() as stack:
        files = [
            stack.enter_context(
                safe_open(states / f"{name}-{part:05d}.safetensors", framework="numpy")
            )
            for part in range(parts)
        ]
        whole: dict[str, Iterator[npt.NDArray[Any]]] = {}
        header: dict[str, Any] = {}
        end = 0
        names = sorted(files[0].keys())
        for array in names:
            shapes = [file.get_slice(array).get_shape() for file in files]
            if array == "clock":
                whole[array] = iter([np.max([file.get_tensor(array) for file in files], axis=0)])
                shapes = shapes[:1]
            elif array in OF_ALL:
                whole[array] = iter([files[0].get_tensor(array)])
                shapes = shapes[:1]
            else:
                whole[array] = (file.get_tensor(array) for file in files)
            dtype = files[0].get_slice(array).get_dtype()
            shape = [sum(each[0] for each in shapes), *shapes[0][1:]]
            start, end = end, end + math.prod(shape) * BYTES[dtype]
            header[array] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        fresh = path.with_suffix(".tmp")
        with fresh.open("wb") as out:  # the format of safetensors: length, header, arrays
            told = json.dumps(header).encode()
            told += b" " * (-len(told) % 8)
            out.write(len(told).to_bytes(8, "little") + told)
            for array in header:
                for piece in whole[array]:
                    out.write(np.ascontiguousarray(piece).data)
        fresh.replace(path)
