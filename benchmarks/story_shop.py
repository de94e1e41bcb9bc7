"""A small shop for the story of the loop: its items, what its old home page left behind, YAML."""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from raysys import schema
from raysys.catalogue import Catalogue
from raysys.simulation.shoppers import Memory, Shoppers, ShopperSettings

DAY_MS = 86_400_000
KINDS = ["bread", "cheese", "milk", "coffee", "tea", "apples"]
KINDS += ["pasta", "rice", "soap", "paper", "yoghurt", "juice"]  # each a category
BRANDS = ["Alba", "Berg", "Ceres", "Dorn", "Elbe"]
SHOPPERS: dict[str, Any] = {
    "shoppers": 150, "taste": 1.6, "click": -2.2, "fatigue": 0.1, "season": 0.2, "seed": 3,
}  # fmt: skip
PLAN: dict[str, Any] = {
    "tables": {
        "item": {"keys": ["item"], "events": ["click", "purchase"], "half_lives_days": [28]},
        "user": {"keys": ["user"], "events": ["click", "purchase"], "half_lives_days": [28]},
        "user_item": {
            "keys": ["user", "item"], "events": ["click", "purchase"], "half_lives_days": [28],
        },
        "clicks": {"keys": ["item"], "events": ["click"], "half_lives_days": [28]},
        "shown": {"keys": ["item"], "events": ["impression"], "half_lives_days": [28]},
        "user_category": {
            "keys": ["user", "category"], "events": ["click", "purchase"], "half_lives_days": [28],
        },
        "user_category_shown": {
            "keys": ["user", "category"], "events": ["impression"], "half_lives_days": [28],
        },
        "user_item_shown": {
            "keys": ["user", "item"], "events": ["impression"], "half_lives_days": [28],
        },
    },
    "features": [
        {"name": "item_clicks", "kind": "decayed_count", "table": "item", "half_life_days": 28},
        {
            "name": "item_ctr", "kind": "rate", "of": "clicks", "over": "shown",
            "half_life_days": 28, "prior": {"strength": 20, "mean": 0.05},
        },
        {
            "name": "user_category_ctr", "kind": "rate", "of": "user_category",
            "over": "user_category_shown", "half_life_days": 28,
            "prior": {"strength": 8, "mean": 0.05},
        },
        {
            "name": "user_item_ctr", "kind": "rate", "of": "user_item", "over": "user_item_shown",
            "half_life_days": 28, "prior": {"strength": 4, "mean": 0.05},
        },
        {
            "name": "user_category_clicks", "kind": "decayed_count", "table": "user_category",
            "half_life_days": 28,
        },
        {
            "name": "user_item_clicks", "kind": "decayed_count", "table": "user_item",
            "half_life_days": 28,
        },
        {"name": "price", "kind": "static", "column": "price"},
    ],
}  # fmt: skip


def make_items(path: Path, n: int = 240) -> Catalogue:
    """A catalogue of things for every day; also at `path`, as Parquet."""
    rng = np.random.default_rng(11)
    rows = [
        {
            "item_id": f"i{at:04d}",
            "title": f"{BRANDS[at % len(BRANDS)]} {KINDS[at % len(KINDS)]} no. {at // len(KINDS)}",
            "category": KINDS[at % len(KINDS)],
            "brand": BRANDS[at % len(BRANDS)],
            "price": round(float(rng.lognormal(1.2, 0.5)), 2),
        }
        for at in range(n)
    ]
    table = pa.Table.from_pylist(rows, schema=schema.ITEMS)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return Catalogue(table)


def old_log(
    shoppers: Shoppers, path: Path, *, days: int = 30, visits: int = 80, now_ms: int | None = None
) -> int:
    """What the old home page, ten items at random, left behind: written to `path`.

    Args:
        shoppers: who came.
        path: a Parquet file in `schema.LOGGED_EVENTS`.
        days: until an hour ago.
        visits: a day.
        now_ms: UTC ms; None: by the clock.

    Returns:
        How many events.
    """
    end = (time.time_ns() // 1_000_000 if now_ms is None else now_ms) - 3_600_000
    rng = np.random.default_rng(5)
    memories: dict[int, Memory] = {}
    ids = shoppers.catalogue.ids
    rows: list[dict[str, Any]] = []
    for visit in range(days * visits):
        at = end - days * DAY_MS + visit * DAY_MS // visits
        shopper = int(rng.integers(len(shoppers)))
        items = rng.choice(len(ids), 10, replace=False)
        memory = memories.setdefault(shopper, Memory())
        did = shoppers.react(shopper, items, at / DAY_MS, memory, rng)
        request = uuid.UUID(bytes=rng.bytes(16)).hex
        steps = [("impression", np.ones(len(items), bool)), ("click", did.clicked)]
        steps += [("cart", did.cart), ("purchase", did.purchased)]
        for later, (kind, mask) in enumerate(steps):
            for place in np.flatnonzero(mask).tolist():
                row: dict[str, Any] = {
                    "event_id": f"{request}-{kind}-{place}", "event_type": kind,
                    "user_id": shoppers.name(shopper), "item_id": str(ids[items[place]]),
                    "timestamp": at + 1000 * later, "session_id": f"old-{visit}",
                    "request_id": request, "position": place + 1,
                }  # fmt: skip
                if kind == "purchase":
                    row |= {"price": float(shoppers.price[items[place]]), "quantity": 1.0}
                rows.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema.LOGGED_EVENTS), path)
    return len(rows)


class Shop:
    """Folders and configurations of the shop.

    Args:
        root: of everything.
        port: of the deployment.
    """

    def __init__(self, root: Path, port: int) -> None:
        self.root, self.port = root, port
        self.workspace = root / "shop"
        self.catalogue = make_items(root / "items.parquet")
        self.shoppers = Shoppers(self.catalogue, ShopperSettings(**SHOPPERS))
        old_log(self.shoppers, root / "old.parquet")
        for name, content in self._configs().items():
            (root / name).write_text(yaml.safe_dump(content, sort_keys=False))

    def with_event_log(self) -> None:
        """From now on ingest reads what the deployment took in, too."""
        path = self.root / "ingest.yaml"
        content = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump({**content, "event_log": str(self.workspace / "eventlog")}))

    def _configs(self) -> dict[str, Any]:
        columns = {
            name: name
            for name in ("event_id", "event_type", "user_id", "item_id", "timestamp", "session_id")
        }
        columns |= {name: name for name in ("request_id", "position", "price", "quantity")}
        names = ("item_id", "title", "category", "brand", "price")
        learners = {
            "popular": {"column": "item_clicks"},
            "lightgbm_ranker": {"n_estimators": 150, "num_leaves": 15},
            "xgboost_ranker": {"n_estimators": 150, "max_depth": 4},
        }
        return {
            "ingest.yaml": {
                "source": {
                    "kind": "files",
                    "events": [{"paths": [str(self.root / "old.parquet")], "columns": columns}],
                    "items": [
                        {
                            "paths": [str(self.root / "items.parquet")],
                            "columns": {name: name for name in names},
                        }
                    ],
                },
            },
            "features.yaml": {
                "group_by": ["session_id"],
                "labels": {
                    "gains": {"click": 1.0, "cart": 2.0, "purchase": 3.0},
                    "windows_hours": {"click": 1, "cart": 1, "purchase": 1},
                },
                "examples": {"from": "log", "events": ["impression"]},
                "train_days": 14,
                "train_folds": 2,
                "validation_days": 5,
                "report_days": 3,
                "history": 12,
                "candidates": {
                    "owned": 40, "covisitation": 40, "category": 80, "popular": 80, "seeds": 10,
                },
                "covisitation": {"k": 20, "min_count": 2, "refit_days": 7},
                "plan": PLAN,
            },
            "champion.yaml": {"name": "old-ways", "learners": {"popular": learners["popular"]}},
            "challenger.yaml": {
                "name": "new-ways",
                "learners": learners,
                "resources": {"cpus_per_worker": 1},  # the shop is served beside it
            },
            "serve.yaml": self._serve(),
            "experiments.yaml": {
                "metrics": [
                    {"name": "click_rate", "events": ["click"], "per": {"events": ["impression"]}},
                    {"name": "orders", "events": ["purchase"], "value": "any"},
                ],
                "experiments": [
                    {
                        "name": "new_ways",
                        "question": "Does the challenger bring more clicks on the home page?",
                        "surfaces": ["home"],
                        "arms": [
                            {"name": "champion", "share": 0.5},
                            {"name": "challenger", "share": 0.5, "bundle": "challenger"},
                        ],
                        "primary": "click_rate",
                        "secondary": ["orders"],
                        "minimum_effect": 0.1,
                        "expected_users": SHOPPERS["shoppers"],
                        "start": "2026-01-01",
                    }
                ],
            },
        }  # fmt: skip

    def _serve(self, experiments: str | None = None) -> dict[str, Any]:
        deployment: dict[str, Any] = {
            "name": "Ranker", "num_replicas": 2, "max_ongoing_requests": 16,
            "max_queued_requests": 64, "max_surge_percent": 100,
            "ray_actor_options": {"num_cpus": 0.5},
        }  # fmt: skip
        if experiments is not None:
            deployment["user_config"] = {"experiments": experiments}
        return {
            "proxy_location": "HeadOnly",
            "http_options": {"host": "127.0.0.1", "port": self.port, "request_timeout_s": 10},
            "applications": [
                {
                    "name": "raysys",
                    "route_prefix": "/",
                    "import_path": "raysys.serving.app:build",
                    "args": {
                        "registry": str(self.workspace / "registry"),
                        "bundle": "champion",
                        "follow": True,
                        "clock": "wall",
                        "threads": 1,
                        "deadline_ms": 2000,
                        "recommend": {
                            "candidates": 200,
                            "policy": {"exploration": {"share": 0.4, "depth": 40}},
                        },
                        "events": {},
                        "shown_lists": {
                            "inputs_share": 1, "segment_s": 2,
                        },
                        "experiments": {"segment_s": 2, "analyse_minutes": 1},
                        "pages": {"storefront": True, "console": True},
                    },
                    "deployments": [deployment],
                }
            ],
        }  # fmt: skip

    def begin_experiment(self) -> None:
        """The serve config names the experiment from now on."""
        told = self._serve(str(self.root / "experiments.yaml"))
        (self.root / "serve.yaml").write_text(yaml.safe_dump(told, sort_keys=False))
