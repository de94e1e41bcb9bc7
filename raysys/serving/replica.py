"""The Ray Serve deployment: one replica loads a bundle, warms it up, then answers."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from ray import serve

from raysys.serving.app import http_app
from raysys.serving.args import ServeArgs
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
    """Candidates, features, learners, ensemble and policy of one bundle.

    Args:
        args: those of the application, as `ServeArgs` dumps them.
    """

    def __init__(self, args: dict[str, Any]) -> None:
        self.service = Service(ServeArgs.model_validate(args), on_ray=True)
        self.service.warm_up()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The routes; Serve calls it once the bundle is warm."""
        return http_app(self.service)

    def check_health(self) -> None:
        """Serve replaces a replica in which this raises."""
        self.service.readiness()
