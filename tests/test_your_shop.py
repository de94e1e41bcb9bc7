"""docs/your-shop.md on a small shop: its YAML, the presets, and answers under its serve config."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from raysys.config import find_config, load_settings, load_yaml
from raysys.ingest.spread import InProcess
from raysys.serving.app import http_app
from raysys.serving.args import ServeArgs
from raysys.serving.service import Service
from raysys.stages import evaluate, features, ingest, train
from raysys.stages.deploy_plan import DeploySettings, plan
from raysys.stages.features_settings import FeaturesSettings
from raysys.stages.train_settings import TrainSettings
from raysys.storage import Workspace
from tests.own_shop import write_shop

ROOT = Path(__file__).parents[1]
BASELINES = ("popular", "repeat_purchase", "co_occurrence")


@pytest.mark.slow
def test_a_shop_of_ones_own_comes_from_its_log_to_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = write_shop(tmp_path / "shop" / "data")
    monkeypatch.setenv("RAYSYS_DATA", str(tmp_path / "shop" / "data"))
    monkeypatch.setattr(train, "ray_session", contextlib.nullcontext)  # baselines need no Ray
    workspace = Workspace(tmp_path / "runs" / "shop")

    settings = load_settings(ingest.IngestSettings, ROOT / "docs" / "your-shop" / "ingest.yaml")
    done = ingest.run(settings, workspace, spread=InProcess())
    assert done.counts["events.in"] == done.counts["events.out"] == rows
    assert done.counts["items.out"] == 240
    assert {"view", "cart", "purchase"} == {
        name.removeprefix("events.type.") for name in done.counts if "type" in name
    }

    settings = load_settings(FeaturesSettings, find_config("web_shop", "features"))
    done = features.run(settings, workspace, spread=InProcess())
    assert done.counts["requests"] > 1000

    # the learners that the preset names are made as it says; the quick ones are fitted
    settings = load_settings(TrainSettings, find_config("web_shop", "train"))
    assert set(BASELINES) < set(settings.learners)
    quick = {name: settings.learners[name] for name in BASELINES}
    train.run(settings.model_copy(update={"learners": quick}), workspace)

    settings = load_settings(evaluate.EvaluateSettings, find_config("web_shop", "evaluate"))
    done = evaluate.run(settings, workspace)
    assert done.counts["requests"] > 200
    assert (workspace.evaluate / "report.html").is_file()

    content = load_yaml(ROOT / "serve_configs" / "web_shop.yaml")
    planned, bundle = plan(DeploySettings.model_validate(content), workspace)
    assert bundle.startswith("web-shop-")
    service = Service(ServeArgs.model_validate(planned["applications"][0]["args"]))
    service.warm_up()
    client = TestClient(http_app(service))
    asked = {"user_id": "shopper-11", "place": "home", "k": 10}
    first = client.post("/v1/recommend", json=asked).json()
    assert len(first["items"]) == 10 and not first["degraded"] and not first["cold_start"]
    event = {"event_type": "click", "user_id": "shopper-11", "item_id": "i0042"}
    assert client.post("/v1/events", json={"events": [event]}).json()["accepted"] == 1
    second = client.post("/v1/recommend", json=asked).json()
    assert [item["item_id"] for item in second["items"]] != [i["item_id"] for i in first["items"]]
    # what was looked at may be shown again, what was bought may not
    bought = second["items"][0]["item_id"]
    event = {"event_type": "purchase", "user_id": "shopper-11", "item_id": bought}
    assert client.post("/v1/events", json={"events": [event]}).json()["accepted"] == 1
    third = client.post("/v1/recommend", json=asked).json()
    assert bought not in [item["item_id"] for item in third["items"]]
    found = client.post("/v1/search", json={"query": "rye bread", "k": 5}).json()
    assert len(found["items"]) == 5
    service.close()
