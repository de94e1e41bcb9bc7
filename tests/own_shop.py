"""Files of a small web shop, as docs/your-shop.md describes them: CSV of events and products."""

from __future__ import annotations

import csv
import datetime as dt
from pathlib import Path

import numpy as np

from benchmarks.story_shop import SHOPPERS, make_items
from raysys.simulation.shoppers import Memory, Shoppers, ShopperSettings

WORDS = ("seen", "into_cart", "paid")


def write_shop(folder: Path, *, days: int = 45, visits: int = 90) -> int:
    """Write `events/2026-*.csv`, a file a month, and `products.csv`; returns how many events."""
    (folder / "events").mkdir(parents=True)
    catalogue = make_items(folder / "items.parquet")
    shoppers = Shoppers(catalogue, ShopperSettings(**SHOPPERS))
    rng, memories = np.random.default_rng(5), dict[int, Memory]()
    began = dt.datetime(2026, 1, 20, tzinfo=dt.UTC)
    rows: list[tuple[dt.datetime, str, str, str, str, float]] = []
    for visit in range(days * visits):
        at = began + dt.timedelta(days=visit / visits)
        shopper = int(rng.integers(len(shoppers)))
        items = rng.choice(len(catalogue), 12, replace=False)
        memory = memories.setdefault(shopper, Memory())
        did = shoppers.react(shopper, items, at.timestamp() / 86_400, memory, rng)
        for word, mask in zip(WORDS, (did.clicked, did.cart, did.purchased), strict=True):
            for place in np.flatnonzero(mask).tolist():
                at += dt.timedelta(seconds=7)
                item = int(items[place])
                price = float(shoppers.price[item]) if word != "seen" else np.nan
                name = shoppers.name(shopper)
                rows.append((at, name, f"v{visit}", word, str(catalogue.ids[item]), price))
    for month in sorted({at.strftime("%Y-%m") for at, *_ in rows}):
        with (folder / "events" / f"{month}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["customer", "visit", "action", "sku", "at", "unit_price", "pieces"])
            for at, user, session, word, item, price in rows:
                if at.strftime("%Y-%m") == month:
                    paid = [] if np.isnan(price) else [f"{price:.2f}", "1"]
                    moment = at.strftime("%Y-%m-%dT%H:%M:%SZ")
                    writer.writerow([user, session, word, item, moment, *(paid or ["", ""])])
    with (folder / "products.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sku", "name", "category", "brand", "price"])
        for number in range(len(catalogue)):
            row = catalogue.row(number)
            writer.writerow([row[k] for k in ("item_id", "title", "category", "brand", "price")])
    (folder / "items.parquet").unlink()
    return len(rows)
