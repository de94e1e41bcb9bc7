"""The answers behind the HTTP routes: loads a bundle, warms it up, turns rankings into answers."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from raysys.catalogue import Catalogue
from raysys.registry import Bundle, Registry
from raysys.serving.api import (
    Explanation,
    Filters,
    ListAnswer,
    ListedItem,
    RankRequest,
    Readiness,
    RecommendRequest,
    SearchRequest,
    Why,
)
from raysys.serving.args import ServeArgs
from raysys.serving.problems import FieldError, Problem, invalid
from raysys.serving.profile import Profile, profile_of
from raysys.serving.ranker import ABOUT_ITEMS, Ask, Mask, Ranker, Ranking
from raysys.serving.text import TextService

log = logging.getLogger("raysys")
T = TypeVar("T")


class Service:
    """One replica's state.

    Args:
        args: the deployment's.

    Raises:
        UserError: no such bundle, or a damaged one.
    """

    def __init__(self, args: ServeArgs) -> None:
        self.args = args
        self._bundle: Bundle | None = None
        if args.bundle is not None:
            self._bundle = Registry(args.registry_path).load(args.pinned or args.bundle)
            self.ranker = Ranker(self._bundle, args)
        self.text = TextService(args)
        self.loaded_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.ready = False
        self._pool = ThreadPoolExecutor(args.threads, thread_name_prefix="answer")

    @property
    def bundle(self) -> Bundle:
        """The bundle that ranks.

        Raises:
            Problem: 404, the deployment serves text tasks only.
        """
        if self._bundle is None:
            detail = "this deployment serves text tasks only: name a bundle that ranks in the "
            raise Problem(404, "no-ranking", f"{detail}args of the serve config, and deploy it")
        return self._bundle

    @property
    def catalogue(self) -> Catalogue:
        """Its items."""
        return self.bundle.features.catalogue

    def warm_up(self) -> None:
        """Answer real requests, so that the first user does not pay for compiling and caching."""
        self.text.warm_up()
        if self._bundle is not None:
            self._warm_up_ranking()
        self.ready = True

    def _warm_up_ranking(self) -> None:
        began = time.perf_counter()
        users = self.bundle.features.users[:3]
        text = next((text for text in self.catalogue.texts if text), "warm")
        without_deadline = float("inf")  # arrived later than any deadline: nobody is left out
        for user_id in [*users, "a stranger"]:
            asked = RecommendRequest(user_id=user_id, k=1)
            self.recommend(asked, without_deadline)
            query = text.split(",")[0][:100] or "warm"
            self.search(SearchRequest(query=query, user_id=user_id, k=1), without_deadline)
        log.info("%s warmed up in %.1f s", self.bundle.id, time.perf_counter() - began)

    async def run(self, work: Callable[[], T]) -> T:
        """Do blocking work off the event loop, at most `threads` pieces at once."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def readiness(self) -> Readiness:
        """What answers here.

        Raises:
            Problem: 503, not warmed up yet.
        """
        if not self.ready:
            raise Problem(503, "not-ready", "the bundle is still warming up", retry_after_s=1)
        texts = {task: bundle.id for task, bundle in self.text.bundles.items()}
        if self._bundle is None:
            return Readiness(loaded_at=self.loaded_at, text=texts)
        features = self.bundle.features
        return Readiness(
            text=texts,
            bundle=self.bundle.id,
            arm=self.args.bundle,
            surface=self.bundle.manifest.surface,
            learners=list(self.bundle.learners),
            items=len(self.catalogue),
            users=features.n_users,
            as_of=features.as_of,
            loaded_at=self.loaded_at,
        )

    def recommend(self, asked: RecommendRequest, arrived: float) -> ListAnswer:
        """Answer POST /v1/recommend.

        Raises:
            Problem: k out of range; nothing in view that the shop knows.
        """
        self._check_k(asked.k)
        seeds, unknown = self._known(asked.item_ids)
        if asked.place in ABOUT_ITEMS and not len(seeds):
            raise self._unknown_items(asked.item_ids)
        user = self._user(asked.user_id)
        ask = Ask(
            user=user,
            k=asked.k,
            arrived=arrived,
            seeds=seeds,
            place=asked.place,
            allowed=self._allowed(asked.filters),
            session=self._session(user, asked.session_id),
        )
        ranking = self.ranker.recommend(ask)
        return self._answer(ranking, ask, asked.explain, unknown, surface="recommend")

    def search(self, asked: SearchRequest, arrived: float) -> ListAnswer:
        """Answer POST /v1/search.

        Raises:
            Problem: k out of range.
        """
        self._check_k(asked.k)
        user = self._user(asked.user_id)
        ask = Ask(
            user=user,
            k=asked.k,
            arrived=arrived,
            place="search",
            allowed=self._allowed(asked.filters),
            session=self._session(user, asked.session_id),
            query=self.bundle.features.query_number(asked.query),
        )
        ranking = self.ranker.search(asked.query, ask)
        return self._answer(ranking, ask, asked.explain, [], surface="search")

    def rank(self, asked: RankRequest, arrived: float) -> ListAnswer:
        """Answer POST /v1/rank; unknown items come last, without a score.

        Raises:
            Problem: the shop knows none of the items.
        """
        items, unknown = self._known(asked.item_ids)
        if not len(items):
            raise self._unknown_items(asked.item_ids)
        user = self._user(asked.user_id)
        ask = Ask(
            user=user,
            k=len(items),
            arrived=arrived,
            place="rank",
            session=self._session(user, asked.session_id),
            query=self.bundle.features.query_number(asked.query),
        )
        ranking = self.ranker.rank(items, asked.query, ask)
        answer = self._answer(ranking, ask, asked.explain, unknown, surface=None)
        answer.items += [
            ListedItem(item_id=item_id, score=None, position=position)
            for position, item_id in enumerate(unknown, start=len(items) + 1)
        ]
        return answer

    def profile(self, user_id: str) -> Profile:
        """Answer GET /v1/users/{id}/profile.

        Raises:
            Problem: nothing is known of the user.
        """
        try:
            return profile_of(self.bundle.features, user_id, self.ranker.now(), self.bundle.id)
        except KeyError:
            error = FieldError(path="path.user_id", message="no such user", value=user_id[:80])
            detail = "nothing is known of this user: no event of theirs is in the log"
            raise Problem(404, "unknown-user", detail, [error]) from None

    def _answer(
        self,
        ranking: Ranking,
        ask: Ask,
        explain: bool,
        unknown: list[str],
        *,
        surface: str | None,
    ) -> ListAnswer:
        ids = self.catalogue.ids[ranking.items]
        listed = [
            ListedItem(
                item_id=item_id,
                score=round(float(ranking.scores[at]), 6),
                position=position,
                why=_why(ranking, int(at)) if explain else None,
            )
            for position, (item_id, at) in enumerate(zip(ids, ranking.shown, strict=True), start=1)
        ]
        return ListAnswer(
            request_id=uuid.uuid4().hex,
            items=listed,
            bundle=self.bundle.id,
            arm=self.args.bundle or "",
            degraded=bool(ranking.left_out),
            left_out=ranking.left_out,
            cold_start=ask.user < 0,
            unknown_item_ids=unknown,
            took_ms=round(max(0.0, (time.perf_counter() - ask.arrived) * 1000), 2),
            explanation=self._explain(ranking, ask, surface) if explain else None,
        )

    def _explain(self, ranking: Ranking, ask: Ask, surface: str | None) -> Explanation:
        policy = self.ranker.policies[surface].args.model_dump() if surface else {}
        combination = self.bundle.ensemble.fallbacks.get(ranking.fallback)
        shares = combination.share if combination else {}
        return Explanation(
            place=ask.place,
            timestamp=ranking.timestamp,
            n_candidates=len(ranking.pool.items),
            fallback=ranking.fallback,
            weights={name: round(share, 4) for name, share in shares.items()},
            policy=policy,
            milliseconds=ranking.milliseconds,
        )

    def _check_k(self, k: int) -> None:
        if k > self.args.k_max:
            raise invalid("body.k", f"must be from 1 to {self.args.k_max}", k)

    def _user(self, user_id: str | None) -> int:
        return -1 if user_id is None else self.bundle.features.user_number(user_id)

    def _session(self, user: int, session_id: str | None) -> int:
        return self.bundle.features.sessions.number(user, session_id)

    def _known(self, item_ids: Sequence[str]) -> tuple[np.ndarray, list[str]]:
        """Numbers of the known items, each once, in order: int32[m]; and the unknown ids."""
        numbers = {item_id: self.catalogue.number(item_id) for item_id in item_ids}
        known = [number for number in numbers.values() if number is not None]
        unknown = [item_id for item_id, number in numbers.items() if number is None]
        return np.array(known, dtype=np.int32), unknown

    def _unknown_items(self, item_ids: Sequence[str]) -> Problem:
        errors = [
            FieldError(path=f"body.item_ids.{i}", message="no such item", value=item_id[:80])
            for i, item_id in enumerate(item_ids[:20])
        ]
        detail = f"the catalogue of bundle {self.bundle.id} has none of the items"
        return Problem(404, "unknown-item", detail, errors)

    def _allowed(self, filters: Filters | None) -> Mask | None:
        if filters is None:
            return None
        given = filters.model_dump(exclude_none=True)
        low, high = given.pop("min_price", 0.0), given.pop("max_price", np.inf)
        return self.ranker.filter(given, low, high)


def _why(ranking: Ranking, at: int) -> Why:
    """What led to one candidate's place."""
    ensemble = ranking.ensemble
    features: dict[str, float | None] = {}
    if ranking.batch is not None:
        row = ranking.batch.features[at]
        features = {
            name: round(float(value), 6) if np.isfinite(value) else None
            for name, value in zip(ranking.batch.names, row, strict=True)
        }
    return Why(
        sources=ranking.pool.sources_of(at),
        base_scores={name: round(float(s[at]), 6) for name, s in ranking.base.items()},
        ensemble_score=round(float(ensemble.score[at]), 6) if ensemble else None,
        probability=round(float(ensemble.probability[at]), 6) if ensemble else None,
        relevance=None if ranking.relevance is None else round(float(ranking.relevance[at]), 6),
        features=features,
    )
