"""Trees as arrays say what their library says, to the last bit."""

from __future__ import annotations

from typing import Any

import lightgbm
import numpy as np
import pytest
import xgboost

from raysys.learners.forest import Forest, forest_of, of_lightgbm, of_xgboost
from raysys.learners.lightgbm_ranker import LightGBMModel
from raysys.learners.xgboost_ranker import XGBoostModel

WIDTH = 6
NAMES = tuple(f"f{number}" for number in range(WIDTH))


def rows_of(n: int, seed: int) -> np.ndarray:
    """float32[n, WIDTH] of all kinds of values: unknown, infinite, nearly nothing, equal ones."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(0, 1, (n, WIDTH)).astype(np.float32)
    rows[:, 1] = rng.integers(0, 4, n)
    rows[:, 2] = rng.lognormal(0, 3, n)
    for value in (np.nan, 0.0, -0.0, 1e-36, -1e-36, 1e-44, np.inf, -np.inf):
        rows[rng.random(rows.shape) < 0.03, ...] = np.float32(value)
    return rows


@pytest.fixture(scope="module")
def fitted() -> dict[str, Any]:
    """A model of each library, fitted on the same lists, some values unknown."""
    rows = rows_of(2000, 1)
    rows[~np.isfinite(rows) & ~np.isnan(rows)] = 9.0
    wanted = np.nan_to_num(rows[:, 0]) + (rows[:, 1] == 2) - np.isnan(rows[:, 3]) > 0.7
    groups = np.full(100, 20)
    params = {"objective": "lambdarank", "num_leaves": 15, "verbosity": -1, "min_data_in_leaf": 5}
    data = lightgbm.Dataset(rows, label=wanted, group=groups)
    trees = lightgbm.train({**params, "seed": 1}, data, 25)
    matrix = xgboost.DMatrix(rows, label=wanted, group=groups)
    params = {"objective": "rank:ndcg", "max_depth": 5, "nthread": 1, "ndcg_exp_gain": False}
    return {"lightgbm": trees, "xgboost": xgboost.train(params, matrix, 25)}


def test_lightgbm_to_the_last_bit(fitted: dict[str, Any]) -> None:
    model = LightGBMModel(fitted["lightgbm"].model_to_string(), NAMES)
    assert isinstance(model.forest, Forest) and len(model.forest.roots) == 25
    for n in (1, 100, 300):
        rows = rows_of(n, n)
        theirs = model.booster.predict(rows, raw_score=True, num_threads=1)
        assert model.predict(rows).tolist() == theirs.tolist()


def test_xgboost_to_the_last_bit(fitted: dict[str, Any]) -> None:
    model = XGBoostModel(fitted["xgboost"], NAMES)
    assert isinstance(model.forest, Forest) and len(model.forest.roots) == 25
    for n in (1, 100, 300):
        rows = rows_of(n, n)
        rows[np.isinf(rows)] = 7.0  # the library takes none
        theirs = fitted["xgboost"].inplace_predict(rows, predict_type="margin")
        assert model.predict(rows).tolist() == theirs.tolist()


def test_categories_are_left_to_the_library() -> None:
    rows = rows_of(400, 3)
    rows[:, 1] = np.arange(400) % 4
    wanted = np.isin(rows[:, 1], (0, 3)).astype(float)
    params = {"objective": "regression", "verbosity": -1, "min_data_in_leaf": 5}
    data = lightgbm.Dataset(rows, label=wanted, categorical_feature=[1])
    text = lightgbm.train(params, data, 3).model_to_string()
    assert "num_cat=1" in text and of_lightgbm(text) is None
    model = LightGBMModel(text, NAMES)
    assert model.forest is None and len(model.predict(rows)) == 400


def test_trees_of_one_leaf(fitted: dict[str, Any]) -> None:
    rows = rows_of(50, 4)
    data = lightgbm.Dataset(np.zeros((50, WIDTH)), label=np.arange(50.0))
    text = lightgbm.train({"objective": "regression", "verbosity": -1}, data, 2).model_to_string()
    forest = of_lightgbm(text)
    assert forest is not None
    theirs = lightgbm.Booster(model_str=text).predict(rows, raw_score=True)
    assert forest.score(rows).tolist() == theirs.tolist()


def test_what_does_not_agree_is_not_used(fitted: dict[str, Any]) -> None:
    content = bytes(fitted["xgboost"].save_raw("json"))
    right = fitted["xgboost"]

    def theirs(rows: np.ndarray) -> np.ndarray:
        return np.asarray(right.inplace_predict(rows, predict_type="margin"))

    assert forest_of(lambda: of_xgboost(content), theirs) is not None
    assert forest_of(lambda: of_xgboost(content), lambda rows: theirs(rows) * 2) is None
    assert forest_of(lambda: of_xgboost(b"{}"), theirs) is None


def test_rows_of_another_width(fitted: dict[str, Any]) -> None:
    forest = of_lightgbm(fitted["lightgbm"].model_to_string())
    assert forest is not None
    with pytest.raises(ValueError, match="6 columns"):
        forest.score(np.zeros((3, WIDTH - 1), np.float32))
    assert len(forest.score(np.zeros((0, WIDTH), np.float32))) == 0
