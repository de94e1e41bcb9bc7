"""One deployment's arguments for all who are measured, and what they are asked."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from safetensors.numpy import load_file

from benchmarks.result import ROOT

SURFACES = ("rank", "recommend", "search")
CANDIDATES = 100  # of /v1/rank
BODIES = 2000
POPULAR = 3000
VARIABLE = "RAYSYS_BENCHMARK_ARGS"
"""Of the environment: `ServeArgs` as JSON, for those who answer in processes of their own."""
OPTIONS = "RAYSYS_BENCHMARK_OPTIONS"
"""Of the environment: options of the Serve deployment, as JSON."""


def arguments(registry: Path, **more: Any) -> dict[str, Any]:
    """Those of `serve_configs/local.yaml` for a registry, without pages and events.

    Open to everybody, as HAProxy does not tell who is of this machine; none of them has keys.
    """
    local = yaml.safe_load((ROOT / "serve_configs" / "local.yaml").read_text("utf-8"))
    given: dict[str, Any] = local["applications"][0]["args"]
    own = {"registry": str(registry.resolve()), "pages": {}, "events": None, "auth": {"open": True}}
    return {**given, **own, **more}


def told() -> dict[str, Any]:
    """The arguments that the environment names."""
    found: dict[str, Any] = json.loads(os.environ[VARIABLE])
    return found


def options() -> dict[str, Any]:
    """The options that the environment names."""
    found: dict[str, Any] = json.loads(os.environ.get(OPTIONS, "{}"))
    return found


def questions(registry: Path, n: int = BODIES) -> dict[str, list[dict[str, Any]]]:
    """Bodies by surface: users of the log, items that sold, queries from the items' own texts.

    A query is one or two of the words by which the shop calls its products, and no two are alike
    as far as there are enough of them, so that no cache of queries answers for the encoder.
    """
    chance = random.Random(7)
    folder = _champion(registry) / "features"
    users = pl.read_parquet(folder / "users.parquet")["user_id"].to_list()
    catalogue = pl.read_parquet(folder / "catalogue.parquet")
    table = load_file(folder / "tables" / "item.safetensors")
    sold = table["keys"][np.argsort(-table["counts"][:, -1], kind="stable")][:POPULAR]
    items = catalogue["item_id"].gather(sold).to_list()
    names = catalogue[sold.tolist()]
    words = sorted({w for t in _texts(names) for w in t.lower().split() if w.isalpha() and w[2:]})
    pairs = [f"{a} {b}" for a, b in (chance.sample(words, 2) for _ in range(3 * n))]
    queries = list(dict.fromkeys([*words, *pairs]))[:n]
    chance.shuffle(queries)
    return {
        "rank": [
            {"user_id": chance.choice(users), "item_ids": chance.sample(items, CANDIDATES)}
            for _ in range(n)
        ],
        "recommend": [{"user_id": chance.choice(users), "k": 10} for _ in range(n)],
        "search": [
            {"query": queries[at % len(queries)], "user_id": chance.choice(users), "k": 10}
            for at in range(n)
        ],
    }


def _champion(registry: Path) -> Path:
    bundle = json.loads((registry / "champion.json").read_text("utf-8"))["bundle"]
    return registry / "bundles" / str(bundle)


def _texts(items: pl.DataFrame) -> list[str]:
    columns = [name for name in ("subcategory", "category", "title") if name in items.columns]
    return [str(text) for name in columns for text in items[name].drop_nulls().to_list()]
