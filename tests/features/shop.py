"""A small invented shop: catalogue, plan and random logs."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from raysys import schema
from raysys.catalogue import Catalogue
from raysys.features.live import LiveFeatures
from raysys.features.log import EventColumns
from raysys.features.plan import FeaturePlan
from raysys.features.proposing import CandidateSettings

DAY = 86_400_000
PURCHASE = schema.EVENT_TYPES.index("purchase")

PLAN = FeaturePlan.model_validate(
    {
        "tables": {
            "item": {"keys": ["item"], "half_lives_days": [7, 28]},
            "user": {"keys": ["user"], "half_lives_days": [28], "weight": "quantity"},
            "user_item": {"keys": ["user", "item"], "half_lives_days": [28]},
            "user_category": {"keys": ["user", "category"], "half_lives_days": [28]},
            "viewed": {"keys": ["item"], "events": ["view"], "half_lives_days": [1]},
        },
        "features": [
            {"name": "item_7d", "kind": "decayed_count", "table": "item", "half_life_days": 7},
            {"name": "item_28d", "kind": "decayed_count", "table": "item", "half_life_days": 28},
            {"name": "trend", "kind": "log_ratio", "of": "item_7d", "over": "item_28d"},
            {"name": "price", "kind": "decayed_mean", "table": "item", "half_life_days": 28},
            {"name": "user_28d", "kind": "decayed_count", "table": "user", "half_life_days": 28},
            {"name": "mine", "kind": "decayed_count", "table": "user_item", "half_life_days": 28},
            {"name": "mine_share", "kind": "share", "of": "mine", "over": "user_28d"},
            {"name": "recency", "kind": "recency", "table": "user_item"},
            {"name": "interval", "kind": "interval", "table": "user_item"},
            {"name": "overdue", "kind": "overdue", "table": "user_item"},
            {"name": "times", "kind": "moments", "table": "user_item"},
            {"name": "age", "kind": "age", "table": "user_item"},
            {
                "name": "category",
                "kind": "decayed_count",
                "table": "user_category",
                "half_life_days": 28,
            },
            {"name": "views", "kind": "decayed_count", "table": "viewed", "half_life_days": 1},
            {"name": "covisitation", "kind": "covisitation"},
            {"name": "on_display", "kind": "promotion", "medium": "display"},
            {"name": "weekday", "kind": "moment", "unit": "weekday"},
            {"name": "department", "kind": "static", "column": "department"},
        ],
    }
)


def catalogue(n_items: int = 12) -> Catalogue:
    rows = [
        {
            "item_id": f"i{number:03d}",
            "title": f"thing {number}",
            "category": None if number % 5 == 4 else f"c{number % 4}",
            "department": f"d{number % 2}",
        }
        for number in range(n_items)
    ]
    columns = {f.name: pa.array([row.get(f.name) for row in rows], f.type) for f in schema.ITEMS}
    return Catalogue(pa.table(columns, schema=schema.ITEMS))


def live(n_items: int = 12, n_users: int = 5) -> LiveFeatures:
    users = [f"u{number}" for number in range(n_users)]
    return LiveFeatures(PLAN, catalogue(n_items), users, ["s0", "s1"], CandidateSettings())


def columns(
    user: list[int],
    item: list[int],
    time: list[int],
    *,
    kind: list[int] | None = None,
    price: list[float] | None = None,
    quantity: list[float] | None = None,
) -> EventColumns:
    size = len(user)
    return EventColumns(
        user=np.array(user, dtype=np.int32),
        item=np.array(item, dtype=np.int32),
        kind=np.array(kind or [PURCHASE] * size, dtype=np.int8),
        time=np.array(time, dtype=np.int64),
        quantity=np.array(quantity or [1.0] * size),
        price=np.array(price or [2.0] * size),
        store=np.zeros(size, dtype=np.int32),
        order=np.arange(size, dtype=np.int64),
    )
