"""Google Analytics 4 as BigQuery exports it: one record an event, with a list of items.

Source: "BigQuery Export schema" (support.google.com/analytics/answer/7029846) and Google's list
of recommended events.

Choices:

- A `view_item_list` is one request: its items are impressions. Google names no request, so one is
  made of the device, the moment and the list; clicks name none.
- Positions are `item_list_index`, else the item's place in the list.
- `ga_session_id` is unique within a device only, so a session is named by both.
- `(not set)` and blank texts are nothing.
- `items` describe the catalogue: the first word on each item counts.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Final, Literal

import polars as pl
from pydantic import Field

from raysys.datasets.importer import (
    COLUMNS,
    Identity,
    Importer,
    Paths,
    flat,
    pick,
    place,
    present,
    settled,
    understand,
    unroll,
    who,
)
from raysys.datasets.mapping import RecordEvents
from raysys.datasets.source import RECORD, Expanded, Source
from raysys.datasets.times import TimeFormat

_TEXTS: Final = ("event_name", "event_timestamp", "user_pseudo_id", "user_id", "batch_event_index")
_VALUES: Final = ("string_value", "int_value", "double_value", "float_value")
_ITEM: Final = (
    "item_id", "item_name", "item_brand", "item_category", "item_category2", "price", "quantity",
    "item_list_id", "item_list_index",
)  # fmt: skip
_PARAMS: Final = {
    "query": "search_term",
    "currency": "currency",
    "_session": "ga_session_id",
    "_order": "transaction_id",
}
_CATALOGUE: Final = {
    "title": "item_name",
    "category": "item_category",
    "subcategory": "item_category2",
    "brand": "item_brand",
    "price": "price",
}
_RECORD: Final = {
    **dict.fromkeys(_TEXTS, pl.String),
    "event_params": pl.List(
        pl.Struct({"key": pl.String, "value": pl.Struct(dict.fromkeys(_VALUES, pl.String))})
    ),
    "ecommerce": pl.Struct({"transaction_id": pl.String}),
    "items": pl.List(pl.Struct(dict.fromkeys(_ITEM, pl.String))),
}


class GA4Source(Importer):
    """The tables `events_YYYYMMDD` (`events_intraday_YYYYMMDD` too), exported as files."""

    kind: Literal["ga4"] = "ga4"
    title: str = "Google Analytics 4"
    paths: Paths = Field(min_length=1)
    """JSON lines (`.json.gz`) or Parquet."""

    format: Literal["json", "parquet"] | None = None
    """None: told by the file's ending."""

    user: Identity = "account"
    """The `user_id` where there is one, else the `user_pseudo_id`; or always the latter."""

    first_index: Literal[0, 1] = 0
    """The `item_list_index` of the first item of a list."""

    defaults: ClassVar[dict[str, str | None]] = {
        "view_item_list": "impression", "select_item": "click", "view_item": "view",
        "add_to_wishlist": "favorite", "add_to_cart": "cart", "purchase": "purchase",
        "ecommerce_purchase": "purchase", "refund": "refund", "view_search_results": "search",
        "search": "search",
    }  # fmt: skip


def source(settings: GA4Source) -> Source:
    """The data set as ingest takes it."""
    events = RecordEvents(
        paths=settings.paths,
        format="jsonl" if settings.format == "json" else settings.format,
        columns=COLUMNS,
        time=TimeFormat(unit="microseconds"),
        items=_CATALOGUE,
        record=_RECORD,
        needed=("event_name", "event_timestamp"),
        importer=settings.told,
        screen=("event_name", tuple(sorted(settings.words))),
    )
    return Source(
        settings.title,
        (events,),
        expand_events=partial(
            expand_events,
            words=settings.words,
            identity=settings.user,
            first_index=settings.first_index,
        ),
    )


def expand_events(
    records: pl.DataFrame, words: dict[str, str], identity: Identity, first_index: int
) -> Expanded:
    """Events as rows, one an item.

    Args:
        records: columns of the export, as read.
        words: name of the event → event type.
        identity: who acts.
        first_index: the `item_list_index` of the first item of a list.
    """
    kept, ignored = understand(records.with_row_index(RECORD), pl.col("event_name"), words)
    value = pl.col("event_params").struct.field("value").struct
    told = pl.coalesce(_told(value.field(name)) for name in _VALUES)
    kept = pick(kept, "event_params", "key", told, _PARAMS)
    search = pl.col("event_type").fill_null("") == "search"
    kept = kept.with_columns(items=pl.when(~search).then("items"))
    item = pl.col("items").struct
    rows = unroll(kept, "items").with_columns(
        pl.col("_place").cast(pl.Int32), *(_told(item.field(name)).alias(name) for name in _ITEM)
    )
    device = _told(pl.col("user_pseudo_id"))
    shown = pl.col("event_type") == "impression"
    request = pl.concat_str(
        device, "event_timestamp", "batch_event_index", "item_list_id", separator=".",
        ignore_nulls=True,
    )  # fmt: skip
    position = place(pl.col("item_list_index"), first_index)
    rows = rows.with_columns(
        user_id=who(identity, _told(pl.col("user_id")), device),
        timestamp="event_timestamp",
        session_id=pl.concat_str(device, "_session", separator="."),
        order_id=pl.coalesce(
            _told(pl.col("ecommerce").struct.field("transaction_id")), _told(pl.col("_order"))
        ),
        request_id=pl.when(shown & device.is_not_null()).then(request),
        position=pl.coalesce(position, pl.when(shown).then("_place")),
    )
    rows = settled(rows.drop("items"))
    described = [name for name in _CATALOGUE.values() if name not in COLUMNS]
    return Expanded(flat(rows, *described), ignored)


def _told(text: pl.Expr) -> pl.Expr:
    return present(text, "(not set)")
