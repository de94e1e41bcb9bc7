"""What models say each input added: it must sum to the score, less what all rows share."""

from __future__ import annotations

import lightgbm
import numpy as np
import pytest
import xgboost

from raysys.features.batch import Batch
from raysys.learners.baselines import ColumnModel
from raysys.learners.head import Head
from raysys.learners.lightgbm_ranker import LightGBMModel
from raysys.learners.protocol import Explainable, Model
from raysys.learners.quantile_scale import Scale
from raysys.learners.xgboost_ranker import XGBoostModel

NAMES = ("wanted", "noise", "holes")


@pytest.fixture(scope="module")
def batch() -> Batch:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 3)).astype(np.float32)
    features[::3, 2] = np.nan
    return Batch(
        names=NAMES,
        features=features,
        item=np.arange(300, dtype=np.int32),
        offsets=np.array([0, 300], dtype=np.int64),
        history=[np.empty(0, np.int32)],
        user=np.zeros(1, np.int32),
    )


@pytest.fixture(scope="module")
def models(batch: Batch) -> list[Model]:
    label = batch.features[:, 0] + 0.1 * np.nan_to_num(batch.features[:, 2])
    calm = {"verbosity": -1, "num_threads": 1, "min_data_in_leaf": 5}
    light = lightgbm.train(calm, lightgbm.Dataset(batch.features, label), 12)
    data = xgboost.DMatrix(batch.features, label)
    boosted = xgboost.train({"nthread": 1, "verbosity": 0, "max_depth": 3}, data, 12)
    return [
        LightGBMModel(light.model_to_string(), NAMES),
        XGBoostModel(boosted, NAMES),
        ColumnModel("wanted", -9.0),
    ]


def test_rows_sum_to_their_scores_less_a_common_number(batch: Batch, models: list[Model]) -> None:
    for model in models:
        assert isinstance(model, Explainable)
        names, parts = model.contributions(batch)
        assert names == model.requires and parts.shape == (300, len(names))
        rest = model.score(batch) - parts.sum(axis=1)
        np.testing.assert_allclose(rest, rest[0], atol=2e-4)
        moved = np.abs(parts).mean(axis=0)
        assert moved.argmax() == names.index("wanted")


def test_a_head_s_parts_sum_to_what_it_says_beyond_the_middle() -> None:
    rng = np.random.default_rng(1)

    def layer(n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
        weight = rng.normal(size=(n, m)) / np.sqrt(m)
        return weight.astype(np.float32), rng.normal(size=n).astype(np.float32) * 0.1

    columns = rng.normal(size=(50, 4)).astype(np.float32)
    columns[::4, 1] = np.nan
    items, users = (rng.normal(size=(50, 3)).astype(np.float32) for _ in range(2))
    head = Head(
        *(NAMES, Scale.fit(columns, 0), np.zeros(3, np.float32), np.eye(3, dtype=np.float32)),
        (layer(8, 14), layer(6, 8), layer(1, 6)),
    )
    parts = head.contributions(columns, items, users, steps=64)
    assert parts.shape == (50, 4 + 2)
    values = np.zeros((1, 14))
    for weight, bias in head.layers[:-1]:
        values = values @ weight.T + bias
        values = values / (1 + np.exp(-values))
    middle = (values @ head.layers[-1][0].T + head.layers[-1][1])[0, 0]
    score = head.score(columns, items, users)
    np.testing.assert_allclose(parts.sum(axis=1), score - middle, atol=2e-3)
    assert np.all(np.abs(parts).mean(axis=0) > 1e-3)
