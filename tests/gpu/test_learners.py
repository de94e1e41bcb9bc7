"""The suites of learners once more, fitted on a GPU; and that it teaches what a CPU does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from raysys.catalogue import Catalogue
from raysys.features.batch import Batch
from raysys.features.examples import Examples
from raysys.learners import load_model, make_learner
from raysys.learners.protocol import Context, Learner, Model, Placeable, Resources
from raysys.learners.text import make_text_learner
from raysys.learners.text_protocol import TextContext
from raysys.learners.validation import NDCG
from raysys.text.cross_encoder import fitted_line
from raysys.text.pairs import Pairs
from tests.gpu.device import ONE, on_the_gpu, require_gpu
from tests.learners import (
    label_suite,
    test_cross_encoder_ranker,
    test_entity_tagger,
    test_next_item,
    test_text_classifier,
    test_trees,
    test_two_tower,
)
from tests.learners.suite import request
from tests.synthetic import write_examples
from tests.text.shop_pairs import judged_pairs as shop_pairs
from tests.text.tiny import write_tiny_bert

require_gpu()

SPLITS = ((160, "train"), (60, "validation"), (60, "test"))


class OnAGpu:
    """Put before a suite: each fit may use one GPU."""

    spread = 1e-6
    """How far scores of two fits from one seed may lie apart: sums in CUDA keep no order."""

    @pytest.fixture(scope="class")
    @classmethod
    def context(
        cls, shop: tuple[Examples, Catalogue], tmp_path_factory: pytest.TempPathFactory
    ) -> Context:
        return Context(shop[1], tmp_path_factory.mktemp("scratch"), seed=3, resources=ONE)

    def test_ranks_as_well_as_fitted_on_a_cpu(
        self,
        model: Model,
        make: Callable[..., Learner[Any]],
        train: Examples,
        context: Context,
        later: Batch,
    ) -> None:
        here = make().fit_local(train, replace(context, resources=Resources()))
        judge = NDCG(later)
        assert judge(model.score(later)) > judge(here.score(later)) - 0.06

    def test_same_seed_same_model(
        self,
        model: Model,
        make: Callable[..., Learner[Any]],
        train: Examples,
        context: Context,
        later: Batch,
    ) -> None:
        again = make().fit_local(train, context).score(later)
        np.testing.assert_allclose(again, model.score(later), rtol=self.spread, atol=self.spread)

    def test_two_workers_two_folds(self) -> None:
        pytest.skip("two workers need a GPU each")


class OfTorch(OnAGpu):
    """A network: what it takes of the GPU's memory tells where it was fitted."""

    spread = 5e-2

    def test_is_fitted_there(
        self, make: Callable[..., Learner[Any]], train: Examples, context: Context
    ) -> None:
        with on_the_gpu():
            make().fit_local(train, context)


class TestXGBoostRanker(OnAGpu, test_trees.TestXGBoostRanker):
    def test_is_fitted_there(
        self,
        make: Callable[..., Learner[Any]],
        train: Examples,
        context: Context,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        import xgboost

        fit, devices = xgboost.train, []

        def spied(*given: Any, **named: Any) -> Any:
            booster = fit(*given, **named)
            content = json.loads(booster.save_config())
            devices.append(content["learner"]["generic_param"]["device"])
            return booster

        monkeypatch.setattr(xgboost, "train", spied)
        model = make().fit_local(train, context)
        assert devices and all(device.startswith("cuda") for device in devices)
        kept = json.loads(model.booster.save_config())["learner"]["generic_param"]  # type: ignore[attr-defined]
        assert kept["device"] == "cpu"  # requests are scored where they are answered


class TestTwoTower(OfTorch, test_two_tower.TestTwoTower):
    pass


class TestNextItem(OfTorch, test_next_item.TestNextItem):
    pass


class TestCrossEncoderRanker(OfTorch, test_cross_encoder_ranker.TestCrossEncoderRanker):
    pass


@pytest.mark.parametrize("name", ["two_tower", "next_item", "cross_encoder_ranker"])
def test_placed_on_the_gpu_it_says_what_it_says_on_the_cpu(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As the deployment `Transformer` does with a bundle's models."""
    module = {
        "two_tower": test_two_tower,
        "next_item": test_next_item,
        "cross_encoder_ranker": test_cross_encoder_ranker,
    }[name]
    settings: dict[str, Any] = dict(module.QUICK)
    if name != "next_item":
        settings["model"] = str(write_tiny_bert(tmp_path_factory.mktemp("bert")))
    examples, catalogue = write_examples(tmp_path_factory.mktemp("features"), 120, 60, 14)
    context = Context(catalogue, tmp_path_factory.mktemp("scratch"), seed=3, resources=ONE)
    folder = tmp_path_factory.mktemp("model")
    make_learner(name, settings).fit_local(examples.with_folds(0, 1), context).save(folder)
    model = load_model(name, folder, catalogue)
    batch = examples.with_folds(2).batch().take_requests(np.arange(6))
    before = model.score(batch)
    assert isinstance(model, Placeable)
    with on_the_gpu():
        model.place("cuda")
    alone = request(batch, batch.item[:14], batch.features[:14], history=[3, 1, 7])
    assert np.isfinite(model.score(alone)).all()
    np.testing.assert_allclose(model.score(batch), before, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize(
    "name", ["text_classifier", "entity_tagger", "cross_encoder", "bi_encoder"]
)
def test_learners_of_texts_take_the_gpu_unasked(name: str, tmp_path: Path) -> None:
    """Fitted there, and read there when loaded, as `raysys score` and an endpoint do."""
    bert = str(write_tiny_bert(tmp_path / "bert"))
    settings: dict[str, Any] = {"model": bert}
    if name == "text_classifier":
        settings |= {"training": test_text_classifier.TRAINING, "max_tokens": 24}
        told = [label_suite.titles(n, split, 0) for n, split in SPLITS]
    elif name == "entity_tagger":
        settings |= {"surface": 24, "training": {"epochs": 2, "batch_size": 8}}
        told = [test_entity_tagger.shop(n, at) for at, (n, _) in enumerate(SPLITS)]
    else:
        settings |= {"training": {"epochs": 1, "batch_size": 16}}
        pairs = shop_pairs()
        told = [pairs.filter(pc.equal(pairs["split"], split)) for split in ("train", "validation")]
        told.append(told[-1])
    train, validation, test = told
    learner = make_text_learner(name, settings)
    with on_the_gpu():
        fitted = learner.fit(train, validation, TextContext(tmp_path / "scratch", seed=3))
    (tmp_path / "saved").mkdir()
    fitted.save(tmp_path / "saved")
    with on_the_gpu():
        model = learner.model_class.load(tmp_path / "saved")
        said = model.predict(test)
    assert said.equals(fitted.predict(test))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        there = learner.model_class.load(tmp_path / "saved").predict(test)
    assert agreement(name, said, there) > 0.95


def test_scores_of_a_loss_by_list_are_put_on_the_scale_by_what_the_gpu_says(
    tmp_path: Path,
) -> None:
    settings = {"model": str(write_tiny_bert(tmp_path / "bert")), "loss": "listwise"}
    pairs = shop_pairs()
    train, held = (pairs.filter(pc.equal(pairs["split"], s)) for s in ("train", "validation"))
    learner = make_text_learner("cross_encoder", {**settings, "training": {"epochs": 1}})
    model: Any = learner.fit(train, held, TextContext(tmp_path / "scratch", seed=3))
    assert next(model.scorer.module.parameters()).is_cuda
    known = Pairs.of(held)
    line = fitted_line(model.scorer.scores(known)[0], known.grade, known.weight)
    assert model.line == pytest.approx(line, rel=1e-4)


def agreement(name: str, said: pa.Table, other: pa.Table) -> float:
    """The share of rows of which two devices say the same, but for bfloat16."""
    if "grade" in said.column_names:
        near = np.isclose(said["grade"], other["grade"], rtol=0.05, atol=0.05)
        return float(np.mean(near))
    column = "label" if name == "text_classifier" else "spans"

    def key(row: Any) -> Any:
        return row if column == "label" else [(s["start"], s["end"], s["label"]) for s in row]

    pairs = zip(said[column].to_pylist(), other[column].to_pylist(), strict=True)
    return float(np.mean([key(one) == key(two) for one, two in pairs]))
