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
from raysys.serving.encoding import Encoding, UnavailableError, WaitedError
from raysys.serving.members import FEATURES, FINISH, Clock, Costs
from raysys.serving.query_vectors import QueryVectors
from raysys.serving.transformer import Encoded

log = logging.getLogger("raysys")

MEANING = "meaning"
"""The search by vectors, which a deadline or a fault may leave out as a learner may be."""

SESSION = "session"
"""The encoding of what a user last took: the learner that reads it, and what it proposes."""

TRANSFORMER = "transformer"
"""Both, of another process, in one call."""

NEXT_ITEM = "next_item"
"""The source of candidates that a learner of sequences is."""

QUERY_VECTORS = "query_vectors"
"""The vectors of a query that the log never had, which features compare items with."""

RETRIEVAL = "retrieval"
"""All sources of a surface, without what transformers take."""

_SLACK = 1.25  # stages one after the other; and what lies between them
_LEAST_S = 0.01  # a thread that waits is not woken to the millisecond

_HISTORY = 30  # as many as `LiveFeatures.batch` gives a learner
_AT_ONCE = 1_000_000


class Pools:
    """Finds candidates in one bundle; safe to use from several threads.

    Args:
        bundle: loaded and verified.
        args: the deployment's.
        costs: what stages take.
        encoding: the bundle's transformers.
    """

    def __init__(self, bundle: Bundle, args: ServeArgs, costs: Costs, encoding: Encoding) -> None:
        self._features, self._search = bundle.features, bundle.search
        self._args, self._costs = args, costs
        self._encoding, self._sequence = encoding, bundle.session_encoder
        cheap = [name for name, family in bundle.families.items() if family != "transformer"]
        self._afterwards = (FEATURES, *cheap, FINISH)
        popularity = self._features.popularity_at(self._features.as_of).astype(np.float32)
        self._by_popularity: Int32 = np.argsort(-popularity, kind="stable").astype(np.int32)
        self._search.set_prior(popularity)
        self._segments = _segments(self._features)
        self._nothing: Int32 = np.empty(0, np.int32)
        self._compared = QueryVectors(bundle)

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
        began = time.perf_counter()
        ranking = find[ask.surface](ask)
        ranking.filled_for = ask.k
        spent = time.perf_counter() - began - ranking.milliseconds.get("encode", 0.0) / 1000
        self._costs.took(RETRIEVAL, 1, spent)
        missing = [item for item in pins if item not in ranking.pool.items]
        if ask.surface != "rank":  # no list is about an item and shows it
            missing = [item for item in missing if item not in ask.seeds]
        if ask.allowed is not None:
            missing = [item for item in missing if ask.allowed.items[item]]
        if missing:
            ranking.pool = _add(ranking.pool, np.array(missing, np.int32), "pinned")
            if ranking.relevance is not None:
                none = np.zeros(len(missing), np.float32)
                ranking.relevance = np.concatenate([ranking.relevance, none])
        return ranking

    def _recommend(self, ask: Ask) -> Ranking:
        size = self._args.recommend.next_item
        histories = self._histories(ask) if size or self._encoding.remote else []
        found = Ranking(_NONE, ask.now)
        encoded = self._encode(ask, [], histories, self._args.recommend.candidates, found)
        pool = self._features.candidates(
            ask.user,
            ask.now,
            seeds=ask.seeds if len(ask.seeds) else None,
            allowed=ask.allowed,
            more=self._next_items(ask, histories, encoded, size, found),
        )
        order = np.arange(len(pool.items))
        if ask.place in ABOUT_ITEMS:  # a cut must not cost what the list is about
            near = goes_with(pool)
            order = np.concatenate([order[near], order[~near]])
        pool = _take(pool, order[: max(self._args.recommend.candidates, ask.k)])
        found.pool = self._filled(pool, ask)
        return found

    def _filled(self, pool: Candidates, ask: Ask) -> Candidates:
        """The pool; where it is too short, behind it what those alike buy, and whatever sells."""
        if len(pool.items) >= ask.k:
            return pool
        alike = self._segments.top(ask.user, ask.allowed) if self._segments else self._nothing
        for source, best in (("segment", alike), ("fill", self._by_popularity)):
            missing = ask.k - len(pool.items)
            if missing > 0 and len(best):
                taken = np.concatenate([pool.items, ask.seeds])
                more = first_of(best, missing, ask.allowed, taken)
                pool = _add(pool, more, source) if len(more) else pool
        return pool

    def _histories(self, ask: Ask) -> list[Int32]:
        """What the moment continues, newest first: for candidates, and as the learner reads it."""
        if self._sequence is None:
            return []
        own = self._features.history(ask.user, _HISTORY)
        if not len(ask.seeds) or ask.surface not in ("recommend", "similar"):
            return [own] if len(own) else []
        about = np.concatenate([ask.seeds, own[~np.isin(own, ask.seeds)]])[:_HISTORY]
        return [about, own if self._features.met(ask.user) else ask.seeds]

    def _next_items(
        self, ask: Ask, histories: list[Int32], encoded: Encoded, size: int, found: Ranking
    ) -> dict[str, Int32]:
        """What the learner of sequences proposes, by the name of that source."""
        if self._sequence is None or not histories or not size:
            return {}
        name, model = self._sequence
        if name in found.reasons:
            return {}
        if not Clock(ask.until, self._costs, 1).allows(NEXT_ITEM):
            found.reasons[NEXT_ITEM] = "deadline"
            return {}
        began = time.perf_counter()
        try:
            items, _ = model.propose(
                histories[0],
                size,
                allowed=None if ask.allowed is None else ask.allowed.items,
                encoded=None if encoded.sessions is None else encoded.sessions[0],
            )
        except Exception:
            log.exception("%s proposes nothing; answering without it", name)
            found.reasons[name] = "failed"
            return {}
        seconds = time.perf_counter() - began
        self._costs.took(NEXT_ITEM, 1, seconds)
        found.milliseconds["propose"] = round(seconds * 1000, 3)
        return {NEXT_ITEM: items}

    def _encode(
        self, ask: Ask, texts: list[str], histories: list[Int32], limit: int, found: Ranking
    ) -> Encoded:
        """What transformers make of query and histories, as far as the deadline allows.

        Args:
            ask: what is asked for.
            texts: the query, or nothing.
            histories: see `_histories`.
            limit: candidates that are to be scored afterwards.
            found: told who is left out and why, the learner's history, and milliseconds.
        """
        encoded = Encoded()
        sequence = self._sequence
        if sequence is None or not sequence[1].encodes_sessions:
            histories = []
        asked: list[tuple[str, list[str], list[Int32]]] = [
            (MEANING, texts, []),
            (SESSION, [], histories),
        ]
        compared = ""
        # time for a decent answer has to be left: without, every learner would come too late
        reserve = sum(self._costs.expected(name, limit) for name in self._afterwards)
        reserve = _SLACK * (reserve + self._costs.expected(RETRIEVAL, 1))
        if self._encoding.remote:
            asked = [(TRANSFORMER, texts, histories)]
            reserve += _LEAST_S
            compared = self._to_compare(ask, found)
        for step, some, several in asked:
            if not some and not several and not compared:
                continue
            members = [MEANING] * bool(some)
            if several and sequence is not None:
                members.append(sequence[0])
            members += [QUERY_VECTORS] * bool(compared)
            given = (some, several, [compared] if compared else [])
            made = self._ask(step, given, members, ask.until - reserve, found)
            if made is None:
                continue
            encoded = Encoded(
                made.queries if some else encoded.queries,
                made.sessions if several else encoded.sessions,
            )
            if made.compared is not None:
                found.query_vectors = self._compared.take(compared, made.compared[0])
        if encoded.sessions is not None:
            found.encoded = encoded.sessions[-1:]
        return encoded

    def _ask(
        self,
        step: str,
        given: tuple[list[str], list[Int32], list[str]],
        members: list[str],
        until: float,
        found: Ranking,
    ) -> Encoded | None:
        """One call of the transformers; None: `found` knows why `members` are left out.

        Args:
            step: what it is known by to those who reckon how long it takes.
            given: texts, histories and queries to compare with.
            members: who goes without where nothing comes of it.
            until: `time.perf_counter()` at which it has to be there.
            found: told so, and milliseconds.
        """
        texts, histories, compared = given
        began, made = time.perf_counter(), None
        try:
            if not Clock(until, self._costs, 1).allows(step):
                raise UnavailableError("deadline")
            made = self._encoding.encode(texts, histories, until - began, compared)
            self._costs.took(step, 1, time.perf_counter() - began)
        except UnavailableError as why:
            if isinstance(why, WaitedError):  # it takes as long, or longer
                self._costs.took(step, 1, time.perf_counter() - began)
            found.reasons |= dict.fromkeys(members, str(why))
        except Exception:
            log.exception("%s failed; answering without it", step)
            found.reasons |= dict.fromkeys(members, "failed")
        spent = (time.perf_counter() - began) * 1000
        lap = step if step == QUERY_VECTORS else "encode"  # which is a part of `candidates`
        found.milliseconds[lap] = round(found.milliseconds.get(lap, 0.0) + spent, 3)
        return made

    def query_vectors(self, ask: Ask, found: Ranking) -> dict[str, Float32]:
        """Those of a query that the log never had, float32[d] by the name of the plan's vectors.

        Args:
            ask: what is asked for.
            found: its candidates; told the vectors, or who is left out and why.

        Returns:
            Nothing where no feature asks for them, or they are not to be had in time.
        """
        text = self._to_compare(ask, found)
        if text:
            n = len(found.pool.items)
            reserve = sum(self._costs.expected(name, n) for name in (FEATURES, FINISH))
            given: tuple[list[str], list[Int32], list[str]] = ([], [], [text])
            until = ask.until - reserve
            made = self._ask(QUERY_VECTORS, given, [QUERY_VECTORS], until, found)
            if made is not None and made.compared is not None:
                found.query_vectors = self._compared.take(text, made.compared[0])
        return found.query_vectors or {}

    def _to_compare(self, ask: Ask, found: Ranking) -> str:
        """The normalised query that has to be encoded; empty: none, or it was, or could not be."""
        if found.query_vectors is not None or QUERY_VECTORS in found.reasons:
            return ""
        text = self._compared.text_of(ask)
        if text is not None:
            found.query_vectors = self._compared.known(text)
        return "" if text is None or found.query_vectors is not None else text

    def _of_query(self, ask: Ask) -> Ranking:
        assert ask.text is not None
        limit = max(self._args.search.candidates, ask.k)
        told = Ranking(_NONE, ask.now)
        vector = self._query(ask, limit, told)
        found = None
        if vector is not None:
            try:
                found = self._search.find(ask.text, limit, ask.allowed, vector=vector)
            except Exception:
                log.exception("no search by meaning; answering by words")
                told.reasons[MEANING] = "failed"
        if found is None:
            found = self._search.find(ask.text, limit, ask.allowed, meaning=False)
        return self._found(found, told)

    def _query(self, ask: Ask, limit: int, told: Ranking) -> Float32 | None:
        """The query's vector; None: there is none, and `told` knows why."""
        text = ask.text if self._search.vectors is not None else None
        known = None if text is None else self._search.remembered(text)
        texts = [text] if text is not None and known is None else []
        queries = self._encode(ask, texts, self._elsewhere(ask), limit, told).queries
        if text is not None and queries is not None:
            known = queries[0]
            self._search.remember(text, known)
        elif known is not None and time.perf_counter() > ask.until:  # no time to look by it
            known, told.reasons[MEANING] = None, "deadline"
        return known

    def _elsewhere(self, ask: Ask) -> list[Int32]:
        """The history as the learner reads it, where encoding is another process's: with a query
        it is one call, and nothing of it runs here."""
        return self._histories(ask)[-1:] if self._encoding.remote else []

    def _similar(self, ask: Ask) -> Ranking:
        item, features = int(ask.seeds[0]), self._features
        limit = max(self._args.similar.candidates, ask.k)
        near = features.covisitation.near(ask.seeds, limit, ask.allowed)[0]
        text = features.catalogue.text(item)
        told = Ranking(_NONE, ask.now)
        self._encode(ask, [], self._elsewhere(ask), limit, told)
        found = self._search.similar(item, text, near, limit, ask.allowed)
        told = self._found(found, told)
        told.pool = self._filled(told.pool, ask)
        like_none = np.zeros(len(told.pool.items) - len(found), np.float32)
        told.relevance = np.concatenate([found.relevance, like_none])
        return told

    def _rank(self, ask: Ask) -> Ranking:
        pool = Candidates(ask.seeds, np.ones(len(ask.seeds), np.uint8), ("caller",))
        told = Ranking(pool, ask.now)
        vector = self._query(ask, len(ask.seeds), told)
        if ask.text is None:
            return told
        if vector is not None:
            try:
                told.relevance = self._search.relevance(ask.text, ask.seeds, vector=vector)
            except Exception:
                log.exception("no search by meaning; answering by words")
                told.reasons[MEANING] = "failed"
        if told.relevance is None:
            told.relevance = self._search.relevance(ask.text, ask.seeds, meaning=False)
        return told

    @staticmethod
    def _found(found: Found, told: Ranking) -> Ranking:
        told.pool = Candidates(found.items, found.sources, SOURCES)
        told.relevance = found.relevance
        return told


_NONE = Candidates(np.empty(0, np.int32), np.empty(0, np.uint8), ())


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
