"""OpenSearch User Behavior Insights: queries with what they returned, and what users then did.

Source: the UBI specification 1.0 to 1.3 (o19s/ubi, schema/*/event.schema.json and
query.request.schema.json) and the index mappings of the OpenSearch plugin
(opensearch-project/user-behavior-insights, src/main/resources).

Choices:

- A query is a `search`, and an impression of each of its `query_response_hit_ids` in order.
- Logs that record impressions as events know better what was seen: `impressions: events` takes
  those instead. Never both, or every item would have been shown twice.
- Documents may stand alone or within a hit (`_source`), as dumps of an index write them; the
  action lines of the bulk format are left out.
- `position.ordinal` is a number, or an object that holds one (`index`, as UBI 1.0 writes it).
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Final, Literal

import polars as pl
from pydantic import field_validator, model_validator

from raysys.datasets.importer import (
    COLUMNS,
    MILLISECONDS,
    Identity,
    Importer,
    Paths,
    flat,
    moments,
    numbered,
    only,
    place,
    present,
    settled,
    together,
    understand,
    unroll,
    who,
)
from raysys.datasets.mapping import RecordEvents
from raysys.datasets.source import RECORD, Expanded, Source

_BOTH: Final = ("query_id", "client_id", "user_id", "session_id", "timestamp", "user_query")
_ATTRIBUTES: Final = ("quantity", "price", "currency", "order_id", "store_id", "rating")


class UbiSource(Importer):
    """The indices `ubi_queries` and `ubi_events`, dumped as JSON lines."""

    kind: Literal["ubi"] = "ubi"
    title: str = "User Behavior Insights"
    events: Paths = ()
    """Documents of `ubi_events`."""

    queries: Paths = ()
    """Documents of `ubi_queries`. Where both lie in one file, name it in either."""

    user: Identity = "account"
    """The `user_id` where there is one, else the `client_id`; or always the `client_id`."""

    impressions: Literal["queries", "events"] | None = None
    """What was shown: what queries returned, or events of type impression. None: the former
    where queries are given."""

    first_position: Literal[0, 1] = 1
    """The ordinal of the first item of a list."""

    attributes: dict[str, str] = {}
    """Column of events → dotted path within `event_attributes`, beyond those of equal name
    (quantity, price, currency, order_id, store_id, rating)."""

    defaults: ClassVar[dict[str, str | None]] = {
        "impression": "impression", "view": "view", "product_view": "view", "click": "click",
        "click_through": "click", "item_click": "click", "watch": "favorite",
        "add_to_wishlist": "favorite", "add_to_cart": "cart", "purchase": "purchase",
        "product_purchase": "purchase", "refund": "refund",
    }  # fmt: skip

    @field_validator("attributes")
    @classmethod
    def _columns(cls, paths: dict[str, str]) -> dict[str, str]:
        return only(paths, _ATTRIBUTES)

    @model_validator(mode="after")
    def _something(self) -> UbiSource:
        if not self.events and not self.queries:
            raise ValueError("say where events, queries or both lie")
        paths = [*_attributes(self).values(), "object", "position"]
        for path in paths[:-2]:
            if any(other.startswith(f"{path}.") for other in paths) or path in paths[-2:]:
                raise ValueError(f"attributes: {path!r} cannot be a value, it holds others")
        return self


def _attributes(settings: UbiSource) -> dict[str, str]:
    return {**{name: name for name in _ATTRIBUTES}, **settings.attributes}


def source(settings: UbiSource) -> Source:
    """The data set as ingest takes it."""
    attributes = _attributes(settings)
    document = _document(list(attributes.values()))
    told_by = settings.impressions or ("queries" if settings.queries else "events")
    events = RecordEvents(
        paths=(*settings.queries, *settings.events),
        format="jsonl",
        columns=COLUMNS,
        time=MILLISECONDS,
        record={**document, "_id": pl.String, "_source": pl.Struct(document)},
        needed=(),
        importer={**settings.told, "impressions": told_by},
    )
    return Source(
        settings.title,
        (events,),
        expand_events=partial(
            expand_events,
            words=settings.words,
            attributes=attributes,
            identity=settings.user,
            impressions=told_by,
            first_position=settings.first_position,
        ),
    )


def expand_events(
    records: pl.DataFrame,
    words: dict[str, str],
    attributes: dict[str, str],
    identity: Identity,
    impressions: str,
    first_position: int,
) -> Expanded:
    """Queries and events as rows; a document with an `action_name` is an event.

    Args:
        records: columns of the format, as read.
        words: action → event type.
        attributes: column of events → path within `event_attributes`.
        identity: who acts.
        impressions: whether `queries` or `events` tell them.
        first_position: the ordinal of the first item of a list.
    """
    frame = _documents(records).with_columns(
        user_id=who(identity, present(pl.col("user_id")), present(pl.col("client_id"))),
        request_id="query_id",
        query=present(pl.col("user_query")),
    )
    frame = frame.with_columns(moments(frame, "timestamp"))
    is_bulk = pl.col("_bulk") & pl.col("action_name").is_null() & pl.col("timestamp").is_null()
    is_query = pl.col("action_name").is_null() & pl.any_horizontal(
        pl.col("user_query", "query_response_id", "query_response_hit_ids").is_not_null()
    )
    hits = pl.col("query_response_hit_ids")
    bulk = frame.filter(is_bulk).height
    frame = frame.filter(~is_bulk)
    ignored = {"not_an_event: (bulk action)": bulk} if bulk else {}
    queries = frame.filter(is_query)
    if impressions == "events":  # of a query without words nothing is left to tell
        wordless = pl.col("query").is_null() & (hits.list.len() > 0).fill_null(False)
        left = queries.filter(wordless).height
        queries = queries.filter(~wordless)
        ignored |= {"told_by_the_events: query": left} if left else {}
    asked = _queries(queries, impressions == "queries")
    done, unknown = understand(frame.filter(~is_query), pl.col("action_name"), words)
    if impressions == "queries":
        twice = pl.col("event_type").fill_null("") == "impression"
        shown = done.filter(twice).height
        done = done.filter(~twice)
        if shown:
            unknown["told_by_the_query: impression"] = shown
    rows = together(asked, _events(done, attributes, first_position))
    return Expanded(rows, {**ignored, **unknown})


def _queries(queries: pl.DataFrame, with_hits: bool) -> pl.DataFrame:
    """A search for each query that has words, and what it returned as impressions."""
    hits = pl.col("query_response_hit_ids")
    has_hits = (hits.list.len() > 0).fill_null(False) & with_hits
    asked = queries.filter(pl.col("query").is_not_null() | ~has_hits).with_columns(
        event_type=pl.when(pl.col("query").is_not_null()).then(pl.lit("search")),
        event_id=pl.col("_id"),
        position=pl.lit(None, dtype=pl.Int32),
    )
    shown = unroll(queries.filter(has_hits), "query_response_hit_ids").with_columns(
        event_type=pl.lit("impression"),
        event_id=numbered(pl.col("_id")),
        item_id=hits,
        position="_place",
    )
    return together(flat(asked), flat(shown))


def _events(events: pl.DataFrame, attributes: dict[str, str], first_position: int) -> pl.DataFrame:
    """What users did."""
    told = pl.col("event_attributes").struct
    thing = told.field("object").struct
    ordinal = told.field("position").struct.field("ordinal")
    ordinal = ordinal.str.extract(r'^\{"index": "?(-?\d+)').fill_null(ordinal)
    filled = {}
    for name, path in attributes.items():
        value = pl.col("event_attributes")
        for key in path.split("."):
            value = value.struct.field(key)
        filled[name] = value
    rows = events.with_columns(
        event_id=pl.col("_id"),
        item_id=pl.coalesce(present(thing.field("object_id")), thing.field("internal_id")),
        position=place(ordinal, first_position),
        query=pl.coalesce("query", pl.when(pl.col("event_type") == "search").then("message")),
        **filled,
    )
    return flat(settled(rows))


def _documents(records: pl.DataFrame) -> pl.DataFrame:
    """Documents with `RECORD`, out of the hits that hold some of them."""
    inner = records["_source"].struct.unnest()
    wrapped = records["_source"].is_not_null()
    names = [name for name in inner.columns if name in records.columns]
    merged = [
        records[name].zip_with(~wrapped, inner[name]).alias(name)
        for name in names
        if name not in ("index", "create")
    ]
    bulk = ~wrapped & (records["index"].is_not_null() | records["create"].is_not_null())
    return (
        pl.DataFrame(merged)
        .with_columns(records["_id"], bulk.alias("_bulk"))
        .with_row_index(RECORD)
    )


def _document(paths: list[str]) -> dict[str, Any]:
    """Fields of a document of either index, and of bulk actions, with their types."""
    tree: dict[str, Any] = {
        "object": {"object_id": {}, "internal_id": {}},
        "position": {"ordinal": {}},
    }
    for path in paths:
        node = tree
        for key in path.split("."):
            node = node.setdefault(key, {})
    texts = (*_BOTH, "action_name", "message", "query_response_id", "index", "create")
    return {
        **dict.fromkeys(texts, pl.String),
        "query_response_hit_ids": pl.List(pl.String),
        "event_attributes": _type(tree),
    }


def _type(tree: dict[str, Any]) -> Any:
    """A struct for every inner node, text for every leaf."""
    return pl.Struct({key: _type(inner) for key, inner in tree.items()}) if tree else pl.String
