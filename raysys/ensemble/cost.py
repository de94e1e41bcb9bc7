"""What members cost and what they bring: milliseconds a request, NDCG of every subset on the way.

Subsets are reached greedily in both directions: from all members by dropping whoever is missed
least, and from none by adding whoever helps most. Each is judged as an ensemble is, on blocks that
its weights were not fitted on.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raysys.ensemble.bench import Bench
from raysys.ensemble.combination import FALLBACKS
from raysys.features.batch import Batch
from raysys.learners.protocol import Model

CANDIDATES = 100
REPEATS, WARM_UP = 30, 3
REQUESTS = 2000
"""Of the last fold, evenly over time, by which subsets are judged."""

METHOD = "stack_standard"
"""By which subsets are compared: the quickest to fit of those that compete."""


@dataclass(frozen=True)
class Subset:
    """Some members together.

    Attributes:
        members: their names, in the ensemble's order.
        ndcg: mean over requests held out.
        milliseconds: of a request of 100 candidates, one member after the other.
        best: on the Pareto front: no other subset ranks better in no more time.
    """

    members: tuple[str, ...]
    ndcg: float
    milliseconds: float
    best: bool = False

    def to_dict(self) -> dict[str, Any]:
        """For manifests."""
        return {**vars(self), "members": list(self.members)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Subset:
        """Read what `to_dict` gave."""
        return cls(**{**content, "members": tuple(content["members"])})


def latencies(models: Mapping[str, Model], batch: Batch) -> dict[str, float]:
    """Milliseconds that each model takes for a request of 100 candidates, on one thread.

    The median over requests of the batch, after a few to warm up; a request that has fewer
    candidates counts as if it had more of the same. Measured on this machine, as it is now.

    Args:
        models: by name.
        batch: any requests.
    """
    sizes = batch.sizes
    which = np.flatnonzero(sizes)
    which = which[np.argsort(-np.minimum(sizes[which], CANDIDATES), kind="stable")][:REPEATS]
    asked = [_shortened(batch, int(request)) for request in which]
    found = {}
    with one_thread():
        for name, model in models.items():
            for one in asked[:WARM_UP]:
                model.score(one)
            taken = []
            for one in asked:
                began = time.perf_counter()
                model.score(one)
                taken.append((time.perf_counter() - began) * 1000 * CANDIDATES / len(one))
            found[name] = round(statistics.median(taken), 4) if taken else 0.0
    return found


def _shortened(batch: Batch, request: int) -> Batch:
    """One request, and at most the first 100 of its candidates, without labels."""
    start = int(batch.offsets[request])
    rows = slice(start, min(start + CANDIDATES, int(batch.offsets[request + 1])))
    return Batch(
        names=batch.names,
        features=np.ascontiguousarray(batch.features[rows]),
        item=batch.item[rows],
        offsets=np.array([0, rows.stop - rows.start]),
        history=[batch.history[request]],
        user=batch.user[request : request + 1],
    )


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """BLAS, OpenMP and, where it is loaded, torch keep to one thread."""
    from threadpoolctl import threadpool_limits

    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch is not None else 0
    with threadpool_limits(1):
        if torch is not None:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            if torch is not None:
                torch.set_num_threads(before)


def subsets(bench: Bench, milliseconds: Mapping[str, float]) -> list[Subset]:
    """Every subset on both greedy ways, the cheapest first, the Pareto front marked.

    Args:
        bench: of all members.
        milliseconds: of each of them.
    """
    everyone = bench.members
    judge = Judge(bench.smaller(REQUESTS))
    seen: dict[tuple[str, ...], float] = {}

    def quality(members: Collection[str]) -> float:
        ordered = tuple(name for name in everyone if name in members)
        seen[ordered] = judge(ordered)
        return seen[ordered]

    left = list(everyone)
    quality(left)
    while len(left) > 1:
        left = max(([m for m in left if m != name] for name in left), key=quality)
    taken: list[str] = []
    while len(taken) < len(everyone):
        taken = max(([*taken, name] for name in everyone if name not in taken), key=quality)
    found = [
        Subset(members, value, round(sum(milliseconds[name] for name in members), 4))
        for members, value in seen.items()
    ]
    return marked(found)


def marked(found: Collection[Subset]) -> list[Subset]:
    """The cheapest first, the better first of equals; with the Pareto front marked."""
    ordered = sorted(found, key=lambda each: (each.milliseconds, -each.ndcg, each.members))
    result, highest = [], -np.inf
    for each in ordered:
        best = each.ndcg > highest
        highest = max(highest, each.ndcg)
        result.append(Subset(each.members, each.ndcg, each.milliseconds, best))
    return result


class Judge:
    """Held-out NDCG of any members.

    Args:
        bench: its trials are used.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def values(self, members: tuple[str, ...]) -> npt.NDArray[np.float64]:
        """NDCG of every request: float64[r]."""
        method = "alone" if len(members) == 1 else METHOD
        return self.bench.trial(method, members).values

    def __call__(self, members: tuple[str, ...]) -> float:
        """Their mean; 0 where no request was judged."""
        values = self.values(members)
        known = values[~np.isnan(values)]
        return float(known.mean()) if len(known) else 0.0


def paying(
    bench: Bench,
    families: Mapping[str, str],
    milliseconds: Mapping[str, float],
    ndcg_per_ms: float,
    dropped: Callable[[str, float], object] = lambda name, gain: None,
) -> tuple[str, ...]:
    """Members that are worth their time: each adds enough NDCG to the others for what it takes.

    Whoever pays least is dropped first, and the others are judged again without it. No fallback
    loses its last member.

    Args:
        bench: of all members.
        families: of each.
        milliseconds: of each.
        ndcg_per_ms: what a member must add for each millisecond.
        dropped: told every member that goes, and what it added to the others.
    """
    judge = Judge(bench)
    left = bench.members
    while len(left) > 1:
        whole = judge(left)
        rate = {}
        for name in left:
            others = tuple(each for each in left if each != name)
            if _needed(name, left, families):
                continue
            gain = whole - judge(others)
            rate[name] = (gain / max(milliseconds[name], 1e-9), gain)
        worst = min(rate, key=lambda name: rate[name][0], default=None)
        if worst is None or rate[worst][0] >= ndcg_per_ms:
            break
        dropped(worst, rate[worst][1])
        left = tuple(name for name in left if name != worst)
    return left


def _needed(name: str, left: Collection[str], families: Mapping[str, str]) -> bool:
    """Whether some fallback has nobody else."""
    return any(
        [each for each in left if families[each] in wanted] == [name]
        for wanted in FALLBACKS.values()
    )
