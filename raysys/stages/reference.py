"""The reference that a bundle is watched by, out of the validation fold of its training."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from raysys.catalogue import Catalogue
from raysys.config import load_settings
from raysys.ensemble import BaseScores, Ensemble
from raysys.features.drift import categorical_features
from raysys.features.examples import Examples
from raysys.features.plan import FeaturePlan
from raysys.monitoring.rates import outcomes_of
from raysys.monitoring.reference import ENSEMBLE, Outcomes, Reference, drawn_rows, variables_of
from raysys.storage import Workspace

REQUESTS: Final = 2000
"""Requests that are read at most: every so many of the fold."""

MOVES_BY_ITSELF: Final = ("moment", "shown_position")
"""Kinds that are not watched: a day has one weekday, and nothing is shown yet when serving."""


def reference_of(
    workspace: Workspace,
    surface: str,
    examples: Examples,
    scores: BaseScores,
    ensemble: Ensemble,
    catalogue: Catalogue,
    seed: int = 0,
) -> Reference:
    """Distributions of the fold that the served models have not seen.

    Args:
        workspace: with the features' state and, for outcomes, the log.
        surface: of the bundle.
        examples: a view of the validation fold alone.
        scores: out-of-fold base scores, of that fold among others.
        ensemble: made of them.
        catalogue: of the bundle.
        seed: of the rows that are drawn.
    """
    last = scores.take(np.flatnonzero(np.isin(scores.fold, examples.folds)))
    every = -(-last.n_requests // REQUESTS)
    examples = examples.of_worker(0, every)
    last = last.take(np.arange(0, last.n_requests, every))
    batch = examples.batch()
    said = {name: last.base[name] for name in ensemble.members}
    said[ENSEMBLE] = ensemble.score(said, batch.offsets, batch).score
    rows = drawn_rows(batch.sizes, seed=seed)
    plan = load_settings(FeaturePlan, workspace.features / "state" / "plan.yaml")
    by_itself = {feature.name for feature in plan.features if feature.kind in MOVES_BY_ITSELF}
    columns = {
        name: batch.features[rows, at]
        for at, name in enumerate(batch.names)
        if name not in by_itself
    }
    variables = (
        *variables_of("feature", columns, categorical_features(plan)),
        *variables_of("score", {name: each[rows] for name, each in said.items()}),
    )
    moments = _ms(examples)
    positive = last.label > 0
    per_request = np.bincount(batch.group, weights=positive, minlength=batch.n_requests)
    known = batch.user[batch.user >= 0]
    strangers = int((batch.user < 0).sum())
    return Reference(
        surface=surface,
        since=int(moments.min()),
        until=int(moments.max()),
        requests=batch.n_requests,
        people=len(np.unique(known)) + strangers,
        rows=len(rows),
        items=len(catalogue),
        variables=variables,
        labels={
            "positive_rows": round(float(positive.mean()), 6),
            "positive_requests": round(float((per_request > 0).mean()), 6),
        },
        outcomes=_outcomes(workspace.ingest / "events", surface, int(moments.max())),
    )


def _outcomes(events: Path, surface: str, until: int) -> dict[str, Outcomes]:
    """Of the log up to the last request that the training knows; later ones are the report's."""
    if not any(events.glob("**/*.parquet")):
        return {}
    log = pl.scan_parquet(events / "**" / "*.parquet", hive_partitioning=False)
    needed = {"request_id", "item_id", "user_id", "event_type", "query", "timestamp"}
    names = log.collect_schema().names()
    if not needed <= set(names):
        return {}
    if "inferred" in names:  # what ingest concluded was not seen by anybody who could say so
        log = log.filter(~pl.col("inferred").fill_null(value=False))
    return outcomes_of(log.filter(pl.col("timestamp").dt.epoch("ms") <= until), surface)


def _ms(examples: Examples) -> npt.NDArray[np.int64]:
    moments = examples.requests()["timestamp"].to_numpy()
    return moments.astype("datetime64[ms]").astype(np.int64)
