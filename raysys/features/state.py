"""All state by key of a plan: what events are fed to it, and what rows read from it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from raysys.features.changing import Arrays
from raysys.features.keyed import State
from raysys.features.keys import KeySpace, Rows, made_of
from raysys.features.last import Last, LastStats
from raysys.features.log import EventColumns
from raysys.features.plan import FeaturePlan, LastSpec, TableSpec, WindowSpec
from raysys.features.table import Stats, Table
from raysys.features.windows import HOUR_MS, Window, WindowStats
from raysys.schema import EVENT_TYPES

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

_LARGEST = int(np.iinfo(np.int64).max)
_MOST_USERS = int(np.iinfo(np.int32).max)


@dataclass(frozen=True)
class Feed:
    """Events as one state counts them: what its `apply` takes.

    Attributes:
        keys: int64[n], -1 where the event is not counted.
        times: int64[n], UTC ms.
        weights, values: float64[n].
    """

    keys: Int64
    times: Int64
    weights: Float64
    values: Float64


_WEIGHED_BY = {
    "one": (),
    "quantity": ("quantity",),
    "spend": ("quantity", "price"),
    "examination": ("position",),
}
"""Columns of events that each weight of a plan is made of."""


def fed_by(specs: Iterable[TableSpec | WindowSpec | LastSpec]) -> frozenset[str]:
    """Names of the columns of events that `States.feed` looks at for some states."""
    found = {"time", "kind"}
    for spec in specs:
        found |= {made_of(column) for column in spec.keys}
        if isinstance(spec, LastSpec):
            found.add(made_of(spec.of))
        else:
            found |= {
                *_WEIGHED_BY[spec.weight],
                "quantity" if spec.value == "quantity" else "price",
            }
    return frozenset(found)


class States:
    """Tables, windows and last things of a plan.

    Args:
        plan: what to keep.
        space: makes the keys.
        examination: float64[p], see `Resources`.

    Attributes:
        tables, windows, last: the states by name.

    Raises:
        UserError: keys that do not fit into an int64.
    """

    def __init__(self, plan: FeaturePlan, space: KeySpace, examination: Float64) -> None:
        self.plan, self.space, self.examination = plan, space, examination
        self.specs = plan.states
        for name, spec in self.specs.items():
            space.check(name, spec.keys)
        self._counted = {name: np.isin(EVENT_TYPES, s.events) for name, s in self.specs.items()}
        self.tables = {name: _table(spec, space) for name, spec in plan.tables.items()}
        self.windows = {name: _window(spec) for name, spec in plan.windows.items()}
        self.last = {name: _last(spec) for name, spec in plan.last.items()}

    def all(self) -> dict[str, State]:
        """Every state by name, in the plan's order."""
        return {**self.tables, **self.windows, **self.last}

    def feed(
        self, name: str, events: EventColumns, weights: dict[str, Float64] | None = None
    ) -> Feed:
        """What one state takes of some events, in their order.

        Args:
            name: of the state.
            events: n of them.
            weights: those of the same events that are made already, by the plan's word; grows.
        """
        weights = {} if weights is None else weights
        spec = self.specs[name]
        keys = self.space.of(spec.keys, events)
        keys = np.where(self._counted[name][events.kind], keys, -1)
        if isinstance(spec, LastSpec):
            values = self.space.part(spec.of, events).astype(np.float64)
            return Feed(keys, events.time, values, values)  # it reads no weights
        if spec.weight not in weights:
            weights[spec.weight] = self.weights(spec.weight, events)
        values = events.quantity if spec.value == "quantity" else events.price
        return Feed(keys, events.time, weights[spec.weight], values)

    def weights(self, weight: str, events: EventColumns) -> Float64:
        """What each event counts, by the plan's word for it: float64[n]."""
        if weight == "quantity":
            return np.nan_to_num(events.quantity, nan=1.0)
        if weight == "spend":
            with np.errstate(invalid="ignore"):
                return np.nan_to_num(events.quantity * events.price, nan=0.0)
        ones = np.ones(len(events))
        if weight == "examination":
            shown = events.position > 0
            place = np.minimum(events.position[shown], len(self.examination)) - 1
            ones[shown] = self.examination[place]
        return ones

    def apply(self, events: EventColumns) -> None:
        """Count events in every state."""
        weights: dict[str, Float64] = {}  # most states share theirs
        for name, state in self.all().items():
            feed = self.feed(name, events, weights)
            state.apply(feed.keys, feed.times, feed.weights, feed.values)

    def read(self, name: str, rows: Rows, time: int) -> Stats | WindowStats | LastStats:
        """What a state says of rows at a moment; one column where all rows share their key."""
        return self._read(name, self.space.of(self.specs[name].keys, rows), time)

    def read_all(
        self, names: Sequence[str], rows: Rows, time: int
    ) -> dict[str, Stats | WindowStats | LastStats]:
        """`read` of several states by name; what their keys have in common is made once."""
        parts: dict[str, Int64] = {}
        keys: dict[tuple[str, ...], Int64] = {}
        found = {}
        for name in names:
            columns = tuple(self.specs[name].keys)
            if columns not in keys:
                keys[columns] = self.space.of(columns, rows, parts)
            found[name] = self._read(name, keys[columns], time)
        return found

    def _read(self, name: str, keys: Int64, time: int) -> Stats | WindowStats | LastStats:
        if name in self.tables:
            return self.tables[name].read(self.tables[name].find(keys), time)
        state = self.windows[name] if name in self.windows else self.last[name]
        return state.read(state.find(keys), time)

    def replay(
        self, name: str, events: EventColumns, rows: Rows
    ) -> Stats | WindowStats | LastStats:
        """Count events in one state and read rows on the way, each as of its own moment.

        Gives to the last bit what `read` gives for each row after `apply` of all events strictly
        before it; afterwards the state holds all events.

        Args:
            name: of the state.
            events: m of them, in time order, all after what was counted already.
            rows: n of them, in any order; none within a moment that was counted already.

        Returns:
            n columns, in the order of the rows.
        """
        feed, n = self.feed(name, events), len(rows.item)
        keys = np.broadcast_to(self.space.of(self.specs[name].keys, rows), n)
        order = np.argsort(np.broadcast_to(rows.time, n), kind="stable")  # as reads are told
        times = np.concatenate([np.broadcast_to(rows.time, n)[order], feed.times])
        merged = np.argsort(times, kind="stable")
        reads = merged < n
        nothing = np.zeros(n)
        given = (
            np.concatenate([keys[order], feed.keys])[merged],
            times[merged],
            np.concatenate([nothing, feed.weights])[merged],
            np.concatenate([nothing, feed.values])[merged],
            ~reads,
            reads,
        )
        back = np.empty(n, dtype=np.int64)
        back[order] = np.arange(n)
        if name in self.tables:
            stats = self.tables[name].replay(*given)
            clocks = np.stack([stats.moments, stats.recency, stats.age, stats.interval])
            return Stats(stats.counts[:, back], stats.means[:, back], clocks[:, back])
        if name in self.windows:
            found = self.windows[name].replay(*given)
            return WindowStats(found.cells[:, :, back])
        return LastStats(self.last[name].replay(*given).values[back])

    def most_users(self) -> int:
        """How many users keys have room for: more than there are, unless a key ends with one."""
        most = _MOST_USERS
        for spec in self.specs.values():
            if "user" in spec.keys[1:]:
                return self.space.fans["user"]
            if spec.keys[:1] == ["user"]:
                rest = math.prod(self.space.fans[column] for column in spec.keys[1:])
                most = min(most, _LARGEST // rest)
        return most

    @cached_property
    def ages(self) -> bool:
        """Whether there is anything to take away at the change of a day."""
        limits = (s.max_records for s in self.specs.values())
        idle = (s.max_idle_days for s in (self.plan.tables | self.plan.last).values())
        return bool(self.windows) or any(limit is not None for limit in (*limits, *idle))

    def compact(self) -> int:
        """Take away what has aged out everywhere; how many records went."""
        return sum(state.compact() for state in self.all().values())

    def arrays(self) -> dict[str, dict[str, Arrays]]:
        """Everything to save, copied, by kind and name."""
        return {
            kind: {name: state.arrays() for name, state in states.items()}
            for kind, states in self._kinds().items()
        }

    def load(self, folder: Path) -> None:
        """Read what `arrays` gave, and `Changing.write` wrote, of the same plan; all or nothing."""
        makers: dict[str, Any] = {"tables": Table, "windows": Window, "last": Last}
        read: dict[str, dict[str, Any]] = {}
        for kind, states in self._kinds().items():
            read[kind] = {
                name: makers[kind].from_arrays(load_file(folder / kind / f"{name}.safetensors"))
                for name in states
            }
        self.take(read)

    def take(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Put states in the place of those there are, by kind and name."""
        for kind, mine in self._kinds().items():
            mine.update(states[kind])

    def _kinds(self) -> dict[str, dict[str, Any]]:
        return {"tables": self.tables, "windows": self.windows, "last": self.last}


def _table(spec: TableSpec, space: KeySpace) -> Table:
    listed = len(spec.keys) == 2 and spec.keys[0] == "user"  # what a user has is asked for
    return Table(
        np.array(spec.half_lives_days),
        space.fans[spec.keys[1]] if listed else 1,
        max_idle_days=spec.max_idle_days,
        max_records=spec.max_records,
    )


def _window(spec: WindowSpec) -> Window:
    return Window(
        spec.hours * HOUR_MS,
        np.array(spec.spans) // spec.bucket,
        valued=spec.value is not None,
        max_records=spec.max_records,
    )


def _last(spec: LastSpec) -> Last:
    return Last(spec.n, max_idle_days=spec.max_idle_days, max_records=spec.max_records)
