"""Learners with a loop of their own, when memory runs out: parts, and the same loss."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raysys.cluster import Resources, ray_session
from raysys.errors import UserError
from raysys.features.examples import Examples
from raysys.learners import make_learner, two_tower_workshop
from raysys.learners.protocol import Context, Model
from raysys.learners.sequence_encoder import Encoder
from raysys.learners.two_tower import TwoTower
from raysys.learners.two_tower_workshop import train_loop
from raysys.text.encoder import Upper
from raysys.text.training.parts import MorePartsNeeded, Parts
from tests.synthetic import write_examples
from tests.text.tiny import write_tiny_bert

Shop = tuple[Examples, Context]
HEAD = {"epochs": 1, "width": 8, "vector_size": 4, "batch_size": 16, "dropout": 0.0}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    root = tmp_path_factory.mktemp("shop")
    examples, catalogue = write_examples(root / "features", 120, 60)
    return examples.with_folds(0, 1), Context(catalogue, root / "scratch", seed=3)


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {
        "model": str(write_tiny_bert(tmp_path_factory.mktemp("bert"))),
        "text": ("title", "category"),
        "steps": 3,
        "batch_size": 8,
        "head": None,
    }


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a CPU without bfloat16: sums are exact enough to compare."""
    with monkeypatch.context() as patch:
        patch.setattr(torch.cpu, "get_capabilities", dict)
        yield


def narrow(
    patch: pytest.MonkeyPatch, module: type[torch.nn.Module], limit: int, rows: Any = len
) -> list[int]:
    """Memory for so many rows at once, while gradients are made; how many there were each time."""
    forward, sizes = module.forward, []

    def limited(self: torch.nn.Module, first: Any, *more: Any) -> Any:
        if torch.is_grad_enabled():
            sizes.append(rows(first))
            if sizes[-1] > limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return forward(self, first, *more)

    patch.setattr(module, "forward", limited)
    return sizes


def scores(model: Model, shop: Shop) -> np.ndarray:
    return model.score(shop[0].batch())


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if "out of memory" in each.getMessage()]


@pytest.mark.long
def test_two_towers_keep_their_batch_and_its_negatives(
    shop: Shop,
    towers: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    learner = make_learner("two_tower", towers)
    whole = scores(learner.fit_local(*shop), shop)
    sizes = narrow(monkeypatch, Upper, 2)
    with caplog.at_level(logging.WARNING, "raysys"):
        model = learner.fit_local(*shop)
    np.testing.assert_allclose(scores(model, shop), whole, atol=1e-5)
    assert max(sizes) > 2 >= max(sizes[-30:])
    said = told(caplog)
    assert "two_tower: out of memory at step 1: going on in 2 parts a step" in said[0]
    assert "batch and loss stay what they are" in said[0]


@pytest.mark.long
def test_a_head_keeps_its_batch(
    shop: Shop,
    towers: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    learner = make_learner("two_tower", {**towers, "head": HEAD})
    whole = scores(learner.fit_local(*shop), shop)
    sizes = narrow(monkeypatch, torch.nn.SiLU, 100)
    with caplog.at_level(logging.WARNING, "raysys"):
        model = learner.fit_local(*shop)
    found = scores(model, shop)  # up to a constant, of which a softmax over lists knows nothing
    np.testing.assert_allclose(found - found.mean(), whole - whole.mean(), atol=1e-4)
    assert max(sizes) > 100 >= max(sizes[-8:])
    assert told(caplog)[0].startswith("two_tower: head: out of memory at step 1")


@pytest.mark.long
@pytest.mark.parametrize("objective", ["causal", "masked"])
@pytest.mark.parametrize("negatives", [0, 20])
def test_sequences_keep_their_batch_and_its_competitors(
    shop: Shop,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    objective: str,
    negatives: int,
) -> None:
    settings = {
        "objective": objective, "negatives": negatives, "width": 16, "layers": 1, "epochs": 2,
        "batch_size": 64, "dropout": 0.0, "item_dropout": 0.0, "device": "cpu",
    }  # fmt: skip
    learner = make_learner("next_item", {"history": 12, "settings": settings})
    whole = scores(learner.fit_local(*shop), shop)
    sizes = narrow(monkeypatch, Encoder, 3, rows=lambda given: len(given.items))
    with caplog.at_level(logging.WARNING, "raysys"):
        model = learner.fit_local(*shop)
    np.testing.assert_allclose(scores(model, shop), whole, atol=1e-4)
    assert max(sizes) > 3 >= max(sizes[-8:])
    assert told(caplog)[0].startswith("sequence_transformer: out of memory at step")


@pytest.mark.parametrize("head", [None, HEAD], ids=["towers", "head"])
def test_not_even_one_text_or_row(
    shop: Shop, towers: dict[str, Any], monkeypatch: pytest.MonkeyPatch, head: Any
) -> None:
    narrow(monkeypatch, torch.nn.SiLU if head else Upper, 0)
    learner = make_learner("two_tower", {**towers, "head": head})
    with pytest.raises(UserError, match="not enough memory for one") as caught:
        learner.fit_local(*shop)
    assert caught.value.where.startswith("two_tower") and "smaller" in caught.value.mend


def test_not_even_one_sequence(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow(monkeypatch, Encoder, 0, rows=lambda given: len(given.items))
    learner = make_learner("next_item", {"settings": {"width": 16, "epochs": 1}})
    with pytest.raises(UserError, match="not enough memory for one sequence at a time"):
        learner.fit_local(*shop)


def test_memory_for_what_is_learned_of_the_weights(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The optimiser's own memory is no matter of parts."""

    def step(self: Any, *given: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    learner = make_learner("next_item", {"settings": {"width": 16, "epochs": 1}})
    with pytest.raises(UserError, match="memory ran out while training: Default") as caught:
        learner.fit_local(*shop)
    assert caught.value.where == "sequence_transformer"


def test_where_others_wait_nobody_goes_on_alone() -> None:
    def gradients(parts: int) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    forgot: list[bool] = []
    memory = Parts("here", "one text", "so", alone=False)
    with pytest.raises(MorePartsNeeded, match="out of memory at step 7") as caught:
        memory.compute(7, 8, gradients, lambda: forgot.append(True))
    assert forgot == [True]
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301  as Ray carries it
    assert type(again) is MorePartsNeeded and again.what == caught.value.what


def test_folds_begin_again_with_more_parts_but_not_for_ever(
    shop: Shop,
    towers: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried: list[int] = []
    enough = 16

    def fit_folds(self: Any, folds: Any, context: Any, catalogue: Path, parts: int) -> list[str]:
        assert catalogue.is_file()
        tried.append(parts)
        if parts < enough:
            raise MorePartsNeeded("out of memory at step 1", where="two_tower")
        return ["a model"]

    monkeypatch.setattr(TwoTower, "_fit_folds", fit_folds)
    with caplog.at_level(logging.WARNING, "raysys"):
        assert make_learner("two_tower", towers).fit_folds([shop[0]], shop[1]) == ["a model"]
    assert tried == [1, 4, 16] and len(told(caplog)) == 2
    tried.clear()
    enough = 10_000
    with pytest.raises(MorePartsNeeded):
        make_learner("two_tower", towers).fit_folds([shop[0]], shop[1])
    assert tried == [1, 4, 16, 64]
    assert not list(shop[1].scratch.glob("*-catalogue.parquet"))


def _in_little_memory(config: dict[str, Any]) -> None:
    """The workers' loop, with memory for four texts at once."""
    with pytest.MonkeyPatch.context() as patch:
        narrow(patch, Upper, 4)
        train_loop(config)


@pytest.mark.slow
def test_several_workers_begin_again_with_more_parts(
    shop: Shop,
    towers: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    examples, context = shop
    wide = replace(context, resources=Resources(workers=2, cpus_per_worker=0.5))
    monkeypatch.setattr(two_tower_workshop, "train_loop", _in_little_memory)
    with ray_session(), caplog.at_level(logging.WARNING, "raysys"):
        model = make_learner("two_tower", towers).fit(examples, wide)
    assert np.isfinite(scores(model, shop)).all()
    assert "out of memory at step 1: starting again, with steps in 4 parts" in told(caplog)[0]
    assert not list(Path(context.scratch).glob("*-catalogue.parquet"))
