"""The one vocabulary: Arrow schemas of events, items, users and of what stages derive.

Adapters turn whatever a shop has into these tables once; after that no column is renamed.
Timestamps are UTC milliseconds, prices carry a currency, ids are strings here and dense
integers inside features and bundles.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa

EVENT_TYPES: Final = (
    "impression",
    "view",
    "click",
    "favorite",
    "cart",
    "purchase",
    "search",
    "rating",
)
"""What a user can do, from weakest to strongest, then the two that are not about one shown item."""

TIMESTAMP: Final = pa.timestamp("ms", tz="UTC")

LOGGED_EVENTS: Final = pa.schema(
    [
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("event_type", pa.string(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string()),
        pa.field("timestamp", TIMESTAMP, nullable=False),
        pa.field("session_id", pa.string()),
        pa.field("quantity", pa.float64()),
        pa.field("price", pa.float64()),  # of one unit, as paid
        pa.field("currency", pa.string()),  # ISO 4217
        pa.field("order_id", pa.string()),  # the basket that a purchase belongs to
        pa.field("store_id", pa.string()),
        pa.field("week", pa.int32()),  # the shop's own promotion week
        pa.field("request_id", pa.string()),  # the answer this event reacts to
        pa.field("position", pa.int32()),  # 1-based rank at which the item was shown
        pa.field("query", pa.string()),
        pa.field("rating", pa.float64()),
    ]
)
"""What a shop's log can say of an event; mappings fill these columns."""

EVENTS: Final = pa.schema(
    [
        *LOGGED_EVENTS,
        pa.field("inferred", pa.bool_()),  # true: no log says so, ingest concluded it
        pa.field("sampling_probability", pa.float64()),  # of an inferred event, in (0, 1]
    ]
)
"""Events as ingest writes them."""

ITEMS: Final = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("title", pa.string()),
        pa.field("description", pa.string()),
        pa.field("department", pa.string()),
        pa.field("category", pa.string()),
        pa.field("subcategory", pa.string()),
        pa.field("brand", pa.string()),
        pa.field("manufacturer", pa.string()),
        pa.field("size", pa.string()),
        pa.field("price", pa.float64()),
        pa.field("currency", pa.string()),
        pa.field("available_from", TIMESTAMP),  # no event can be older
    ]
)

USERS: Final = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("attributes", pa.map_(pa.string(), pa.string())),
    ]
)

PROMOTIONS: Final = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("store_id", pa.string(), nullable=False),
        pa.field("week", pa.int32(), nullable=False),
        pa.field("display", pa.string()),  # where in the store it was displayed; null: nowhere
        pa.field("mailer", pa.string()),  # where in the mailer it was printed; null: nowhere
    ]
)

CAMPAIGNS: Final = pa.schema(
    [
        pa.field("campaign_id", pa.string(), nullable=False),
        pa.field("campaign_type", pa.string()),
        pa.field("start", TIMESTAMP, nullable=False),
        pa.field("end", TIMESTAMP, nullable=False),
    ]
)

CAMPAIGN_USERS: Final = pa.schema(
    [
        pa.field("campaign_id", pa.string(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),
    ]
)

COUPONS: Final = pa.schema(
    [
        pa.field("coupon_id", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("campaign_id", pa.string(), nullable=False),
    ]
)

COUPON_REDEMPTIONS: Final = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("coupon_id", pa.string(), nullable=False),
        pa.field("campaign_id", pa.string(), nullable=False),
        pa.field("timestamp", TIMESTAMP, nullable=False),
    ]
)

REQUESTS: Final = pa.schema(
    [
        pa.field("request", pa.int32(), nullable=False),  # ordinal, in time order
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("user", pa.int32(), nullable=False),  # dense user number
        pa.field("timestamp", TIMESTAMP, nullable=False),
        pa.field("store_id", pa.string()),
        pa.field("week", pa.int32()),
        pa.field("split", pa.string(), nullable=False),  # train, validation or report
        pa.field("fold", pa.int32(), nullable=False),  # time block: 0, 1, … (see features)
        pa.field("n_relevant", pa.int32(), nullable=False),  # distinct items bought
        pa.field("history", pa.list_(pa.int32()), nullable=False),  # last items, newest first
        pa.field("n_orders", pa.int32(), nullable=False),  # of the user, before this moment
        pa.field("query", pa.string()),  # normalised; null where nothing was searched for
        pa.field("session", pa.int32()),  # dense number within the log; null where unknown
    ]
)

EXAMPLE_KEYS: Final = pa.schema(
    [
        pa.field("request", pa.int32(), nullable=False),
        pa.field("item", pa.int32(), nullable=False),  # dense item number: row of the catalogue
        pa.field("label", pa.float32(), nullable=False),
        pa.field("weight", pa.float32(), nullable=False),
        pa.field("retrieved", pa.bool_(), nullable=False),  # False: bought, but retrieval missed it
        # with which the row was drawn, in (0, 1]; 1 for what the log says or retrieval offered
        pa.field("sampling_probability", pa.float32(), nullable=False),
    ]
)
"""Examples hold these columns, then one float32 column a feature, in the plan's order."""

SPAN: Final = pa.struct(
    [
        pa.field("start", pa.int32(), nullable=False),  # characters, from 0
        pa.field("end", pa.int32(), nullable=False),  # the character after the last
        pa.field("label", pa.string(), nullable=False),  # brand, model, size, …
    ]
)

LABELLED_TEXTS: Final = pa.schema(
    [
        pa.field("text_id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("label", pa.string()),  # of a hierarchy: its names from the top, " > " between
        pa.field("rating", pa.float32()),
        pa.field("spans", pa.list_(SPAN)),
        pa.field("group", pa.string()),  # texts of one group are never divided between splits
        pa.field("split", pa.string(), nullable=False),  # train, validation or test
    ]
)

LABELLED_PAIRS: Final = pa.schema(
    [
        pa.field("query", pa.string(), nullable=False),
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),  # of the item
        pa.field("grade", pa.float32(), nullable=False),  # as judged, or made of behaviour
        pa.field("weight", pa.float32(), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # all pairs of a query are in one
    ]
)

EXPOSURES = pa.schema(
    [
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("experiment", pa.string(), nullable=False),
        pa.field("arm", pa.string(), nullable=False),
        pa.field("user_id", pa.string(), nullable=False),  # the id that was drawn
        pa.field("timestamp", TIMESTAMP, nullable=False),
        pa.field("surface", pa.string()),
        pa.field("bundle", pa.string()),  # id of the bundle that answered
        pa.field("propensity", pa.float64(), nullable=False),  # of the arm, in (0, 1]
        pa.field("forced", pa.bool_(), nullable=False),  # a tester's override
        pa.field(
            "attributes", pa.map_(pa.string(), pa.string())
        ),  # by which effects are told apart
        pa.field("item_ids", pa.list_(pa.string())),  # of an interleaved list, from the top
        pa.field("teams", pa.list_(pa.int8())),  # which arm brought each: 0 the first, 1 the second
    ]
)
"""One row a served request and experiment; the first of a user is when the user came in."""
