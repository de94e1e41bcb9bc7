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

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from raysys.features.chosen import Block, map_block, rows_of, share_of
from raysys.features.kernels import DAY_MS
from raysys.features.live import LiveFeatures
from raysys.features.log import EventColumns
from raysys.features.needs import column_of, needed, rebuilt
from raysys.features.numbered import NumberedLog
from raysys.features.plan import FeaturePlan
from raysys.features.state import fed_by
from raysys.schema import EVENT_TYPES

SHARED: Final = frozenset({"user", "store", "session", "query", "hour", "weekday"})
"""Key columns that all candidates of a request have in common."""

OF_ALL: Final = frozenset(
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
    own = partial(_events, log, family, part, parts, replayed.columns, by_day=replayed.ages)
    at = log.first
    for block in blocks:
        rows, reads = _reads(chosen, block, family, part, parts)
        replayed.through(own(at, block.end), reads)
        at = max(at, block.end)
        save_arrays({"row": rows, **replayed.told()}, stats / f"{block.number:05d}.safetensors")
    for events in own(at, log.last + 1):
        replayed.go(events, EventColumns.nothing())
    for name, state in live.state.all().items():
        path = out / "states" / f"{name}-{part:05d}.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_arrays(state.arrays(), path)


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
        self.columns = fed_by(live.plan.states[name] for name in live.state.all())

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
        both = events.only(self.columns)
        if len(reads):
            both = EventColumns.concat([reads.only(self.columns), both])
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
    log: NumberedLog,
    family: Family,
    part: int,
    parts: int,
    columns: Collection[str],
    start: int,
    end: int,
    *,
    by_day: bool,
) -> Iterator[EventColumns]:
    """Some columns of the events of a part, slice by slice; day by day if asked for."""
    for each in log.between(start, end):
        events = each.events.only(columns)
        if family.by and parts > 1:
            events = events.take(rows_of(getattr(each.events, family.by), part, parts))
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
    names = ("user", "time", "store", "session", "query")
    requests = map_block(chosen, "requests", block, names)
    mine = np.ones(len(requests["user"]), dtype=np.bool_)
    if family.by:
        mine = share_of(requests[family.by], part, parts)
    if family.shared:
        rows = np.flatnonzero(mine)
        at, item, position = rows, np.full(len(rows), -1, np.int32), np.zeros(len(rows), np.int32)
    else:
        columns = map_block(chosen, "rows", block, ("at", "item", "position"))
        rows = np.flatnonzero(mine[columns["at"]])
        at, item, position = (columns[name][rows] for name in ("at", "item", "position"))
    of = {name: column[at] for name, column in requests.items()}
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


def save_arrays(arrays: Mapping[str, npt.NDArray[Any]], path: Path) -> None:
    """As safetensors; there whole or not at all."""
    fresh = path.with_suffix(".tmp")
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, fresh)
    fresh.replace(path)
