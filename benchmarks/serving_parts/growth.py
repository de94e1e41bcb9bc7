"""How latency and memory grow with the catalogue: 10 thousand, 100 thousand, 1 million items.

A made-up shop: names of products from the words that shops use, a quarter as many texts as items
(the grocer has one for four or five), popularity by Zipf's law, two purchases an item. Candidates,
features, words and vectors are the real ones. The bundle is lighter than a user's: its learners are
three baselines and hashed words of 64 dimensions in the place of a transformer, there are no trees
and no cross-encoder. What those take does not depend on the catalogue and comes on top of the
milliseconds here, and vectors of a transformer are several times as long, in memory too. Each size
is built and asked in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil

from benchmarks.result import ROOT, Figure

SIZES: Final = (10_000, 100_000, 1_000_000)
QUICK: Final = (2_000, 8_000)
REQUESTS = 600
SURFACES = ("recommend", "search", "similar", "rank")
_KINDS = (
    "milk cheese yogurt butter cream bread roll cake cookie cracker cereal oats rice pasta noodle "
    "sauce soup bean corn pea tomato potato onion carrot apple pear grape orange lemon berry juice "
    "water soda tea coffee cocoa beer wine chip nut candy chocolate honey jam oil vinegar salt "
    "pepper spice flour sugar egg ham bacon sausage beef pork chicken turkey fish shrimp pizza "
    "burger salad soap shampoo lotion towel tissue napkin bag foil candle battery bulb brush razor "
    "diaper wipe food litter toy book pen card frame lamp shelf chair table pillow blanket shirt "
    "sock glove hat belt shoe boot coat scarf cable charger speaker mouse keyboard screen"
)
KINDS = tuple(_KINDS.split())
_LOOKS = (
    "fresh frozen organic sliced whole skimmed light dark sweet salted smoked roasted mild strong "
    "large small mini family classic original premium soft crunchy spicy plain mixed dried ground "
    "instant natural pure white red green blue black golden baby kids travel refill"
)
LOOKS = tuple(_LOOKS.split())
_MATERIALS = (
    "glass paper cotton wool steel wooden plastic leather ceramic bamboo rubber copper linen silk "
    "vanilla almond coconut mango ginger garlic basil mint lime peach cherry apricot maple rye "
    "barley soy sesame walnut hazel lavender rose cedar aloe charcoal"
)
MATERIALS = tuple(_MATERIALS.split())


def measure(sizes: Sequence[int]) -> list[Figure]:
    """Milliseconds and gigabytes by size, and the powers by which they grow."""
    told: dict[int, dict[str, Any]] = {}
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            for task in ("build", "ask"):
                command = [sys.executable, "-m", "benchmarks.serving_parts.growth"]
                done = subprocess.run(
                    [*command, task, str(size), folder], cwd=ROOT, stdout=subprocess.PIPE, text=True
                )
                if done.returncode:
                    raise RuntimeError(f"{task} of {size:,} items failed")
            told[size] = json.loads(done.stdout.splitlines()[-1])
        print(f"{size:,}: {told[size]}", flush=True)
    return _figures(told)


def _figures(told: Mapping[int, Mapping[str, Any]]) -> list[Figure]:
    sizes = sorted(told)
    least, most = sizes[0], sizes[-1]
    names = {size: f"{size // 1000}k" if size < 10**6 else f"{size // 10**6}m" for size in sizes}
    found: list[Figure] = []
    over = np.log(most / least)
    ratios = {
        surface: told[most][f"{surface}_p99_ms"] / told[least][f"{surface}_p99_ms"]
        for surface in SURFACES
    }
    worst = max(ratios, key=lambda surface: ratios[surface])
    between = f"{names[least]}_to_{names[most]}"
    found.append(
        Figure(
            f"p99_growth_{between}", ratios[worst], "×", aim=f"< {most // least}",
            reference=f"of {worst}, the worst; as size to the {np.log(ratios[worst]) / over:.2f}",
        )
    )  # fmt: skip
    memory = told[most]["memory_gb"] / told[least]["memory_gb"]
    found.append(
        Figure(
            f"memory_growth_{between}", memory, "×", aim=f"< {most // least}",
            reference=f"of one replica; a power of {np.log(memory) / over:.2f}",
        )
    )  # fmt: skip
    for size in sizes:
        facts = told[size]
        about = f"{size:,} items, {facts['texts']:,} texts, {facts['events']:,} purchases"
        for surface in SURFACES:
            for share in ("p50", "p99"):
                name = f"growth_{surface}_{share}_ms_{names[size]}"
                value = facts[f"{surface}_{share}_ms"]
                how = f"{about}; {REQUESTS} requests in process, one at a time"
                found.append(Figure(name, value, "ms", reference=how))
        found.append(
            Figure(f"growth_memory_gb_{names[size]}", facts["memory_gb"], "GB", reference=about)
        )
        found.append(
            Figure(
                f"growth_load_s_{names[size]}", facts["load_s"], "s",
                reference="until a replica is loaded, verified and warm",
            )
        )  # fmt: skip
    return found


# ── in a process of its own ──────────────────────────────────────────────────────────────────────


def catalogue(n_items: int) -> Any:
    """Items of a made-up shop: `Catalogue`."""
    import pyarrow as pa

    from raysys import schema
    from raysys.catalogue import Catalogue

    rng = np.random.default_rng(3)
    n_texts = max(1, n_items // 4)
    kind = rng.integers(0, len(KINDS), n_texts)
    looks = rng.integers(0, len(LOOKS), (n_texts, 2))
    made = rng.integers(0, len(MATERIALS), n_texts)
    sizes = rng.integers(1, 40, n_texts) * 50
    titles = [
        f"{LOOKS[a]} {LOOKS[b]} {MATERIALS[m]} {KINDS[k]} {s} g"
        for k, (a, b), m, s in zip(
            kind.tolist(), looks.tolist(), made.tolist(), sizes.tolist(), strict=True
        )
    ]
    of = np.concatenate([np.arange(n_texts), rng.integers(0, n_texts, n_items - n_texts)])
    brands = max(20, n_items // 500)
    columns: dict[str, Any] = {
        "item_id": [f"i{number:07d}" for number in range(n_items)],
        "title": [titles[at] for at in of.tolist()],
        "department": [f"department {k % 12}" for k in kind[of].tolist()],
        "category": [KINDS[k] for k in kind[of].tolist()],
        "brand": [f"brand {b}" for b in (of % brands).tolist()],
        "price": rng.lognormal(1.0, 0.6, n_items).round(2),
        "currency": ["USD"] * n_items,
    }
    table = {
        field.name: pa.array(columns[field.name], field.type)
        if field.name in columns
        else pa.nulls(n_items, field.type)
        for field in schema.ITEMS
    }
    return Catalogue(pa.table(table, schema=schema.ITEMS))


def purchases(items: Any, n_users: int) -> Any:
    """Two purchases an item, baskets of four around a user's tastes: `EventColumns`."""
    from raysys.features.log import EventColumns
    from raysys.schema import EVENT_TYPES
    from tests.serving.shop import DAY, START

    rng = np.random.default_rng(5)
    n = 2 * len(items) // 4 * 4
    codes, labels = items.codes("category")
    by_category = [np.flatnonzero(codes == code) for code in range(len(labels))]
    user = np.repeat(rng.integers(0, n_users, n // 4), 4)
    tastes = rng.integers(0, len(labels), (n_users, 3))
    wanted = tastes[user, rng.integers(0, 3, n)]
    ranks = rng.zipf(1.2, n) - 1
    item = np.empty(n, np.int32)
    for code, of in enumerate(by_category):
        rows = np.flatnonzero(wanted == code)
        item[rows] = of[ranks[rows] % len(of)]
    order = np.repeat(np.arange(n // 4), 4)
    return EventColumns(
        user=user.astype(np.int32), item=item,
        kind=np.full(n, EVENT_TYPES.index("purchase"), np.int8),
        time=(START + order * (180 * DAY) // (n // 4)).astype(np.int64),
        quantity=np.ones(n), price=np.full(n, 2.0), store=np.full(n, -1, np.int32),
        order=order.astype(np.int64), session=order.astype(np.int32),
        query=np.full(n, -1, np.int32),
    )  # fmt: skip


def build(n_items: int, root: Path) -> None:
    """A bundle over such a shop."""
    from raysys.config import parse_settings
    from raysys.ensemble import EnsembleSettings, fit_ensemble
    from raysys.features.live import LiveFeatures
    from raysys.features.plan import FeaturePlan
    from raysys.learners.baselines import ColumnModel
    from raysys.registry import Registry, write_search
    from raysys.retrieval.covisitation import CoVisitation
    from tests.serving.shop import FAMILIES, PLAN, HashedWords, replay, session_names

    items = catalogue(n_items)
    n_users = max(100, n_items // 10)
    events = purchases(items, n_users)
    plan = parse_settings(FeaturePlan, PLAN, where="benchmarks")
    users = [f"u{number}" for number in range(n_users)]
    features = LiveFeatures(plan, items, users)
    last = len(events) - 4 * 300
    features.apply(events.slice(0, last))
    features.covisitation = CoVisitation.fit(
        events.order[:last], events.item[:last], n_items, k=20, min_count=2
    )
    features.sessions.name(session_names(events))
    texts = list(dict.fromkeys(items.texts))
    vectors = dict(
        zip(texts, HashedWords(np.empty((0, 64), np.float32)).encode(texts), strict=True)
    )
    encoder = HashedWords(np.stack([vectors[text] for text in items.texts]))
    models = {
        "popular": ColumnModel("item_purchases_28d", -1.0),
        "repeat_purchase": ColumnModel("user_item_purchases_112d", -1.0, "item_purchases_28d"),
        "co_occurrence": ColumnModel("covisitation", -1.0),
        "hashed_words": encoder,
    }
    families = {name: FAMILIES[name] for name in models}
    scores = replay(features, events.slice(last, len(events)), models)
    settings = EnsembleSettings(methods=("stack_standard",), rounds=2)
    ensemble = fit_ensemble(scores, families, settings)

    def write(folder: Path) -> None:
        (folder / "features").mkdir()
        features.save(folder / "features")
        for name, model in models.items():
            (folder / "learners" / name).mkdir(parents=True)
            model.save(folder / "learners" / name)
        ensemble.save(folder / "ensemble.json")
        write_search(folder / "search", items, encoder)

    registry = Registry(root)
    registry.point("champion", registry.publish(write, name_hint="growth", learners=families))
    facts = {"texts": len(texts), "events": len(events)}
    (root / "facts.json").write_text(json.dumps(facts))


def ask(n_items: int, root: Path) -> dict[str, Any]:
    """Load, warm up, and ask."""
    import random

    from benchmarks.serving_parts.ask import REQUESTS as FORMS
    from raysys.learners import LEARNERS
    from raysys.serving.args import ServeArgs
    from raysys.serving.asking import Context
    from raysys.serving.service import Service

    LEARNERS["hashed_words"] = "tests.serving.shop:HashedWordsLearner"
    began = time.perf_counter()
    service = Service(ServeArgs(registry=str(root), clock="log_end"))
    service.warm_up()
    load_s = time.perf_counter() - began
    chance = random.Random(11)
    popular = service.catalogue.ids[service.ranker.pools._by_popularity[:5000]].tolist()
    users = service.bundle.features.users

    def body(surface: str) -> dict[str, Any]:
        user = {"user_id": chance.choice(users)}
        if surface == "rank":
            return {**user, "item_ids": chance.sample(popular, 100)}
        if surface == "similar":
            return {**user, "item_id": chance.choice(popular), "k": 10}
        if surface == "search":
            return {**user, "query": f"{chance.choice(LOOKS)} {chance.choice(KINDS)}", "k": 10}
        return {**user, "k": 10}

    told: dict[str, Any] = {"load_s": load_s, **json.loads((root / "facts.json").read_text())}
    for surface in SURFACES:
        taken = []
        for number in range(REQUESTS + 20):
            request = FORMS[surface].validate_python(body(surface))
            began = time.perf_counter()
            service.content(request, Context(began))
            if number >= 20:
                taken.append((time.perf_counter() - began) * 1000)
        told[f"{surface}_p50_ms"], told[f"{surface}_p99_ms"] = np.quantile(taken, [0.5, 0.99])
    told["memory_gb"] = psutil.Process().memory_info().rss / 2**30
    service.close()
    return told


if __name__ == "__main__":
    task, size, place = sys.argv[1:]
    if task == "build":
        build(int(size), Path(place) / "registry")
    else:
        print(json.dumps(ask(int(size), Path(place) / "registry")))
