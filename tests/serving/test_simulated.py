"""Simulated shoppers in front of the real application."""

import asyncio
import socket
import threading

import httpx
import polars as pl
import uvicorn

from raysys.config import parse_settings
from raysys.serving.app import http_app
from raysys.simulation import Shoppers, ShopperSettings
from raysys.simulation.driver import DriveSettings, drive
from raysys.stages.simulate import SimulateSettings, run
from raysys.storage import Workspace, read_manifest
from tests.serving.eventing import kept
from tests.synthetic import make_catalogue


def visit(service, **changes):
    async def go():
        transport = httpx.ASGITransport(app=http_app(service))
        shoppers = Shoppers(make_catalogue(200), ShopperSettings(shoppers=20, click=-1))
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            return await drive(client, shoppers, DriveSettings(**changes))

    return asyncio.run(go())


def test_shoppers_visit_a_real_shop(service, tmp_path):
    outcome = visit(service, visits=40, rate=1000, at_once=4, k=6, seed=3)
    lists = [what for what in outcome.failed if "events" not in what]
    assert outcome.visits == len(outcome.answers) == 40 and not lists
    assert {each["surface"] for each in outcome.answers} == {"recommend", "search"}
    figures = outcome.figures()
    assert 0 < figures["expected_clicks"] <= figures["best_clicks"]
    outcome.write(tmp_path)
    events = pl.read_parquet(tmp_path / "events.parquet")
    assert events["event_id"].n_unique() == len(events)
    shown = events.filter(pl.col("event_type") == "impression")
    answers = pl.read_parquet(tmp_path / "answers.parquet")
    assert set(shown["request_id"]) == set(answers.filter(pl.col("shown") > 0)["request_id"])
    assert len(shown) == answers["shown"].sum()
    clicks = events.filter(pl.col("event_type") == "click")
    assert len(clicks) == answers["clicks"].sum() > 0
    keys = ["request_id", "item_id", "position"]
    assert len(clicks.join(shown, on=keys, how="anti")) == 0


def test_a_shop_that_keeps_no_events_is_told_once(service):
    """Until a deployment takes events the log of the run has them."""
    outcome = visit(service, visits=10, rate=1000, at_once=1)
    taken = outcome.events["accepted"]
    assert outcome.log
    assert taken == len(outcome.log) or outcome.failed["/v1/events 404"] == 1


def test_what_a_shop_said_it_has_is_known_by_ids(start):
    """So that what is lost can be told from what was kept and never acknowledged."""
    service = start()
    outcome = visit(service, visits=5, rate=1000, at_once=2)
    sent = {event["event_id"] for event in outcome.log}
    assert sent and set(outcome.acknowledged) == sent == {e.body["event_id"] for e in kept(service)}
    assert len(outcome.acknowledged) == len(sent) == outcome.events["accepted"]


def test_visits_end_with_the_time(service):
    outcome = visit(service, seconds=0.3, rate=20, send_events=False)
    assert 1 <= outcome.visits <= 7
    assert not outcome.events and not outcome.failed


def test_the_command_talks_to_a_served_shop(service, tmp_path, capsys):
    door = socket.create_server(("127.0.0.1", 0))  # who comes early waits in its queue
    port = door.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(http_app(service), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [door]}, daemon=True)
    thread.start()
    try:
        make_catalogue(200).save(tmp_path / "catalogue.parquet")
        content = {
            "url": f"http://127.0.0.1:{port}", "catalogue": str(tmp_path / "catalogue.parquet"),
            "shoppers": {"shoppers": 20, "click": -1}, "drive": {"visits": 12, "rate": 200},
        }  # fmt: skip
        run(parse_settings(SimulateSettings, content, where="tests"), Workspace(tmp_path))
    finally:
        server.should_exit = True
        thread.join(10)
    assert "12 visits in" in capsys.readouterr().out
    manifest = read_manifest(tmp_path / "simulate")
    assert manifest.counts["lists"] == 12 and 0 < manifest.figures["reached"] <= 1
    assert (tmp_path / "simulate" / "events.parquet").is_file()
