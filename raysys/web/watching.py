"""The console's pages on what is watched: drift, and what came of the lists shown."""

# No `from __future__ import annotations` here: FastAPI reads the annotations of the routes.
import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from raysys.monitoring.drift import DriftFigures
from raysys.monitoring.feedback import Feedback
from raysys.monitoring.words import day, level, of, percent
from raysys.web.charts import curve, two_shares
from raysys.web.operations import Operations
from raysys.web.pages import Pages


def add_watching(
    router: APIRouter,
    pages: Pages,
    refused: Callable[[Request], Response | None],
    system: Operations,
) -> None:
    """Add /drift and /feedback to the console.

    Args:
        router: of the console.
        pages: renders.
        refused: where to go who may not be here.
        system: what is watched.
    """

    @router.get("/drift")
    async def drift(request: Request) -> Response:
        if away := refused(request):
            return away
        watched = system.watched()
        rows = [] if watched.drift is None else _moved(watched.drift)
        return pages.render(
            "console/drift.html", watched=watched, drift=watched.drift, rows=rows, day=day, age=_age
        )

    @router.get("/feedback")
    async def feedback(request: Request) -> Response:
        if away := refused(request):
            return away
        watched = system.watched()
        told = watched.feedback
        curves = [] if told is None else _curves(told)
        return pages.render(
            "console/feedback.html", watched=watched, told=told, curves=curves, day=day,
            percent=percent, of=of, age=_age,
        )  # fmt: skip


def _moved(drift: DriftFigures) -> list[dict[str, Any]]:
    """Rows of the table."""
    top = max([drift.max_psi, drift.thresholds.psi])
    found = []
    for each in drift.moved:
        shares = each.histogram
        words = f"Shares by bin of {each.name}, training beside served: " + ", ".join(
            f"{label} {p:.0%} and {q:.0%}"
            for label, p, q in zip(shares.labels, shares.reference, shares.current, strict=True)
            if max(p, q) > 0
        )
        found.append(
            {
                "name": each.name,
                "kind": each.kind,
                "psi": each.psi,
                "width": 100 * each.psi / top,
                "level": level(each),
                "over": each.over,
                "missing": tuple(map(percent, each.missing)),
                "chart": two_shares(shares.reference, shares.current, words),
            }
        )
    return found


def _curves(told: Feedback) -> list[tuple[str, Any]]:
    """Clicks by position of every surface that has some."""
    found = []
    for surface in sorted({each.surface for each in told.positions}):
        points = [each for each in told.positions if each.surface == surface]
        if not any(each.clicks.done for each in points):
            continue
        words = f"Clicks of what {surface} showed, by position: " + ", ".join(
            f"{each.position}: {of(each.clicks)}" for each in points
        )
        drawn = [(p.position, p.clicks.value, p.clicks.low, p.clicks.high) for p in points]
        found.append((surface, curve(drawn, words)))
    return found


def _age(millis: int) -> str:
    """How long ago a moment (UTC ms) was, as a person says it."""
    seconds = max(0.0, time.time() - millis / 1000)
    for size, unit in ((3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = round(seconds / size)
            return f"{count} {unit}{'s' * (count != 1)} ago"
    return "less than a minute ago"
