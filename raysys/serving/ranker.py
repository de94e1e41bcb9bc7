"""One answer: candidates → features → learners → ensemble → policy. No HTTP, no Ray."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from raysys.learners.protocol import Float32
from raysys.registry import Bundle
from raysys.serving.args import ServeArgs
from raysys.serving.asking import ABOUT_ITEMS, Ask, Ranking, Watch
from raysys.serving.encoding import Encoding, Here
from raysys.serving.members import FEATURES, FINISH, Clock, Costs, base_scores
from raysys.serving.policy import Arrangement, Policy, PolicyArgs
from raysys.serving.pools import Pools, goes_with
from raysys.serving.reranking import Reranker

_COST = {"baseline": 0, "tree": 1, "transformer": 2}
"""Cheap families score first, so that a deadline costs the dear ones."""


class Ranker:
    """Answers from one bundle; safe to use from several threads.

    Args:
        bundle: loaded and verified.
        args: the deployment's.
        encoding: its transformers; None: in this process.
    """

    def __init__(self, bundle: Bundle, args: ServeArgs, encoding: Encoding | None = None) -> None:
        self.bundle, self.args = bundle, args
        self.encoding = encoding or Here(bundle)
        self.features = bundle.features
        self.costs = Costs()
        self.policies = self._policies(args)
        self.pools = Pools(bundle, args, self.costs, self.encoding)
        self._reranker = Reranker.of(bundle, args.search.rerank, self.encoding, self.costs)
        cost = {name: _COST.get(family, 1) for name, family in bundle.families.items()}
        self._learners = sorted(bundle.learners, key=lambda name: cost[name])

    def with_args(self, args: ServeArgs) -> Ranker:
        """The same by other arguments of its lists; all that is costly is shared."""
        other = copy.copy(self)
        other.args, other.policies = args, self._policies(args)
        other.pools = self.pools.with_args(args)
        other._reranker = Reranker.of(self.bundle, args.search.rerank, self.encoding, self.costs)
        return other

    def _policies(self, args: ServeArgs) -> dict[str, Policy]:
        policies = {name: args.of(name).policy for name in ("recommend", "search", "similar")}
        policies["rank"] = PolicyArgs()  # all of them are wanted back
        catalogue = self.features.catalogue
        return {
            name: Policy(policy, catalogue, self.bundle.search) for name, policy in policies.items()
        }

    def now(self) -> int:
        """UTC ms at which features are read, by the deployment's clock."""
        if self.args.clock == "log_end":
            return self.features.as_of
        return max(time.time_ns() // 1_000_000, self.features.as_of)

    def scored(self, ask: Ask) -> Ranking:
        """The candidates and their scores; what the policy has to say comes with `arrange`."""
        watch = Watch()
        pins = self.policies[ask.surface].pins(ask.at, ask.text)
        ranking = self.pools.of(ask, list(pins.values()))
        watch.lap("candidates")
        watch.laps |= ranking.milliseconds
        ranking.milliseconds = watch.laps
        return self.scores(ranking, ask, watch)

    def scores(self, ranking: Ranking, ask: Ask, watch: Watch | None = None) -> Ranking:
        """The same candidates with scores, by those learners that `ranking` does not leave out.

        Args:
            ranking: a pool; with a batch the features are not read again.
            ask: what is asked for.
            watch: of the stages.
        """
        watch = watch or Watch()
        if len(ranking.pool.items):
            self._score(ranking, ask, watch)
        ranking.scores = self._final(ranking, ask)
        self.costs.took(FINISH, len(ranking.pool.items), watch.lap("ensemble"))
        if self._reranker is not None and self._reranker.rerank(ranking, ask):
            watch.lap("rerank")
        ranking.milliseconds = watch.laps
        return ranking

    def arrange(self, ranking: Ranking, ask: Ask) -> Arrangement:
        """The list to show of scored candidates."""
        return self.policies[ask.surface].arrange(
            ranking.pool.items,
            ranking.scores,
            ask.k,
            now=ask.at,
            query=ask.text,
            seed=ask.seed,
        )

    def _score(self, ranking: Ranking, ask: Ask, watch: Watch) -> None:
        """Fill in features, base scores and what the ensemble makes of them."""
        items = ranking.pool.items
        clock = Clock(ask.until, self.costs, len(items), (FINISH,))
        order = [name for name in self._learners if name not in ranking.reasons]
        batch = ranking.batch
        if batch is None:
            vectors = self.pools.query_vectors(ask, ranking)
            watch.skip()
            if not clock.allows(FEATURES):
                ranking.reasons |= dict.fromkeys(order, "deadline")
                return
            batch = self.features.batch(
                *(ask.user, items, ranking.timestamp),
                session=ask.session,
                query=ask.query,
                query_vectors=vectors,
            )
            about = ask.seeds if ask.surface in ("recommend", "similar") else ()
            if len(about) and not self.features.met(ask.user):
                # all that is known of a stranger is what they look at
                batch = replace(batch, history=[ask.seeds])
            if ranking.encoded is not None:
                batch = replace(batch, encoded=ranking.encoded)
            self.costs.took(FEATURES, len(items), watch.lap(FEATURES))
        if ask.text is not None:
            batch = replace(batch, queries=[ask.text])
        ranking.batch = batch
        ranking.base = base_scores(
            *(self.bundle.learners, order, batch, clock, self.costs, ranking.reasons, watch.laps)
        )
        watch.skip()
        if ranking.base:
            ranking.ensemble = self.bundle.ensemble.score(ranking.base, batch.offsets, batch)
            ranking.fallback = ranking.ensemble.fallback

    def _final(self, ranking: Ranking, ask: Ask) -> Float32:
        """float32[n]: relevance and taste, as the surface weighs them."""
        if ask.surface == "similar":
            weights = self.args.similar
            scores = _mixed(ranking, weights.similarity_weight, weights.personal_weight)
            if ranking.relevance is not None:  # what only fills the list comes after what is alike
                scores[ranking.relevance == 0] -= weights.personal_weight
            return scores
        if ranking.relevance is not None:
            search = self.args.search
            return _mixed(ranking, search.relevance_weight, search.personal_weight)
        scores = _personal(ranking)
        if ask.place in ABOUT_ITEMS and len(scores) and ask.surface == "recommend":
            # beside an item or a cart belongs what goes with it, before what the user likes
            span = scores.max() - scores.min() + 1
            scores = np.where(goes_with(ranking.pool), scores, scores - span).astype(np.float32)
        return scores


def _mixed(ranking: Ranking, relevance_weight: float, personal_weight: float) -> Float32:
    """Relevance and the user's taste, each 0 to 1, weighed: float32[n]."""
    relevance = ranking.relevance
    assert relevance is not None  # only where there is a query or an item
    if ranking.ensemble is None:
        return (relevance_weight * relevance).astype(np.float32)
    taste = ranking.ensemble.score
    span = float(taste.max() - taste.min())
    personal = (taste - taste.min()) / span if span else np.zeros_like(taste)
    mixed = relevance_weight * relevance + personal_weight * personal
    return mixed.astype(np.float32)


def _personal(ranking: Ranking) -> Float32:
    """The ensemble's scores, float32[n]; without one, scores that keep the order of retrieval."""
    if ranking.ensemble is not None:
        return ranking.ensemble.score
    return (1.0 / np.arange(1, len(ranking.pool.items) + 1)).astype(np.float32)


def shares(ranking: Ranking, bundle: Bundle) -> Mapping[str, float]:
    """How much each learner counted in a ranking, in parts of 1."""
    combination = bundle.ensemble.fallbacks.get(ranking.fallback)
    return combination.share if combination else {}
