"""Behaviour logs of any size: a grocer's year, replayed by shifted copies of its users.

Every purchase line of The Complete Journey becomes a small funnel (view, click, cart, purchase) and
some browsing that leads nowhere. Copy k of the year has users of its own (`u7-K`) and happens
k weeks later, wrapped into 53 weeks, so that weekdays stay and the log never grows beyond them. A
known share of rows is dirty, so that the counts of an ingest can be checked. The same size gives
the same bytes everywhere; no more than two dates are in memory beside the base year (about 1 GB).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import yaml

from raysys.datasets import complete_journey

UInt64 = npt.NDArray[np.uint64]

DAY_MS: Final = 86_400_000
DAYS: Final = 53 * 7
START_MS: Final = 1_483_228_800_000  # 2017-01-01 UTC, the year's first day
FACTS: Final = "facts.json"

WORDS: Final = ("view", "click", "cart", "buy")
"""What the log calls its event types; `buy` is our purchase."""

DIRT: Final = {
    "in_the_future": 5,
    "negative_price": 10,
    "negative_quantity": 10,
    "unknown_event_type": 10,
    "missing_value": 10,
    "duplicate": 50,
}
"""Rows in ten thousand that have each fault; no row has two."""

RULES: Final = sorted({*DIRT, "quantity_not_positive", "refund"} - {"negative_quantity"})
"""Rules of ingest that find them: a purchase of a negative quantity is a refund."""

VERSION: Final = 2
"""Of what is written; logs of another are written again."""

TABLES: Final = {
    "item": ("item",),
    "user": ("user",),
    "user_item": ("user", "item"),
    "user_category": ("user", "category"),
    "category": ("category",),
}
"""What the benchmark's features are kept by."""

HALF_LIVES: Final = (7, 28)
SEED: Final = 17
SHARE: Final = 0.27
"""Of the moments at which somebody viewed something, as many as make a tenth of all rows."""

_CENTURY_MS: Final = 36_525 * DAY_MS


@dataclass(frozen=True)
class Facts:
    """What a log holds: rows in its files, rows each rule must find, and what must be left."""

    rows: int
    clean: int
    dirt: dict[str, int]
    users: int
    copies: int
    bytes: int
    version: int = 1


def rows_of(size: str) -> int:
    """The number that a size means.

    >>> rows_of("50m"), rows_of("20k")
    (50000000, 20000)
    """
    found = re.fullmatch(r"(\d+)([km])", size.lower())
    if not found:
        raise ValueError(f"a size is a number with k or m, such as 10m; not {size!r}")
    return int(found[1]) * {"k": 1_000, "m": 1_000_000}[found[2]]


def make_log(size: str, cache: Path) -> tuple[Path, Facts]:
    """The folder of a log and what it holds; written unless it is there already.

    Below `CACHE/SIZE/`: `events/date=YYYY-MM-DD/part-0.parquet` (event_id, user, item, what, time,
    price, quantity, store), `items.parquet`, `facts.json`.
    """
    folder = cache / size
    if (folder / FACTS).is_file():
        known = Facts(**json.loads((folder / FACTS).read_text()))
        if known.version == VERSION:
            return folder, known
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    year = base_year()
    copies, last = divmod(rows_of(size), year.height)
    blocks = [_Block(year, copy) for copy in range(copies)]
    if last:
        blocks.append(_Block(_some_users(year, last), copies))
    counts: dict[str, int] = dict.fromkeys(RULES, 0)
    began, rows = time.monotonic(), 0

    def write(day: int) -> tuple[int, dict[str, int]]:
        events, found = one_date(blocks, day)
        if events.height:
            date = np.datetime64(START_MS + day * DAY_MS, "ms").astype("datetime64[D]")
            path = folder / "events" / f"date={date}" / "part-0.parquet"
            path.parent.mkdir(parents=True)
            events.write_parquet(path, compression="zstd", compression_level=1, statistics=False)
        return events.height, found

    with ThreadPoolExecutor(2) as pool:
        for day, (height, found) in enumerate(pool.map(write, range(DAYS))):
            rows += height
            for name, count in found.items():
                counts[name] += count
            _tell(size, day + 1, rows, time.monotonic() - began)
    _catalogue().write_parquet(folder / "items.parquet", compression="zstd")
    facts = Facts(
        rows=rows,
        clean=rows - sum(counts.values()),
        dirt=counts,
        users=sum(block.year["user"].n_unique() for block in blocks),
        copies=len(blocks),
        bytes=sum(path.stat().st_size for path in folder.rglob("*.parquet")),
        version=VERSION,
    )
    (folder / FACTS).write_text(json.dumps(asdict(facts), indent=2) + "\n")
    return folder, facts


def base_year() -> pl.DataFrame:
    """One copy of the year, in time order: number, user, item, what, time, price, quantity, store.

    `time` is ms since `START_MS`, below `DAYS`; `what` indexes `WORDS`. All steps before a purchase
    come from a hash of its line, none from a generator whose state order could change.
    """
    lines = _lines()
    n = lines.height
    chance = mix(np.arange(n, dtype=np.uint64))
    when = lines["time"].to_numpy()
    # seen 1 to 25 minutes before it was bought, in the basket for the last third of that
    seen = 60_000 + _part(chance, 0, 1_440_000)
    browsed = 1_800_000 + _part(chance, 1, 40 * 3_600_000)
    near = (np.arange(n) + 1 + _part(chance, 2, 5_000)) % n  # what others bought at that time
    own = np.arange(n)
    steps = [
        (WORDS.index("buy"), own, own, np.zeros(n, dtype=np.int64), 100),
        (WORDS.index("cart"), own, own, seen // 3, 85),
        (WORDS.index("click"), own, own, seen - 4_000 - _part(chance, 3, 20_000), 75),
        (WORDS.index("view"), own, own, seen, 100),
        (WORDS.index("view"), own, near, browsed, 60),
        (WORDS.index("click"), own, near, browsed - 3_000 - _part(chance, 4, 30_000), 20),
    ]
    parts = []
    for number, (what, who, which, before, percent) in enumerate(steps):
        kept = _part(chance, 5 + number, 100) < percent
        if number == 5:  # nobody clicks on what was not shown
            kept &= _part(chance, 9, 100) < 60
        who, which = who[kept], which[kept]
        bought = lines[which]
        parts.append(
            pl.DataFrame(
                {
                    "user": lines["user"].gather(who),
                    "item": bought["item"],
                    "what": np.full(len(who), what, dtype=np.uint8),
                    "time": (when[who] - before[kept]) % (DAYS * DAY_MS),
                    "price": bought["price"],
                    "quantity": bought["quantity"] if what >= 2 else None,
                    "store": lines["store"].gather(who),
                },
                schema_overrides={"quantity": pl.Float64},
            )
        )
    year = pl.concat(parts).sort("time", maintain_order=True)
    return year.with_row_index("number")


def one_date(blocks: list[_Block], day: int) -> tuple[pl.DataFrame, dict[str, int]]:
    """All rows of a date in time order, dirt and all, and how many each rule must find there."""
    rows = pl.concat([block.on(day) for block in blocks]).sort("time", maintain_order=True)
    chance = _part(
        mix(rows["number"].to_numpy().astype(np.uint64) * 4096 + rows["copy"].to_numpy()), 7, 10_000
    )
    fault = pl.Series(_fault(chance))
    is_fault = {name: fault == code for code, name in enumerate(DIRT)}
    found = {name: int(which.sum()) for name, which in is_fault.items()}
    found["refund"] = int((is_fault["negative_quantity"] & (rows["what"] == "buy")).sum())
    found["quantity_not_positive"] = found.pop("negative_quantity") - found["refund"]
    moment = pl.col("time") + START_MS
    rows = rows.select(
        event_id=pl.format("{}-{}", "number", "copy"),
        user=pl.when(~is_fault["missing_value"]).then("user"),
        item="item",
        what=pl.when(is_fault["unknown_event_type"]).then(pl.lit("hover")).otherwise("what"),
        time=pl.when(is_fault["in_the_future"])
        .then(moment + _CENTURY_MS)
        .otherwise(moment)
        .cast(pl.Datetime("ms", "UTC")),
        price=pl.when(is_fault["negative_price"]).then(-pl.col("price") - 1).otherwise("price"),
        quantity=pl.when(is_fault["negative_quantity"]).then(pl.lit(-1.0)).otherwise("quantity"),
        store="store",
    )
    again = rows.filter(is_fault["duplicate"])
    return pl.concat([rows, again]).sort("time", maintain_order=True), found


class _Block:
    """One copy of the year, sliced by the date it falls on."""

    def __init__(self, year: pl.DataFrame, copy: int) -> None:
        self.year = year
        self.copy = copy
        days = np.arange(DAYS + 1) * DAY_MS
        self._bounds = np.searchsorted(year["time"].to_numpy(), days).tolist()
        largest = int(year["user"].max())  # type: ignore[arg-type]
        self._names = pl.Series([f"u{number}-{copy}" for number in range(largest + 1)])

    def on(self, day: int) -> pl.DataFrame:
        """The copy's rows of a date; their times are shifted to it."""
        source = (day - 7 * self.copy) % DAYS
        start, stop = self._bounds[source], self._bounds[source + 1]
        rows = self.year.slice(start, stop - start)
        return rows.with_columns(
            time=pl.col("time") + (day - source) * DAY_MS,
            user=self._names.gather(rows["user"]),
            what=_WORDS.gather(rows["what"]),
            item=pl.col("item").cast(pl.String),
            store=pl.col("store").cast(pl.String),
            copy=pl.lit(self.copy, dtype=pl.UInt32),
        )


_WORDS: Final = pl.Series(WORDS)


def mix(numbers: UInt64) -> UInt64:
    """A hash of each number: uint64[n], the finalizer of SplitMix64 (Steele et al., 2014)."""
    with np.errstate(over="ignore"):
        mixed = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        found: UInt64 = mixed ^ (mixed >> np.uint64(31))
    return found


def _part(chance: UInt64, which: int, below: int) -> npt.NDArray[np.int64]:
    """An independent number in 0 … below-1 from each hash: int64[n]."""
    again = mix(chance + np.uint64(which))
    return (again % np.uint64(below)).astype(np.int64)


def _fault(chance: npt.NDArray[np.int64]) -> npt.NDArray[np.int8]:
    """Which of `DIRT` a row has, by position; -1 for most."""
    bounds = np.cumsum(list(DIRT.values()))
    found = np.searchsorted(bounds, chance, side="right")
    return np.where(found < len(bounds), found, -1).astype(np.int8)


def _lines() -> pl.DataFrame:
    """Purchase lines in time order: user, item, time (ms since the start), price, quantity, store.

    Lines that bought nothing are left out: the dirt here is planted, and counted.
    """
    source = complete_journey.source()
    wanted = "household_id store_id basket_id product_id quantity sales_value transaction_timestamp"
    transactions = complete_journey.folder() / "transactions.parquet"
    rows = pl.read_parquet(transactions, columns=wanted.split())
    assert source.prepare_events is not None
    return (
        source.prepare_events(rows)
        .filter(pl.col("quantity") > 0)
        .select(
            user=pl.col("household_id").cast(pl.UInt32),
            item=pl.col("product_id").cast(pl.UInt32),
            time=pl.col("transaction_timestamp").dt.epoch("ms") - START_MS,
            price=pl.col("sales_value"),
            quantity=pl.col("quantity").cast(pl.Float64),
            store=pl.col("store_id").cast(pl.UInt32),
        )
        .sort("time", "user", "item")
    )


def _some_users(year: pl.DataFrame, rows: int) -> pl.DataFrame:
    """The year of as many users, drawn by a hash, as make about `rows` rows; exactly `rows`."""
    users = year.group_by("user").len().sort("user")
    order = mix(users["user"].to_numpy().astype(np.uint64) + np.uint64(1 << 32))
    users = users.with_columns(order=pl.Series(order)).sort("order")
    wanted = users.filter(pl.col("len").cum_sum() - pl.col("len") < rows)["user"]
    return year.filter(pl.col("user").is_in(wanted.implode())).head(rows)


def _catalogue() -> pl.DataFrame:
    """The shop's products: item, title, department, category, subcategory, brand, maker."""
    products = pl.read_parquet(complete_journey.folder() / "products.parquet")
    return complete_journey.with_titles(products).select(
        item=pl.col("product_id").cast(pl.String),
        title="title",
        department="department",
        category="product_category",
        subcategory="product_type",
        brand="brand",
        maker=pl.col("manufacturer_id").cast(pl.String),
    )


def _tell(size: str, dates: int, rows: int, seconds: float) -> None:
    """One line of progress that stays one line on a terminal."""
    last = dates == DAYS
    if sys.stderr.isatty() or last:
        text = f"log of {size}: {dates}/{DAYS} dates, {rows:,} rows, {seconds:.0f} s"
        print(f"\r{text}", end="\n" if last else "", file=sys.stderr, flush=True)


def write_settings(log: Path, folder: Path) -> tuple[Path, Path]:
    """`ingest.yaml` and `features.yaml` for a log, in `folder`: what a user would write."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, content in (("ingest", ingest_settings(log)), ("features", features_settings())):
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        written.append(path)
    return written[0], written[1]


def ingest_settings(log: Path) -> dict[str, Any]:
    """The mapping of a log and its catalogue, sessions of 30 minutes."""
    events = {
        "paths": str(log.absolute() / "events"),
        "columns": {
            "event_id": "event_id",
            "user_id": "user",
            "item_id": "item",
            "event_type": "what",
            "timestamp": "time",
            "price": "price",
            "quantity": "quantity",
            "store_id": "store",
        },
        "event_types": {"buy": "purchase"},
        "constants": {"currency": "USD"},
    }
    described = ("title", "department", "category", "subcategory", "brand")
    items = {
        "paths": str(log.absolute() / "items.parquet"),
        "columns": {"item_id": "item", "manufacturer": "maker", **{n: n for n in described}},
    }
    source = {"kind": "files", "title": "Log at scale", "events": [events], "items": [items]}
    return {"source": source, "sessions": {"gap_minutes": 30}}


def features_settings() -> dict[str, Any]:
    """Decayed counts and prices, moments and recency, by item, user, category and pairs.

    Folds cover the whole log, and all that a plan may do beside is kept small, so that what the
    stage does can be done by hand too.
    """
    every = {"events": ["view", "click", "cart", "purchase"], "half_lives_days": list(HALF_LIVES)}
    features: list[dict[str, Any]] = []
    for table in TABLES:
        for what, kind in (("count", "decayed_count"), ("price", "decayed_mean")):
            features += [
                {
                    "name": f"{table}_{what}_{days}d",
                    "kind": kind,
                    "table": table,
                    "half_life_days": days,
                }
                for days in HALF_LIVES
            ]
        features += [
            {"name": f"{table}_{kind}", "kind": kind, "table": table}
            for kind in ("moments", "recency")
        ]
    tables = {table: {"keys": list(keys), **every} for table, keys in TABLES.items()}
    return {
        "labels": {"purchase": 1.0},
        "examples": {"from": "log", "events": ["view"], "share": SHARE, "keep_empty": True},
        "train_days": DAYS - 56,
        "train_folds": 2,
        "validation_days": 28,
        "report_days": 28,
        "history": 1,
        "seed": SEED,
        "covisitation": {"refit_days": DAYS},
        "plan": {"tables": tables, "features": features},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1m,10m,50m")
    parser.add_argument("--cache", type=Path, required=True, help="folder that keeps the logs")
    arguments = parser.parse_args()
    for size in arguments.sizes.split(","):
        folder, facts = make_log(size, arguments.cache)
        print(f"{folder}: {json.dumps(asdict(facts))}")


if __name__ == "__main__":
    main()
