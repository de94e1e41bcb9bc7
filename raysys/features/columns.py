"""Features of chosen rows as they stood, state by state: the replay over columns.

Nothing but its own events can change a key's record. So states are replayed apart from each other,
those whose keys begin with a user or a query even for some of these at a time: a task streams over
the numbered log once, counts what concerns its keys, and reads the chosen rows on the way. `stitch`
then puts the columns of a block together and derives what is derived, by the code that answers
live requests.

    stats/FAMILY-P/K.safetensors     what the states of a family say of the rows of block K
    states/NAME-P.safetensors        a state's records at the end of the log
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from raysys import schema
from raysys.features.chosen import Block, read_block, share_of
from raysys.features.live import LiveFeatures
from raysys.features.log import EventColumns
from raysys.features.needs import column_of, needed, rebuilt
from raysys.features.numbered import NumberedLog
from raysys.features.plan import CoVisitation as CoVisitationFeature
from raysys.features.plan import FeaturePlan, ShownPosition
from raysys.features.promotions import Promotions
from raysys.features.read import (
    CandidateRows,
    OfRequest,
    feature_columns,
    position_column,
    promotion_column,
)
from raysys.features.sizes import BYTES
from raysys.features.table import DAY_MS
from raysys.retrieval.covisitation import CoVisitation
from raysys.schema import EVENT_TYPES

SHARED: Final = frozenset({"user", "store", "session", "query", "hour", "weekday"})
"""Key columns that all candidates of a request have in common."""

_OF_ALL: Final = frozenset(
    {"half_lives_ms", "fan", "limits", "max_records", "shape", "spans", "clock"}
)
"""What a state saves that is not an array over its records."""


@dataclass(frozen=True)
class Family:
    """States that one task replays together.

    Attributes:
        name: of the family, and of its folder.
        states: their names.
        by: keys begin with a number by which they can be dealt out to several tasks; empty where
            there are few, or where records vie with each other for room (`max_records`).
        shared: keys are the same for all rows of a request, so that requests are read, not rows.
    """

    name: str
    states: tuple[str, ...]
    by: Literal["user", "query", ""]
    shared: bool

    def parts(self, parts: int) -> int:
        """Into how many tasks it is cut."""
        return parts if self.by else 1


def families(plan: FeaturePlan) -> list[Family]:
    """The states of a plan in families: those that see the same events and the same reads."""
    grouped: dict[tuple[str, bool, Literal["user", "query", ""]], list[str]] = {}
    for name, spec in plan.states.items():
        first = spec.keys[0] if spec.keys else "all"
        by: Literal["user", "query", ""] = ""
        if spec.max_records is None:
            by = "user" if first in ("user", "session") else "query" if first == "query" else ""
        shared = set(spec.keys) <= SHARED
        grouped.setdefault((by or first, shared, by), []).append(name)
    return [
        Family(
            f"{name}-{'requests' if shared else 'rows'}{'' if by else '-whole'}",
            tuple(states),
            by,
            shared,
        )
        for (name, shared, by), states in grouped.items()
    ]


def _family(first: str, shared: bool, by: str) -> str:
    return f"{first}-{'requests' if shared else 'rows'}{'' if by else '-whole'}"


def replay_family(
    live: LiveFeatures,
    plan: FeaturePlan,
    log: NumberedLog,
    family: Family,
    part: int,
    parts: int,
    blocks: Sequence[Block],
    chosen: Path,
    out: Path,
) -> None:
    """Replay the whole log through some states, and read the chosen rows on the way.

    Args:
        live: with empty state, of the family alone; afterwards it stands at the end of the log.
        plan: whose features will read them.
        log: what happened.
        family: the states.
        part, parts: which of the tasks that the family is cut into.
        blocks: of the chosen rows, in time order.
        chosen: what `gather` wrote.
        out: gets `stats/` and `states/`.
    """
    stats = out / "stats" / f"{family.name}-{part:05d}"
    stats.mkdir(parents=True, exist_ok=True)
    replayed = _Replay(live, family, {name: needed(plan, name) for name in family.states})
    at = log.first
    for block in blocks:
        rows, reads = _reads(chosen, block, family, part, parts)
        replayed.through(_events(log, at, block.end, family, part, parts, replayed.ages), reads)
        at = max(at, block.end)
        _save({"row": rows, **replayed.told()}, stats / f"{block.number:05d}.safetensors")
    for events in _events(log, at, log.last + 1, family, part, parts, replayed.ages):
        replayed.go(events, EventColumns.nothing())
    for name, state in live.state.all().items():
        path = out / "states" / f"{name}-{part:05d}.safetensors"
        path.parent.mkdir(exist_ok=True)
        _save(state.arrays(), path)


def replay_in_memory(
    live: LiveFeatures, events: EventColumns, reads: EventColumns
) -> dict[str, Any]:
    """What all states say of rows at their moments, in a stretch of events: the same replay.

    Args:
        live: with its state; afterwards it stands at the end of the events.
        events: in time order.
        reads: of each row its user, item, time, store, session and query; in time order.

    Returns:
        by name of a state what `feature_columns` takes.
    """
    plan = live.plan
    columns = {name: needed(plan, name) for name in plan.states}
    replayed = _Replay(live, Family("all", tuple(columns), "", shared=False), columns)
    stretches = _by_day(events) if replayed.ages else iter([events])
    replayed.through(stretches if len(events) else iter(()), reads)
    told = replayed.told()
    return {
        name: rebuilt(plan, name, {column: told[f"{name}.{column}"] for column in wanted})
        for name, wanted in columns.items()
        if wanted
    }


def is_replayed(family: Family, part: int, out: Path) -> bool:
    """Whether `replay_family` has done all of this."""
    return all((out / "states" / f"{n}-{part:05d}.safetensors").exists() for n in family.states)


class _Replay:
    """Events and reads of one stretch of time after the other through the states of a family."""

    def __init__(
        self, live: LiveFeatures, family: Family, needs: Mapping[str, Sequence[str]]
    ) -> None:
        self._live, self._family, self._needs = live, family, needs
        self._told: dict[str, list[npt.NDArray[Any]]] = {}
        self._day = -1
        self.ages = live.state.ages

    def through(self, events: Iterator[EventColumns], reads: EventColumns) -> None:
        """All events, never none at a time, and the reads on the way: of one moment, first."""
        done = 0
        for each in events:
            upto = int(np.searchsorted(reads.time, each.time[-1], side="right"))
            self.go(each, reads.slice(done, upto))
            done = upto
        self.go(EventColumns.nothing(), reads.slice(done, len(reads)))

    def go(self, events: EventColumns, reads: EventColumns) -> None:
        """One stretch; where state ages, of one day, at whose first event dead records go."""
        if self.ages and len(events) and int(events.time[0] // DAY_MS) != self._day:
            self._day = int(events.time[0] // DAY_MS)
            before = int(np.searchsorted(reads.time, events.time[0], side="right"))
            if before:
                self._merge(EventColumns.nothing(), reads.slice(0, before))
                reads = reads.slice(before, len(reads))
            self._live.state.compact()
        self._merge(events, reads)

    def told(self) -> dict[str, npt.NDArray[Any]]:
        """What was read since the last call, by state and column."""
        told = {name: np.concatenate(pieces) for name, pieces in self._told.items()}
        self._told = {}
        return told

    def _merge(self, events: EventColumns, reads: EventColumns) -> None:
        both = EventColumns.concat([reads, events]) if len(reads) else events
        counts = np.arange(len(both)) >= len(reads)
        if len(events) and len(reads):
            order = np.argsort(both.time, kind="stable")  # of two sorted runs: one merge
            both, counts = both.take(order), counts[order]
        states: dict[str, Any] = dict(self._live.state.all())
        for name, state in states.items():
            # reads get the kind of an event that is counted, as others have no keys
            kind = EVENT_TYPES.index(self._live.plan.states[name].events[0])
            kinds = np.where(counts, both.kind, kind) if len(reads) else both.kind
            feed = self._live.feed(name, replace(both, kind=kinds))
            keys = np.broadcast_to(feed.keys, len(both))
            stats = state.replay(keys, feed.times, feed.weights, feed.values, counts, ~counts)
            for column in self._needs[name]:
                pieces = self._told.setdefault(f"{name}.{column}", [])
                pieces.append(column_of(stats, column))


def _events(
    log: NumberedLog, start: int, end: int, family: Family, part: int, parts: int, by_day: bool
) -> Iterator[EventColumns]:
    """Events of a part, slice by slice; day by day if asked for."""
    for each in log.between(start, end):
        events = each.events
        if family.by and parts > 1:
            events = events.take(np.flatnonzero(share_of(getattr(events, family.by), part, parts)))
        if not len(events):
            continue
        if by_day:
            yield from _by_day(events)
        else:
            yield events


def _by_day(events: EventColumns) -> Iterator[EventColumns]:
    """Events cut at midnights (UTC)."""
    day = events.time // int(DAY_MS)
    cuts = [0, *(np.flatnonzero(np.diff(day)) + 1).tolist(), len(events)]
    for low, high in pairwise(cuts):
        yield events.slice(low, high)


def _reads(
    chosen: Path, block: Block, family: Family, part: int, parts: int
) -> tuple[npt.NDArray[np.int32], EventColumns]:
    """The rows (or requests) that a task reads: their numbers in the block, and what they are."""
    requests = read_block(chosen, "requests", block)
    mine = np.ones(len(requests), dtype=np.bool_)
    if family.by:
        mine = share_of(requests[family.by].to_numpy(), part, parts)
    if family.shared:
        rows = np.flatnonzero(mine)
        at, item, position = rows, np.full(len(rows), -1, np.int32), np.zeros(len(rows), np.int32)
    else:
        frame = read_block(chosen, "rows", block)
        rows = np.flatnonzero(mine[frame["at"].to_numpy()])
        at, item, position = (frame[name].to_numpy()[rows] for name in ("at", "item", "position"))
    of = {
        name: requests[name].to_numpy()[at]
        for name in ("user", "time", "store", "session", "query")
    }
    unknown = np.full(len(rows), np.nan)
    reads = EventColumns(
        **of,
        item=item,
        kind=np.zeros(len(rows), dtype=np.int8),
        quantity=unknown,
        price=unknown,
        order=np.zeros(len(rows), dtype=np.int64),
        position=position,
    )
    return rows.astype(np.int32), reads


@dataclass(frozen=True)
class Stitcher:
    """Puts the columns of a block together.

    Attributes:
        live: plan and catalogue; its tables are not read.
        parts: in which families by user were replayed.
        promotions: of the weeks of the requests.
        neighbourhoods: (from, co-visitation), as in `Retrieval`.
        chosen, columns: what `gather` and `replay_family` wrote.
        out: the features folder.
    """

    live: LiveFeatures
    parts: int
    promotions: Promotions
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
        week = np.where(of["week"] < 0, self.promotions.last_week, of.pop("week"))

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
        known = requests.with_columns(
            request=pl.Series(ordinals),
            timestamp=pl.col("time").cast(pl.Datetime("ms", "UTC")),
            store_id=pl.when(pl.col("store") >= 0)
            .then(pl.col("store"))
            .replace_strict(np.arange(len(stores), dtype=np.int32), stores, return_dtype=pl.String),
            week=pl.when(pl.col("week") >= 0).then(pl.col("week")),
            split=pl.lit(split),
            fold=pl.lit(block.fold, pl.Int32),
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
            elif array in _OF_ALL:
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


def _save(arrays: Mapping[str, npt.NDArray[Any]], path: Path) -> None:
    """As safetensors; there whole or not at all."""
    fresh = path.with_suffix(".tmp")
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, fresh)
    fresh.replace(path)
