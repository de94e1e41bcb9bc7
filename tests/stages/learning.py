"""A small shop that has a champion, and goes on selling: what `raysys learn` learns from."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np

from raysys.catalogue import Catalogue
from raysys.config import parse_settings
from raysys.ensemble import BaseScores, EnsembleSettings, fit_ensemble
from raysys.ensemble.folds import base_score
from raysys.features.examples import Examples
from raysys.features.log import EventColumns
from raysys.ingest.spread import InProcess
from raysys.learners import make_learner
from raysys.learners.protocol import Context, Model
from raysys.registry import Registry
from raysys.stages import features
from raysys.stages.features_settings import FeaturesSettings
from raysys.stages.learn import LearnSettings
from raysys.stages.train import write_bundle
from raysys.storage import Manifest, Workspace, read_manifest
from tests.features.logs import write_events
from tests.serving.shop import DAY, PLAN, START, HashedWords, simulate
from tests.synthetic import make_catalogue

TRAINED_DAYS = 150
CHOSEN: dict[str, dict[str, Any]] = {
    "popular": {},
    "repeat_purchase": {},
    "co_occurrence": {},
    "lightgbm_ranker": {"n_estimators": 8, "num_leaves": 7, "min_child_samples": 5},
}
WINDOW = {"gate_days": 10, "fit_days": 20, "min_requests": 10}
QUICK = {"methods": ["stack_standard"], "rounds": 2}


def settings(**content: Any) -> LearnSettings:
    told = {
        "window": WINDOW,
        "steps": {"learners": {"lightgbm_ranker": {"steps": 4}}},
        "gate": {"resamples": 100},
        **content,
    }
    return parse_settings(LearnSettings, told, where="learn.yaml")


def as_rows(events: EventColumns) -> list[dict[str, Any]]:
    """As ingest leaves them; a basket is a session and an order."""
    return [
        {
            "event_id": f"e{at}",
            "event_type": "purchase",
            "user_id": f"u{events.user[at]}",
            "item_id": f"i{events.item[at]:05d}",
            "timestamp": int(events.time[at]),
            "session_id": f"b{events.order[at]}",
            "order_id": f"o{events.order[at]}",
            "quantity": 1.0,
            "price": 2.0,
            "inferred": False,
        }
        for at in range(len(events))
    ]


def write_log(workspace: Workspace, rows: list[dict[str, Any]]) -> None:
    """In the place of what ingest had left."""
    if workspace.ingest.exists():
        workspace.ingest.rename(workspace.root / f"ingest-{len(list(workspace.root.iterdir()))}")
    write_events(workspace.ingest / "events", rows)
    make_catalogue(60).save(workspace.ingest / "items.parquet")
    counts = {f"events.type.{row['event_type']}": len(rows) for row in rows}
    Manifest(stage="ingest", inputs={"log": str(len(rows))}, counts=counts).write(workspace.ingest)


def rows_of_the_shop() -> list[dict[str, Any]]:
    return as_rows(simulate(make_catalogue(60), n_users=24))


def with_impressions(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each basket reacts to an answer that showed it, among other things, a minute before."""
    rng = np.random.default_rng(3)
    told = []
    for order in dict.fromkeys(row["order_id"] for row in rows):
        basket = [row for row in rows if row["order_id"] == order]
        bought = [int(row["item_id"][1:]) for row in basket]
        shown = rng.permutation(np.unique([*bought, *rng.choice(60, 9, replace=False)]))
        answer = {"request_id": f"r{order}"}
        told += [
            {
                **{n: basket[0][n] for n in ("user_id", "session_id", "order_id", "inferred")},
                **answer,
                "event_id": f"{order}-{place}",
                "event_type": "impression",
                "item_id": f"i{item:05d}",
                "timestamp": basket[0]["timestamp"] - 60_000,
                "position": place,
            }
            for place, item in enumerate(shown.tolist(), start=1)
        ]
        told += [{**row, **answer} for row in basket]
    return sorted(told, key=lambda row: row["timestamp"])


def shop(root: Path, *, with_encoder: bool = False, texts_by: Path | None = None) -> Workspace:
    """Half a year of baskets, and a champion that knows the first five months.

    `with_encoder`: one of its learners is that of `tests.serving.shop`, which encodes texts.
    `texts_by`: the model of vectors that its features compare with the query.
    """
    workspace = Workspace(root)
    rows = rows_of_the_shop()
    cut = START + TRAINED_DAYS * DAY
    write_log(workspace, [row for row in rows if row["timestamp"] < cut])
    plan = copy.deepcopy(PLAN)
    del plan["tables"]["query_item"]  # nobody searches here
    plan["features"] = [f for f in plan["features"] if f.get("table") != "query_item"]
    if texts_by is not None:
        plan["vectors"] = {"title": {"model": str(texts_by), "text": ["title"], "max_tokens": 16}}
        plan["features"] += [
            {"name": "axis", "kind": "component", "vectors": "title", "component": 0},
            {"name": "fits", "kind": "similarity", "vectors": "title", "to": "query"},
        ]
    told = {
        "train_days": 60,
        "train_folds": 1,
        "validation_days": 20,
        "report_days": 20,
        "candidates": {"owned": 20, "covisitation": 10, "category": 10, "popular": 10},
        "covisitation": {"k": 10, "min_count": 2, "refit_days": 60},
        "plan": plan,
    }
    made = parse_settings(FeaturesSettings, told, where="features.yaml")
    features.run(made, workspace, spread=InProcess())
    publish(workspace, with_encoder=with_encoder)
    write_log(workspace, rows)
    return workspace


def publish(workspace: Workspace, *, with_encoder: bool = False) -> str:
    """Learners fitted on the train fold, an ensemble on the validation fold; the champion."""
    catalogue = Catalogue.load(workspace.features / "catalogue.parquet")
    context = Context(catalogue, workspace.root)
    models: dict[str, Model] = {}
    families = {}
    for name, values in CHOSEN.items():
        learner = make_learner(name, values)
        models[name] = learner.fit_local(Examples(workspace.features, (0,)), context)
        families[name] = learner.family
    if with_encoder:
        encoder = HashedWords(np.empty((0, 64), np.float32))
        encoder.item_vectors = encoder.encode(catalogue.texts)
        models["hashed_words"], families["hashed_words"] = encoder, "transformer"
    batch = Examples(workspace.features, (1,)).batch()
    base = {name: base_score(name, model, batch) for name, model in models.items()}
    quick = EnsembleSettings(**QUICK)
    ensemble = fit_ensemble(BaseScores.of(batch, 1, base), families, quick)
    registry = Registry(workspace.registry)
    bundle = registry.publish(
        lambda fresh: write_bundle(fresh, workspace, models, ensemble, catalogue),
        name_hint="shop",
        learners=families,
        data={"features": read_manifest(workspace.features).fingerprint},
        settings={"chosen": CHOSEN, "ensemble": quick.model_dump(mode="json")},
        figures={"ndcg10": {"full": 0.5}},
    )
    registry.point("champion", bundle)
    return bundle


def later(rows: list[dict[str, Any]]) -> np.ndarray:
    """Moments of what the champion does not know."""
    times = np.array([row["timestamp"] for row in rows])
    return times[times >= START + TRAINED_DAYS * DAY]
