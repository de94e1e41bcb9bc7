"""Ray Serve over a head and worker nodes on one machine: `python -m …nodes PORT`, for `kills`.

Says `ready`; a line `node` on its standard input kills a worker node and starts another.
"""

from __future__ import annotations

import sys

import ray
from ray import serve
from ray.cluster_utils import Cluster

from benchmarks.serving_parts.on_ray import deploy

ROOM = {"room": 1}  # of a node: one replica


def main() -> None:
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False},
    )
    nodes = [cluster.add_node(num_cpus=3, resources=ROOM) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        own = {"num_cpus": 1, "resources": ROOM}
        deploy(int(sys.argv[1]), 2, ray_actor_options=own)
        print("ready", flush=True)
        for line in sys.stdin:
            if line.strip() == "node":
                cluster.remove_node(nodes.pop(), allow_graceful=False)
                nodes.append(cluster.add_node(num_cpus=3, resources=ROOM))
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
