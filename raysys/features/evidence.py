"""What the log says of one user, for people: how often, how lately, and their favourites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from raysys.features.kernels import DAY_MS
from raysys.features.plan import FeaturePlan
from raysys.features.state import States
from raysys.features.table import Stats, Table


def evidence_of(
    plan: FeaturePlan,
    state: States,
    labels: Mapping[str, Sequence[str]],
    user: int,
    timestamp: int,
    top: int,
) -> dict[str, Any]:
    """Orders, recency and favourites of a user with their evidence.

    Orders are what tables of purchases alone count. Where the plan has none, it is told how often
    something was touched (looked at, carted, bought), and that is not called an order.

    Args:
        plan: names the tables; those by user and a labelled column tell of favourites.
        state: of the plan.
        labels: by column of the catalogue, label of each code.
        user: number.
        timestamp: UTC ms, for recency and decay.
        top: favourites of each column.
    """
    orders = plan.bought("user")
    touched = _of_user(state.tables["user"], user, timestamp)
    bought = None if orders is None else _of_user(state.tables[orders], user, timestamp)
    favourites = {}
    for name, spec in plan.tables.items():
        if len(spec.keys) == 2 and spec.keys[0] == "user" and spec.keys[1] in labels:
            column = spec.keys[1]
            if column in favourites:
                continue
            known = plan.bought("user", column)
            favourites[column] = _favourites(
                *(state.tables[known or name], labels[column], user, timestamp, top),
                are_orders=known is not None,
            )
    seen, recency = touched.recency[0], (bought or touched).recency[0]
    return {
        "n_orders": None if bought is None else int(bought.moments[0]),
        "n_touches": int(touched.moments[0]),
        "recency_days": _rounded(recency),
        "order_interval_days": None if bought is None else _rounded(bought.interval[0]),
        "last_seen": None if np.isnan(seen) else int(timestamp - float(seen) * DAY_MS),
        "favourites": favourites,
    }


def _of_user(table: Table, user: int, timestamp: int) -> Stats:
    return table.read(table.find(np.array([user], dtype=np.int64)), timestamp)


def _rounded(days: float) -> float | None:
    return None if np.isnan(days) else round(float(days), 2)


def _favourites(
    table: Table, labels: Sequence[str], user: int, timestamp: int, top: int, *, are_orders: bool
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
            "orders": int(stats.moments[i]) if are_orders else None,
            "touches": None if are_orders else int(stats.moments[i]),
            "last_days_ago": round(float(stats.recency[i]), 2),
        }
        for i in best
    ]
