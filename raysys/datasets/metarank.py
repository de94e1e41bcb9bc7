"""Metarank's JSON events: rankings are impressions, interactions what followed, items a catalogue.

Source: the event schema of Metarank's documentation (doc/event-schema.md, timestamp-formats.md).

Choices:

- A ranking's items are impressions in the order given; its id is their `request_id`, as it is of
  the interactions that name it.
- Users are optional there. Where one is missing the session stands in; without either the rules
  quarantine the event.
- `fields` hold what a shop likes: the settings say which of them means what here.
- What item events say of one item, and user events of one user, is put together, the first word
  of each field. All of a user's fields are attributes, of the names that they have.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Final, Literal

import polars as pl
from pydantic import Field, field_validator

from raysys import schema
from raysys.datasets.importer import (
    COLUMNS,
    MILLISECONDS,
    Importer,
    Paths,
    counted,
    flat,
    listed_text,
    moments,
    numbered,
    only,
    pick,
    present,
    settled,
    together,
    understand,
    unroll,
)
from raysys.datasets.mapping import ATTRIBUTES, ENTRIES, RecordEvents, RecordItems, RecordUsers
from raysys.datasets.source import RECORD, Expanded, Source

RANKING: Final = "ranking"
INTERACTION: Final = "interaction"
ITEM: Final = ("item", "metadata")  # as it is called now, and as it was at first
USER: Final = "user"

_FIELD: Final = pl.Struct({"name": pl.String, "value": pl.String})
_EVENT: Final = {
    **dict.fromkeys(("event", "id", "timestamp", "user", "session"), pl.String),
    **dict.fromkeys(("item", "type", "ranking"), pl.String),
    "fields": pl.List(_FIELD),
    "items": pl.List(pl.Struct({"id": pl.String})),
}
_ITEM: Final = {"event": pl.String, "item": pl.String, "fields": pl.List(_FIELD)}
_USER: Final = {"event": pl.String, "user": pl.String, "fields": pl.List(_FIELD)}
_VALUE: Final = listed_text(pl.col("fields").struct.field("value"))
_EVENT_FIELDS: Final = {
    name: name for name in ("query", "quantity", "price", "currency", "order_id", "rating")
}
_ITEM_COLUMNS: Final = [name for name in schema.ITEMS.names if name != "available_from"]
_ITEM_FIELDS: Final = {name: name for name in _ITEM_COLUMNS if name != "item_id"}


class MetarankSource(Importer):
    """Metarank's events, as `metarank import` takes them."""

    kind: Literal["metarank"] = "metarank"
    title: str = "Metarank events"
    paths: Paths = Field(min_length=1)
    """JSON lines."""

    defaults: ClassVar[dict[str, str | None]] = {
        "view": "view", "click": "click", "like": "favorite", "favorite": "favorite",
        "wishlist": "favorite", "cart": "cart", "add_to_cart": "cart", "purchase": "purchase",
        "buy": "purchase", "order": "purchase", "refund": "refund", "rating": "rating",
        "rate": "rating",
    }  # fmt: skip

    fields: dict[str, str] = {}
    """Column of events → Metarank field of rankings and interactions, beyond those of equal name
    (query, quantity, price, currency, order_id, rating)."""

    item_fields: dict[str, str] = {}
    """Column of items → Metarank field of item events, beyond those of equal name."""

    @field_validator("fields")
    @classmethod
    def _columns_of_events(cls, fields: dict[str, str]) -> dict[str, str]:
        return only(fields, (*_EVENT_FIELDS, "store_id"))

    @field_validator("item_fields")
    @classmethod
    def _columns_of_items(cls, fields: dict[str, str]) -> dict[str, str]:
        return only(fields, _ITEM_FIELDS)


def source(settings: MetarankSource) -> Source:
    """The data set as ingest takes it."""
    events = RecordEvents(
        paths=settings.paths,
        format="jsonl",
        columns=COLUMNS,
        time=MILLISECONDS,
        record=_EVENT,
        needed=("event", "timestamp"),
        importer=settings.told,
    )
    items = RecordItems(
        paths=settings.paths,
        format="jsonl",
        columns={name: name for name in _ITEM_COLUMNS},
        record=_ITEM,
        needed=("event",),
        importer=settings.told,
    )
    users = RecordUsers(
        paths=settings.paths,
        format="jsonl",
        columns={"user_id": "user_id"},
        record=_USER,
        needed=("event",),
        importer=settings.told,
    )
    fields = {**_EVENT_FIELDS, **settings.fields}
    item_fields = {**_ITEM_FIELDS, **settings.item_fields}
    return Source(
        settings.title,
        (events,),
        (items,),
        (users,),
        expand_events=partial(expand_events, words=settings.words, fields=fields),
        expand_items=partial(expand_items, fields=item_fields),
        expand_users=expand_users,
    )


def expand_events(records: pl.DataFrame, words: dict[str, str], fields: dict[str, str]) -> Expanded:
    """Rankings and interactions as rows.

    Args:
        records: columns of the format, as read.
        words: type of interaction → event type.
        fields: column of events → name of the field that fills it.
    """
    frame = records.with_row_index(RECORD).with_columns(
        event=present(pl.col("event")),
        user_id=pl.coalesce(present(pl.col("user")), present(pl.col("session"))),
        session_id=pl.col("session"),
        timestamp=moments(records, "timestamp"),
    )
    event = pl.col("event").fill_null("")
    others = frame.filter(~event.is_in(["", RANKING, INTERACTION]))
    ignored = counted(others["event"], "not_an_event")
    kept = frame.filter(event.is_in(["", INTERACTION]))
    kept, unknown = understand(kept, pl.col("type"), words, "not_an_event: interaction")
    followed = settled(
        pick(kept, "fields", "name", _VALUE, fields).with_columns(
            pl.when(pl.col("event").is_not_null()).then("event_type").alias("event_type"),
            event_id=pl.col("id"), item_id=pl.col("item"), request_id=pl.col("ranking"),
        )
    )  # fmt: skip
    rankings = pick(frame.filter(event == RANKING), "fields", "name", _VALUE, fields)
    shown = unroll(rankings, "items").with_columns(
        event_type=pl.lit("impression"),
        item_id=pl.col("items").struct.field("id"),
        request_id=pl.col("id"),
        position="_place",
        event_id=numbered(pl.col("id")),
        quantity=pl.lit(None, dtype=pl.String),
        rating=pl.lit(None, dtype=pl.String),
    )
    return Expanded(together(flat(shown), flat(followed)), {**ignored, **unknown})


def expand_items(records: pl.DataFrame, fields: dict[str, str]) -> Expanded:
    """What item events say, one row an item: of each field the first word.

    Args:
        records: columns of the format, as read.
        fields: column of items → name of the field that fills it.
    """
    frame = records.with_row_index(RECORD).with_columns(
        event=present(pl.col("event")), item_id=present(pl.col("item"))
    )
    event = pl.col("event").fill_null("(nothing)")
    is_item = event.is_in(ITEM)
    ignored = counted(frame.filter(~is_item).select(event).to_series(), "not_an_item")
    told = pick(frame.filter(is_item), "fields", "name", _VALUE, fields)
    nameless = told.filter(pl.col("item_id").is_null()).select(RECORD, *_ITEM_COLUMNS)
    merged = (
        told.drop_nulls("item_id")
        .group_by("item_id", maintain_order=True)
        .agg(pl.col(RECORD).first(), pl.col(list(_ITEM_FIELDS)).drop_nulls().first())
        .select(RECORD, *_ITEM_COLUMNS)
    )
    rows = pl.concat([merged, nameless]).sort(RECORD)
    if told.height > rows.height:
        ignored["more_of_the_same_item"] = told.height - rows.height
    return Expanded(rows, ignored)


def expand_users(records: pl.DataFrame) -> Expanded:
    """What user events say, one row a user: of each field the first word.

    Args:
        records: columns of the format, as read.

    Returns:
        rows of `user_id` and `attributes`, a list of {key, value} with distinct keys.
    """
    frame = records.with_row_index(RECORD).with_columns(
        event=present(pl.col("event")), user_id=present(pl.col("user"))
    )
    is_user = pl.col("event").fill_null("(nothing)") == USER
    others = frame.filter(~is_user)["event"].fill_null("(nothing)")
    ignored = counted(others, "not_a_user")
    told = frame.filter(is_user)
    first = pl.col(RECORD).first().over("user_id")
    fields = (
        told.drop_nulls("user_id")
        .select(first.alias(RECORD), "fields")
        .explode("fields", empty_as_null=True)
        .select(
            RECORD,
            present(pl.col("fields").struct.field("name")).alias("key"),
            present(listed_text(pl.col("fields").struct.field("value"))).alias("value"),
        )
        .drop_nulls()
        .unique([RECORD, "key"], keep="first", maintain_order=True)
        .group_by(RECORD, maintain_order=True)
        .agg(pl.struct("key", "value").alias(ATTRIBUTES))
    )
    people = told.filter(pl.col("user_id").is_null() | pl.col("user_id").is_first_distinct())
    rows = (
        people.select(RECORD, "user_id")
        .join(fields, on=RECORD, how="left", maintain_order="left")
        .with_columns(pl.col(ATTRIBUTES).fill_null(pl.lit([], dtype=ENTRIES)))
    )
    if told.height > rows.height:
        ignored["more_of_the_same_user"] = told.height - rows.height
    return Expanded(rows, ignored)
