"""A bundle that knows how its training data were distributed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from raysys.features.drift import categorical_features
from raysys.monitoring.reference import ENSEMBLE, Reference, variables_of
from raysys.registry import Registry
from raysys.serving.api import RecommendRequest
from raysys.serving.args import ServeArgs
from raysys.serving.asking import Context
from raysys.serving.service import Service
from tests.serving import shop

USERS = 25
LABELS = {"positive_rows": 0.02, "positive_requests": 0.8}


def publish_watched(root: Path, *, with_encoder: bool = True) -> Registry:
    """The small shop's bundle again, with a reference: what it answers its users."""
    registry, plain = shop.publish_shop(root, with_encoder=with_encoder)
    service = Service(ServeArgs(registry=str(registry.root), clock="log_end"))
    features: dict[str, list[np.ndarray]] = {}
    scores: dict[str, list[np.ndarray]] = {}
    rows = 0
    for number in range(USERS):
        asked = RecommendRequest(user_id=f"u{number}", k=5)
        given, _ = service.asking(asked, Context(float("inf")))
        ranking = service.ranker.scored(given)
        assert ranking.batch is not None and ranking.ensemble is not None
        for at, name in enumerate(ranking.batch.names):
            features.setdefault(name, []).append(ranking.batch.features[:, at])
        for name, said in {**ranking.base, ENSEMBLE: ranking.ensemble.score}.items():
            scores.setdefault(name, []).append(said)
        rows += len(ranking.batch)
    plan = service.bundle.features.plan
    variables = (
        *variables_of(
            "feature", {k: np.concatenate(v) for k, v in features.items()},
            categorical_features(plan),
        ),
        *variables_of("score", {k: np.concatenate(v) for k, v in scores.items()}),
    )  # fmt: skip
    reference = Reference("recommend", 0, 1, 5000, 5000, rows, 200, variables, LABELS)
    service.close()

    def write(folder: Path) -> None:
        shutil.copytree(registry.bundles / plain, folder, dirs_exist_ok=True)
        (folder / "manifest.json").unlink()
        reference.save(folder)

    manifest = registry.verify(plain)
    bundle = registry.publish(write, name_hint="watched", learners=manifest.learners)
    registry.point("champion", bundle)
    return registry
