from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from raysys.errors import UserError
from raysys.features.batch import Batch
from raysys.features.position_bias import PositionBiasSettings, estimate_propensities
from raysys.features.simulate import SimulationSettings, simulate_log, simulate_shop
from raysys.learners import make_learner
from raysys.learners.shown import in_shown_order, one_list_a_click
from raysys.learners.trees import Machine
from raysys.learners.validation import NDCG
from raysys.learners.xgboost_ranker import XGBoostRanker, XGBoostSettings

NAN = float("nan")


def batch(positions: list[list[float]], labels: list[list[float]]) -> Batch:
    sizes = [len(request) for request in positions]
    n = sum(sizes)
    position = np.concatenate([np.array(p, np.float32) for p in positions])
    return Batch(
        names=("number", "position"),
        features=np.stack([np.arange(n, dtype=np.float32), position], axis=1),
        item=np.arange(n, dtype=np.int32),
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        history=[np.empty(0, np.int32)] * len(sizes),
        user=np.zeros(len(sizes), np.int32),
        label=np.concatenate([np.array(x, np.float32) for x in labels]),
        weight=np.ones(n, np.float32),
    )


def test_rows_come_in_shown_order_up_to_the_first_gap():
    positions = [[2, 3, 1], [1, NAN, 3], [2, 3], [NAN, 1, 2]]
    given = batch(positions, [[0, 1, 0], [0, 1, 0], [1, 0], [1, 0, 1]])
    shown = in_shown_order(given, "position", where="x")
    assert shown.item.tolist() == [2, 0, 1, 3, 9, 10]
    assert shown.sizes.tolist() == [3, 1, 0, 2]
    assert shown.label.tolist() == [0, 0, 1, 0, 0, 1]
    np.testing.assert_array_equal(shown.features[:, 0], shown.item)


def test_every_click_gets_a_list_with_its_weight():
    given = batch([[1, 2, 3], [1, 2]], [[1, 0, 2], [0, 0]])
    lists = one_list_a_click(given, np.array([1, 9, 4, 9, 9], np.float32))
    assert lists.item.tolist() == [0, 1, 2, 0, 1, 2]
    assert lists.label.tolist() == [1, 0, 0, 0, 0, 2]
    assert lists.weight.tolist() == [1, 1, 1, 4, 4, 4]
    assert lists.offsets.tolist() == [0, 3, 6]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unbiased": True}, "candidates to 0"),
        ({"unbiased": True, "candidates": 0, "propensities": [1, 0.5]}, "one of them"),
        ({"propensities": [1, 0]}, "greater than 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        make_learner("xgboost_ranker", settings)


def fit(given: Batch, **settings) -> Batch:
    how = XGBoostSettings(
        **{"candidates": 0, "n_estimators": 30, "max_depth": 4, "learning_rate": 0.15, **settings}
    )
    return XGBoostRanker.train_booster(how, given, None, seed=0, machine=Machine(threads=1))


@pytest.mark.parametrize("how", [{"unbiased": True}, {"propensities": (1.0, 0.5)}])
def test_a_log_without_positions_is_a_users_error(how):
    nowhere = batch([[NAN, NAN]], [[1, 0]])
    bare = Batch(**{**vars(nowhere), "names": ("number", "place")})
    with pytest.raises(UserError, match="no feature 'position'"):
        fit(bare, **how)
    if "unbiased" in how:
        with pytest.raises(UserError, match="whose 'position' is 1"):
            fit(nowhere, **how)


@pytest.fixture(scope="module")
def biased():
    """A shop whose rankers are wrong, clicks with strong bias, and other queries to judge on."""
    how = SimulationSettings(queries=600, requests=20, eta=1.5, skill=0.3, positions=10)
    both = simulate_shop(how, 0)
    shop, fresh = both.queries(0, 300), both.queries(300, 600)
    log = simulate_log(shop, how, 0)
    return log, log.batch(shop), fresh.batch()


@pytest.mark.long
def test_debiased_trees_rank_better_than_naive_ones(biased):
    log, clicks, fresh = biased
    judge = NDCG(fresh)
    found = estimate_propensities(
        *(log.query, log.item, log.position, log.click), PositionBiasSettings(resamples=0)
    )
    naive = fit(clicks, exclude=("position",))
    unbiased = fit(clicks, unbiased=True)
    weighted = fit(clicks, propensities=tuple(found.value))
    for model in (naive, unbiased, weighted):
        assert "position" not in model.requires
    base = judge(naive.score(fresh))
    assert judge(unbiased.score(fresh)) > base + 0.005
    assert judge(weighted.score(fresh)) > base + 0.005


@pytest.mark.long
def test_the_library_learns_which_positions_lose_clicks(biased):
    """XGBoost's own factors fall with the position: the option is really on, rows are in order."""
    import xgboost

    _, clicks, _ = biased
    shuffled = np.random.default_rng(0).permuted(np.arange(len(clicks)).reshape(-1, 10), axis=1)
    rows = shuffled.ravel()
    mixed = Batch(
        **{
            **vars(clicks),
            **{n: getattr(clicks, n)[rows] for n in ("features", "item", "label", "weight")},
        }
    )
    one, two = fit(clicks, unbiased=True), fit(mixed, unbiased=True)
    assert one.booster.save_raw("json") == two.booster.save_raw("json")
    shown = in_shown_order(clicks, "position", where="x")
    data = xgboost.DMatrix(shown.features[:, :-1], shown.label, group=shown.sizes)
    params = {"objective": "rank:ndcg", "lambdarank_unbiased": True, "ndcg_exp_gain": False,
              "lambdarank_num_pair_per_sample": 10, "lambdarank_pair_method": "topk"}  # fmt: skip
    config = json.loads(xgboost.train(params, data, 30).save_config())
    factors = np.array(config["learner"]["objective"]["ti+"], dtype=float)
    assert factors[0] == 1 and factors[1:].max() < 0.6 and factors[4:].max() < 0.4


@pytest.mark.long
def test_defaults_are_as_they_were(biased, tmp_path: Path):
    _, clicks, fresh = biased
    plain = fit(clicks)
    assert plain.requires[-1] == "position"  # just a column, unless an option reads it
    again = fit(clicks, bias_norm=3.0, clip=2.0)
    np.testing.assert_array_equal(
        plain.score(with_position(fresh)), again.score(with_position(fresh))
    )


def with_position(given: Batch) -> Batch:
    column = np.ones((len(given), 1), np.float32)
    return Batch(
        **{
            **vars(given),
            "names": (*given.names, "position"),
            "features": np.hstack([given.features, column]),
        }
    )
