"""The second stage of a list, fitted: a learner that reads query and item together, for a few."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from raysys.config import Settings
from raysys.ensemble import BaseScores, Ensemble
from raysys.errors import UserError
from raysys.features.batch import Batch
from raysys.features.examples import Examples
from raysys.learners import load_model, make_learner
from raysys.learners.protocol import Context, Float32, Model, Reranker
from raysys.learners.validation import NDCG
from raysys.serving.reranking import blended

log = logging.getLogger("raysys")

_WEIGHTS = np.linspace(0, 1, 11)
_JUDGED = 300  # requests, evenly over time: each costs `top` pairs


class RerankerSettings(Settings):
    """A second stage behind the ensemble.

    Attributes:
        learner: its name.
        settings: its own settings.
        top: how many of the best it looks at.
        weight: of what it says against the place an item had; null: what ranks the validation
            fold's queries best, or 0.5 where there are none.
    """

    learner: str = "cross_encoder_ranker"
    settings: dict[str, Any] = Field(default_factory=dict)
    top: int = Field(20, ge=2, le=1000)
    weight: float | None = Field(None, ge=0, le=1)


@dataclass(frozen=True)
class SecondStage:
    """A fitted second stage.

    Attributes:
        learner: its name.
        model: reads pairs.
        top: how many.
        weight: of what it says.
        figures: NDCG@10 of queries of the validation fold, before and after, with how many;
            nothing where there are none.
    """

    learner: str
    model: Model
    top: int
    weight: float
    figures: dict[str, float] = field(default_factory=dict)


def fit_reranker(
    told: RerankerSettings,
    examples: Examples | None,
    last: Examples,
    scores: BaseScores,
    ensemble: Ensemble,
    context: Context,
    known: Path,
) -> SecondStage:
    """Fit it, or take the one of an earlier run, and weigh it against the ensemble.

    Args:
        told: what to fit.
        examples: earlier than the last fold; None: `known` holds the model.
        last: the last fold alone.
        scores: out-of-fold base scores.
        ensemble: fitted.
        context: of the fit.
        known: where the model lies afterwards.

    Raises:
        UserError: the learner cannot read pairs, or nothing can be learned.
    """
    learner = make_learner(told.learner, told.settings, where="reranker.settings")
    if examples is not None:
        model = learner.fit_local(examples, context)
        shutil.rmtree(known, ignore_errors=True)
        known.mkdir(parents=True)
        model.save(known)
    elif known.is_dir():
        model = load_model(told.learner, known, context.catalogue)
    else:
        raise UserError(
            f"the run before has fitted no {told.learner}",
            where="reranker",
            mend="run `raysys train` without --ensemble-only",
        )
    if not isinstance(model, Reranker):
        raise UserError(
            f"{told.learner} reads no pairs of query and item",
            where="reranker.learner",
            mend="take cross_encoder_ranker",
        )
    weight, figures = _weighed(model, told, last, scores, ensemble)
    return SecondStage(told.learner, model, told.top, weight, figures)


def _weighed(
    model: Reranker,
    told: RerankerSettings,
    last: Examples,
    scores: BaseScores,
    ensemble: Ensemble,
) -> tuple[float, dict[str, float]]:
    """The weight, and what it gains; chosen on one half of the requests, judged on the other.

    One that is told is judged on all.
    """
    batch = last.batch()
    asked = np.flatnonzero([bool(query) for query in batch.queries or ()])
    if not len(asked):
        log.warning("train: no request of the last fold has a query; the reranker is not judged")
        return (0.5 if told.weight is None else told.weight), {}
    here = scores.take(np.flatnonzero(scores.fold == scores.fold.max()))
    said = ensemble.score({n: here.base[n] for n in ensemble.members}, batch.offsets, batch).score
    chosen = asked[np.unique(np.linspace(0, len(asked) - 1, min(len(asked), _JUDGED)).astype(int))]
    some = batch.take_requests(chosen)
    first = np.concatenate([said[batch.offsets[i] : batch.offsets[i + 1]] for i in chosen])
    second = _second(model, some, first, told.top)
    judge = NDCG(some)
    values = np.stack([judge.each(_mixed(some, first, second, w)) for w in _WEIGHTS])
    if told.weight is not None:  # nothing is chosen, so all requests judge
        weight = told.weight
        after = [_mean(judge.each(_mixed(some, first, second, weight)))]
    else:
        weight = _best(values)
        halves = np.arange(some.n_requests) % 2
        at = [_best(values[:, halves == half]) for half in (0, 1)]
        after = [
            _mean(values[np.searchsorted(_WEIGHTS, w), halves != half])
            for half, w in zip((0, 1), at, strict=True)
            if (halves != half).any()
        ]
    figures = {
        "requests": float(some.n_requests),
        "ndcg10_before": _mean(values[0]),
        "ndcg10_after": float(np.mean(after)) if after else _mean(values[0]),
        "weight": weight,
        "top": float(told.top),
    }
    return weight, figures


def _second(model: Reranker, batch: Batch, first: Float32, top: int) -> Float32:
    """What the model says of the best few of each request, NaN for the others: float32[n]."""
    found = np.full(len(batch), np.nan, dtype=np.float32)
    asked: list[tuple[str, np.ndarray]] = []
    places: list[np.ndarray] = []
    for i, query in enumerate(batch.queries or ()):
        start, stop = batch.offsets[i], batch.offsets[i + 1]
        best = start + np.argsort(-first[start:stop], kind="stable")[:top]
        asked.append((query or "", batch.item[best]))
        places.append(best)
    for best, said in zip(places, model.pairs_of(asked), strict=True):
        found[best] = said
    return found


def _mixed(batch: Batch, first: Float32, second: Float32, weight: float) -> Float32:
    parts = [
        blended(first[a:b], second[a:b], weight)
        for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)
    ]
    return np.concatenate(parts)


def _best(values: np.ndarray) -> float:
    """The weight with the highest mean, the smallest of equals."""
    means: Sequence[float] = [_mean(row) for row in values]
    return float(_WEIGHTS[int(np.argmax(means))])


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else 0.0
