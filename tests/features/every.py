"""A plan that has every kind of state and of feature, and random logs for it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from raysys import schema
from raysys.catalogue import Catalogue
from raysys.features.live import LiveFeatures
from raysys.features.log import EventColumns
from raysys.features.plan import FeaturePlan
from raysys.features.read import CandidateRows, feature_columns
from raysys.features.resources import Resources, Vectors
from raysys.features.user_attributes import UserAttributes, texts_of
from raysys.schema import EVENT_TYPES

DAY = 86_400_000
HOUR = DAY // 24
N_ITEMS, N_USERS, N_QUERIES = 12, 4, 3
TOLD = {
    "u0": {"tier": "gold", "age": "40"},
    "u1": {"tier": "silver", "age": "not told"},
    "u3": {"tier": "gold", "town": "Ulm"},
    "registered": {"tier": "silver", "age": "7.5"},
}
"""What the shop tells of its users."""
KINDS = [EVENT_TYPES.index(kind) for kind in ("impression", "click", "purchase")]


def counts(keys: list[str], events: list[str], **more: object) -> dict[str, object]:
    return {"keys": keys, "events": events, "half_lives_days": [7], **more}


TABLES = {
    "item": {"keys": ["item"], "half_lives_days": [7, 28]},
    "user": {"keys": ["user"], "half_lives_days": [28], "weight": "quantity"},
    "user_item": {"keys": ["user", "item"], "half_lives_days": [28], "max_idle_days": 20},
    "user_category": {"keys": ["user", "category"], "half_lives_days": [28]},
    "session_item": counts(["session", "item"], ["click"], max_idle_days=1),
    "store_hour": counts(["store", "weekday", "hour"], ["purchase"], weight="spend"),
    "clicks_query_item": counts(["query", "item"], ["click"]),
    "clicks_item": counts(["item"], ["click"]),
    "clicks_category": counts(["category"], ["click"]),
    "clicks_all": counts([], ["click"]),
    "shown_query_item": counts(["query", "item"], ["impression"], weight="examination"),
    "shown_item": counts(["item"], ["impression"], weight="examination"),
    "shown_category": counts(["category"], ["impression"], weight="examination"),
    "shown_all": counts([], ["impression"], weight="examination"),
    "few": counts(["user", "brand", "hour"], ["click", "purchase"], max_records=3),
}
PLAN = FeaturePlan.model_validate(
    {
        "tables": TABLES,
        "windows": {
            "item_days": {"keys": ["item"], "value": "price", "spans": [1, 3, 7]},
            "user_hours": {
                **{"keys": ["user", "category"], "events": ["click", "purchase"]},
                **{"unit": "hour", "bucket": 6, "spans": [6, 48], "weight": "quantity"},
            },
            "shop_weeks": {"keys": [], "bucket": 7, "spans": [7, 28], "value": "quantity"},
        },
        "last": {
            "session_items": {"keys": ["session"], "events": ["click"], "n": 3},
            "user_items": {"keys": ["user"], "events": ["click", "purchase"], "n": 5},
            "user_brands": {"keys": ["user"], "of": "brand", "n": 2, "max_idle_days": 10},
        },
        "vectors": {"title": {"file": "title.safetensors", "queries": "queries"}},
        "examination": [1.0, 0.5, 0.25],
        "features": [
            {"name": "item_7d", "kind": "decayed_count", "table": "item", "half_life_days": 7},
            {"name": "item_28d", "kind": "decayed_count", "table": "item", "half_life_days": 28},
            {"name": "trend", "kind": "log_ratio", "of": "item_7d", "over": "item_28d"},
            {"name": "paid", "kind": "decayed_mean", "table": "item", "half_life_days": 28},
            {"name": "bought", "kind": "decayed_count", "table": "user", "half_life_days": 28},
            {"name": "mine", "kind": "decayed_count", "table": "user_item", "half_life_days": 28},
            {"name": "mine_share", "kind": "share", "of": "mine", "over": "bought"},
            *(
                {"name": f"mine_{kind}", "kind": kind, "table": "user_item"}
                for kind in ("moments", "recency", "age", "interval", "frequency", "overdue")
            ),
            {"name": "in_session", "kind": "moments", "table": "session_item"},
            {"name": "hour", "kind": "decayed_count", "table": "store_hour", "half_life_days": 7},
            {"name": "few", "kind": "decayed_count", "table": "few", "half_life_days": 7},
            {
                **{"name": "ctr", "kind": "rate", "of": "clicks_item", "over": "shown_item"},
                **{"half_life_days": 7, "prior": {"strength": 5, "mean": 0.1}},
            },
            {
                **{"name": "query_ctr", "kind": "rate", "half_life_days": 7},
                "of": ["clicks_query_item", "clicks_item", "clicks_category", "clicks_all"],
                "over": ["shown_query_item", "shown_item", "shown_category", "shown_all"],
                "prior": {"strength": 5},
            },
            *(
                {"name": f"{kind}_3d", "kind": kind, "window": "item_days", "span": 3}
                for kind in (
                    *("window_count", "window_sum", "window_mean"),
                    *("window_min", "window_max", "window_days"),
                )
            ),
            {"name": "user_48h", "kind": "window_count", "window": "user_hours", "span": 48},
            {"name": "shop_28d", "kind": "window_sum", "window": "shop_weeks", "span": 28},
            {"name": "rank", "kind": "last_rank", "last": "session_items"},
            {"name": "brand_rank", "kind": "last_rank", "last": "user_brands"},
            {"name": "count", "kind": "last_count", "last": "user_items"},
            {"name": "like", "kind": "last_share", "last": "user_items", "column": "category"},
            {
                **{"name": "like_2", "kind": "last_share", "last": "user_items"},
                **{"column": "brand", "among": 2},
            },
            {"name": "near", "kind": "similarity", "vectors": "title", "to": "user_items"},
            {
                **{"name": "near_1", "kind": "similarity", "vectors": "title"},
                **{"to": "session_items", "among": 1},
            },
            {"name": "fits", "kind": "similarity", "vectors": "title", "to": "query"},
            {"name": "axis", "kind": "component", "vectors": "title", "component": 1},
            {"name": "price", "kind": "static", "column": "price"},
            {"name": "department", "kind": "static", "column": "department"},
            {
                **{"name": "brand", "kind": "static", "column": "brand"},
                **{"min_count": 3, "unseen": "own"},
            },
            {"name": "tier", "kind": "user_attribute", "attribute": "tier"},
            {
                **{"name": "often", "kind": "user_attribute", "attribute": "tier"},
                **{"min_count": 2, "unseen": "own"},
            },
            {"name": "age", "kind": "user_attribute", "attribute": "age", "read_as": "number"},
            {"name": "covisitation", "kind": "covisitation"},
            {"name": "on_display", "kind": "promotion", "medium": "display"},
            {"name": "weekday", "kind": "moment", "unit": "weekday"},
            {"name": "position", "kind": "shown_position"},
        ],
    }
)


def catalogue() -> Catalogue:
    rows = [
        {
            "item_id": f"i{number:03d}",
            "title": f"thing {number}",
            "category": None if number % 5 == 4 else f"c{number % 4}",
            "department": f"d{number % 2}",
            "brand": f"b{number % 4 if number % 4 < 3 else number}",
            "price": float(number),
        }
        for number in range(N_ITEMS)
    ]
    columns = {f.name: pa.array([row.get(f.name) for row in rows], f.type) for f in schema.ITEMS}
    return Catalogue(pa.table(columns, schema=schema.ITEMS))


def resources() -> Resources:
    rng = np.random.default_rng(0)
    items = rng.normal(size=(N_ITEMS, 8)).astype(np.float16)
    items[3] = 0  # no vector
    return Resources({"title": Vectors(items, rng.normal(size=(N_QUERIES, 8)).astype(np.float32))})


def told_of_users(told: dict[str, dict[str, str]] = TOLD) -> pa.Table:
    maps = pa.array([list(each.items()) for each in told.values()], schema.USERS.types[1])
    return pa.table({"user_id": pa.array(list(told)), "attributes": maps}, schema=schema.USERS)


def live(plan: FeaturePlan = PLAN) -> LiveFeatures:
    users = [f"u{number}" for number in range(N_USERS)]
    return LiveFeatures(
        plan,
        catalogue(),
        users,
        ["s0", "s1"],
        queries=[f"q{number}" for number in range(N_QUERIES)],
        resources=resources() if plan.vectors else None,
        attributes=UserAttributes.fit(plan, texts_of(plan, told_of_users()), users),
    )


def streams(max_size: int = 50) -> st.SearchStrategy[EventColumns]:
    """Logs in order of arrival, which need not be that of time; moments often coincide."""
    moment = st.one_of(
        st.integers(0, 40 * DAY), st.integers(0, 60).map(lambda half_day: half_day * 12 * HOUR)
    )
    row = st.tuples(
        st.integers(-1, N_USERS - 1),
        st.integers(-1, N_ITEMS - 1),
        st.sampled_from(KINDS),
        moment,
        st.one_of(st.just(float("nan")), st.integers(1, 3)),
        st.one_of(st.just(float("nan")), st.floats(0.5, 20)),
        st.integers(-1, 1),
        st.integers(-1, 6),
        st.integers(-1, N_QUERIES - 1),
        st.integers(0, 5),
    )
    return st.lists(row, min_size=1, max_size=max_size).map(as_columns)


def as_columns(rows: list[tuple[float, ...]]) -> EventColumns:
    columns = list(zip(*rows, strict=True)) or [()] * 10
    user, item, kind, time, quantity, price, store, session, query, position = columns
    whole = [np.array(x, np.int32) for x in (user, item, store, session, query, position)]
    return EventColumns(
        *whole[:2],
        kind=np.array(kind, np.int8),
        time=np.array(time, np.int64),
        quantity=np.array(quantity, np.float64),
        price=np.array(price, np.float64),
        store=whole[2],
        order=np.arange(len(rows), dtype=np.int64),
        session=whole[3],
        query=whole[4],
        position=whole[5],
    )


def take(events: EventColumns, rows: np.ndarray) -> EventColumns:
    return EventColumns(*(getattr(events, name)[rows] for name in events.__dataclass_fields__))


def in_order(events: EventColumns) -> EventColumns:
    return take(events, np.argsort(events.time, kind="stable"))


def features(state: LiveFeatures, time: int, user: int = 1) -> np.ndarray:
    """Every feature of every item for one request at a moment."""
    items = np.arange(N_ITEMS, dtype=np.int32)
    return state.batch(user, items, time, "s1", 3, session=2, query=1).features


def same(one: LiveFeatures, two: LiveFeatures, time: int) -> None:
    """Both say the same of everything at a moment, to the last bit."""
    for user in range(-1, N_USERS):
        np.testing.assert_array_equal(features(one, time, user), features(two, time, user))
        np.testing.assert_array_equal(one.history(user, 9), two.history(user, 9))
        np.testing.assert_array_equal(
            one.candidates(user, time).items, two.candidates(user, time).items
        )
        assert one.profile(user, time) == two.profile(user, time)


def columnar(state: LiveFeatures, events: EventColumns, rows: CandidateRows) -> np.ndarray:
    """Features of many rows, each as of its own moment, all in one replay."""
    stats = {name: state.state.replay(name, events, rows) for name in state.read_states}
    return feature_columns(state, rows, stats, lambda feature: np.nan)
