"""The Ray Serve deployment: one replica loads a bundle, warms it up, then answers."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, cast

from fastapi import FastAPI
from ray import serve

from raysys.config import parse_settings
from raysys.serving.app import http_app
from raysys.serving.args import ServeArgs
from raysys.serving.arms import Arms
from raysys.serving.rollout import UserConfig
from raysys.serving.service import Service


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
    """

    def __init__(self, args: dict[str, Any]) -> None:
        # counts go to Ray's metrics
        self.service = Arms(ServeArgs.model_validate(args), partial(Service, on_ray=True))
        self.service.warm_up()

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
