"""A small shop with known tastes: examples and catalogue as `raysys features` writes them.

Users like a few categories, come back to what they bought, and follow the crowd; the features tell
all of that, and so do the items' texts (an item's title names its category). Everything is computed
point in time, in request order, so folds by time are honest.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysys import schema
from raysys.catalogue import Catalogue
from raysys.features.examples import Examples

CATEGORIES = {
    "milk": ("dairy", "whole skimmed oat fresh"),
    "cheese": ("dairy", "cheddar gouda goat sliced"),
    "bread": ("bakery", "rye white toast sourdough"),
    "cake": ("bakery", "chocolate lemon carrot sponge"),
    "apple": ("produce", "red green sweet organic"),
    "tomato": ("produce", "cherry plum vine tinned"),
    "coffee": ("drinks", "ground espresso instant beans"),
    "soda": ("drinks", "cola lime ginger diet"),
    "soap": ("household", "hand liquid lavender bar"),
    "pasta": ("pantry", "penne spaghetti wholegrain egg"),
}
BRANDS = ("acme", "north", "valley", "private", "royal")
FEATURES = (
    "item_purchases_7d",
    "item_purchases_28d",
    "item_purchases_112d",
    "user_item_purchases_28d",
    "user_item_purchases_112d",
    "covisitation",
    "user_category_share",
    "user_brand_share",
    "item_days_since",
    "user_item_days_since",
    "price",
    "price_to_category",
    "on_display",
)
HOUR = 3_600_000
DAY = 24 * HOUR
START = 1_483_228_800_000  # 2017-01-01
N_FOLDS = 4


def make_catalogue(n_items: int, seed: int = 0) -> Catalogue:
    """`n_items` items over ten categories, whose titles name category and kind."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(n_items):
        category = list(CATEGORIES)[number % len(CATEGORIES)]
        department, kinds = CATEGORIES[category]
        rows.append(
            {
                "item_id": f"i{number:05d}",
                "title": f"{rng.choice(kinds.split())} {category}",
                "department": department,
                "category": category,
                "brand": str(rng.choice(BRANDS)),
                "size": f"{int(rng.integers(1, 9)) * 100} g",
                "price": round(float(rng.lognormal(1.0, 0.4)), 2),
                "currency": "USD",
            }
        )
    return Catalogue(pa.Table.from_pylist(rows, schema=schema.ITEMS))


def write_examples(
    folder: Path,
    n_requests: int = 400,
    n_items: int = 200,
    seed: int = 0,
    n_candidates: int = 30,
) -> tuple[Examples, Catalogue]:
    """Write a features folder: folds 0 and 1 train, 2 validation, 3 report, of equal length.

    About one user in eight has no history; about one request in fifty has one candidate; some of
    what is bought was not retrieved. Returns a view of all folds (narrow it by `with_folds`).
    """
    rng = np.random.default_rng(seed)
    catalogue = make_catalogue(n_items, seed)
    shop = _Shop(catalogue, n_users=max(8, n_requests // 8), rng=rng)
    requests, parts = [], []
    for number in range(n_requests):
        shop.now = START + int((number + 1) * 120 * DAY / n_requests)
        user = int(rng.integers(shop.n_users))
        wanted = 1 if number % 50 == 49 else n_candidates
        history = shop.history[user][:20]
        candidates = shop.candidates(user, wanted)
        bought = shop.basket(user)
        missed = np.setdiff1d(bought, candidates)
        items = np.concatenate([candidates, missed]).astype(np.int32)
        n = len(items)
        fold = number * N_FOLDS // n_requests
        requests.append(
            {
                "request": number,
                "request_id": f"r{number}",
                "user": user,
                "timestamp": shop.now,
                "store_id": "s1",
                "week": number * 17 // n_requests + 1,
                "split": ("train", "train", "validation", "report")[fold],
                "fold": fold,
                "n_relevant": len(bought),
                "history": history,
                "n_orders": shop.n_orders[user],
            }
        )
        columns = {
            "request": np.full(n, number, np.int32),
            "item": items,
            "label": np.isin(items, bought).astype(np.float32),
            "weight": np.ones(n, np.float32),
            "retrieved": np.arange(n) < len(candidates),
            "sampling_probability": np.ones(n, np.float32),
            **shop.features(user, items),
        }
        parts.append(pa.table(columns))
        shop.buy(user, bought)
    for fold in range(N_FOLDS):
        where = [i for i, row in enumerate(requests) if row["fold"] == fold]
        for part, chunk in enumerate(np.array_split(where, 2)):
            if not len(chunk):
                continue
            table = pa.Table.from_pylist([requests[i] for i in chunk], schema=schema.REQUESTS)
            _write(table, folder / "requests" / f"fold={fold}" / f"part-{part}.parquet")
            table = pa.concat_tables([parts[i] for i in chunk])
            _write(table, folder / "examples" / f"fold={fold}" / f"part-{part}.parquet")
    catalogue.save(folder / "catalogue.parquet")
    return Examples(folder, tuple(range(N_FOLDS))), catalogue


class _Shop:
    """Users with tastes, and everything they did so far."""

    def __init__(self, catalogue: Catalogue, n_users: int, rng: np.random.Generator) -> None:
        n_items = len(catalogue)
        self.rng = rng
        self.now = START
        self.n_users, self.n_items = n_users, n_items
        self.category, categories = catalogue.codes("category")
        self.brand, brands = catalogue.codes("brand")
        self.price = catalogue.values("price").astype(np.float32)
        usual = np.bincount(self.category, self.price) / np.bincount(self.category)
        self.price_to_category = (self.price / usual[self.category]).astype(np.float32)
        self.appeal = rng.lognormal(0, 1.0, n_items)
        self.taste = rng.dirichlet(np.full(len(categories), 0.25), n_users)
        self.n_orders = [0] * n_users
        self.history: list[list[int]] = [[] for _ in range(n_users)]
        self.counts = np.zeros((n_users, n_items), np.float32)
        self.last_user = np.full((n_users, n_items), np.nan)
        self.last_item = np.full(n_items, np.nan)
        self.together = np.zeros((n_items, n_items), np.float32)
        self.log: list[tuple[int, np.ndarray]] = []
        self.by_category = np.zeros((n_users, len(categories)), np.float32)
        self.by_brand = np.zeros((n_users, len(brands)), np.float32)

    def wish(self, user: int) -> np.ndarray:
        """How likely each item is the user's next purchase: float64[n_items], sums to one."""
        habit = 1.0 + 6.0 * np.minimum(self.counts[user], 2.0)
        wish = self.appeal * (0.004 + self.taste[user][self.category]) * habit
        return wish / wish.sum()

    def basket(self, user: int) -> np.ndarray:
        size = int(self.rng.integers(2, 6))
        return self.rng.choice(self.n_items, size, replace=False, p=self.wish(user))

    def candidates(self, user: int, n: int) -> np.ndarray:
        """Half by the crowd, half what the user knows or might like; shuffled."""
        n = min(n, self.n_items)
        known = np.array(self.history[user][: n // 3], dtype=np.int64)
        weights = 0.5 / self.n_items + 0.5 * self.wish(user)
        weights[known] = 0
        rest = self.rng.choice(
            self.n_items, n - len(known), replace=False, p=weights / weights.sum()
        )
        return self.rng.permutation(np.concatenate([known, rest]))

    def features(self, user: int, items: np.ndarray) -> dict[str, np.ndarray]:
        columns: dict[str, np.ndarray] = {}
        ages = np.array([self.now - at for at, _ in self.log]) / DAY
        for days in (7, 28, 112):
            decayed = np.zeros(self.n_items)
            for weight, (_, bought) in zip(0.5 ** (ages / days), self.log, strict=True):
                decayed[bought] += weight
            columns[f"item_purchases_{days}d"] = decayed[items]
        idle = (self.now - self.last_user[user][items]) / DAY
        for days in (28, 112):
            value = self.counts[user][items] * 0.5 ** (idle / days)
            columns[f"user_item_purchases_{days}d"] = value  # NaN where never bought
        recent = self.history[user][:10]
        if recent:
            norm = np.sqrt(np.maximum(self.together.diagonal(), 1))
            cosine = self.together[np.ix_(items, recent)] / np.outer(norm[items], norm[recent])
            columns["covisitation"] = cosine.sum(1)
        else:
            columns["covisitation"] = np.full(len(items), np.nan)
        for name, held, code in (
            ("category", self.by_category, self.category),
            ("brand", self.by_brand, self.brand),
        ):
            total = held[user].sum()
            share = held[user][code[items]] / total if total else np.full(len(items), np.nan)
            columns[f"user_{name}_share"] = share
        columns["item_days_since"] = (self.now - self.last_item[items]) / DAY
        columns["user_item_days_since"] = idle
        columns["price"] = self.price[items]
        columns["price_to_category"] = self.price_to_category[items]
        columns["on_display"] = self.rng.integers(0, 2, len(items))
        return {name: np.asarray(columns[name], dtype=np.float32) for name in FEATURES}

    def buy(self, user: int, bought: np.ndarray) -> None:
        if user % 8 == 0:
            return  # a user without a loyalty card: the shop never learns anything of them
        self.log.append((self.now, bought))
        self.n_orders[user] += 1
        self.counts[user][bought] += 1
        self.last_user[user][bought] = self.now
        self.last_item[bought] = self.now
        self.together[np.ix_(bought, bought)] += 1
        np.add.at(self.by_category[user], self.category[bought], 1)
        np.add.at(self.by_brand[user], self.brand[bought], 1)
        kept = [item for item in self.history[user] if item not in set(bought.tolist())]
        self.history[user] = [*bought.tolist(), *kept]


def _write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
