"""One answer: candidates → features → learners → ensemble → policy. No HTTP, no Ray."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from raysys.ensemble import EnsembleScores
from raysys.features.batch import Batch
from raysys.learners.protocol import Float32
from raysys.registry import Bundle
from raysys.retrieval.merge import Candidates
from raysys.serving.args import ServeArgs
from raysys.serving.policy import Policy

log = logging.getLogger("raysys")

Int32 = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

_COST = {"baseline": 0, "tree": 1, "transformer": 2}
"""Cheap families score first, so that a deadline costs the dear ones."""

ABOUT_ITEMS = ("item", "cart")
"""Places whose lists go with the items in view."""


@dataclass(frozen=True)
class Ask:
    """What an answer is asked for.

    Attributes:
        user: number, -1 for an unknown one.
        k: length of the list.
        arrived: when the request did, `time.perf_counter()`.
        seeds: int32[m], known items in view.
        place: home, item or cart; search and rank for the other calls.
        allowed: bool[n_items], the only items that may be shown; None: all.
        session: number, -1 for none or an unknown one.
        query: number, -1 for none or one that the log never had.
    """

    user: int
    k: int
    arrived: float
    seeds: Int32 = field(default_factory=lambda: np.empty(0, np.int32))
    place: str = "home"
    allowed: Mask | None = None
    session: int = -1
    query: int = -1


@dataclass
class Ranking:
    """A ranked list and everything that led to it.

    Attributes:
        pool: the candidates, with their sources.
        shown: int[≤ k], positions in the pool, best first.
        scores: float32[n], final, of the whole pool.
        timestamp: UTC ms at which features were read.
        batch: features of the pool; None when it is empty.
        base: base scores by learner, float32[n].
        ensemble: what the ensemble made of them; None when nobody scored.
        relevance: float32[n] to the query, or None.
        left_out: learners that failed or missed the deadline.
        milliseconds: by stage.
    """

    pool: Candidates
    timestamp: int
    shown: npt.NDArray[np.intp] = field(default_factory=lambda: np.empty(0, np.intp))
    scores: Float32 = field(default_factory=lambda: np.empty(0, np.float32))
    batch: Batch | None = None
    base: dict[str, Float32] = field(default_factory=dict)
    ensemble: EnsembleScores | None = None
    relevance: Float32 | None = None
    left_out: list[str] = field(default_factory=list)
    milliseconds: dict[str, float] = field(default_factory=dict)

    @property
    def items(self) -> Int32:
        """The list: int32[≤ k]."""
        return self.pool.items[self.shown]

    @property
    def fallback(self) -> str:
        """Which combination of the ensemble answered; `retrieval` when none could."""
        return self.ensemble.fallback if self.ensemble else "retrieval"


class Ranker:
    """Answers from one bundle; safe to use from several threads.

    Args:
        bundle: loaded and verified.
        args: the deployment's.
    """

    def __init__(self, bundle: Bundle, args: ServeArgs) -> None:
        self.bundle, self.args = bundle, args
        self.features = bundle.features
        catalogue = self.features.catalogue
        self.policies = {
            "recommend": Policy.of(args.recommend.policy, catalogue),
            "search": Policy.of(args.search.policy, catalogue),
        }
        popularity = self._popularity()
        sold = np.argsort(-popularity, kind="stable").astype(np.int32)
        self._by_popularity: Int32 = sold
        bundle.search.set_prior(popularity)
        cost = {name: _COST.get(family, 1) for name, family in bundle.families.items()}
        self._learners = sorted(bundle.learners, key=lambda name: cost[name])

    def now(self) -> int:
        """UTC ms at which features are read, by the deployment's clock."""
        if self.args.clock == "log_end":
            return self.features.as_of
        return max(time.time_ns() // 1_000_000, self.features.as_of)

    def recommend(self, ask: Ask) -> Ranking:
        """A list for a user or a session."""
        watch, now = _Watch(), self.now()
        everything = self.features.candidates(
            ask.user, now, seeds=ask.seeds if len(ask.seeds) else None
        )
        pool = self._narrow(everything, ask)
        watch.lap("candidates")
        ranking = self._score(Ranking(pool, now), ask, watch)
        ranking.scores = _personal(ranking)
        if ask.place in ABOUT_ITEMS and len(pool.items):
            # beside an item or a cart belongs what goes with it, before what the user likes
            span = ranking.scores.max() - ranking.scores.min() + 1
            ranking.scores = np.where(_goes_with(pool), ranking.scores, ranking.scores - span)
        return self._choose(ranking, ask, "recommend", watch)

    def search(self, query: str, ask: Ask) -> Ranking:
        """A list for a query: what fits it, ordered by fit and by the user's taste."""
        watch, now = _Watch(), self.now()
        found = self.bundle.search.find(query, self.args.search.candidates, ask.allowed)
        sources = (found.by_words + 2 * found.by_meaning).astype(np.uint8)
        pool = Candidates(found.items, sources, ("words", "meaning"))
        kept = self._permitted("search", pool.items, ask)
        pool, relevance = _take(pool, kept), found.relevance[kept]
        watch.lap("candidates")
        ranking = self._score(Ranking(pool, now, relevance=relevance), ask, watch)
        ranking.scores = self._mix(ranking)
        return self._choose(ranking, ask, "search", watch)

    def rank(self, items: Int32, query: str | None, ask: Ask) -> Ranking:
        """The caller's own items, all of them, for a query or a user."""
        watch, now = _Watch(), self.now()
        pool = Candidates(items, np.ones(len(items), np.uint8), ("caller",))
        relevance = None if query is None else self.bundle.search.relevance(query, items)
        watch.lap("candidates")
        ranking = self._score(Ranking(pool, now, relevance=relevance), ask, watch)
        if relevance is not None:
            ranking.scores = self._mix(ranking)
        else:
            ranking.scores = _personal(ranking)
        # all of them are wanted back: the policy has nothing to leave out here
        ranking.shown = np.argsort(-ranking.scores, kind="stable")
        ranking.milliseconds = watch.laps
        return ranking

    def filter(self, columns: Mapping[str, Sequence[str]], low: float, high: float) -> Mask:
        """Items with one of the values of each column, and a price in the range: bool[n_items]."""
        allowed = np.ones(len(self.features.catalogue), dtype=bool)
        for name, wanted in columns.items():
            numbers = {label: code for code, label in enumerate(self.features.labels[name])}
            codes = [numbers[value] for value in wanted if value in numbers]
            allowed &= np.isin(self.features.codes[name], codes)
        if low > 0 or high < np.inf:
            price = self.features.statics["price"]
            allowed &= (price >= low) & (price <= high)  # NaN is in no range
        return allowed

    def _narrow(self, everything: Candidates, ask: Ask) -> Candidates:
        """The candidates that may be shown here; the popular fill up what would be too short."""
        kept = self._permitted("recommend", everything.items, ask)
        if ask.place in ABOUT_ITEMS:  # a cut must not cost what the list is about
            near = _goes_with(everything)[kept]
            kept = np.concatenate([kept[near], kept[~near]])
        pool = _take(everything, kept[: max(self.args.recommend.candidates, ask.k)])
        if len(pool.items) >= ask.k:
            return pool
        taken = np.concatenate([pool.items, ask.seeds])
        rest = self._by_popularity[~np.isin(self._by_popularity, taken)]
        fill = rest[self._permitted("recommend", rest, ask)][: ask.k - len(pool.items)]
        bit = 1 << len(pool.names)
        return Candidates(
            np.concatenate([pool.items, fill]),
            np.concatenate([pool.sources, np.full(len(fill), bit, np.uint8)]),
            (*pool.names, "fill"),
        )

    def _permitted(self, surface: str, items: Int32, ask: Ask) -> npt.NDArray[np.intp]:
        """Positions of the items that filter and policy let through."""
        policy = self.policies[surface]
        bought = np.empty(0, np.int32)
        if policy.args.exclude_bought:
            bought = self.features.history(ask.user, 10_000)
        mask = policy.allows(items, bought)
        if ask.allowed is not None:
            mask &= ask.allowed[items]
        return np.flatnonzero(mask)

    def _score(self, ranking: Ranking, ask: Ask, watch: _Watch) -> Ranking:
        """Fill in features, base scores and what the ensemble makes of them."""
        items = ranking.pool.items
        if not len(items):
            return ranking
        batch = self.features.batch(
            ask.user, items, ranking.timestamp, session=ask.session, query=ask.query
        )
        if ask.user < 0 and len(ask.seeds):  # all that is known of a stranger is what they look at
            batch = replace(batch, history=[ask.seeds])
        ranking.batch = batch
        watch.lap("features")
        deadline = (self.args.deadline_ms or np.inf) / 1000
        for name in self._learners:
            if time.perf_counter() - ask.arrived > deadline:
                ranking.left_out.append(name)
                continue
            try:
                scores = self.bundle.learners[name].score(batch)
            except Exception:  # the answer goes on without it, and says so
                log.exception("learner %s failed; answering without it", name)
                ranking.left_out.append(name)
            else:
                if np.isfinite(scores).all():
                    ranking.base[name] = scores
                else:
                    log.error("learner %s gave scores that are not finite", name)
                    ranking.left_out.append(name)
            watch.lap(name)
        if ranking.base:
            ranking.ensemble = self.bundle.ensemble.score(ranking.base, batch.offsets)
        watch.lap("ensemble")
        return ranking

    def _mix(self, ranking: Ranking) -> Float32:
        """Relevance to the query and the user's taste, each 0 to 1, by the deployment's weights."""
        relevance = ranking.relevance
        assert relevance is not None  # only called for queries
        weights = self.args.search
        if ranking.ensemble is None:
            return (weights.relevance_weight * relevance).astype(np.float32)
        taste = ranking.ensemble.score
        span = float(taste.max() - taste.min())
        personal = (taste - taste.min()) / span if span else np.zeros_like(taste)
        mixed = weights.relevance_weight * relevance + weights.personal_weight * personal
        return mixed.astype(np.float32)

    def _choose(self, ranking: Ranking, ask: Ask, surface: str, watch: _Watch) -> Ranking:
        ranking.shown = self.policies[surface].choose(ranking.pool.items, ranking.scores, ask.k)
        watch.lap("policy")
        ranking.milliseconds = watch.laps
        return ranking

    def _popularity(self) -> Float32:
        """Decayed purchases of every item at the end of the log: float32[n_items]."""
        table = self.features.tables["item"]  # every plan has it
        half_lives = self.features.plan.tables["item"].half_lives_days
        middle = sorted(range(len(half_lives)), key=lambda i: half_lives[i])[len(half_lives) // 2]
        counts = table.read(np.arange(len(table)), self.features.as_of).counts[middle]
        popularity = np.zeros(len(self.features.catalogue), np.float32)
        popularity[table.keys[: len(table)]] = counts
        return popularity


class _Watch:
    """Milliseconds between laps, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = round((now - self._last) * 1000, 3)
        self._last = now


def _take(pool: Candidates, positions: npt.NDArray[np.intp]) -> Candidates:
    return Candidates(pool.items[positions], pool.sources[positions], pool.names)


def _goes_with(pool: Candidates) -> Mask:
    """Which candidates are bought together with the items in view: bool[n]."""
    bit = 1 << pool.names.index("covisitation")
    return pool.sources & bit > 0


def _personal(ranking: Ranking) -> Float32:
    """The ensemble's scores, float32[n]; without one, scores that keep the order of retrieval."""
    if ranking.ensemble is not None:
        return ranking.ensemble.score
    return (1.0 / np.arange(1, len(ranking.pool.items) + 1)).astype(np.float32)
