"""Two towers whose training goes astray: it ends with what to do, never with scores of NaN."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from raysys.cluster import ray_session
from raysys.errors import UserError
from raysys.features.examples import Examples
from raysys.learners import make_learner, two_tower_workshop
from raysys.learners.protocol import Context
from raysys.learners.training import stopping
from raysys.learners.two_tower_workshop import train_loop
from raysys.storage import CheckpointFolder
from raysys.text import tuning
from tests.synthetic import write_examples
from tests.text.tiny import write_tiny_bert

Shop = tuple[Examples, Context, dict[str, Any]]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    root = tmp_path_factory.mktemp("shop")
    examples, catalogue = write_examples(root / "features", 120, 60)
    settings = {
        "model": str(write_tiny_bert(root / "bert")),
        "text": ("title", "category"),
        "steps": 6,
        "batch_size": 8,
        "head": None,
    }
    return examples.with_folds(0, 1), Context(catalogue, root / "scratch", seed=3), settings


HEAD = {"epochs": 2, "width": 8, "vector_size": 4, "batch_size": 16}


@pytest.mark.parametrize("head", [None, HEAD], ids=["towers", "towers and head"])
@pytest.mark.parametrize("steps", [1, 6])
def test_a_rate_that_is_far_too_high(shop: Shop, head: Any, steps: int) -> None:
    examples, context, settings = shop
    rates = {"learning_rate": 1e30, "head_learning_rate": 1e30}
    learner = make_learner("two_tower", {**settings, **rates, "steps": steps, "head": head})
    with pytest.raises(UserError, match="step") as caught:
        learner.fit_local(examples, context)
    assert caught.value.where == "two_tower" and "lower learning_rate" in caught.value.mend


def test_a_head_whose_rate_is_far_too_high(shop: Shop) -> None:
    examples, context, settings = shop
    head = {**HEAD, "learning_rate": 1e30}
    learner = make_learner("two_tower", {**settings, "head": head})
    with pytest.raises(UserError, match="step") as caught:
        learner.fit_local(examples, context)
    assert caught.value.where == "two_tower: head"
    assert "head.learning_rate" in caught.value.mend


def test_the_last_good_weights_are_kept(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples, context, settings = shop
    loss, steps = tuning.sampled_softmax_loss, [0]

    def astray(*given: Any) -> Any:
        steps[0] += 1
        return loss(*given) * (np.nan if steps[0] == 5 else 1.0)

    learner = make_learner("two_tower", settings)
    place = replace(context, checkpoint=CheckpointFolder(tmp_path / "kept", 100))
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "sampled_softmax_loss", astray)
        with pytest.raises(UserError, match="the loss is nan at step 5 of 6") as caught:
            learner.fit_local(examples, place)
    kept = Path(re.findall(r"kept in (\S+)", caught.value.what)[0])
    assert kept.name == "step-000000004"
    weights = load_file(kept / "weights.safetensors")
    assert weights and all(bool(each.isfinite().all()) for each in weights.values())
    whole = learner.fit_local(examples, context).score(examples.batch())
    resumed = learner.fit_local(examples, place).score(examples.batch())
    np.testing.assert_array_equal(resumed, whole)


def test_a_mistake_in_a_worker_is_written_down_where_it_would_be_tried_again(
    tmp_path: Path,
) -> None:
    with stopping(tmp_path / "kept"):
        raise UserError("no", where="here", mend="so")
    assert (tmp_path / "kept" / "stopped.json").read_text() == '["no", "here", "so"]'
    with pytest.raises(UserError, match="no"), stopping(None):
        raise UserError("no")


def _dies_once(config: dict[str, Any]) -> None:
    """The worker's loop; the first time it is killed when a checkpoint was just written."""
    writing, home = CheckpointFolder.writing, config["checkpoint"].root

    @contextlib.contextmanager
    def killed_after(folder: CheckpointFolder, step: int) -> Iterator[Path]:
        with writing(folder, step) as fresh:
            yield fresh
        with (home / "steps").open("a", encoding="utf-8") as steps:
            steps.write(f"{folder.root.parent.name} {step}\n")
        if not (home / "killed").exists():
            (home / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    CheckpointFolder.writing = killed_after  # type: ignore[assignment,method-assign]
    train_loop(config)


@pytest.mark.slow
def test_a_worker_that_is_killed_goes_on_from_its_checkpoint(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples, context, settings = shop
    learner = make_learner("two_tower", settings)
    place = replace(context, checkpoint=CheckpointFolder(tmp_path / "kept", 4))
    monkeypatch.setattr(two_tower_workshop, "train_loop", _dies_once)
    with ray_session():
        models = learner.fit_folds([examples.with_folds(0), examples], place)
    done = (tmp_path / "kept" / "steps").read_text(encoding="utf-8").splitlines()
    assert done == ["fold=0 4", "fold=0 6", "fold=1 4", "fold=1 6"]
    whole = learner.fit_local(examples, context).score(examples.batch())
    np.testing.assert_allclose(models[1].score(examples.batch()), whole, atol=1e-4)
