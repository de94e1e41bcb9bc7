"""The same service on Ray Serve: `python -m benchmarks.serving_parts.on_ray PORT [REPLICAS]`.

With `RAY_SERVE_ENABLE_HA_PROXY=1` and `RAY_SERVE_THROUGHPUT_OPTIMIZED=1` in the environment HAProxy
stands before the replicas. Ends when its standard input does.
"""

from __future__ import annotations

import sys

import ray
from ray import serve

from benchmarks.serving_parts.args import options, told
from raysys.serving.app import settle
from raysys.serving.args import ServeArgs
from raysys.serving.replica import Replica, Transformer


def deploy(port: int, replicas: int = 1, **more: object) -> None:
    """As `serve_configs/local.yaml` has it, with as many replicas of the transformer where the
    arguments name it; returns when it answers."""
    serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")
    args = settle(ServeArgs.model_validate(told()))
    settled = args.model_dump(mode="json")
    own = {"num_replicas": replicas, **options(), **more}
    transformer = None
    if args.transformer is not None:
        transformer = Transformer.options(num_replicas=replicas).bind(settled)  # type: ignore[attr-defined]
    deployment = Replica.options(**own)  # type: ignore[attr-defined]
    serve.run(deployment.bind(settled, transformer), name="raysys", route_prefix="/")


def main() -> None:
    replicas = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    ray.init(
        address="local",  # never somebody else's
        num_cpus=replicas + 1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
    )
    try:
        deploy(int(sys.argv[1]), replicas)
        print("ready", flush=True)
        sys.stdin.read()
    finally:
        serve.shutdown()  # first, or HAProxy would be left behind
        ray.shutdown()


if __name__ == "__main__":
    main()
