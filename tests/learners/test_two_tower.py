from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raysys.catalogue import Catalogue
from raysys.errors import UserError
from raysys.features.batch import Batch
from raysys.features.examples import Examples
from raysys.learners import load_model, make_learner
from raysys.learners.protocol import Context, Learner, Model, TextEncoder
from raysys.learners.two_tower_model import TwoTowerModel
from raysys.learners.two_tower_settings import TwoTowerSettings
from raysys.learners.validation import NDCG
from tests.learners.suite import LearnerSuite, TrainedOnSeveralWorkers, request
from tests.text.tiny import write_tiny_bert

QUICK = {
    "trainable_layers": 1,
    "text": ("title", "category", "brand"),
    "steps": 30,
    "batch_size": 16,
    "learning_rate": 3e-3,
    "head_learning_rate": 1e-2,
    "popularity_correction": 0.0,
    "max_tokens": 16,
    "head": None,
}


class TestTwoTower(LearnerSuite, TrainedOnSeveralWorkers):
    name = "two_tower"
    settings = QUICK

    @pytest.fixture(scope="class")
    @classmethod
    def more_settings(cls, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
        return {"model": str(write_tiny_bert(tmp_path_factory.mktemp("bert")))}

    def test_is_a_text_encoder(self, model: TwoTowerModel, context: Context) -> None:
        assert isinstance(model, TextEncoder)
        vectors = model.item_vectors
        assert vectors.shape == (len(context.catalogue), 32) and vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        for item in (0, 17, 55):
            text = model.texts.distinct[model.texts.codes[item]]
            np.testing.assert_allclose(model.encode([text.upper()])[0], vectors[item], atol=2e-3)

    def test_many_kinds_of_text_are_encoded(self, model: TwoTowerModel) -> None:
        vectors = model.encode(["milk", "", "   ", "Käse 🧀 unheard of", "bread " * 10_000])
        assert np.isfinite(vectors).all()
        lengths = np.linalg.norm(vectors, axis=1)
        np.testing.assert_allclose(lengths, [1, 0, 0, 1, 1], atol=1e-5)
        assert model.encode([]).shape == (0, 32)

    def test_training_teaches_it_something(
        self, model: Model, make: Callable[..., Learner[Any]], train: Examples, context: Context
    ) -> None:
        """The transformer itself moved, in its upper layer and nowhere below."""
        assert isinstance(model, TwoTowerModel)
        model.encoder.save(context.scratch / "saved")
        from transformers import AutoModel

        before = AutoModel.from_pretrained(make().settings.model).state_dict()
        after = AutoModel.from_pretrained(context.scratch / "saved").state_dict()
        moved = {key for key in before if not before[key].equal(after[key])}
        assert moved and all(key.startswith("encoder.layer.1.") for key in moved)
        import shutil

        shutil.rmtree(context.scratch / "saved")

    @pytest.mark.parametrize("layers", [-1, 2])
    def test_every_layer_can_be_trained(
        self, make: Callable[..., Learner[Any]], train: Examples, context: Context, later: Batch,
        layers: int, tmp_path: Path,
    ) -> None:  # fmt: skip
        model = make(trainable_layers=layers, steps=3).fit_local(train, context)
        model.save(tmp_path)
        again = load_model(self.name, tmp_path, context.catalogue)
        np.testing.assert_array_equal(again.score(later), model.score(later))
        assert isinstance(model, TwoTowerModel) and isinstance(again, TwoTowerModel)
        np.testing.assert_allclose(again.encode(["milk"]), model.encode(["milk"]), atol=1e-6)

    def test_tells_how_it_goes(
        self, make: Callable[..., Learner[Any]], train: Examples, context: Context
    ) -> None:
        told: list[tuple[int, float]] = []
        make(steps=8).fit_local(train, context, lambda step, value: told.append((step, value)))
        assert [step for step, _ in told] == [2, 4, 6, 8]
        assert all(0 < value <= 1 for _, value in told)

    def test_items_that_came_later_are_placed_by_their_text(
        self, model: TwoTowerModel, context: Context, later: Batch, tmp_path: Path
    ) -> None:
        model.save(tmp_path)
        new = {"item_id": "z9", "title": "lemon milk", "category": "milk", "brand": "acme"}
        columns = context.catalogue.table.schema
        extra = pa.Table.from_pylist([{name: new.get(name) for name in columns.names}], columns)
        grown = Catalogue(pa.concat_tables([context.catalogue.table, extra]))
        again = load_model(self.name, tmp_path, grown)
        np.testing.assert_allclose(again.score(later), model.score(later), atol=1e-6)
        number = grown.number("z9")
        scores = again.score(request(later, [number, 0], later.features[:2], history=[0]))
        assert np.isfinite(scores).all()
        assert np.linalg.norm(again.item_vectors[number]) == pytest.approx(1, abs=1e-5)

    def test_who_is_new_gets_what_everybody_wants(self, model: Model, later: Batch) -> None:
        batch = request(later, later.item[:20], later.features[:20], history=[])
        unknown = request(later, later.item[:20], later.features[:20], history=[-1, 99_999])
        np.testing.assert_array_equal(model.score(batch), model.score(unknown))


class TestTwoTowerWithHead(LearnerSuite, TrainedOnSeveralWorkers):
    """Features beside texts."""

    name = "two_tower"
    settings = {**QUICK, "steps": 5, "head": {"epochs": 12, "width": 32, "vector_size": 8}}

    @pytest.fixture(scope="class")
    @classmethod
    def more_settings(cls, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
        return {"model": str(write_tiny_bert(tmp_path_factory.mktemp("bert")))}

    def test_features_help(
        self, model: Model, make: Callable[..., Learner[Any]], train: Examples, context: Context,
        later: Batch,
    ) -> None:  # fmt: skip
        assert model.requires == later.names
        alone = make(head=None).fit_local(train, context)
        assert alone.requires == ()
        assert NDCG(later)(model.score(later)) > NDCG(later)(alone.score(later)) + 0.02

    def test_tells_how_it_goes(
        self, make: Callable[..., Learner[Any]], train: Examples, context: Context
    ) -> None:
        told: list[tuple[int, float]] = []
        make(steps=4).fit_local(train, context, lambda step, value: told.append((step, value)))
        steps = [step for step, _ in told]
        assert steps[:4] == [1, 2, 3, 4] and len(steps) >= 8
        assert steps == sorted(steps) and told[-1][1] > told[3][1]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"model": "./no/such/folder"}, "no model folder"),
        ({"text": ("titel",)}, "no text column 'titel'"),
        ({"trainable_layers": 0}, "cannot train 0 layers"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], says: str, tmp_path: Path) -> None:
    from tests.synthetic import write_examples

    examples, catalogue = write_examples(tmp_path / "shop", n_requests=40, n_items=30)
    tiny = {"model": str(write_tiny_bert(tmp_path / "bert"))}
    learner = make_learner("two_tower", {**tiny, **settings})
    with pytest.raises(UserError, match=says):
        learner.fit_local(examples, Context(catalogue, tmp_path))


def test_requests_of_one_candidate_teach_the_head_nothing(tmp_path: Path) -> None:
    from tests.synthetic import write_examples

    examples, catalogue = write_examples(tmp_path / "shop", 40, 30, n_candidates=1)
    learner = make_learner("two_tower", {"model": str(write_tiny_bert(tmp_path / "bert"))})
    with pytest.raises(UserError, match="no positive label among the retrieved"):
        learner.fit_local(examples, Context(catalogue, tmp_path))


def test_a_folder_that_holds_no_model_is_a_users_error(tmp_path: Path) -> None:
    from raysys.text.encoder import Encoder

    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot open the model"):
        Encoder.open(str(tmp_path), 16, 1)


@pytest.mark.slow
def test_the_packaged_model_knows_what_goes_together(tmp_path: Path) -> None:
    from tests.synthetic import write_examples

    examples, catalogue = write_examples(tmp_path / "shop", n_requests=60, n_items=40)
    settings = {"steps": 3, "text": ("title", "category")}
    learner = make_learner("two_tower", settings)
    model = learner.fit_local(examples.with_folds(0, 1), Context(catalogue, tmp_path))
    assert isinstance(model, TwoTowerModel)
    milk, cream, soap = model.encode(["whole milk", "skimmed cream", "lavender hand soap"])
    assert milk @ cream > milk @ soap
    assert TwoTowerSettings().model == "all-MiniLM-L6-v2"
