"""The console's page of experiments: who is in which arm, and what it did so far."""

# No `from __future__ import annotations` here: FastAPI reads the annotations of the routes.
import asyncio
from collections.abc import Callable

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response

from raysys.web.operations import Operations
from raysys.web.pages import HEADERS, Pages


def add_experiments(
    router: APIRouter,
    pages: Pages,
    refused: Callable[[Request], Response | None],
    system: Operations,
) -> None:
    """Add /experiments and /experiments/NAME, the whole report of one.

    Args:
        router: of the console.
        pages: renders.
        refused: where to go who may not be here.
        system: knows the experiments.
    """

    @router.get("/experiments")
    async def experiments(request: Request) -> Response:
        if away := refused(request):
            return away
        known = await asyncio.to_thread(system.experiments)
        trouble = system.experiments_trouble()
        return pages.render("console/experiments.html", experiments=known, trouble=trouble)

    @router.get("/experiments/{name}")
    async def report(request: Request, name: str) -> Response:
        if away := refused(request):
            return away
        page = await asyncio.to_thread(system.experiment_report, name)
        if page is not None:
            return HTMLResponse(page, headers=HEADERS)
        trouble = {name: "no such experiment is served, or it has no figures yet"}
        return pages.render("console/experiments.html", 404, experiments=[], trouble=trouble)
