"""What AutoGluon gets and gives, whatever the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from benchmarks.result import Figure

FOLDS = 8


@dataclass(frozen=True)
class Table:
    """What AutoGluon gets, and what is judged.

    Attributes:
        train: features, `label`, and `group`: rows of one group are in one fold.
        test: the same features.
        problem: `binary` or `regression`.
        metric: by which it chooses.
    """

    train: pl.DataFrame
    test: pl.DataFrame
    problem: str
    metric: str


def figure(name: str, found: Any, reference: str, scale: float = 1.0, unit: str = "") -> Figure:
    """A figure from a value with its interval."""
    low, high = scale * found.low, scale * found.high
    return Figure(name, scale * found.value, unit, low, high, "", reference)


def told(facts: dict[str, Any]) -> str:
    """How AutoGluon was fitted."""
    return (
        f"AutoGluon {facts['version']}, {facts['models']} models in {facts['seconds']:.0f} s "
        f"(limit {facts['limit']} s), {facts['rows']} rows, {facts['cores']} cores, "
        f"best: {facts['best']}"
    )
