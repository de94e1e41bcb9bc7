"""`raysys simulate`: shoppers with known tastes visit a shop that is served."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import ClassVar

import httpx
from pydantic import Field
from rich.console import Console
from rich.markup import escape

from raysys.catalogue import Catalogue
from raysys.config import StageSettings
from raysys.errors import UserError
from raysys.progress import task
from raysys.simulation.driver import DriveSettings, Outcome, drive
from raysys.simulation.shoppers import Shoppers, ShopperSettings
from raysys.storage import Manifest, Workspace, outcome_folder, replacing

KEY = "RAYSYS_API_KEY"


class SimulateSettings(StageSettings):
    """The YAML of `raysys simulate`.

    Attributes:
        url: of the shop.
        catalogue: Parquet file of the items that it serves; null: that of the workspace.
        shoppers: what they are like.
        drive: how they come.
    """

    kind_name: ClassVar[str] = "simulate"

    url: str = Field("http://127.0.0.1:8000", pattern=r"^https?://")
    catalogue: str | None = None
    shoppers: ShopperSettings = ShopperSettings()
    drive: DriveSettings = DriveSettings()


def run(settings: SimulateSettings, workspace: Workspace, output: Path | None = None) -> Outcome:
    """Drive, write answers and events to `output` (`simulate` of the workspace), say what came.

    An API key is read from the environment, `RAYSYS_API_KEY`.

    Raises:
        UserError: no catalogue, no shop there, or an `output` that holds other things.
    """
    folder = outcome_folder(output or workspace.root / "simulate", "simulate")
    given = settings.catalogue
    path = workspace.features / "catalogue.parquet" if given is None else Path(given)
    if not path.is_file():
        raise UserError(
            "no catalogue", where=str(path), mend="give --workspace of a shop, or `catalogue:`"
        )
    shoppers = Shoppers(Catalogue.load(path), settings.shoppers)
    with task("simulate: shopping") as shopping:
        outcome = asyncio.run(_drive(settings, shoppers))
        shopping.note = f"{outcome.visits:,} visits"
    figures = outcome.figures()
    manifest = Manifest(
        stage="simulate",
        settings=settings.model_dump(mode="json"),
        counts={
            "visits": outcome.visits,
            "lists": len(outcome.answers),
            "events": len(outcome.log),
        },
        figures={**figures, "failed": dict(outcome.failed), "taken": dict(outcome.events)},
        seconds=outcome.seconds,
    )
    if not outcome.answers:
        told = ", ".join(f"{what} {count}" for what, count in outcome.failed.items())
        raise UserError(f"no list was answered: {told or 'no visit'}", where=settings.url)
    with replacing(folder) as fresh:
        outcome.write(fresh)
        manifest.write(fresh)
    _show(outcome, figures, folder)
    return outcome


async def _drive(settings: SimulateSettings, shoppers: Shoppers) -> Outcome:
    key = os.environ.get(KEY)
    headers = {"X-API-Key": key} if key else {}
    limits = httpx.Limits(max_connections=settings.drive.at_once)
    async with httpx.AsyncClient(base_url=settings.url, headers=headers, limits=limits) as client:
        return await drive(client, shoppers, settings.drive)


def _show(outcome: Outcome, figures: dict[str, float], folder: Path) -> None:
    console = Console()
    console.print(
        f"{outcome.visits:,} visits in {outcome.seconds:.1f} s, {outcome.late:,} late; lists: "
        f"p50 {figures['p50_ms']:.1f} ms, p99 {figures['p99_ms']:.1f} ms"
    )
    console.print(
        f"expected clicks a list {figures['expected_clicks']:.3f}, of the best possible "
        f"{figures['best_clicks']:.3f}: {figures['reached']:.0%}"
    )
    for what, count in (*outcome.failed.items(), *outcome.events.items()):
        console.print(f"  {escape(what)}: {count:,}")
    console.print(f"written to {escape(str(folder))}", soft_wrap=True)
