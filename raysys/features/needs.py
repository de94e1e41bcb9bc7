"""Which columns of what a state says are read by features, so that no others are kept on disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from raysys.features.last import LastStats
from raysys.features.plan import FeaturePlan, FromLast, FromTable, FromWindow, Rate, Similarity
from raysys.features.read import WINDOW_FIELDS
from raysys.features.table import Stats
from raysys.features.windows import WindowStats

Array = npt.NDArray[Any]

_CLOCKS = {
    "overdue": ("recency", "interval"),
    "frequency": ("moments", "age"),
}


def needed(plan: FeaturePlan, state: str) -> list[str]:
    """Columns of a state's stats that features read: `counts.0`, `means.1`, `recency`, `values`.

    A number after the dot is the row: of the half-life, or of the window's span.
    """
    found: dict[str, None] = {}
    for feature in plan.features:
        if isinstance(feature, FromTable) and feature.table == state:
            if feature.half_life_days is None:
                found |= dict.fromkeys(_CLOCKS.get(feature.kind, (feature.kind,)))
            else:
                field = "counts" if feature.kind == "decayed_count" else "means"
                row = plan.tables[state].half_lives_days.index(feature.half_life_days)
                found[f"{field}.{row}"] = None
        elif isinstance(feature, Rate) and any(state in level for level in feature.levels):
            row = plan.tables[state].half_lives_days.index(feature.half_life_days)
            found[f"counts.{row}"] = None
        elif isinstance(feature, FromWindow) and feature.window == state:
            row = plan.windows[state].spans.index(feature.span)
            found[f"{WINDOW_FIELDS[feature.kind]}.{row}"] = None
        elif (isinstance(feature, FromLast) and feature.last == state) or (
            isinstance(feature, Similarity) and feature.to == state
        ):
            found["values"] = None
    return list(found)


def read_states(plan: FeaturePlan) -> tuple[str, ...]:
    """Names of the states that features read, each once."""
    found: dict[str, None] = {}
    for feature in plan.features:
        if isinstance(feature, FromTable):
            found[feature.table] = None
        elif isinstance(feature, Rate):
            found |= dict.fromkeys(name for level in feature.levels for name in level)
        elif isinstance(feature, FromWindow):
            found[feature.window] = None
        elif isinstance(feature, FromLast):
            found[feature.last] = None
        elif isinstance(feature, Similarity) and feature.to != "query":
            found[feature.to] = None
    return tuple(found)


def column_of(stats: Any, name: str) -> Array:
    """A column of stats by the name that `needed` gives it."""
    field, _, row = name.partition(".")
    column: Array = getattr(stats, field)
    return column[int(row)] if row else column


def rebuilt(plan: FeaturePlan, state: str, told: Mapping[str, Array]) -> Any:
    """Stats of the kind that the state gives, with the columns that `needed` names alone."""
    if state in plan.last:
        return LastStats(told["values"])
    if state in plan.windows:
        spans = len(plan.windows[state].spans)
        return _filled(WindowStats(np.empty((6, spans, 0))), told)
    rows = len(plan.tables[state].half_lives_days)
    return _filled(Stats(np.empty((rows, 0)), np.empty((rows, 0)), np.empty((4, 0))), told)


def _filled(stats: Any, told: Mapping[str, Array]) -> Any:
    for name, values in told.items():
        field, _, row = name.partition(".")
        if not row:
            setattr(stats, field, values)
            continue
        rows = getattr(stats, field)
        if not isinstance(rows, list):
            rows = list(rows)
            setattr(stats, field, rows)
        rows[int(row)] = values
    return stats
