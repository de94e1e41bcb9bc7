"""What a ranking becomes on its way out: looked up in the cache, listed, counted and traced."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Final

import numpy as np

from raysys.registry import Bundle
from raysys.serving import cache as caching
from raysys.serving.asking import Ask, Ranking, Watch
from raysys.serving.cache import Cache
from raysys.serving.metrics import Metrics
from raysys.serving.policy import Arrangement
from raysys.serving.ranker import Ranker
from raysys.serving.tracing import Trace
from raysys.serving.why import whys

_REFRESH_S: Final = 5.0  # that making a ranking anew may take when nobody waits for it


def cached(
    cache: Cache, ranker: Ranker, ask: Ask, user: str | None, known: object, variant: str, *,
    explain: bool,
) -> tuple[Ranking, str]:  # fmt: skip
    """Scored candidates, and how the cache knew them.

    Args:
        cache: where rankings are kept.
        ranker: makes those that are not.
        ask: what is asked for.
        user: id of who asks; a replica numbers new users as it hears of them.
        known: versions of all that changes by itself.
        variant: of bundle and settings.
        explain: what led to the scores is wanted, and not kept.
    """
    candidates = ranker.args.of(ask.surface).candidates
    key = caching.key_of(
        variant,
        ask.surface,
        (user, known),
        (ask.session, ask.query, ask.text, ask.place, ask.seeds.tolist()),
        (ask.filters, max(ask.k, candidates)),
        # they are candidates while they count, which begins and ends by itself
        sorted(ranker.policies[ask.surface].pins(ask.at, ask.text).values()),
    )
    if explain:
        return ranker.scored(ask), cache.peek(key)

    def again() -> Ranking:
        return ranker.scored(replace(ask, until=time.perf_counter() + _REFRESH_S))

    def get(key: str) -> tuple[Ranking, str]:
        return cache.get(key, lambda: ranker.scored(ask), again=again, until=ask.until)

    ranking, told = get(key)
    if len(ranking.pool.items) < ask.k and ranking.filled_for < ask.k:
        ranking, told = get(caching.key_of(key, ask.k))  # that one was for a shorter list
    return ranking, told


def listed(
    ranking: Ranking, arranged: Arrangement, bundle: Bundle, *, explain: bool
) -> list[dict[str, Any]]:
    """The items as the caller reads them, from the top."""
    shown = arranged.shown
    ids = bundle.features.catalogue.ids[ranking.pool.items[shown]].tolist()
    scores = arranged.scores[shown].astype(np.float64).round(6).tolist()
    items: list[dict[str, Any]] = [
        {"item_id": item, "score": score, "position": place}
        for place, (item, score) in enumerate(zip(ids, scores, strict=True), start=1)
    ]
    if explain:
        for item, why in zip(items, whys(ranking, arranged, bundle), strict=True):
            item["why"] = why
    return items


def count(metrics: Metrics, ask: Ask, ranking: Ranking) -> None:
    """Count an answer, and where its time went."""
    degraded = str(bool(ranking.reasons)).lower()
    metrics.count("raysys_answers", surface=ask.surface, degraded=degraded)
    for name, reason in ranking.reasons.items():
        metrics.count("raysys_left_out", member=name, reason=reason)
    for stage, spent in ranking.milliseconds.items():
        metrics.observe("raysys_stage_seconds", spent / 1000, stage=stage)


def trace_answer(
    trace: Trace, ask: Ask, ranking: Ranking, told: str, bundle: str, watch: Watch,
    between: tuple[float, float],
) -> None:  # fmt: skip
    """Note where an answer's time went.

    Args:
        trace: of the answer.
        ask, ranking: what was asked for, and what it came to.
        told: how the cache knew it.
        bundle: id of the one that answered.
        watch: the stages since there was a ranking.
        between: `time.perf_counter()` before the ranking, and when it was there.
    """
    trace.ranked(*between, told, ranking.milliseconds, watch.laps)
    trace.attributes = {
        "raysys.request_id": ask.request_id,
        "raysys.surface": ask.surface,
        "raysys.bundle": bundle,
        "raysys.cache": told,
        "raysys.candidates": len(ranking.pool.items),
        "raysys.degraded": bool(ranking.reasons),
        "raysys.left_out": list(ranking.reasons),
    }
