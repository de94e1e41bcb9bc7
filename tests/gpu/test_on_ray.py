"""GPUs that Ray hands out: to a fit, to parts of trials, to workers that score, to a replica."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from raysys.cluster import Resources, device_here, ray_session
from raysys.text.training import TrainingSettings, train
from tests.gpu.device import ONE, require_gpu
from tests.gpu.test_training import Watched
from tests.stages import texts
from tests.stages.workspace import write_features
from tests.text.tiny import write_tiny_bert
from tests.text.training.tasks import DiesOnce
from tests.text.training.test_resume import weights

require_gpu()

pytestmark = pytest.mark.slow


@pytest.fixture
def ray() -> Iterator[Any]:
    with ray_session():
        import ray

        yield ray


def test_a_worker_uses_what_it_was_given(ray: Any) -> None:
    device = ray.remote(device_here)
    assert device_here() == "cuda"
    found = ray.get([device.options(num_cpus=0.5, num_gpus=share).remote() for share in (0, 0.25)])
    assert found == ["cpu", "cuda"]


class Where(Watched):
    """Says in a file where it was trained."""

    def __init__(self, place: Path, **how: Any) -> None:
        super().__init__(**how)
        self.place = place

    def save(self, module: Any, folder: Path) -> None:
        self.place.write_text(json.dumps(sorted(self.seen)))
        super().save(module, folder)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_fit_through_ray_train(ray: Any, tmp_path: Path, strategy: Any) -> None:
    settings = TrainingSettings(max_steps=6, batch_size=8, strategy=strategy)
    train(Where(tmp_path / "where"), settings, tmp_path / "out", resources=ONE)
    assert json.loads((tmp_path / "where").read_text()) == [["cuda", "cuda", True]]
    train(Where(tmp_path / "where"), settings, tmp_path / "cpu", resources=Resources())
    assert json.loads((tmp_path / "where").read_text()) == [["cpu", "cpu", False]]


def test_a_killed_worker_goes_on_from_its_checkpoint(ray: Any, tmp_path: Path) -> None:
    settings = TrainingSettings(
        epochs=3, batch_size=8, learning_rate=3e-3, checkpoint_every={"steps": 2}, max_failures=1
    )
    train(DiesOnce(tmp_path / "never", after=10**9), settings, tmp_path / "whole", resources=ONE)
    died = DiesOnce(tmp_path / "died", after=8)
    fitted = train(died, settings, tmp_path / "killed", resources=ONE)
    assert (tmp_path / "died").exists() and fitted.steps == 15
    whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert max(float((whole[name] - killed[name]).abs().max()) for name in whole) < 1e-2


def raysys(*words: str) -> subprocess.CompletedProcess[str]:
    """A command as a person types it, on a cluster of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-m", "raysys", *words],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done


class GpuMemory(threading.Thread):
    """Watches who holds memory of the GPU: at most so many processes at once."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self._over = 0, threading.Event()

    def run(self) -> None:
        listing = ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"]
        while not self._over.wait(0.2):
            told = subprocess.run(listing, capture_output=True, text=True, check=False).stdout
            self.most = max(self.most, len(told.split()))

    def __enter__(self) -> GpuMemory:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self.join()


SEARCH = {
    "name": "shared",
    "trials": 4,
    "concurrent": 2,
    "scheduler": "none",
    "resources": {"cpus": 1, "gpus": 0.5},
}


@pytest.mark.parametrize(
    ("learner", "settings", "space"),
    [
        ("xgboost_ranker", {"n_estimators": 60}, "learning_rate"),
        ("two_tower", {"steps": 60, "batch_size": 16, "head": None}, "learning_rate"),
    ],
)
def test_two_trials_share_a_gpu(
    tmp_path: Path, learner: str, settings: dict[str, Any], space: str
) -> None:
    workspace = write_features(tmp_path / "run", n_requests=160)
    if learner == "two_tower":
        settings |= {"model": str(write_tiny_bert(tmp_path / "bert"))}
    content = {
        **SEARCH,
        "learner": learner,
        "settings": settings,
        "space": {space: {"kind": "float", "low": 0.01, "high": 0.1, "log": True}},
    }
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(content))
    raysys("tune", "-c", str(tmp_path / "search.yaml"), "-w", str(workspace.root))
    folder = workspace.tune / "shared"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["counts"] == {"trials": 4, "stopped": 0, "failed": 0, "infeasible": 0}
    assert "GPU-seconds" in (folder / "report.html").read_text()


def test_train_and_score_on_a_gpu(tmp_path: Path) -> None:
    """A text classifier by the commands; two workers share the GPU for its answers."""
    import polars as pl

    path = texts.write_titles(tmp_path / "titles.csv", 150)
    bert = str(write_tiny_bert(tmp_path / "bert"))
    content = {
        "task": "classify",
        "sources": {
            "kind": "files", "paths": str(path), "text": "title",
            "label": ["department", "category"],
        },
        "learners": {"text_classifier": {"model": bert, "training": {"epochs": 2}}},
        "resources": {"workers": 1, "gpus_per_worker": 1},
    }  # fmt: skip
    (tmp_path / "text.yaml").write_text(yaml.safe_dump(content))
    ws = ["--workspace", str(tmp_path / "ws")]
    raysys("text", "fit", "--config", str(tmp_path / "text.yaml"), *ws)
    out = tmp_path / "out"
    how = {"bundle": "text-classify", "paths": str(path), "output": str(out), "piece": 16}
    (tmp_path / "score.yaml").write_text(
        yaml.safe_dump(how | {"workers": 2, "gpus_per_worker": 0.5})
    )
    raysys("score", "--config", str(tmp_path / "score.yaml"), *ws)
    said = pl.concat(map(pl.read_parquet, (out / "predictions").glob("*.parquet")))
    assert said.height == 150 and said["predicted_label"].null_count() == 0


def test_a_replica_of_the_transformer_holds_a_part_of_a_gpu(tmp_path: Path) -> None:
    import socket

    import httpx

    from raysys.config import parse_settings
    from raysys.stages.deploy import cluster, deploy
    from raysys.stages.deploy_plan import DeploySettings, plan
    from tests.serving.shop import publish_shop
    from tests.serving.test_transformer_on_ray import LOCAL

    registry, _ = publish_shop(tmp_path / "registry", with_encoder=False, with_sequences=True)
    content = yaml.safe_load(LOCAL.read_text())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        content["http_options"]["port"] = probe.getsockname()[1]
    (app,) = content["applications"]
    app["args"] |= {"registry": str(registry.root), "transformer": {}}
    gpu = {"num_cpus": 0.5, "num_gpus": 0.5}
    app["deployments"].append({"name": "Transformer", "ray_actor_options": gpu})
    settings = parse_settings(DeploySettings, content, where="local.yaml")
    from ray import serve

    with GpuMemory() as memory, ray_session(dashboard=True), cluster() as (dashboard, _):
        address = deploy(*plan(settings, None), dashboard).address
        body = {"user_id": "u1", "k": 10, "explain": True}
        until = time.monotonic() + 60
        while True:
            answer = httpx.post(f"{address}/v1/recommend", json=body, timeout=30).json()
            if not answer["degraded"] or time.monotonic() > until:
                break
        assert not answer["degraded"], answer
        assert answer["explanation"]["by_source"]["next_item"] > 0
        serve.shutdown()
    assert memory.most == 1  # the replica of Transformer, and none that only ranks
    assert not torch.cuda.memory_allocated()  # and nothing in this process
