"""Out-of-fold by time: nobody scores what they, or anything later, were fitted on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from raysys.catalogue import Catalogue
from raysys.config import Settings
from raysys.ensemble.folds import (
    BaseScores,
    base_score,
    fit_forward,
    forward_folds,
    score_forward,
)
from raysys.errors import UserError
from raysys.features.batch import Batch
from raysys.features.examples import Examples
from raysys.learners.protocol import Context, Learner, Model
from tests.synthetic import write_examples


class Witness(Model):
    """Says which requests it was fitted on, and scores by one feature."""

    def __init__(self, requests: np.ndarray, last: int) -> None:
        self.requests = requests
        self.last = last
        self.scored: list[np.ndarray] = []

    def score(self, batch: Batch) -> np.ndarray:
        assert batch.request is not None
        self.scored.append(batch.request)
        return batch.column("item_purchases_28d")

    def save(self, folder: Path) -> None:
        np.save(folder / "requests.npy", self.requests)

    @classmethod
    def load(cls, folder: Path, catalogue: Catalogue) -> Witness:
        requests = np.load(folder / "requests.npy")
        return cls(requests, int(requests.max()))


class WitnessLearner(Learner[Settings]):
    name = "witness"
    family = "baseline"
    settings_model = Settings
    model_class = Witness

    def fit(self, examples: Examples, context: Context) -> Model:
        requests = examples.batch().request
        assert requests is not None
        return Witness(requests, int(requests.max()))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Examples, Catalogue]:
    return write_examples(tmp_path_factory.mktemp("features"), n_requests=80)


def test_no_row_is_scored_by_a_model_that_saw_it(
    shop: tuple[Examples, Catalogue], tmp_path: Path
) -> None:
    examples, catalogue = shop
    models = fit_forward(
        WitnessLearner(Settings()), forward_folds(examples, 2), Context(catalogue, tmp_path)
    )
    scores = score_forward({"witness": models}, examples)
    assert sorted(models) == [1, 2]
    for fold, model in models.items():
        assert isinstance(model, Witness)
        (scored,) = model.scored
        assert not set(scored) & set(model.requests)
        assert model.last < scored.min()  # not one later moment either
        assert set(scored) == set(examples.with_folds(fold).requests()["request"].to_pylist())
    assert scores.folds == (1, 2)


def test_a_fold_cannot_score_itself(shop: tuple[Examples, Catalogue], tmp_path: Path) -> None:
    examples, catalogue = shop
    with pytest.raises(ValueError, match="fold 1"):
        fit_forward(
            WitnessLearner(Settings()),
            {1: examples.with_folds(0, 1)},
            Context(catalogue, tmp_path),
        )


def test_there_must_be_an_earlier_fold(shop: tuple[Examples, Catalogue]) -> None:
    with pytest.raises(UserError, match="out-of-fold"):
        forward_folds(shop[0], 0)


def test_base_scores_come_back_as_they_were(
    shop: tuple[Examples, Catalogue], tmp_path: Path
) -> None:
    examples, catalogue = shop
    models = fit_forward(
        WitnessLearner(Settings()), forward_folds(examples, 2), Context(catalogue, tmp_path)
    )
    scores = score_forward({"witness": models, "twin": models}, examples)
    scores.write(tmp_path / "base")
    again = BaseScores.read(tmp_path / "base", examples.with_folds(1, 2))
    assert list(again.base) == ["witness", "twin"]
    for name in ("request", "fold", "offsets", "label"):
        assert np.array_equal(getattr(again, name), getattr(scores, name)), name
    assert np.array_equal(again.judgements.item, scores.judgements.item)
    assert np.array_equal(again.judgements.n_relevant, scores.judgements.n_relevant)
    assert np.array_equal(again.base["twin"], scores.base["witness"])
    with pytest.raises(UserError, match="fold=3"):
        BaseScores.read(tmp_path / "base", examples.with_folds(3))


def test_taking_requests_keeps_rows_together(
    shop: tuple[Examples, Catalogue], tmp_path: Path
) -> None:
    examples, _ = shop
    batch = examples.with_folds(1).batch()
    scores = BaseScores.of(batch, 1, {"x": np.arange(len(batch), dtype=np.float32)})
    part = scores.take(np.array([5, 2]))
    rows = np.r_[batch.offsets[5] : batch.offsets[6], batch.offsets[2] : batch.offsets[3]]
    assert np.array_equal(part.base["x"], rows)
    assert np.array_equal(part.judgements.item, batch.item[rows])
    assert part.request.tolist() == [batch.request[5], batch.request[2]]  # type: ignore[index]


def test_a_learner_that_gives_nonsense_is_named(shop: tuple[Examples, Catalogue]) -> None:
    class Broken(Witness):
        def score(self, batch: Batch) -> np.ndarray:
            return np.full(len(batch), np.nan, np.float32)

    batch = shop[0].with_folds(1).batch()
    with pytest.raises(ValueError, match="broken gave scores that are not finite"):
        base_score("broken", Broken(np.zeros(1), 0), batch)
