"""What the log says of one user, for people: how often, how lately, and their favourites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raysys.features.kernels import DAY_MS
from raysys.features.plan import FeaturePlan
from raysys.features.state import States
from raysys.features.table import Table


def evidence_of(
    plan: FeaturePlan,
    state: States,
    labels: Mapping[str, Sequence[str]],
    user: int,
    timestamp: int,
    top: int,
) -> dict[str, Any]:
    """Orders, recency and favourites of a user with their evidence.

    Args:
        plan: names the tables; each by user and a labelled column tells of favourites.
        state: of the plan.
        labels: by column of the catalogue, label of each code.
        user: number.
        timestamp: UTC ms, for recency and decay.
        top: favourites of each column.
    """
    number = np.array([user], dtype=np.int64)
    stats = state.tables["user"].read(state.tables["user"].find(number), timestamp)
    favourites = {}
    for name, spec in plan.tables.items():
        if len(spec.keys) == 2 and spec.keys[0] == "user" and spec.keys[1] in labels:
            column = spec.keys[1]
            favourites[column] = _favourites(
                state.tables[name], labels[column], user, timestamp, top
            )
    recency, interval = float(stats.recency[0]), float(stats.interval[0])
    return {
        "n_orders": int(stats.moments[0]),
        "recency_days": None if np.isnan(recency) else round(recency, 2),
        "order_interval_days": None if np.isnan(interval) else round(interval, 2),
        "last_seen": None if np.isnan(recency) else int(timestamp - recency * DAY_MS),
        "favourites": favourites,
    }


def _favourites(
    table: Table, labels: Sequence[str], user: int, timestamp: int, top: int
) -> list[dict[str, Any]]:
    records = table.members(user, timestamp)
    stats = table.read(records, timestamp)
    total = float(stats.counts[-1].sum())
    best = np.lexsort((records, -stats.counts[-1]))[:top]
    codes = table.second(records)
    return [
        {
            "name": labels[int(codes[i])],
            "affinity": round(float(stats.counts[-1][i]) / total, 4) if total else 0.0,
            "orders": int(stats.moments[i]),
            "last_days_ago": round(float(stats.recency[i]), 2),
        }
        for i in best
    ]
