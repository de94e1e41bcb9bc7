"""Why a list is as it is: scores, features and what they contributed, source by source."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from raysys.features.batch import Batch
from raysys.learners.protocol import Explainable, Model
from raysys.registry import Bundle
from raysys.serving.api import Explanation, Why
from raysys.serving.asking import Ask, Ranking
from raysys.serving.policy import Arrangement, PolicyArgs
from raysys.serving.ranker import shares

MOST = 8
"""Features that are named, of an item and of a learner."""

EXPLAINED = 20
"""Items, from the top, of which it is said what moved them: trees take milliseconds for each."""

_COMPARED = 24
"""Candidates that stand for all when it is said what sets an item apart."""


def whys(ranking: Ranking, arranged: Arrangement, bundle: Bundle) -> list[Why]:
    """The reasons of each shown item, in order."""
    parts = _contributions(ranking, arranged, bundle.learners)
    weights = shares(ranking, bundle)
    return [_why(ranking, arranged, place, parts, weights) for place in range(len(arranged.shown))]


def by_source(ranking: Ranking) -> dict[str, int]:
    """Candidates by who proposed them."""
    pool = ranking.pool
    return {
        name: int(np.count_nonzero(pool.sources >> bit & 1)) for bit, name in enumerate(pool.names)
    }


def explanation(
    ranking: Ranking,
    ask: Ask,
    cache: str,
    milliseconds: dict[str, float],
    bundle: Bundle,
    policy: PolicyArgs,
) -> Explanation:
    """How a list came about, as a whole.

    Args:
        ranking: the scored candidates.
        ask: what was asked for.
        cache: how the cache knew them.
        milliseconds: by stage.
        bundle: that ranked.
        policy: of the surface.
    """
    understood = {} if ask.text is None else bundle.search.lexical.understood(ask.text)
    return Explanation(
        place=ask.place,
        timestamp=ranking.timestamp,
        n_candidates=len(ranking.pool.items),
        by_source=by_source(ranking),
        understood=understood,
        fallback=ranking.fallback,
        weights={name: round(share, 4) for name, share in shares(ranking, bundle).items()},
        policy=policy.model_dump(mode="json"),
        cache=cache,
        milliseconds=milliseconds,
    )


_Parts = dict[str, tuple[tuple[str, ...], np.ndarray]]


def _contributions(
    ranking: Ranking, arranged: Arrangement, learners: Mapping[str, Model]
) -> _Parts:
    """By learner, names and float64[shown, names] of what each added to a score, beyond what it
    adds to the candidates' on average: only that can move an item. Of the first `EXPLAINED`."""
    if ranking.batch is None or not len(arranged.shown):
        return {}
    n, shown = len(ranking.batch), arranged.shown[:EXPLAINED]
    others = np.unique(np.linspace(0, n - 1, min(n, _COMPARED)).astype(np.int64))
    rows = _rows(ranking.batch, np.concatenate([shown, others]))
    found: _Parts = {}
    for name in ranking.base:
        model = learners[name]
        if not isinstance(model, Explainable):
            continue
        names, parts = model.contributions(rows)
        found[name] = names, parts[: len(shown)] - parts[len(shown) :].mean(axis=0)
    return found


def _rows(batch: Batch, rows: np.ndarray) -> Batch:
    """Some rows of one request."""
    return Batch(
        names=batch.names,
        features=batch.features[rows],
        item=batch.item[rows],
        offsets=np.array([0, len(rows)], dtype=np.int64),
        history=batch.history,
        user=batch.user,
    )


def _why(
    ranking: Ranking,
    arranged: Arrangement,
    place: int,
    parts: _Parts,
    weights: Mapping[str, float],
) -> Why:
    at = int(arranged.shown[place])
    ensemble = ranking.ensemble
    features: dict[str, float | None] = {}
    if ranking.batch is not None:
        features = {
            name: round(float(value), 6) if np.isfinite(value) else None
            for name, value in zip(ranking.batch.names, ranking.batch.features[at], strict=True)
        }
    moved: dict[str, float] = {}
    own: dict[str, dict[str, float]] = {}
    for learner, (names, values) in parts.items():
        if place >= len(values):
            break
        of_item = dict(zip(names, values[place].tolist(), strict=True))
        own[learner] = _strongest(of_item)
        spread = float(ranking.base[learner].std())
        for name, value in of_item.items():
            scaled = weights.get(learner, 0.0) * value / spread if spread else 0.0
            moved[name] = moved.get(name, 0.0) + scaled
    return Why(
        sources=ranking.pool.sources_of(at),
        base_scores={name: round(float(s[at]), 6) for name, s in ranking.base.items()},
        ensemble_score=round(float(ensemble.score[at]), 6) if ensemble else None,
        probability=round(float(ensemble.probability[at]), 6) if ensemble else None,
        relevance=None if ranking.relevance is None else round(float(ranking.relevance[at]), 6),
        reranked=_known(ranking.reranked, at),
        features=features,
        moved_by=_strongest(moved),
        contributions=own,
        policy=arranged.steps.get(at, []),
        propensity=float(arranged.propensities[place]),
    )


def _known(values: np.ndarray | None, at: int) -> float | None:
    """One of some values, None where it is not known."""
    known = values is not None and np.isfinite(values[at])
    return round(float(values[at]), 6) if known and values is not None else None


def _strongest(values: Mapping[str, float]) -> dict[str, float]:
    """The features that add or take away most, none of which adds nothing."""
    order = sorted(values, key=lambda name: (-abs(values[name]), name))[:MOST]
    return {name: round(values[name], 6) for name in order if round(values[name], 6)}
