"""Snowplow's enriched events: the TSV of the pipeline, or the JSON that its analytics SDKs make.

Source: the canonical event model (the fields of `Event` in snowplow-scala-analytics-sdk, which is
the order of the TSV) and the schemas `snowplow_ecommerce_action`, `product`, `transaction` and
`refund` of vendor `com.snowplowanalytics.snowplow.ecommerce`, `site_search`, `web_page` and the
older `add_to_cart` of `com.snowplowanalytics.snowplow` in Iglu Central.

Choices:

- An ecommerce action is an event for each of its products; `list_view` makes impressions.
- Lists and clicks on them share the id of their page view: with the list's name it is the
  `request_id`. A list on a page without one is named by its own event.
- Page views are views where a product comes with them, or where a setting says how the page's
  address names the item or the search; others mean nothing here.
- Products describe the catalogue: the first word on each item counts.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from typing import ClassVar, Final, Literal

import polars as pl
from pydantic import Field, field_validator

from raysys.datasets.importer import (
    COLUMNS,
    MILLISECONDS,
    Identity,
    Importer,
    Paths,
    counted,
    flat,
    moments,
    place,
    present,
    settled,
    understand,
    unroll,
    who,
)
from raysys.datasets.mapping import RecordEvents
from raysys.datasets.records import decode
from raysys.datasets.source import RECORD, Expanded, Source

_TSV_NAMES: Final = """
app_id platform etl_tstamp collector_tstamp dvce_created_tstamp event event_id txn_id name_tracker
v_tracker v_collector v_etl user_id user_ipaddress user_fingerprint domain_userid domain_sessionidx
network_userid geo_country geo_region geo_city geo_zipcode geo_latitude geo_longitude
geo_region_name ip_isp ip_organization ip_domain ip_netspeed page_url page_title page_referrer
page_urlscheme page_urlhost page_urlport page_urlpath page_urlquery page_urlfragment refr_urlscheme
refr_urlhost refr_urlport refr_urlpath refr_urlquery refr_urlfragment refr_medium refr_source
refr_term mkt_medium mkt_source mkt_term mkt_content mkt_campaign contexts se_category se_action
se_label se_property se_value unstruct_event tr_orderid tr_affiliation tr_total tr_tax tr_shipping
tr_city tr_state tr_country ti_orderid ti_sku ti_name ti_category ti_price ti_quantity
pp_xoffset_min pp_xoffset_max pp_yoffset_min pp_yoffset_max useragent br_name br_family br_version
br_type br_renderengine br_lang br_features_pdf br_features_flash br_features_java
br_features_director br_features_quicktime br_features_realplayer br_features_windowsmedia
br_features_gears br_features_silverlight br_cookies br_colordepth br_viewwidth br_viewheight
os_name os_family os_manufacturer os_timezone dvce_type dvce_ismobile dvce_screenwidth
dvce_screenheight doc_charset doc_width doc_height tr_currency tr_total_base tr_tax_base
tr_shipping_base ti_currency ti_price_base base_currency geo_timezone mkt_clickid mkt_network
etl_tags dvce_sent_tstamp refr_domain_userid refr_dvce_tstamp derived_contexts domain_sessionid
derived_tstamp event_vendor event_name event_format event_version event_fingerprint true_tstamp
"""
TSV_COLUMNS: Final = tuple(_TSV_NAMES.split())
"""The columns of an enriched event as TSV, in order: 131."""

_ACTION: Final = "snowplow_ecommerce_action"
_PAGE_VIEW: Final = "page_view"
_OLD_ORDER: Final = "transaction"
_TEXTS: Final = (
    "event", "event_name", "event_id", "user_id", "domain_userid", "network_userid",
    "domain_sessionid", "collector_tstamp", "derived_tstamp", "true_tstamp", "page_urlpath",
    "page_urlquery", "ti_orderid", "ti_sku", "ti_name", "ti_category", "ti_price", "ti_quantity",
    "ti_currency",
)  # fmt: skip
_PRODUCT: Final = (
    "id", "name", "category", "price", "quantity", "size", "brand", "position", "currency",
)  # fmt: skip
_DONE: Final = ("type", "name", "sku", "category", "unitPrice", "quantity", "currency")
_ORDER: Final = ("transaction_id", "currency")
_EVENT_DATA: Final = pl.Struct({**dict.fromkeys(_DONE, pl.String), "terms": pl.List(pl.String)})
_PRODUCTS: Final = pl.List(pl.Struct(dict.fromkeys(_PRODUCT, pl.String)))
_ENTITY: Final = pl.Struct(dict.fromkeys(dict.fromkeys((*_PRODUCT, *_ORDER)), pl.String))
_UNSTRUCT: Final = {"data": pl.Struct({"data": _EVENT_DATA})}
_CONTEXTS: Final = {"data": pl.List(pl.Struct({"schema": pl.String, "data": _ENTITY}))}
_SCHEMA: Final = r"^iglu:com\.snowplowanalytics\.snowplow(?:\.ecommerce)?/([^/]+)/"
_VENDOR: Final = "com_snowplowanalytics_snowplow"
_JSON_EVENTS: Final = (
    f"unstruct_event_{_VENDOR}_ecommerce_{_ACTION}_1",
    f"unstruct_event_{_VENDOR}_site_search_1",
    f"unstruct_event_{_VENDOR}_add_to_cart_1",
)
_JSON_PRODUCTS: Final = f"contexts_{_VENDOR}_ecommerce_product_1"
_JSON_ORDERS: Final = (
    f"contexts_{_VENDOR}_ecommerce_transaction_1",
    f"contexts_{_VENDOR}_ecommerce_refund_1",
)
_JSON_PAGE: Final = f"contexts_{_VENDOR}_web_page_1"
_TSV_RECORD: Final = dict.fromkeys((*_TEXTS, "contexts", "unstruct_event"), pl.String)
_JSON_RECORD: Final = {
    **dict.fromkeys(_TEXTS, pl.String),
    **dict.fromkeys(_JSON_EVENTS, _EVENT_DATA),
    _JSON_PRODUCTS: _PRODUCTS,
    **dict.fromkeys(_JSON_ORDERS, pl.List(pl.Struct(dict.fromkeys(_ORDER, pl.String)))),
    _JSON_PAGE: pl.List(pl.Struct({"id": pl.String})),
}
_CATALOGUE: Final = {
    "title": "_title",
    "category": "_category",
    "brand": "_brand",
    "size": "_size",
    "price": "price",
}


class SnowplowSource(Importer):
    """Enriched events, as Snowplow's loaders and sinks write them."""

    kind: Literal["snowplow"] = "snowplow"
    title: str = "Snowplow events"
    paths: Paths = Field(min_length=1)
    """Files of enriched events."""

    format: Literal["tsv", "json"] = "tsv"
    """`tsv`: 131 columns without a header. `json`: a line an event, as analytics SDKs make it."""

    user: Identity = "account"
    """The `user_id` where there is one, else the `domain_userid` (on devices without cookies the
    `network_userid`); or always the latter."""

    first_position: Literal[0, 1] = 1
    """The `position` of the first product of a list."""

    page_item: str | None = None
    """Regular expression whose first group is the item, for the paths of pages that show one:
    `^/p/([^/]+)`. Only for shops that track no product views."""

    page_query: str | None = None
    """Parameter in a page's address that holds what was searched: `q`. Only for shops that track
    no searches."""

    defaults: ClassVar[dict[str, str | None]] = {
        "list_view": "impression", "list_click": "click", "product_view": "view",
        "page_view": "view", "add_to_cart": "cart", "transaction": "purchase",
        "transaction_item": "purchase", "refund": "refund", "site_search": "search",
    }  # fmt: skip

    @field_validator("page_item")
    @classmethod
    def _one_group(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                pl.Series([""]).str.extract(pattern)
                groups = re.compile(pattern).groups
            except (re.error, pl.exceptions.PolarsError) as error:
                raise ValueError(f"no regular expression: {error}") from None
            if groups < 1:
                raise ValueError("needs a group (…) that is the item")
        return pattern


def source(settings: SnowplowSource) -> Source:
    """The data set as ingest takes it."""
    tsv = settings.format == "tsv"
    events = RecordEvents(
        paths=settings.paths,
        format="csv" if tsv else "jsonl",
        header=TSV_COLUMNS if tsv else None,
        delimiter="\t",
        quoted=False,
        columns=COLUMNS,
        time=MILLISECONDS,
        items=_CATALOGUE,
        record=_TSV_RECORD if tsv else _JSON_RECORD,
        needed=("event_id", "collector_tstamp"),
        importer=settings.told,
        screen=None if tsv else ("event_name", tuple(sorted({*settings.words, _ACTION}))),
    )
    return Source(
        settings.title,
        (events,),
        expand_events=partial(
            expand_events,
            words=settings.words,
            identity=settings.user,
            first_position=settings.first_position,
            page_item=settings.page_item,
            page_query=settings.page_query,
        ),
    )


def expand_events(
    records: pl.DataFrame,
    words: dict[str, str],
    identity: Identity,
    first_position: int,
    page_item: str | None = None,
    page_query: str | None = None,
) -> Expanded:
    """Events as rows, one a product.

    Args:
        records: columns of either form, as read.
        words: type of ecommerce action, else name of the event → event type.
        identity: who acts.
        first_position: the `position` of the first product of a list.
        page_item: where a page's path names an item.
        page_query: which parameter of a page's address is a search.
    """
    frame = records.with_row_index(RECORD).with_columns(
        event_name=pl.coalesce(present(pl.col("event_name")), present(pl.col("event")))
    )
    # an older tracker's order has a record of its own beside those of its items: it sells nothing
    order = pl.coalesce(present(pl.col("event")), "event_name") == _OLD_ORDER
    orders = frame.select(order.fill_null(False)).to_series()
    left_out = counted(frame.filter(orders)["event_name"], "not_an_event")
    frame = frame.filter(~orders)
    frame = _with_event(frame)
    word = (
        pl.when(pl.col("event_name") == _ACTION)
        .then(pl.col("_done").struct.field("type"))
        .otherwise("event_name")
    )
    kept, ignored = understand(frame, word, words)
    kept = _with_entities(kept)
    kept, unseen = _pages(kept, page_item, page_query)
    rows = unroll(_with_products(kept), "_products")
    product, done = pl.col("_products").struct, pl.col("_done").struct
    shown = (pl.col("event_type") == "impression").fill_null(False)
    listed = shown | (pl.col("event_name") == _ACTION) & (pl.col("event_type") == "click")
    page = pl.concat_str("_page", done.field("name"), separator=":", ignore_nulls=True)
    rows = rows.with_columns(
        user_id=who(
            identity,
            present(pl.col("user_id")),
            pl.coalesce(present(pl.col("domain_userid")), present(pl.col("network_userid"))),
        ),
        session_id="domain_sessionid",
        timestamp=pl.coalesce(
            present(pl.col(name)) for name in ("true_tstamp", "derived_tstamp", "collector_tstamp")
        ),
        item_id=present(product.field("id")),
        quantity=product.field("quantity"),
        price=product.field("price"),
        currency=pl.coalesce(present(product.field("currency")), "_currency"),
        order_id="_order",
        request_id=pl.when(listed).then(
            pl.when(pl.col("_page").is_not_null()).then(page).when(shown).then("event_id")
        ),
        position=pl.coalesce(
            place(product.field("position"), first_position), pl.when(shown).then("_place")
        ),
        query="_query",
        event_id=pl.when(pl.col("_place") > 1)
        .then(pl.format("{}#{}", "event_id", "_place"))
        .otherwise("event_id"),
        _title=product.field("name"),
        _category=product.field("category"),
        _brand=product.field("brand"),
        _size=product.field("size"),
    )
    rows = rows.with_columns(moments(rows, "timestamp"))
    described = [name for name in _CATALOGUE.values() if name not in COLUMNS]
    ignored = {**Counter(ignored) + Counter(left_out), **unseen}
    return Expanded(flat(settled(rows), *described), ignored)


def _with_event(frame: pl.DataFrame) -> pl.DataFrame:
    """What the event says of itself, as `_done`."""
    if "unstruct_event" not in frame.columns:
        return frame.with_columns(pl.coalesce(*_JSON_EVENTS).alias("_done"))
    said, _ = decode(frame["unstruct_event"], _UNSTRUCT)
    return frame.with_columns(said["data"].struct.field("data").alias("_done"))


def _with_entities(frame: pl.DataFrame) -> pl.DataFrame:
    """What comes with the event: `_products`, `_order`, `_currency`, `_page`."""
    if "contexts" not in frame.columns:
        bought = [pl.col(name).list.first().struct for name in _JSON_ORDERS]
        return frame.with_columns(
            pl.col(_JSON_PRODUCTS).alias("_products"),
            pl.coalesce(one.field("transaction_id") for one in bought).alias("_order"),
            pl.coalesce(one.field("currency") for one in bought).alias("_currency"),
            pl.col(_JSON_PAGE).list.first().struct.field("id").alias("_page"),
        )
    said, _ = decode(frame["contexts"], _CONTEXTS)
    entities = (
        said.select(frame[RECORD], pl.col("data").alias("_entity"))
        .explode("_entity", empty_as_null=True)
        .select(
            RECORD,
            pl.col("_entity").struct.field("schema").str.extract(_SCHEMA),
            pl.col("_entity").struct.field("data"),
        )
    )
    product = pl.struct(pl.col("data").struct.field(*_PRODUCT))
    products = (
        entities.filter(pl.col("schema") == "product")
        .group_by(RECORD, maintain_order=True)
        .agg(product.alias("_products"))
    )
    orders = entities.filter(pl.col("schema").is_in(["transaction", "refund"])).select(
        RECORD,
        pl.col("data").struct.field("transaction_id").alias("_order"),
        pl.col("data").struct.field("currency").alias("_currency"),
    )
    pages = entities.filter(pl.col("schema") == "web_page").select(
        RECORD, pl.col("data").struct.field("id").alias("_page")
    )
    for told in (products, orders.unique(RECORD, keep="first"), pages.unique(RECORD, keep="first")):
        frame = frame.join(told, on=RECORD, how="left", maintain_order="left")
    return frame


def _pages(
    frame: pl.DataFrame, page_item: str | None, page_query: str | None
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Page views that show an item or a search; `_query` and `_seen`, what the address says.

    The others are counted.
    """
    is_page = (pl.col("event_name") == _PAGE_VIEW).fill_null(False)
    nothing = pl.lit(None, dtype=pl.String)
    item = pl.col("page_urlpath").str.extract(page_item) if page_item else nothing
    query = _parameter(frame["page_urlquery"], page_query) if page_query else nothing
    frame = frame.with_columns(
        _seen=pl.when(is_page).then(present(item)),
        _query=pl.when(is_page)
        .then(query)
        .otherwise(pl.col("_done").struct.field("terms").list.join(" ", ignore_nulls=True)),
    )
    has_product = (pl.col("_products").list.len() > 0).fill_null(False)
    shows = has_product | pl.col("_seen").is_not_null()
    searched = is_page & ~shows & pl.col("_query").is_not_null()
    frame = frame.with_columns(
        event_type=pl.when(searched).then(pl.lit("search")).otherwise("event_type")
    )
    blank = frame.select(is_page & ~shows & ~searched).to_series()
    return frame.filter(~blank), counted(frame.filter(blank)["event_name"], "not_an_event")


def _parameter(queries: pl.Series, name: str) -> pl.Series:
    """A parameter of `a=b&c=d`, its escapes undone: each distinct one once."""
    from urllib.parse import unquote_plus

    raw = queries.str.extract(rf"(?:^|&){re.escape(name)}=([^&]*)")
    distinct = raw.drop_nulls().unique()
    meant = [unquote_plus(text).strip() or None for text in distinct]
    return raw.replace_strict(distinct, meant, return_dtype=pl.String)


def _with_products(frame: pl.DataFrame) -> pl.DataFrame:
    """The products of events that bring none along, from where older trackers write them."""
    done = pl.col("_done").struct
    old = pl.col("event_name") == "transaction_item"
    nothing = pl.lit(None, dtype=pl.String)

    def product(**fields: pl.Expr) -> pl.Expr:
        named = [fields.get(name, nothing).alias(name) for name in _PRODUCT]
        return pl.concat_list(pl.struct(named))

    sold = product(
        id=present(pl.col("ti_sku")), name=present(pl.col("ti_name")),
        category=present(pl.col("ti_category")), price=present(pl.col("ti_price")),
        quantity=present(pl.col("ti_quantity")), currency=present(pl.col("ti_currency")),
    )  # fmt: skip
    added = product(
        id=done.field("sku"), name=done.field("name"), category=done.field("category"),
        price=done.field("unitPrice"), quantity=done.field("quantity"),
        currency=done.field("currency"),
    )  # fmt: skip
    brings = (pl.col("_products").list.len() > 0).fill_null(False)
    searching = (pl.col("event_type") == "search").fill_null(False)
    return frame.with_columns(
        _products=pl.when(searching).then(None)
        .when(brings).then("_products")
        .when(old).then(sold)
        .when(done.field("sku").is_not_null()).then(added)
        .when(pl.col("_seen").is_not_null()).then(product(id=pl.col("_seen"))),
        _order=pl.when(old).then(present(pl.col("ti_orderid"))).otherwise("_order"),
    )  # fmt: skip
