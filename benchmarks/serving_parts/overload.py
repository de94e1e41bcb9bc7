"""Five times what it can do, for a minute: what is answered, how soon, and what comes after.

Requests for /v1/rank arrive whatever becomes of those before (open loop), to one replica as
`serve_configs/production.yaml` has it: its threads, its deadline, and how many may wait, in the
replica and in Serve. A share of them says `X-Priority: background`, and the others are urgent: what
becomes of either is told apart. Capacity is the median that closed loops of urgent ones get, before
and after, with as many connections as the replica takes on, so that none is refused; unloaded is an
open loop at a tenth of that. Everything shares this machine's cores, so what refusals cost, in the
server and in the load generator, is taken from the answers.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.result import ROOT, Figure
from benchmarks.serving_parts.args import arguments, questions
from benchmarks.serving_parts.load import Outcome, closed, opened, requests
from benchmarks.serving_parts.servers import running

PRODUCTION = ROOT / "serve_configs" / "production.yaml"
TIMES = 5.0
BACKGROUND = 0.3  # share of the requests
LEAST_S = 2.0  # of any run
MEANS = {"uvicorn": "FastAPI on uvicorn", "serve_haproxy": "Ray Serve behind HAProxy"}
_OF_ARGS = ("threads", "max_waiting", "deadline_ms")
_OF_RANKER = ("max_ongoing_requests", "max_queued_requests", "backpressure_config")


@dataclass(frozen=True)
class Bounds:
    """How much one replica takes on, as a serve config says.

    Attributes:
        args: `threads`, `max_waiting` and `deadline_ms` of the application.
        options: of the deployment `Ranker`, for Ray Serve: what it holds, and what it refuses.
    """

    args: dict[str, Any]
    options: dict[str, Any]

    @property
    def ongoing(self) -> int:
        """Requests that the replica holds at once."""
        return int(self.options["max_ongoing_requests"])


def bounds(config: Path = PRODUCTION) -> Bounds:
    """Those of a serve config's first application.

    Raises:
        KeyError: it does not say one of them.
    """
    app = yaml.safe_load(config.read_text("utf-8"))["applications"][0]
    ranker = next(each for each in app["deployments"] if each["name"] == "Ranker")
    return Bounds(
        {name: app["args"][name] for name in _OF_ARGS}, {name: ranker[name] for name in _OF_RANKER}
    )


def measure(
    registry: Path, environments: Path, *, seconds: float = 60.0, rounds: int = 5,
    server: str = "serve_haproxy",
) -> list[Figure]:  # fmt: skip
    """Goodput, latency of what is accepted, and the seconds until all is as before."""
    taken = bounds()
    args = arguments(registry, **taken.args)
    asked = questions(registry)["rank"]
    each = max(LEAST_S, seconds / 12)
    with running(server, args, environments, **taken.options) as there:
        at = ("127.0.0.1", there.port)
        bodies = [there.body("rank", body) for body in asked]
        urgent = requests(*at, "/v1/rank", bodies)
        work, is_background = mixed(
            urgent, requests(*at, "/v1/rank", bodies, {"X-Priority": "background"})
        )
        closed(*at, urgent, taken.ongoing, each)  # warm
        rates = [
            closed(*at, urgent, taken.ongoing, each).per_s for _ in range(rounds - rounds // 2)
        ]
        expected = float(np.median(rates))
        calm = opened(*at, work, expected / 10, 3 * each)
        before = there.memory_gb
        storm = opened(*at, work, TIMES * expected, seconds, seed=1)
        after = opened(*at, work, expected / 10, 3 * each, seed=2)
        held = there.memory_gb - before
        # a machine's speed drifts: what is measured before alone may be another machine's
        rates += [closed(*at, urgent, taken.ongoing, each).per_s for _ in range(rounds // 2)]
        capacity = float(np.median(rates))
    how = f"{MEANS[server]}, /v1/rank with 100 candidates, {taken.ongoing} connections"
    return [
        Figure(
            "overload_capacity_per_s", capacity, "requests/s", min(rates), max(rates), reference=how
        ),
        *_figures(MEANS[server], capacity, TIMES * expected, calm, storm, after, held),
        *apart(capacity, storm, is_background),
    ]


def mixed(
    urgent: Sequence[bytes], background: Sequence[bytes], share: float = BACKGROUND
) -> tuple[list[bytes], np.ndarray]:
    """The same requests, a share of them of the background; and which are, bool[n]."""
    chance = random.Random(13)
    which = np.array([chance.random() < share for _ in urgent])
    work = [b if late else u for u, b, late in zip(urgent, background, which, strict=True)]
    return work, which


def apart(capacity: float, storm: Outcome, is_background: np.ndarray) -> list[Figure]:
    """What became of the urgent ones and of the background in the storm.

    Args:
        capacity: answers a second.
        storm: the run.
        is_background: bool[n], of the work.
    """
    found = []
    for name, chosen in (("urgent", ~is_background), ("background", is_background)):
        these = storm.of(chosen[storm.work])
        how = f"{len(these.status):,} requests, by status {_by_status(these)}"
        goodput = these.per_s / capacity
        found.append(Figure(f"overload_{name}_goodput", goodput, "of capacity", reference=how))
        if these.good.any():
            p99 = these.quantile(0.99)
            how = "99th percentile of what was answered"
            found.append(Figure(f"overload_{name}_p99_ms", p99, "ms", reference=how))
    return found


def _by_status(run: Outcome) -> dict[int, int]:
    return dict(sorted(Counter(run.status.tolist()).items()))


def _figures(
    server: str, capacity: float, rate: float, calm: Outcome, storm: Outcome, after: Outcome,
    held: float,
) -> list[Figure]:  # fmt: skip
    normal = calm.quantile(0.99)
    accepted = storm.quantile(0.99)
    how = f"{server}; {len(storm.status):,} requests at {rate:,.0f}/s, "
    how += f"{BACKGROUND:.0%} of them background, by status {_by_status(storm)}"
    return [
        Figure(
            "overload_goodput", storm.per_s / capacity, "of capacity", aim="≥ 0.9", reference=how
        ),
        Figure(
            "overload_p99_ratio", accepted / normal, "×", aim="≤ 3",
            reference=f"99th percentile of what was answered, {accepted:.1f} ms, ÷ unloaded, "
            f"{normal:.1f} ms",
        ),
        Figure(
            "overload_recovery_s", recovery_s(after, normal), "s", aim="seconds",
            reference="at a tenth of capacity afterwards: until nine in ten requests of every "
            "second are answered within the unloaded 99th percentile",
        ),
        Figure(
            "overload_refused_p50_ms", _refused(storm), "ms",
            reference="until a refusal (503 with Retry-After) came back",
        ),
        Figure("overload_memory_gb", held, "GB", reference="more than before"),
        Figure(
            "overload_generator_late_ms", storm.late_ms, "ms",
            reference="most that the generator was behind its own plan; it is counted as latency",
        ),
    ]  # fmt: skip


def recovery_s(after: Outcome, limit_ms: float, share: float = 0.9) -> float:
    """Seconds after which in every second of a run that share of the requests is answered in time.

    All seconds of the run where it never is. A second has a dozen requests: the slowest of so few
    says nothing.
    """
    last = 0.0
    for second in range(int(np.ceil(after.seconds))):
        here = (after.due >= second) & (after.due < second + 1)
        if not here.any():
            continue
        in_time = after.good[here] & (after.ms[here] <= limit_ms)
        if in_time.mean() < share:
            last = second + 1.0
    return last


def _refused(storm: Outcome) -> float:
    refused = storm.status == 503
    return float(np.median(storm.ms[refused])) if refused.any() else 0.0
