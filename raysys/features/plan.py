"""The features of a surface as data: state to keep, and what is read from it.

A plan is YAML, checked here; `raysys/features/live.py` runs it. Every feature is known strictly
before the moment it is read at: state counts only earlier events, promotions of a week are
printed before the week begins, and the catalogue does not change.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from raysys.config import Settings
from raysys.features.plan_features import (
    Component,
    CoVisitation,
    FeatureSpec,
    FromLast,
    FromTable,
    FromWindow,
    Moment,
    OfTwo,
    Prior,
    Promotion,
    Rate,
    ShownPosition,
    Similarity,
    Static,
    UserAttribute,
)
from raysys.features.plan_tables import (
    AnyVectorSpec,
    CategoryColumn,
    EventType,
    KeyColumn,
    KeyedSpec,
    LastSpec,
    Name,
    TableSpec,
    TextVectorSpec,
    VectorSpec,
    WindowSpec,
)
from raysys.schema import EXAMPLE_KEYS

__all__ = [
    "CategoryColumn",
    "CoVisitation",
    "Component",
    "EventType",
    "FeaturePlan",
    "FeatureSpec",
    "FromLast",
    "FromTable",
    "FromWindow",
    "KeyColumn",
    "KeyedSpec",
    "LastSpec",
    "Moment",
    "OfTwo",
    "Prior",
    "Promotion",
    "Rate",
    "ShownPosition",
    "Similarity",
    "Static",
    "TableSpec",
    "TextVectorSpec",
    "UserAttribute",
    "VectorSpec",
    "WindowSpec",
]

_NEEDED = {"item": ["item"], "user": ["user"], "user_item": ["user", "item"]}
_LISTED = {"user_category": ["user", "category"]}  # read by candidates where it is there


class FeaturePlan(Settings):
    """State and features of a surface; features in the order the columns will have.

    Attributes:
        tables: decayed counts and clocks, by name.
        windows: exact aggregates over the last hours or days.
        last: the last distinct things.
        vectors: vectors of items and queries: made from their texts, or read from files.
        examination: how likely the item at position 1, 2, … is looked at, of 1 or relative to
            the first; beyond the list its last number stands. Or a JSON file that holds the list,
            from the folder that `load_resources` is given. For tables and windows with
            `weight: examination`.
        features: what is read.
    """

    tables: dict[Name, TableSpec]
    windows: dict[Name, WindowSpec] = {}
    last: dict[Name, LastSpec] = {}
    vectors: dict[Name, AnyVectorSpec] = {}
    examination: list[Annotated[float, Field(gt=0)]] | str = []
    features: Annotated[list[FeatureSpec], Field(min_length=1)]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features, in column order."""
        return tuple(feature.name for feature in self.features)

    @property
    def states(self) -> dict[str, TableSpec | WindowSpec | LastSpec]:
        """All state by key, by name."""
        return {**self.tables, **self.windows, **self.last}

    @property
    def encoded(self) -> dict[str, TextVectorSpec]:
        """The vectors that are made from texts, by name."""
        specs = self.vectors.items()
        return {name: spec for name, spec in specs if isinstance(spec, TextVectorSpec)}

    @property
    def of_queries(self) -> tuple[str, ...]:
        """Names of the vectors that some feature wants of the query, in the plan's order."""
        asked = {f.vectors for f in self.features if isinstance(f, Similarity) and f.to == "query"}
        return tuple(name for name in self.vectors if name in asked)

    def bought(self, *keys: str) -> str | None:
        """Name of the table by these keys that counts purchases and nothing else; None: none does.

        Of several it is the one that forgets the least.
        """
        found = [
            (spec.max_records is None, spec.max_idle_days or math.inf, name)
            for name, spec in self.tables.items()
            if tuple(spec.keys) == keys and set(spec.events) == {"purchase"}
        ]
        return max(found, key=lambda each: each[:2])[2] if found else None

    def idle(self, there: Collection[str]) -> list[str]:
        """A warning for each table or window that counts events of which the log has none.

        Args:
            there: the event types of the log.
        """
        return [
            f"plan: {name!r} counts {', '.join(state.events)}, and the log has none, so its "
            f"features say nothing; it has {', '.join(sorted(there))}: name them under `events`"
            for name, state in self.states.items()
            if there and not set(state.events) & set(there)
        ]

    @field_validator("last")
    @classmethod
    def _query_is_taken(cls, last: dict[str, LastSpec]) -> dict[str, LastSpec]:
        if "query" in last:
            raise ValueError("the name 'query' means the request's own, in `to`: choose another")
        return last

    @model_validator(mode="after")
    def _names_resolve(self) -> FeaturePlan:
        states = [*self.tables, *self.windows, *self.last]
        for name in states:
            if states.count(name) > 1:
                raise ValueError(f"{name!r} names two of tables, windows and last: choose another")
        known: set[str] = set()
        for feature in self.features:
            if feature.name in known:
                raise ValueError(f"feature {feature.name!r} is declared twice")
            if feature.name in EXAMPLE_KEYS.names:
                raise ValueError(
                    f"feature {feature.name!r}: examples have a column of that name, as they have "
                    f"{', '.join(EXAMPLE_KEYS.names)}: choose another"
                )
            self._check(feature, known)
            known.add(feature.name)
        for needed, keys in _NEEDED.items():
            if needed not in self.tables:
                raise ValueError(
                    f"table {needed!r} is required (keys: [{', '.join(keys)}]): candidates need it"
                )
        for name, keys in (_NEEDED | _LISTED).items():
            if name in self.tables and self.tables[name].keys != keys:
                raise ValueError(
                    f"table {name!r}: candidates need it keyed by [{', '.join(keys)}], "
                    f"not by [{', '.join(self.tables[name].keys)}]"
                )
            if name in self.tables and keys[0] == "user" and self.tables[name].max_records:
                raise ValueError(
                    f"table {name!r}: candidates and histories come from it, some users at a time, "
                    "so that max_records would keep as many of each share: give max_idle_days"
                )
        for name, spec in (self.tables | self.windows).items():
            if spec.weight == "examination" and not self.examination:
                raise ValueError(f"{name!r} has weight examination: give the plan's `examination`")
        return self

    def _check(self, feature: FeatureSpec, known: set[str]) -> None:
        """One feature against the state it reads and the features above it."""
        if isinstance(feature, FromTable):
            self._check_table(feature)
        elif isinstance(feature, Rate):
            self._check_rate(feature)
        elif isinstance(feature, OfTwo):
            for other in (feature.of, feature.over):
                if other not in known:
                    raise ValueError(
                        f"feature {feature.name!r} reads {other!r}, which is not declared "
                        f"above it; declared are {', '.join(sorted(known)) or 'none'}"
                    )
        elif isinstance(feature, FromWindow):
            self._check_window(feature)
        elif isinstance(feature, FromLast):
            self._check_last(feature)
        elif isinstance(feature, Similarity):
            self._check_similarity(feature)
        elif isinstance(feature, Component):
            _offered(feature.name, "vectors", feature.vectors, self.vectors)

    def _check_table(self, feature: FromTable) -> None:
        _offered(feature.name, "table", feature.table, self.tables)
        if feature.kind.startswith("decayed"):
            self._check_half_life(feature.name, feature.table, feature.half_life_days)
        elif feature.half_life_days is not None:
            raise ValueError(f"feature {feature.name!r}: {feature.kind} takes no half_life_days")

    def _check_half_life(self, name: str, table: str, half_life_days: float | None) -> None:
        offered = self.tables[table].half_lives_days
        if half_life_days not in offered:
            raise ValueError(
                f"feature {name!r}: half_life_days {half_life_days} is not kept "
                f"by table {table!r}, which has {', '.join(f'{d:g}' for d in offered)}"
            )

    def _check_rate(self, feature: Rate) -> None:
        for of, over in feature.levels:
            for table in (of, over):
                _offered(feature.name, "table", table, self.tables)
                self._check_half_life(feature.name, table, feature.half_life_days)
            if self.tables[of].keys != self.tables[over].keys:
                raise ValueError(
                    f"feature {feature.name!r}: {of!r} and {over!r} are kept by different keys, "
                    f"{self.tables[of].keys} and {self.tables[over].keys}"
                )

    def _check_window(self, feature: FromWindow) -> None:
        _offered(feature.name, "window", feature.window, self.windows)
        spec = self.windows[feature.window]
        if feature.span not in spec.spans:
            raise ValueError(
                f"feature {feature.name!r}: span {feature.span} is not kept by window "
                f"{feature.window!r}, which has {', '.join(map(str, spec.spans))} ({spec.unit}s)"
            )
        if feature.kind not in ("window_count", "window_days") and spec.value is None:
            raise ValueError(
                f"feature {feature.name!r}: {feature.kind} needs a window that keeps a value; "
                f"give {feature.window!r} a `value`"
            )
        if feature.kind == "window_days" and spec.hours > 24:
            raise ValueError(
                f"feature {feature.name!r}: buckets of {spec.hours} hours do not tell days apart; "
                f"make those of {feature.window!r} a day or less"
            )

    def _check_last(self, feature: FromLast) -> None:
        _offered(feature.name, "last", feature.last, self.last)
        spec = self.last[feature.last]
        _within(feature.name, feature.among, feature.last, spec)
        if (feature.kind == "last_share") != (feature.column is not None):
            raise ValueError(
                f"feature {feature.name!r}: last_share needs a `column`, other kinds take none"
            )
        if feature.column is not None and spec.of not in ("item", feature.column):
            raise ValueError(
                f"feature {feature.name!r}: {feature.last!r} remembers each {spec.of}, "
                f"which does not tell its {feature.column}"
            )

    def _check_similarity(self, feature: Similarity) -> None:
        _offered(feature.name, "vectors", feature.vectors, self.vectors)
        if feature.to == "query":
            if feature.among is not None:
                raise ValueError(f"feature {feature.name!r}: among is for last items, not queries")
            return
        items = {name: spec for name, spec in self.last.items() if spec.of == "item"}
        _offered(feature.name, "last items", feature.to, {**items, "query": None})
        _within(feature.name, feature.among, feature.to, items[feature.to])


def _offered(feature: str, what: str, name: str, offered: object) -> None:
    names = sorted(offered)  # type: ignore[call-overload]
    if name not in names:
        there = f"there are {', '.join(names)}" if names else "there are none"
        raise ValueError(f"feature {feature!r} reads {what} {name!r}; {there}")


def _within(feature: str, among: int | None, name: str, spec: LastSpec) -> None:
    if among is not None and among > spec.n:
        raise ValueError(f"feature {feature!r}: among {among}, but {name!r} keeps {spec.n}")
