"""A small real bundle: a shop's log replayed, baselines fitted, an ensemble stacked, published."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from safetensors.torch import save_file

from raysys.catalogue import Catalogue
from raysys.config import parse_settings
from raysys.ensemble import BaseScores, EnsembleSettings, fit_ensemble
from raysys.features.batch import Batch
from raysys.features.live import LiveFeatures
from raysys.features.log import EventColumns
from raysys.features.plan import FeaturePlan
from raysys.features.resources import Resources
from raysys.learners.baselines import ColumnModel
from raysys.learners.protocol import Context, Float32, Learner, Model
from raysys.registry import Registry, write_reranker, write_search
from raysys.retrieval.covisitation import CoVisitation
from raysys.retrieval.lexical import words
from raysys.schema import EVENT_TYPES
from tests.synthetic import CATEGORIES, make_catalogue

DAY = 86_400_000
START = 1_483_228_800_000
PLAN = {
    "tables": {
        "item": {"keys": ["item"], "half_lives_days": [7, 28, 112]},
        "user": {"keys": ["user"], "half_lives_days": [28]},
        "user_item": {"keys": ["user", "item"], "half_lives_days": [28, 112]},
        "user_category": {"keys": ["user", "category"], "half_lives_days": [112]},
        "user_brand": {"keys": ["user", "brand"], "half_lives_days": [112]},
        "query_item": {"keys": ["query", "item"]},
        "session_item": {"keys": ["session", "item"]},
    },
    "features": [
        {
            "name": "item_purchases_28d",
            "kind": "decayed_count",
            "table": "item",
            "half_life_days": 28,
        },
        {
            "name": "user_item_purchases_112d",
            "kind": "decayed_count",
            "table": "user_item",
            "half_life_days": 112,
        },
        {"name": "user_item_recency", "kind": "recency", "table": "user_item"},
        {"name": "covisitation", "kind": "covisitation"},
        {"name": "price", "kind": "static", "column": "price"},
        {"name": "query_item_times", "kind": "moments", "table": "query_item"},
        {"name": "session_item_times", "kind": "moments", "table": "session_item"},
    ],
}


@dataclass
class HashedWords(Model):
    """A text encoder without weights: words hashed into 64 dimensions, unit rows."""

    item_vectors: Float32
    requires: tuple[str, ...] = ()

    def encode(self, texts: Sequence[str]) -> Float32:
        vectors = np.zeros((len(texts), 64), np.float32)
        for row, text in enumerate(texts):
            for word in words(text) or [""]:
                vectors[row, zlib.crc32(word.encode()) % 64] += 1
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def score(self, batch: Batch) -> Float32:
        likes = np.zeros((batch.n_requests, 64), np.float32)
        for i, history in enumerate(batch.history):
            likes[i] = self.item_vectors[history].sum(0)
        return np.einsum("nd,nd->n", likes[batch.group], self.item_vectors[batch.item])

    def save(self, folder: Path) -> None:
        np.save(folder / "vectors.npy", self.item_vectors, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path, catalogue: Catalogue) -> HashedWords:
        model = cls(np.load(folder / "vectors.npy", allow_pickle=False))
        if len(model.item_vectors) != len(catalogue):  # it has got items since
            model.item_vectors = model.encode(catalogue.texts)
        return model


class HashedWordsLearner(Learner):
    name = "hashed_words"
    family = "transformer"
    model_class = HashedWords


FAMILIES = {
    "popular": "baseline",
    "repeat_purchase": "baseline",
    "co_occurrence": "baseline",
    "hashed_words": "transformer",
    "next_item": "transformer",
}


def publish_shop(
    root: Path,
    n_items: int = 200,
    n_users: int = 30,
    *,
    with_encoder: bool = True,
    with_sequences: bool = False,
    plan: dict[str, Any] = PLAN,
    resources: Callable[[Catalogue, Sequence[str]], Resources] | None = None,
) -> tuple[Registry, str]:
    """Build a bundle from a simulated half year, and point champion at it.

    `with_encoder=False` leaves out the learner that only processes of these tests know;
    `with_sequences` adds a learner of sequences, and a cross-encoder that knows a few words;
    `plan` is of its features, which `resources` gives what it reads beside events.
    """
    catalogue, queries = make_catalogue(n_items), list(CATEGORIES)
    events = simulate(catalogue, n_users)
    features = LiveFeatures(
        parse_settings(FeaturePlan, plan, where="tests"),
        catalogue,
        [f"u{number}" for number in range(n_users)],
        queries=queries,
        resources=None if resources is None else resources(catalogue, queries),
    )
    half = len(events) // 2
    features.apply(events.slice(0, half))
    features.covisitation = CoVisitation.fit(
        events.order[:half], events.item[:half], len(catalogue), k=20
    )
    features.sessions.name(session_names(events))
    encoder = HashedWords(np.empty((0, 64), np.float32))
    encoder.item_vectors = encoder.encode(catalogue.texts)
    models: dict[str, Model] = {
        "popular": ColumnModel("item_purchases_28d", -1.0),
        "repeat_purchase": ColumnModel("user_item_purchases_112d", -1.0, "item_purchases_28d"),
        "co_occurrence": ColumnModel("covisitation", -1.0),
        "hashed_words": encoder,
    }
    if not with_encoder:
        del models["hashed_words"]
    if with_sequences:
        models["next_item"] = next_item(catalogue, events.slice(0, half), n_users)
    families = {name: FAMILIES[name] for name in models}
    scores = replay(features, events.slice(half, len(events)), models)
    settings = EnsembleSettings(methods=("stack_standard",), rounds=2)
    ensemble = fit_ensemble(scores, families, settings)

    def write(folder: Path) -> None:
        (folder / "features").mkdir()
        features.save(folder / "features")
        for name, model in models.items():
            (folder / "learners" / name).mkdir(parents=True)
            model.save(folder / "learners" / name)
        ensemble.save(folder / "ensemble.json")
        write_search(folder / "search", catalogue, encoder if with_encoder else None)
        if with_sequences:
            model = cross_encoder(root.parent / f"{root.name}-scorer", catalogue)
            write_reranker(folder, "cross_encoder_ranker", model, top=10, weight=0.5)

    registry = Registry(root)
    bundle_id = registry.publish(
        write,
        name_hint="shop",
        learners=families,
        data={"log": "simulated"},
        figures={"requests": scores.n_requests},
    )
    registry.point("champion", bundle_id)
    return registry, bundle_id


def simulate(catalogue: Catalogue, n_users: int, n_orders: int = 600) -> EventColumns:
    """Baskets of three from each user's two favourite categories, in time order.

    Each is a session of its own, and each item was searched for by the name of its category.
    """
    rng = np.random.default_rng(7)
    codes, labels = catalogue.codes("category")
    names = list(CATEGORIES)
    favourites = rng.integers(0, len(CATEGORIES), (n_users, 2))
    user = np.repeat(rng.integers(0, n_users, n_orders), 3).astype(np.int32)
    order = np.repeat(np.arange(n_orders), 3)
    wanted = favourites[user, rng.integers(0, 2, len(user))]
    item = np.array([rng.choice(np.flatnonzero(codes == code)[:12]) for code in wanted], np.int32)
    n = len(user)
    return EventColumns(
        user=user,
        item=item,
        kind=np.full(n, EVENT_TYPES.index("purchase"), np.int8),
        time=(START + order * (180 * DAY // n_orders)).astype(np.int64),
        quantity=np.ones(n),
        price=np.full(n, 2.0),
        store=np.full(n, -1, np.int32),
        order=order.astype(np.int64),
        session=order.astype(np.int32),
        query=np.array([names.index(labels[code]) for code in wanted], np.int32),
    )


def purchase(user: int, item: int, time: int) -> EventColumns:
    """One that has just happened."""
    return EventColumns(
        user=np.array([user], np.int32),
        item=np.array([item], np.int32),
        kind=np.full(1, EVENT_TYPES.index("purchase"), np.int8),
        time=np.array([time], np.int64),
        quantity=np.ones(1),
        price=np.full(1, 2.0),
        store=np.full(1, -1, np.int32),
        order=np.array([9_999], np.int64),
        session=np.array([9_999], np.int32),
        query=np.full(1, -1, np.int32),
    )


def next_item(catalogue: Catalogue, events: EventColumns, n_users: int) -> Model:
    """A sequence transformer that has seen what users bought, once."""
    from raysys.learners.next_item import NextItemModel
    from raysys.learners.next_item_settings import NextItemSettings
    from raysys.learners.sequence_protocol import SequenceContext, Sequences
    from raysys.learners.sequences import make_sequence_learner

    lists = [events.item[events.user == user].tolist() for user in range(n_users)]
    quick = {"width": 8, "layers": 1, "heads": 1, "epochs": 1, "device": "cpu"}
    learner = make_sequence_learner("sequence_transformer", quick)
    model = learner.fit(Sequences.of(lists, ordered=True), SequenceContext(len(catalogue)))
    return NextItemModel(model, catalogue.ids.tolist(), catalogue, NextItemSettings())


def cross_encoder(folder: Path, catalogue: Catalogue) -> Model:
    """An untrained one: the cosine between what it makes of the words of query and item."""
    from transformers import BertModel

    from raysys.learners.cross_encoder_ranker import CrossEncoderRanker
    from raysys.learners.cross_encoder_ranker_settings import CrossEncoderRankerSettings
    from raysys.text.cross_encoder import CrossEncoder
    from tests.text.tiny import write_tiny_bert

    write_tiny_bert(folder / "encoder")
    module = CrossEncoder(BertModel.from_pretrained(folder / "encoder"), 32)
    head = {n: x for n, x in module.state_dict().items() if not n.startswith("backbone.")}
    save_file(head, folder / "head.safetensors")
    settings = CrossEncoderRankerSettings(fitted=str(folder), max_tokens=32)
    nothing: Any = None  # it is taken as it is
    return CrossEncoderRanker(settings).fit_local(nothing, Context(catalogue, folder))


def session_names(events: EventColumns) -> pl.DataFrame:
    """Sessions as the log names them: basket 7 is b7."""
    frame = pl.DataFrame({"user": events.user, "session": events.session}).unique().sort("session")
    return frame.select("user", pl.format("b{}", "session").alias("session_id"), "session")


def replay(features: LiveFeatures, events: EventColumns, models: dict[str, Model]) -> BaseScores:
    """Base scores of each basket about to happen, each model asked before it is counted."""
    parts: list[BaseScores] = []
    for number, order in enumerate(np.unique(events.order)):
        rows = np.flatnonzero(events.order == order)
        basket = events.slice(int(rows[0]), int(rows[-1]) + 1)
        user, time = int(basket.user[0]), int(basket.time[0])
        items = features.candidates(user, time).items
        found = features.batch(user, items, time)
        batch = Batch(
            **{
                **found.__dict__,
                "label": np.isin(items, basket.item).astype(np.float32),
                "weight": np.ones(len(items), np.float32),
                "n_relevant": np.array([len(set(basket.item.tolist()))], np.int32),
                "request": np.array([number], np.int32),
            }
        )
        base = {name: model.score(batch) for name, model in models.items()}
        parts.append(BaseScores.of(batch, int(number * 2 // 300), base))
        features.apply(basket)
    return BaseScores.concatenate(parts)
