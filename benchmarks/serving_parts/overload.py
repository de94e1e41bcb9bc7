"""Five times what it can do, for a minute: what is answered, how soon, and what comes after.

Requests for /v1/rank arrive whatever becomes of those before (open loop). Few may wait, since who
is accepted should not wait for long: `ONGOING` in the replica and one before it, and Serve refuses
the rest. Capacity is the median that closed loops get with as many connections as it takes on, so
that none is refused; unloaded is an open loop at a tenth of that. Everything shares two cores, so
what refusals cost, in the server and in the load generator, is taken from the answers.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from benchmarks.result import Figure
from benchmarks.serving_parts.args import arguments, questions
from benchmarks.serving_parts.load import Outcome, closed, opened, requests
from benchmarks.serving_parts.servers import running

TIMES = 5.0
ONGOING = 2  # as many as there are threads
MEANS = {"uvicorn": "FastAPI on uvicorn", "serve_haproxy": "Ray Serve behind HAProxy"}


def measure(
    registry: Path, environments: Path, *, seconds: float = 60.0, rounds: int = 5,
    server: str = "serve_haproxy",
) -> list[Figure]:  # fmt: skip
    """Goodput, latency of what is accepted, and the seconds until all is as before."""
    args = arguments(registry, max_waiting=ONGOING)
    few = {
        "max_ongoing_requests": ONGOING, "max_queued_requests": 1,
        "backpressure_config": {"status_code": 503, "retry_after_s": 1},
    }  # fmt: skip
    asked = questions(registry)["rank"]
    each = max(2.0, seconds / 12)
    with running(server, args, environments, **few) as there:
        work = requests("127.0.0.1", there.port, "/v1/rank", [there.body("rank", a) for a in asked])
        closed("127.0.0.1", there.port, work, ONGOING, each)  # warm
        rates = [closed("127.0.0.1", there.port, work, ONGOING, each).per_s for _ in range(rounds)]
        capacity = float(np.median(rates))
        calm = opened("127.0.0.1", there.port, work, capacity / 10, 3 * each)
        before = there.memory_gb
        storm = opened("127.0.0.1", there.port, work, TIMES * capacity, seconds, seed=1)
        after = opened("127.0.0.1", there.port, work, capacity / 10, 3 * each, seed=2)
        held = there.memory_gb - before
    return _figures(MEANS[server], capacity, rates, calm, storm, after, held)


def _figures(
    server: str,
    capacity: float,
    rates: list[float],
    calm: Outcome,
    storm: Outcome,
    after: Outcome,
    held: float,
) -> list[Figure]:
    normal = calm.quantile(0.99)
    accepted = storm.quantile(0.99)
    told = dict(sorted(Counter(storm.status.tolist()).items()))
    how = f"{server}; {len(storm.status):,} requests at {TIMES:g} × {capacity:.0f}/s, "
    how += f"by status {told}"
    return [
        Figure(
            "overload_capacity_per_s", capacity, "requests/s", min(rates), max(rates),
            reference=f"{server}, /v1/rank with 100 candidates, {ONGOING} connections",
        ),
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
