"""Two bundles side by side in one replica: the champion, and a challenger that is tried.

Each is a whole `Service`, loaded and warm before its first answer. Serve's multiplexing would load
a model when the first request for it comes, evict it when others do, and let the caller's header
choose: a canary must be warm, stay, and be chosen by us.

What is tried, and which bundle is the champion, changes between two answers: a request keeps the
service it began with, and a service ends when its last request has.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

from raysys.errors import UserError
from raysys.eventlog.entries import LogUnavailable
from raysys.registry import Registry
from raysys.serving.api import ListAnswer
from raysys.serving.args import ServeArgs
from raysys.serving.asking import Context
from raysys.serving.drafting import draft
from raysys.serving.experiment_arms import ExperimentArms
from raysys.serving.exposures import Drafted
from raysys.serving.guard import Arm, Guard
from raysys.serving.intake import SURFACES, until
from raysys.serving.lease import Lease
from raysys.serving.loading import Loading
from raysys.serving.outcomes import NO_EXPERIMENT, Outcomes
from raysys.serving.problems import Problem
from raysys.serving.rollout import CanaryArgs, Rollout, RolloutState, UserConfig, effective, plain
from raysys.serving.service import Service
from raysys.serving.shadow import Shadow
from raysys.serving.treatments import Treatment
from raysys.serving.tried import Asked, Tried, either

log = logging.getLogger("raysys")

LISTS: Final = ("answer", "content")
"""Methods of a service that make a list for somebody."""

LOOK_S = 2.0  # how often a replica looks whether it is told something new


class Arms:
    """Answers as a `Service` does, by the arm of whoever asks; all else is the champion's.

    Args:
        args: the deployment's.
        make: makes a service; tests and replicas have their own way.
        watch: look by itself whether it is told something new.

    Attributes:
        counts: gives what all services here have counted, those that have ended too.
    """

    def __init__(
        self,
        args: ServeArgs,
        make: Callable[[ServeArgs], Service] = Service,
        *,
        watch: bool = True,
    ) -> None:
        self.args = args
        self._loading = Loading(lambda: self.args, make)
        self._lease = Lease(self._loading.first())
        self.text = self._lease.service.text
        self.counts = self._loading.counted.read
        self._tried: Tried | None = None
        self._config = UserConfig()
        self._registry = Registry(args.registry_path)
        self.rollout = Rollout(self._registry.root)
        self._changing = threading.Lock()
        self._wake, self._ended = threading.Event(), threading.Event()
        self._halting: list[tuple[str, str]] = []
        self._watch = watch and args.bundle is not None
        self._trouble = ""
        self.experiments = ExperimentArms(args, self._loading.beside, lambda: self.champion.metrics)
        self.outcomes = Outcomes(lambda: self.champion.metrics)
        self._hear(self._lease)

    def __getattr__(self, name: str) -> Any:
        """Lists go to the arm of whoever asks; everything else is the champion's."""
        if name.startswith("_"):  # ours, or not there
            raise AttributeError(name)
        if name in LISTS:
            getattr(self._lease.service, name)  # a service that lacks it says so
            return lambda asked, *rest: self._list(name, asked, *rest)
        return getattr(self._lease.service, name)

    @property
    def champion(self) -> Service:
        """Whose answers most get."""
        return self._lease.service

    @property
    def challenger(self) -> Service | None:
        """Who is tried beside it."""
        return None if self._tried is None else self._tried.lease.service

    def warm_up(self) -> None:
        """Warm the champion up, and load what is tried."""
        try:
            self.champion.warm_up()
        except Exception as error:
            deployed = self.args.pinned if self.args.follow else None
            if deployed is None or deployed == self.champion.args.pinned:
                raise
            self.text.warm_up()  # if it was this, no other bundle helps
            self._loading.failed(self.champion.bundle.id, error)
            self._follow(deployed)
        self.look()
        if self._watch:
            threading.Thread(target=self._keep_looking, name="arms", daemon=True).start()

    async def run(self, work: Callable[[], Any], *rest: Any) -> Any:
        """See `Service.run`; the champion whose threads do the work stays until it is done."""
        with self._held() as service:
            return await service.run(work, *rest)

    def reconfigure(self, config: UserConfig) -> None:
        """Try what Serve's `user_config` says from now on; blocks while a bundle is loaded.

        Raises:
            UserError: there is no such bundle as it names, or it cannot be loaded. What else is
                wrong is logged: replicas that run live with it, so those that start have to.
        """
        self._config = config
        self.look(strict=True)

    def look(self, *, strict: bool = False) -> None:
        """Read what the replica is told, and do it: another champion, another challenger.

        Args:
            strict: raise what is wrong with what `user_config` names; all else is logged, and
                what answers goes on.
        """
        if self.args.bundle is None:
            return
        troubles: list[Exception] = []
        own: Exception | None = None
        with self._changing:
            if strict:
                self._loading.at_once()
            # a champion that cannot be loaded must not keep a canary from being stopped
            for step in (self._write_halts, self._lead, self._experiment, self._canary):
                try:
                    step()
                except Exception as error:
                    if strict and own is None and self._is_of_config(step):
                        own = error
                        continue
                    troubles.append(error)
                    if not isinstance(error, (UserError, OSError)):
                        log.exception("a fault while looking what is to be served")
        told = "; ".join(str(error) for error in troubles)
        if told and told != self._trouble:  # said once
            log.error("what is served stays as it is: %s", told)
        self._trouble = told
        if own is not None:
            raise own

    def _is_of_config(self, step: Callable[[], None]) -> bool:
        """Whether `user_config` says what a step does, and no file beside it."""
        if step == self._experiment:
            return bool(self._config.experiments)
        if step != self._canary or self._config.canary is None:
            return False
        try:
            return not self.rollout.read().says
        except UserError:
            return False

    def _lead(self) -> None:
        if self.args.follow and self.args.bundle is not None:
            self._follow(self._registry.resolve(self.args.bundle))

    def _experiment(self) -> None:
        self.experiments.look(self._config.experiments, self._lease)

    def _canary(self) -> None:
        self._try(effective(self.rollout.read(), self._config, self._registry.resolve))

    def wake(self) -> None:
        """Have it look now: soon, if it looks by itself, else before this returns."""
        self._wake.set()
        if not self._watch:
            self.look()

    def outcome(self, who: str | None, event_type: str) -> None:
        """Count an event of a user (or session) for the online metric of their arm."""
        tried = self._tried
        if tried is None or tried.shadow is not None or not who:  # nobody: in no arm
            return
        weight = dict(tried.canary.outcomes).get(event_type)  # type: ignore[call-overload]
        if weight:
            with tried.lock:
                tried.guard.outcome(tried.canary.arm_of(who), weight)

    def catch_up(self) -> None:
        """Have all whom somebody may get count the events that the champion has counted."""
        events = self.champion.events
        if events is None or events.follower is None:
            return
        until = events.follower.followed.position
        for service in self.experiments.services():
            _catch_up(service, until)
        tried = self._tried
        if tried is not None and tried.shadow is None and tried.lease.take():
            try:
                _catch_up(tried.lease.service, until)
            finally:
                tried.lease.give_back()

    def status(self) -> dict[str, Any]:
        """What is served and tried here, for people."""
        tried = self._tried
        try:
            state = self.rollout.read()
        except UserError:
            state = RolloutState()
        told: dict[str, Any] = {
            "champion": self.champion.bundle.id if self.args.bundle else None,
            "follow": self.args.follow,
            "asked": plain(state.canary if state.says else self._config.canary),
            "asked_by": "admin" if state.says else "user_config",
            "canary": None if tried is None else plain(tried.canary),
            "arms": {},
            "shadow": None,
            "halted": [plain(halt) for halt in state.halted],
        }
        if tried is not None:
            with tried.lock:
                told["arms"] = {arm: counts.told() for arm, counts in tried.guard.arms.items()}
            told["shadow"] = tried.shadow and tried.shadow.told()
        return told

    def close(self) -> None:
        """End everything."""
        self._ended.set()
        self._wake.set()
        with self._changing:
            self._drop()
            self.experiments.close()
        self.champion.close()

    @contextlib.contextmanager
    def _held(self) -> Iterator[Service]:
        while not (lease := self._lease).take():
            pass  # another one has taken its place
        try:
            yield lease.service
        finally:
            lease.give_back()

    def _list(self, name: str, asked: Any, *rest: Any) -> Any:
        """The answer, in the arms of whoever asks; one that nobody is shown counts nowhere."""
        began = time.perf_counter()
        context = rest[0] if rest and isinstance(rest[0], Context) else None
        treatment = None
        if context is not None and (self.experiments.served is not None or context.forced):
            with self._held() as champion:
                treatment = self.experiments.drawn(asked, context, champion)
        failed, drafted = False, None
        if treatment is None:
            answer = self._untreated(name, asked, *rest)
        else:
            answer, failed, drafted = self._treated(treatment, name, asked, *rest)
        if context is None or asked.explain or not context.shown:
            return answer
        told = answer if isinstance(answer, dict) else vars(answer)
        if treatment is not None:
            self.experiments.exposed(treatment, told["request_id"], told["bundle"], drafted)
        self.outcomes.answered(
            told["request_id"],
            SURFACES[type(asked)],
            treatment.arms if treatment is not None else {NO_EXPERIMENT: told["arm"]},
            time.perf_counter() - began,
            "failed" if failed else "degraded" if told["degraded"] else "ok",
        )
        return answer

    def _treated(
        self, treatment: Treatment, name: str, asked: Any, *rest: Any
    ) -> tuple[Any, bool, Drafted | None]:
        """The answer by an experiment's arms; whether they failed and the champion answers; and
        how the list was drafted, if it was.
        """
        failed, drafted = False, None
        try:
            if treatment.teams is None:
                answer = self._by_arm(treatment, name, asked, *rest)
            else:
                with self._held() as champion:
                    at, late = champion.ranker.now(), until(rest[0], champion.args)
                answer, drafted = draft(
                    lambda team, context: self._by_arm(team, "content", asked, context),
                    treatment, asked.k, rest[0], at, late,
                )  # fmt: skip
                answer = answer if name == "content" else ListAnswer.model_validate(answer)
        except Exception as error:
            # the user's own mistakes fail on both, and then say nothing of the arm
            answer = self._untreated(name, asked, *rest)
            failed, drafted = True, None
            if not isinstance(error, Problem):
                log.exception("%s failed; the champion answers", treatment.arms)
        if isinstance(answer, dict):
            answer["experiments"] = treatment.arms
        else:
            answer = answer.model_copy(update={"experiments": treatment.arms})
        return answer, failed, drafted

    def _by_arm(self, treatment: Treatment, name: str, asked: Any, *rest: Any) -> Any:
        """The answer of the bundle that the arms name, as they want it."""
        if treatment.bundle is None:
            return self._untreated(name, asked, *rest, treatment=treatment)
        with self._service_of(treatment.bundle) as service:
            call = Asked(treatment, name, asked, rest)
            return call.of(call.treated(service))

    @contextlib.contextmanager
    def _service_of(self, bundle: str) -> Iterator[Service]:
        """The service of an experiment's bundle; the champion's, should it be gone meanwhile."""
        lease = self.experiments.lease(bundle)
        if lease is None:
            with self._held() as service:
                yield service
            return
        try:
            yield lease.service
        finally:
            lease.give_back()

    def _untreated(
        self, name: str, asked: Any, *rest: Any, treatment: Treatment | None = None
    ) -> Any:
        """The answer of the champion or of what is tried beside it."""
        tried, call = self._tried, Asked(treatment, name, asked, rest)
        if tried is None or not tried.lease.take():
            with self._held() as service:
                return call.of(call.treated(service))
        try:
            with self._held() as service:
                return either(tried, service, call, partial(self._count, tried))
        finally:
            tried.lease.give_back()

    def _count(self, tried: Tried, arm: Arm, began: float, *, failed: bool) -> None:
        why = tried.count(arm, began, failed=failed)
        if why is not None and self._tried is tried:
            self._tried = None  # at once; what is slow is done elsewhere
            log.error("the canary %s is turned off: %s", tried.canary.bundle, why)
            self._halting.append((tried.canary.bundle, why))
            tried.lease.retire()
            self._wake.set()

    def _write_halts(self) -> None:
        while self._halting:
            bundle, why = self._halting[0]
            try:
                self.rollout.halt(bundle, why)
            except OSError as error:  # off here all the same; the others have guards of their own
                log.error("the end of the canary %s is not written: %s", bundle, error)
                return
            del self._halting[0]

    def _follow(self, bundle: str) -> None:
        if bundle == self.champion.bundle.id:
            return
        fresh = Lease(self._loading.load(self.args.bundle or "", bundle))
        old = self._lease
        kept = self.experiments.keep(old)  # before: its arm is never without it
        self._lease, self.args = fresh, fresh.service.args
        old.service.lose_name(kept)
        self._hear(fresh)
        if kept is None:
            old.retire()
        if (tried := self._tried) is not None:  # what it counted was against the one before
            self._begin(tried.canary, tried.lease)
        log.info("%s answers now, %s has ended", bundle, old.service.bundle.id)

    def _try(self, canary: CanaryArgs | None) -> None:
        now = self._tried
        if canary is None or canary.bundle == self.champion.bundle.id:
            self._drop()
            return
        if now is not None and now.canary == canary:
            return
        if any(bundle == canary.bundle for bundle, _ in self._halting):
            return  # its end is not written yet
        same = now is not None and now.canary.bundle == canary.bundle
        # a shadow records no shown lists, a canary does: it is another service
        if now is not None and same and now.canary.shadow == canary.shadow and now.lease.take():
            lease = now.lease
            lease.give_back()
        else:
            lease = Lease(self._loading.challenger(canary))
        self._begin(canary, lease)
        log.info("%s is tried: %s", canary.bundle, canary)

    def _begin(self, canary: CanaryArgs, lease: Lease) -> None:
        """Compare from now on, with nothing counted yet, in place of what was tried before."""
        now, shadow = self._tried, None
        if canary.shadow:
            shadow = Shadow(self._registry.root / "serving" / "shadow", canary.bundle)
        self._tried = Tried(canary, lease, Guard(canary.guard), shadow)
        if now is not None:
            self._end(now, keep=lease)

    def _drop(self) -> None:
        now, self._tried = self._tried, None
        if now is not None:
            self._end(now)

    def _end(self, tried: Tried, keep: Lease | None = None) -> None:
        if tried.shadow is not None:
            tried.shadow.close()
        if tried.lease is not keep:
            tried.lease.retire()

    def _hear(self, lease: Lease) -> None:
        """Have events joined as the champion counts them."""
        lease.service.heard = self.outcomes.heard

    def _keep_looking(self) -> None:
        while not self._ended.is_set():
            self._wake.wait(LOOK_S)
            self._wake.clear()
            if not self._ended.is_set():
                try:
                    self.look()
                except Exception:  # the thread must not end
                    log.exception("a fault while looking what is to be served")


def _catch_up(service: Service, until: int) -> None:
    if service.events is None or service.events.follower is None:
        return
    try:
        service.events.follower.catch_up(until)
    except LogUnavailable as error:  # they are durable, and the follower tries again
        log.warning("the event log cannot be read: %s", error)
