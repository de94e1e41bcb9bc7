"""The Ray Serve deployment: one replica loads a bundle, warms it up, then answers."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, cast

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from raysys.config import parse_settings
from raysys.errors import UserError
from raysys.learners.protocol import Float32
from raysys.registry import Registry
from raysys.serving.app import http_app
from raysys.serving.args import ServeArgs
from raysys.serving.arms import LOOK_S, Arms
from raysys.serving.asking import Int32
from raysys.serving.batching import FullError, LateError
from raysys.serving.loading import begins_with
from raysys.serving.metrics import Metrics
from raysys.serving.pauses import keep_short
from raysys.serving.rollout import Rollout, UserConfig, effective
from raysys.serving.service import Service
from raysys.serving.transformer import Encoded, Host, NotLoadedError

log = logging.getLogger("raysys")


@serve.deployment(
    name="Ranker",
    max_ongoing_requests=16,  # a few per thread: enough to keep it busy, few enough to stay quick
    max_queued_requests=64,  # beyond that 503 at once beats an answer nobody waits for
    health_check_period_s=10,
    health_check_timeout_s=30,
    ray_actor_options={"num_cpus": 1},
)
@serve.ingress()
class Replica:
    """Candidates, features, learners, ensemble and policy of one bundle, and of one that is tried.

    Args:
        args: those of the application, as `ServeArgs` dumps them.
        transformer: the deployment that reads texts and histories; None: each replica does.
    """

    def __init__(
        self, args: dict[str, Any], transformer: DeploymentHandle[Any] | None = None
    ) -> None:
        if transformer is not None:
            # answers are made in threads, which wait for it; Serve's own loop has to stay free
            transformer._init(_run_router_in_separate_loop=True)
        make = partial(Service, on_ray=True, transformer=transformer)  # counts go to Ray's metrics
        self.service = Arms(ServeArgs.model_validate(args), make)
        with ThreadPoolExecutor(1) as apart:  # who waits for another deployment needs a free loop
            apart.submit(self.service.warm_up).result()
        keep_short()

    async def reconfigure(self, config: dict[str, Any] | None) -> None:
        """Take another `user_config`; what answers goes on meanwhile.

        Raises:
            UserError: it says what nobody reads, or names a bundle that cannot be loaded.
        """
        parsed = parse_settings(UserConfig, config or {}, where="user_config")
        await asyncio.to_thread(self.service.reconfigure, parsed)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The routes; Serve calls it once the bundle is warm."""
        return http_app(cast("Service", self.service), self.service)

    def check_health(self) -> None:
        """Serve replaces a replica in which this raises."""
        self.service.readiness()


@serve.deployment(
    name="Transformer",
    max_ongoing_requests=64,  # a few batches: enough to fill them, few enough to stay quick
    max_queued_requests=128,
    health_check_period_s=10,
    health_check_timeout_s=30,
    ray_actor_options={"num_cpus": 1},
)
class Transformer:
    """Transformers of the bundles that answer: queries, histories and pairs, in batches.

    What cannot be had in time is said in a word, as `reasons` of an answer are: an exception would
    cost more than the batch.

    Args:
        args: those of the application, as `ServeArgs` dumps them.
    """

    def __init__(self, args: dict[str, Any]) -> None:
        self._args = ServeArgs.model_validate(args)
        assert self._args.transformer is not None
        self._metrics = Metrics(on_ray=ray.is_initialized())
        self.host = Host(self._args.registry_path, self._args.transformer, self._metrics)
        *better, last = begins_with(self._args)
        for bundle in better:
            try:
                self.host.prepare(bundle or "")
                break
            except Exception:
                log.exception("%s cannot be loaded; %s is tried instead", bundle, last)
        else:
            self.host.prepare(last or self._args.bundle or "")
        threading.Thread(target=self._keep_looking, name="look", daemon=True).start()

    def _keep_looking(self) -> None:
        """Load what `Ranker` is about to serve, as it is told: it needs longer for the rest."""
        said: list[str] = []
        while True:
            time.sleep(LOOK_S)
            troubles = self.look()
            for trouble in troubles:
                if trouble not in said:  # said once
                    log.error("what is to be served next is not loaded yet: %s", trouble)
            said = troubles

    def look(self) -> list[str]:
        """Load what is to be served next; why some of it cannot be."""
        try:
            bundles = upcoming(self._args)
        except Exception as error:  # the thread that looks must not end
            return [str(error) or repr(error)]
        troubles = []
        for bundle in bundles:
            try:
                self.host.prepare(bundle)
            except UserError as error:
                troubles.append(str(error))
            except Exception as error:
                log.exception("a fault while loading the transformers of %s", bundle)
                troubles.append(str(error) or repr(error))
        return troubles

    async def prepare(self, bundle: str) -> str:
        """Load a bundle's transformers; empty, or why not."""
        try:
            await asyncio.to_thread(self.host.prepare, bundle)
        except UserError as error:
            return error.what
        return ""

    async def encode(
        self,
        bundle: str,
        texts: Sequence[str],
        histories: Sequence[Int32],
        compared: Sequence[str],
        left_s: float,
    ) -> Encoded | str:
        """See `Encoding.encode`; a word says why not."""
        until = time.perf_counter() + left_s
        try:
            hosted = self.host.get(bundle)
            first = hosted.encode(texts, histories, until)
            try:
                asked = (*first, hosted.compared(compared, until))
            except FullError:  # of features alone: who searches by meaning gets theirs
                asked = (*first, None)
            made: list[Float32 | None] = [None] * len(asked)
            for place, future in enumerate(asked):
                if future is not None:
                    vectors = await asyncio.wrap_future(future)
                    made[place] = vectors
            return Encoded(*made)
        except (NotLoadedError, LateError, FullError) as error:
            return _word(error)

    async def pairs(self, bundle: str, query: str, items: Int32, left_s: float) -> Any:
        """See `Encoding.pairs`; a word says why not."""
        until = time.perf_counter() + left_s
        try:
            return await asyncio.wrap_future(self.host.get(bundle).pairs(query, items, until))
        except (NotLoadedError, LateError, FullError) as error:
            return _word(error)


def upcoming(args: ServeArgs) -> list[str]:
    """Bundles that replicas are told to serve: the champion where they follow it, and a canary.

    Raises:
        UserError: a pointer is damaged, or leads nowhere.
    """
    registry = Registry(args.registry_path)
    found = [registry.resolve(args.bundle)] if args.follow and args.bundle is not None else []
    canary = effective(Rollout(registry.root).read(), UserConfig(), registry.resolve)
    return found if canary is None else [*found, canary.bundle]


def _word(error: Exception) -> str:
    if isinstance(error, NotLoadedError):
        return str(error)
    return "deadline" if isinstance(error, LateError) else "overloaded"
