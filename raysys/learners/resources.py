"""What a fit may use on the cluster that is there."""

from __future__ import annotations

from dataclasses import replace

from raysys.errors import UserError
from raysys.learners.protocol import Resources

MOST_CPUS = 8
"""More threads than this hardly speed up one fit."""


def resources_here(wanted: Resources) -> Resources:
    """What a fit may use on this cluster: GPUs only where there are any.

    Raises:
        UserError: more than the cluster has, so that it would never start.
    """
    import ray

    there = ray.cluster_resources()
    gpus = wanted.gpus_per_worker if there.get("GPU") else 0.0
    for name, asked in (("CPU", wanted.cpus_per_worker), ("GPU", gpus)):
        if asked > there.get(name, 0):
            raise UserError(
                f"a fit wants {asked:g} {name}, the cluster has {there.get(name, 0):g}",
                where=f"resources.{name.lower()}s",
            )
    return replace(wanted, gpus_per_worker=gpus)


def cpus_of_a_node(workers: int) -> float:
    """CPUs that each of so many workers can have on the largest node, at most `MOST_CPUS`."""
    import ray

    if not ray.is_initialized():  # a fit in this very process
        return 1.0
    nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    everything = ray.cluster_resources().get("CPU", 1.0)
    return float(max(1.0, min(max(nodes, default=1.0), everything // workers, MOST_CPUS)))
