"""The answers behind the HTTP routes: loads a bundle, warms it up, turns rankings into answers."""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from raysys.catalogue import Catalogue
from raysys.registry import Bundle, Registry
from raysys.serving import cache as caching
from raysys.serving import listing
from raysys.serving.api import Explanation, ListAnswer, Readiness
from raysys.serving.args import ServeArgs
from raysys.serving.asking import Ask, Context, Ranking, Watch
from raysys.serving.cache import Cache
from raysys.serving.drift import DriftWatch
from raysys.serving.encoding import There
from raysys.serving.events import EventService, open_events
from raysys.serving.experiments import with_arm
from raysys.serving.feedback import FeedbackWatch
from raysys.serving.filters import Permissions
from raysys.serving.intake import Intake, ListRequest, until, who_asks
from raysys.serving.metrics import Metrics
from raysys.serving.monitor import open_monitor
from raysys.serving.policy import Arrangement
from raysys.serving.problems import FieldError, Problem
from raysys.serving.profile import Profile, profile_of
from raysys.serving.ranker import Ranker
from raysys.serving.shown_lists import ShownLog
from raysys.serving.shown_row import Facts, row_of
from raysys.serving.stock import Stock
from raysys.serving.text import TextService
from raysys.serving.versions import Versions
from raysys.serving.warming import warm_ranking
from raysys.serving.why import explanation
from raysys.serving.workers import BACKGROUND, Workers

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

log = logging.getLogger("raysys")
T = TypeVar("T")
_VARIANTS = 256


class Service:
    """One replica's state.

    Args:
        args: the deployment's.
        on_ray: hand counts on to Ray's metrics.
        transformer: the deployment that reads texts and histories; None: they are read here.

    Attributes:
        versions: of what is known of users and sessions: who changes the state raises them.
        metrics: counts of what was answered, and how.
        heard: is told the events that the state has just counted; None: nobody is.
        drift: watches features and scores; None: nobody does.
        feedback: knows what came of the lists; None: nobody computes it here.

    Raises:
        UserError: no such bundle, or a damaged one.
    """

    def __init__(
        self,
        args: ServeArgs,
        *,
        on_ray: bool = False,
        transformer: DeploymentHandle[Any] | None = None,
    ) -> None:
        self.args = args
        self.metrics = Metrics(on_ray=on_ray)
        self.workers = Workers(args.threads, args.max_waiting)
        self._cache: Cache | None = None
        self._shown: ShownLog | None = None
        self.events: EventService | None = None
        self.drift: DriftWatch | None = None
        self.feedback: FeedbackWatch | None = None
        try:
            self._open(args, transformer)
        except BaseException:
            self.close()  # or its threads would hold the bundle in memory
            raise

    def _open(self, args: ServeArgs, transformer: DeploymentHandle[Any] | None) -> None:
        """Load the bundle, and begin all that goes on beside the answers."""
        self._arm: str | None = args.bundle
        self.versions = Versions()
        self.heard: Callable[[Sequence[dict[str, Any]]], None] | None = None
        lists = args.model_dump(mode="json", include={"recommend", "search", "similar", "stock"})
        self._variant = caching.key_of(lists)
        self._variants: dict[str, Service] = {}
        self._bundle: Bundle | None = None
        if args.bundle is not None:
            self._bundle = Registry(args.registry_path).load(args.pinned or args.bundle)
            encoding = None
            if args.transformer is not None and transformer is not None:
                encoding = There(transformer, self._bundle.id, args.transformer)
            self.ranker = Ranker(self._bundle, args, encoding)
            catalogue = self._bundle.features.catalogue
            stock = None if args.stock is None else Stock(args.stock, catalogue)
            self.permissions = Permissions(self._bundle.features, self.ranker.policies, stock)
        if args.cache is not None:
            self._cache = Cache(args.cache, self.metrics)
        self._settings = ""  # hash of the arguments by which shown lists are given again
        if args.shown_lists is not None and self._bundle is not None:
            self._shown = ShownLog(args.shown_lists, args.shown_lists_path, args, self.metrics)
            self._settings = self._shown.settings
        self.text = TextService(args)
        bundle = self._bundle
        live, name = (bundle.features, bundle.id) if bundle is not None else (None, "")
        self.events = open_events(args, live, name, self._counted)
        self._watch()
        if bundle is not None and args.monitor is not None:
            place = Registry(args.registry_path).bundles / bundle.id
            self.drift, self.feedback = open_monitor(
                args, place, len(bundle.features.catalogue), self.events, self.metrics
            )
        self.loaded_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self.ready = False

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

    def bump(self, user_id: str | None = None, session_id: str | None = None) -> None:
        """The state has counted an event of a user or session: their next list is made afresh.

        To be called after the state has changed, never before.
        """
        self.versions.bump(user_id, session_id)

    def _watch(self) -> None:
        """Have the state's gauges read."""
        if self._bundle is None:
            return
        features, events = self._bundle.features, self.events
        self._gauge("raysys_bundle", lambda: 1.0)
        self._gauge(
            "raysys_state_age_seconds", lambda: max(0.0, time.time() - features.as_of / 1000)
        )
        if events is not None and events.follower is not None:
            followed = events.follower.followed
            self._gauge("raysys_event_lag_seconds", lambda: followed.lag_ms / 1000)

    def _gauge(self, name: str, read: Callable[[], float]) -> None:
        """Have one read while the service goes by its name, and then say 0 once: another service
        of the replica may have the name again."""
        arm, said = self._arm, False

        def told() -> float | None:
            nonlocal said
            if self._arm == arm:
                return read()
            before, said = said, True
            return None if before else 0.0

        self.metrics.gauge(name, told, 0.0, bundle=self.bundle.id, arm=arm or "")

    def lose_name(self, name: str | None = None) -> None:
        """The name it was chosen by points at another bundle.

        Args:
            name: it goes by from now on, as an experiment needs it still; None: it ends soon.
        """
        self.heard, self._arm = None, name
        if name is not None:
            self.args = self.args.model_copy(update={"bundle": name})
            self._variants = {}  # they know it by the other name
            self._watch()
        if self.drift is not None:
            self.drift.stand_beside(name)
        if self.feedback is not None:
            self.feedback.stand_down()

    def _counted(self, events: Sequence[dict[str, Any]], position: int) -> None:
        """The state has counted events of the log, up to a place in it."""
        for event in events:
            self.bump(event["user_id"], event.get("session_id"))
        self.versions.state = f"log {position}"
        if self.heard is not None and events:
            self.heard(events)

    def warm_up(self) -> None:
        """Answer real requests, so that the first user does not pay for compiling and caching."""
        self.text.warm_up()
        if self.events is not None:
            self.events.start()  # answers begin with what happened since the bundle was trained
            if (follower := self.events.follower) is not None:
                self.versions.base = f"log {follower.restored}"
                changed = follower.followed.items or follower.followed.users
                if not self.versions.state and (follower.restored or changed):
                    self.versions.state = f"log {follower.followed.position}"
        if self._bundle is not None:
            warm_ranking(self.ranker, self.bundle, self.args.transformer, self.asking)
        self.ready = True

    async def run(self, work: Callable[[], T], context: Context | None = None) -> T:
        """Do blocking work off the event loop, at most `threads` pieces at once.

        Raises:
            Problem: 503, too many wait.
        """
        priority = BACKGROUND if context is None else context.priority
        late = float("inf") if context is None else until(context, self.args)
        try:
            return await asyncio.wrap_future(self.workers.submit(work, priority, late))
        except Problem as problem:
            if problem.status == 503:
                self.metrics.count("raysys_shed", kind=problem.kind)
            raise

    def close(self) -> None:
        """End the threads; what was recorded is written."""
        if self.feedback is not None:
            self.feedback.close()  # it reads the event log
        if self.events is not None:
            self.events.close()
        self.workers.close()
        if self._cache is not None:
            self._cache.close()
        if self._shown is not None:
            self._shown.close()
        if self.drift is not None:
            self.drift.close()
        self.metrics.close()

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

    def profile(self, user_id: str) -> Profile:
        """Answer GET /v1/users/{id}/profile.

        Raises:
            Problem: nothing is known of the user.
        """
        try:
            return profile_of(self.bundle.features, user_id, self.ranker.now(), self.bundle.id)
        except KeyError:
            error = FieldError(path="path.user_id", message="no such user", value=user_id[:80])
            detail = "nothing is known of this user: neither an event nor a word of the shop"
            raise Problem(404, "unknown-user", detail, [error]) from None

    def answer(self, asked: ListRequest, context: Context) -> ListAnswer:
        """Answer POST /v1/recommend, /v1/search, /v1/similar or /v1/rank.

        Raises:
            Problem: k out of range; the shop knows none of the items that the list is about.
        """
        return ListAnswer.model_validate(self.content(asked, context))

    def content(self, asked: ListRequest, context: Context) -> dict[str, Any]:
        """The same by the fields of `ListAnswer`; what is None there is left out here.

        Written as JSON it costs half of what a model of each item does, where lists are long.
        """
        known = self._known(asked)  # before what it is the version of
        ask, unknown = self.asking(asked, context)
        watch = Watch()
        began = time.perf_counter()
        ranking, told = self._ranking(ask, asked, known)
        ranked = time.perf_counter()
        watch.skip()
        arranged = self.ranker.arrange(ranking, ask)
        watch.lap("policy")
        items = listing.listed(ranking, arranged, self.bundle, explain=asked.explain)
        items += [
            {"item_id": item_id, "score": None, "position": position}
            for position, item_id in enumerate(unknown, start=len(items) + 1)
            if ask.surface == "rank"
        ]
        explained: dict[str, Explanation] = {}
        if asked.explain:
            watch.lap("explain")
            laps = {**ranking.milliseconds, **watch.laps}
            explained["explanation"] = explanation(
                ranking, ask, told, laps, self.bundle, self.ranker.policies[ask.surface].args
            )
        if context.trace is not None and context.counted:
            between = began, ranked
            listing.trace_answer(context.trace, ask, ranking, told, self.bundle.id, watch, between)
        took = max(0.0, (time.perf_counter() - context.arrived) * 1000)
        if context.counted:
            listing.count(self.metrics, ask, ranking)
        if context.shown and not asked.explain:  # to look at is not to be shown
            self._note(ask, asked, ranking, arranged, told, took, context.http_request_id)
        return {
            "request_id": ask.request_id,
            "items": items,
            "bundle": self.bundle.id,
            "arm": self.args.bundle or "",
            "degraded": bool(ranking.reasons),
            "left_out": list(ranking.reasons),
            "reasons": dict(ranking.reasons),
            "cold_start": not self.bundle.features.met(ask.user),
            "unknown_item_ids": unknown,
            "took_ms": round(took, 2),
            **explained,
        }

    def variant(self, surface: str, decided: Mapping[str, Any]) -> Service:
        """The same service with what an experiment's arms decide of a surface's lists.

        It shares bundle, state, cache and threads, and ends with this one: it is not to be closed.

        Args:
            surface: of the list.
            decided: see `experiments.decides`.

        Raises:
            UserError: a setting that there is not; `experiments.check_served` says so before.
        """
        if not decided:
            return self
        key = caching.key_of(self._variant, surface, decided)
        other = self._variants.get(key)
        if other is None:
            other = copy.copy(self)
            other.args = with_arm(self.args, surface, decided, "experiments")
            other.ranker = self.ranker.with_args(other.args)
            other.permissions = self.permissions.with_policies(other.ranker.policies)
            other._variant = key
            if self._shown is not None:
                other._settings = self._shown.keep(other.args)
            if len(self._variants) >= _VARIANTS:
                self._variants.clear()  # of experiments long gone
            self._variants[key] = other
        return other

    def asking(self, asked: ListRequest, context: Context) -> tuple[Ask, list[str]]:
        """A request in numbers, and the items that it names and nobody knows.

        Raises:
            Problem: see `answer`.
        """
        intake = Intake(self.args, self.bundle, self.permissions, self.events)
        return intake.read(asked, context, self.ranker.now())

    def _known(self, asked: ListRequest) -> tuple[object, ...]:
        """Versions of all that changes by itself: whoever asks, and the stock."""
        if self._cache is None or self._bundle is None:
            return ()
        who = who_asks(asked.user_id, asked.session_id)
        told = self._bundle.features.attributes_of(who)
        return self.versions.of(who, asked.session_id), told, self.permissions.version

    def _ranking(
        self, ask: Ask, asked: ListRequest, known: tuple[object, ...]
    ) -> tuple[Ranking, str]:
        """Scored candidates, and how the cache knew them."""
        cache = self._cache
        if cache is None or ask.surface == "rank":
            return self.ranker.scored(ask), "off"
        user = self.bundle.features.users[ask.user] if ask.user >= 0 else None
        variant = f"{self.bundle.id} {self._variant}"
        ranking, told = listing.cached(
            cache, self.ranker, ask, user, known, variant, explain=asked.explain
        )
        if not asked.explain:
            self.metrics.count("raysys_cache", result=told)
        return ranking, told

    def _note(
        self,
        ask: Ask,
        asked: ListRequest,
        ranking: Ranking,
        arranged: Arrangement,
        told: str,
        took: float,
        http_request_id: str | None,
    ) -> None:
        """Have it counted for drift, and recorded who was shown what."""
        if self.drift is not None:
            self.drift.note(ask, ranking, asked.user_id or asked.session_id)
        shown = self._shown
        if shown is None:
            return
        facts = Facts(
            bundle=self.bundle.id,
            arm=self.args.bundle or "",
            settings=self._settings,
            state=self.versions.state,
            cache=told,
            took_ms=took,
            cold_start=not self.bundle.features.met(ask.user),
            http_request_id=http_request_id,
        )
        inputs = ranking.batch if shown.wants_inputs(ask) else None
        ids = self.catalogue.ids
        # what waits to be written should hold no more than will be
        lean, left_out = ranking.lean(), tuple(ranking.reasons)
        shown.note(lambda: row_of(facts, ask, asked, lean, arranged, left_out, ids, inputs))
