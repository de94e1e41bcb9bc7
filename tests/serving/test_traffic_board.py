"""The console of one replica knows the traffic of all."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from raysys.serving.app import http_app
from raysys.serving.traffic import Traffic
from raysys.serving.traffic_board import FOLDER, FRESH_S, TrafficBoard
from tests.serving.test_arms import Shop
from tests.serving.test_traffic import Clock


def replica(root: Path, calls: int, milliseconds: float) -> TrafficBoard:
    clock = Clock()
    traffic = Traffic(clock)
    clock.now += 10
    for number in range(calls):
        traffic.note("/v1/rank", milliseconds, 500 if number == 0 else 200, degraded=number == 1)
    counts = {"raysys_answers": {"rank": calls}, f"raysys_of_{calls}": {"": 1}}
    return TrafficBoard(root, traffic, lambda: counts)


def test_all_replicas_count_together(tmp_path: Path) -> None:
    first, second = replica(tmp_path, 10, 5.0), replica(tmp_path, 30, 50.0)
    alone = first.look()
    assert alone[0] == 1 and alone[1][0].per_second == pytest.approx(1)
    second.tell()
    replicas, (rank,), counts = first.look()
    assert replicas == 2 and rank.per_second == pytest.approx(4)
    assert rank.failed == rank.degraded == pytest.approx(2 / 40)
    assert rank.p50_ms == rank.p99_ms == pytest.approx(50, rel=0.06)  # three in four are slow
    assert counts["raysys_answers"] == {"rank": 40}
    assert {"raysys_of_10", "raysys_of_30"} < set(counts)
    second.close()
    assert first.look()[0] == 1


def test_who_was_killed_is_forgotten(tmp_path: Path) -> None:
    first, second = replica(tmp_path, 1, 1.0), replica(tmp_path, 1, 1.0)
    second.tell()
    (place,) = (tmp_path / FOLDER).glob("*.json")
    told = json.loads(place.read_text())
    place.write_text(json.dumps({**told, "at": time.time() - FRESH_S - 1}))
    assert first.look()[0] == 1 and place.exists()
    third = replica(tmp_path, 1, 1.0)
    place.write_text(json.dumps({**told, "at": time.time() - 7200}))
    assert third.look()[0] == 1 and not place.exists()


def test_a_clock_that_stands_elsewhere_hides_nobody(tmp_path: Path) -> None:
    first, second = replica(tmp_path, 1, 1.0), replica(tmp_path, 1, 1.0)
    second.tell()
    (place,) = (tmp_path / FOLDER).glob("*.json")
    told = json.loads(place.read_text())
    for behind in (30, 28):  # half a minute, and going on
        place.write_text(json.dumps({**told, "at": time.time() - behind}))
        seen = first.look()[0]
    assert seen == 2


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"at": "x"}', '{"at": 1e12, "traffic": {}, "counts": {}}',
     '{"at": 1e12, "traffic": {"spent": 1, "calls": {"/v1/rank": {"count": 1, "failed": 0, '
     '"degraded": 0, "bins": {"9999": 1}}}}, "counts": {}}'],
)  # fmt: skip
def test_what_cannot_be_read_costs_no_page(tmp_path: Path, text: str) -> None:
    first = replica(tmp_path, 3, 1.0)
    (tmp_path / FOLDER).mkdir(parents=True)
    (tmp_path / FOLDER / "other.json").write_text(text)
    replicas, (rank,), _ = first.look()
    assert replicas == 1 and rank.per_second == pytest.approx(0.3)


def test_two_replicas_on_one_console(bundle: Path, tmp_path: Path) -> None:
    shop = Shop(tmp_path / "registry", bundle, pages={"console": True})
    app = http_app(shop.arms, shop.arms)  # type: ignore[arg-type]
    try:
        with TestClient(app) as client:
            body = {"user_id": "u1", "k": 3}
            assert client.post("/v1/recommend", json=body).status_code == 200
            page = client.get("/console/live").text
            assert "Calls, the last minute</h2>" in page and "/v1/recommend" in page
            other = replica(tmp_path / "registry", 5, 20.0)
            other.tell()
            page = client.get("/console/live").text
            assert "of 2 replicas" in page and "/v1/rank" in page and "/v1/recommend" in page
            deadline = time.monotonic() + 30
            folder = tmp_path / "registry" / FOLDER
            while len(list(folder.glob("*.json"))) < 2:  # it tells of itself, too
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert len(list(folder.glob("*.json"))) == 1
    finally:
        shop.arms.close()
