"""A second look at the best few of a list for a query: by a cross-encoder, as time allows."""

from __future__ import annotations

import logging
import time
from typing import Annotated

import numpy as np
from pydantic import Field

from raysys.config import Settings
from raysys.learners.protocol import Float32
from raysys.registry import Bundle, Reranking
from raysys.serving.asking import Ask, Ranking
from raysys.serving.encoding import Encoding, UnavailableError, WaitedError
from raysys.serving.members import Clock, Costs

log = logging.getLogger("raysys")

RERANK = "rerank"


class RerankArgs(Settings):
    """How the bundle's cross-encoder looks at the best few of a search; no part, no look.

    Attributes:
        top: how many; 0: none; null: as many as the bundle says.
        weight: of what it says against the place an item had, 0 to 1; null: as the bundle says.
    """

    top: Annotated[int, Field(ge=0, le=1000)] | None = None
    weight: Annotated[float, Field(ge=0, le=1)] | None = None


class Reranker:
    """Puts the best few in order once more; safe to use from several threads.

    Args:
        part: of the bundle.
        args: may say otherwise.
        encoding: where the cross-encoder runs.
        costs: what it takes, by how many pairs.
    """

    def __init__(self, part: Reranking, args: RerankArgs, encoding: Encoding, costs: Costs) -> None:
        self.name = part.name
        self.top = part.top if args.top is None else args.top
        self.weight = part.weight if args.weight is None else args.weight
        self._encoding, self._costs = encoding, costs

    @classmethod
    def of(
        cls, bundle: Bundle, args: RerankArgs, encoding: Encoding, costs: Costs
    ) -> Reranker | None:
        """That of a bundle; None: it has none, or none is wanted."""
        if bundle.reranking is None or args.top == 0:
            return None
        return cls(bundle.reranking, args, encoding, costs)

    def rerank(self, ranking: Ranking, ask: Ask) -> bool:
        """Change the scores of the best few, which stay the best few; whether it did.

        Not where time is too short for what it took lately: then it is among `ranking.reasons`. A
        ranking that holds what it said once is not asked about again.
        """
        if ask.text is None or ask.surface not in ("search", "rank") or not self.top:
            return False
        if len(ranking.pool.items) < 2 or self.name in ranking.reasons:
            return False
        if ranking.reranked is None:
            try:
                ranking.reranked = self._said(ranking, ask.text, ask.until)
            except UnavailableError as why:
                ranking.reasons[self.name] = str(why)
            except Exception:
                log.exception("%s failed; the order stays as it is", self.name)
                ranking.reasons[self.name] = "failed"
        if ranking.reranked is None:
            return False
        ranking.scores = blended(ranking.scores, ranking.reranked, self.weight)
        return True

    def _said(self, ranking: Ranking, query: str, until: float) -> Float32:
        best = np.argsort(-ranking.scores, kind="stable")[: self.top]
        if not Clock(until, self._costs, len(best)).allows(RERANK):
            raise UnavailableError("deadline")
        began = time.perf_counter()
        try:
            said = self._encoding.pairs(query, ranking.pool.items[best], until - began)
        except WaitedError:  # it takes as long, or longer
            self._costs.took(RERANK, len(best), time.perf_counter() - began)
            raise
        self._costs.took(RERANK, len(best), time.perf_counter() - began)
        if not np.isfinite(said).all():
            raise UnavailableError("not finite")
        reranked = np.full(len(ranking.pool.items), np.nan, dtype=np.float32)
        reranked[best] = said
        return reranked


def blended(scores: Float32, reranked: Float32, weight: float) -> Float32:
    """Scores of which those of the reranked items are mixed with what was said of them.

    Both are put between 0 and 1 among these items first; the mixture takes the place between the
    lowest and the highest score that they had, so that none falls behind the others.

    Args:
        scores: float32[n].
        reranked: float32[n], NaN for items that were not looked at.
        weight: of `reranked`, 0 to 1.
    """
    best = np.flatnonzero(~np.isnan(reranked))
    if not len(best):
        return scores
    held = scores[best]
    low, span = held.min(), held.max() - held.min()
    both = (1 - weight) * _unit(held) + weight * _unit(reranked[best])
    mixed = scores.copy()
    mixed[best] = low + (span or np.float32(1)) * both
    return mixed


def _unit(values: Float32) -> Float32:
    """0 for the least, 1 for the most; all 0 where they are the same."""
    span = values.max() - values.min()
    return (values - values.min()) / span if span else np.zeros_like(values)
