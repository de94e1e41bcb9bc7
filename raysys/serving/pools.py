"""Candidates of one request, by surface: sources asked within what may be shown, and merged."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator

import numpy as np

from raysys.features.live import LiveFeatures
from raysys.learners.protocol import Float32
from raysys.registry import Bundle
from raysys.retrieval.allowed import first_of
from raysys.retrieval.merge import Candidates
from raysys.retrieval.search import SOURCES, Found
from raysys.retrieval.segments import Part, Segments, favourites
from raysys.serving.args import ServeArgs
from raysys.serving.asking import ABOUT_ITEMS, Ask, Int32, Ranking
from raysys.serving.members import Clock, Costs

log = logging.getLogger("raysys")

MEANING = "meaning"
"""The search by vectors, which a deadline or a fault may leave out as a learner may be."""


_AT_ONCE = 1_000_000


class Pools:
    """Finds candidates in one bundle; safe to use from several threads.

    Args:
        bundle: loaded and verified.
        args: the deployment's.
        costs: what stages take.
    """

    def __init__(self, bundle: Bundle, args: ServeArgs, costs: Costs) -> None:
        self._features, self._search = bundle.features, bundle.search
        self._args, self._costs = args, costs
        popularity = self._features.popularity_at(self._features.as_of).astype(np.float32)
        self._by_popularity: Int32 = np.argsort(-popularity, kind="stable").astype(np.int32)
        self._search.set_prior(popularity)
        self._segments = _segments(self._features)
        self._nothing: Int32 = np.empty(0, np.int32)

    def with_args(self, args: ServeArgs) -> Pools:
        """The same by other arguments of its lists."""
        other = copy.copy(self)
        other._args = args
        return other

    def of(self, ask: Ask, pins: list[int]) -> Ranking:
        """The candidates, not scored yet; pinned items that may be shown are among them.

        Args:
            ask: what is asked for.
            pins: items that have a place of their own.
        """
        find = {
            "recommend": self._recommend,
            "search": self._of_query,
            "similar": self._similar,
            "rank": self._rank,
        }
        ranking = find[ask.surface](ask)
        missing = [item for item in pins if item not in ranking.pool.items]
        if ask.allowed is not None:
            missing = [item for item in missing if ask.allowed.items[item]]
        if missing:
            ranking.pool = _add(ranking.pool, np.array(missing, np.int32), "pinned")
            if ranking.relevance is not None:
                none = np.zeros(len(missing), np.float32)
                ranking.relevance = np.concatenate([ranking.relevance, none])
        return ranking

    def _recommend(self, ask: Ask) -> Ranking:
        pool = self._features.candidates(
            ask.user,
            ask.now,
            seeds=ask.seeds if len(ask.seeds) else None,
            allowed=ask.allowed,
        )
        order = np.arange(len(pool.items))
        if ask.place in ABOUT_ITEMS:  # a cut must not cost what the list is about
            near = goes_with(pool)
            order = np.concatenate([order[near], order[~near]])
        pool = _take(pool, order[: max(self._args.recommend.candidates, ask.k)])
        alike = self._segments.top(ask.user, ask.allowed) if self._segments else self._nothing
        for source, best in (("segment", alike), ("fill", self._by_popularity)):
            missing = ask.k - len(pool.items)
            if missing > 0 and len(best):
                taken = np.concatenate([pool.items, ask.seeds])
                more = first_of(best, missing, ask.allowed, taken)
                pool = _add(pool, more, source) if len(more) else pool
        return Ranking(pool, ask.now)

    def _of_query(self, ask: Ask) -> Ranking:
        assert ask.text is not None
        limit = max(self._args.search.candidates, ask.k)
        reasons: dict[str, str] = {}
        found = None
        by_meaning = self._search.vectors is not None
        if by_meaning and not Clock(ask.until, self._costs, 1).allows(MEANING):
            by_meaning, reasons[MEANING] = False, "deadline"
        if by_meaning:
            began = time.perf_counter()
            try:
                found = self._search.find(ask.text, limit, ask.allowed)
                self._costs.took(MEANING, 1, time.perf_counter() - began)
            except Exception:
                log.exception("no search by meaning; answering by words")
                reasons[MEANING] = "failed"
        if found is None:
            found = self._search.find(ask.text, limit, ask.allowed, meaning=False)
        return self._found(found, ask, reasons)

    def _similar(self, ask: Ask) -> Ranking:
        item = int(ask.seeds[0])
        args, features = self._args.similar, self._features
        near = features.covisitation.near(ask.seeds, args.candidates)[0]
        limit = max(args.candidates, ask.k)
        text = features.catalogue.texts[item]
        return self._found(self._search.similar(item, text, near, limit, ask.allowed), ask, {})

    def _rank(self, ask: Ask) -> Ranking:
        pool = Candidates(ask.seeds, np.ones(len(ask.seeds), np.uint8), ("caller",))
        if ask.text is None:
            return Ranking(pool, ask.now)
        reasons: dict[str, str] = {}
        relevance: Float32 | None = None
        if Clock(ask.until, self._costs, 1).allows(MEANING):
            try:
                relevance = self._search.relevance(ask.text, ask.seeds)
            except Exception:
                log.exception("no search by meaning; answering by words")
                reasons[MEANING] = "failed"
        else:
            reasons[MEANING] = "deadline"
        if relevance is None:
            relevance = self._search.relevance(ask.text, ask.seeds, meaning=False)
        return Ranking(pool, ask.now, relevance=relevance, reasons=reasons)

    @staticmethod
    def _found(found: Found, ask: Ask, reasons: dict[str, str]) -> Ranking:
        pool = Candidates(found.items, found.sources, SOURCES)
        return Ranking(pool, ask.now, relevance=found.relevance, reasons=reasons)


def _segments(features: LiveFeatures) -> Segments | None:
    """Users by their favourite category, where the plan keeps it."""
    if "user_category" not in features.tables:
        return None
    segment = favourites(_taken(features, "user_category"), features.n_users)
    return Segments(segment, _taken(features, "user_item"), len(features.catalogue))


def _taken(features: LiveFeatures, name: str) -> Iterator[Part]:
    """Users, the second part of the key, and the longest-lived count, of a table's records."""
    table = features.tables[name]
    for start in range(0, len(table), _AT_ONCE):
        records = np.arange(start, min(start + _AT_ONCE, len(table)))
        counts = table.read(records, features.as_of).counts[-1]
        yield table.keys[records] // table.fan, table.second(records), counts


def goes_with(pool: Candidates) -> np.ndarray:
    """Which candidates are bought together with the items in view: bool[n]."""
    bit = 1 << pool.names.index("covisitation")
    mask: np.ndarray = pool.sources & bit > 0
    return mask


def _take(pool: Candidates, positions: np.ndarray) -> Candidates:
    return Candidates(pool.items[positions], pool.sources[positions], pool.names)


def _add(pool: Candidates, items: Int32, source: str) -> Candidates:
    """The pool and more items behind it, from a source of their own."""
    bit = np.uint8(1 << len(pool.names))
    return Candidates(
        np.concatenate([pool.items, items]),
        np.concatenate([pool.sources, np.full(len(items), bit, np.uint8)]),
        (*pool.names, source),
    )
