from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from raysys.errors import UserError
from raysys.features.batch import Batch
from raysys.learners.head import (
    Head,
    HeadSettings,
    fit_head,
    standard,
)
from raysys.learners.head_network import HeadNetwork, whitening
from raysys.learners.quantile_scale import Scale


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(0, 40), st.integers(1, 4)),
        elements=st.floats(width=32, allow_nan=True, allow_infinity=True),
    )
)
@settings(deadline=None)  # the first call compiles
def test_any_columns_become_small_numbers(values: np.ndarray) -> None:
    scaled = Scale.fit(values, seed=0)(values)
    assert scaled.shape == (len(values), 2 * values.shape[1]) and scaled.dtype == np.float32
    assert np.isfinite(scaled).all() and (np.abs(scaled) <= 2).all()
    np.testing.assert_array_equal(scaled[:, values.shape[1] :], ~np.isfinite(values))


def test_scaling_is_interpolation_to_the_last_bit() -> None:
    rng = np.random.default_rng(2)
    values = np.round(rng.normal(size=(900, 5)), 2).astype(np.float32)
    values[::7, 3] = np.nan
    values[:, 4] = 3
    scale = Scale.fit(values, seed=0)
    given = np.concatenate([values * 1.1, values])
    scaled = scale(given)
    for at, knots in enumerate(scale.knots[:4]):
        place = np.linspace(-1.7, 1.7, len(knots))
        known = np.isfinite(given[:, at])
        expected = np.interp(given[known, at], knots, place).astype(np.float32)
        np.testing.assert_array_equal(scaled[known, at], expected)
    np.testing.assert_array_equal(scale(np.asfortranarray(given)), scaled)


def test_scaling_keeps_the_order_and_knows_the_unknown() -> None:
    rng = np.random.default_rng(0)
    values = np.stack([np.exp(rng.normal(0, 3, 5000)), np.full(5000, 7.0)], 1).astype(np.float32)
    values[::10, 0] = np.nan
    scale = Scale.fit(values, seed=0)
    scaled = scale(values)
    known = np.isfinite(values[:, 0])
    order = np.argsort(values[known, 0])
    assert (np.diff(scaled[known, 0][order]) >= 0).all()
    assert abs(scaled[known, 0].mean()) < 0.05 and abs(scaled[known, 0].std() - 1) < 0.05
    assert (scaled[~known, 0] == 0).all() and (scaled[:, 1] == 0).all()
    beyond = scale(np.array([[1e30, 7.0], [-1e30, 7.0]], np.float32))
    assert beyond[0, 0] == scaled[:, 0].max() and beyond[1, 0] == scaled[:, 0].min()


def test_numpy_scores_as_torch_does() -> None:
    """What is served is the network that was fitted."""
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(50, 16)).astype(np.float32)
    center = vectors.mean(0)
    vectors_ = standard(vectors, center)
    columns = rng.normal(size=(30, 3)).astype(np.float32)
    scale = Scale.fit(columns, seed=0)
    torch.manual_seed(0)
    network = HeadNetwork(6, whitening(vectors_, 8), width=12, dropout=0.2).eval()
    codes, request = rng.integers(0, 50, 30), np.repeat([0, 1], 15)
    users = vectors_[:2]
    with torch.no_grad():
        wide = torch.from_numpy(scale(columns))
        texts, text = torch.from_numpy(vectors_), torch.from_numpy(codes)
        expected = network(wide, texts, text, torch.from_numpy(users), torch.from_numpy(request))
    state = {name: each.numpy() for name, each in network.state_dict().items()}
    layers = tuple((state[f"body.{at}.weight"], state[f"body.{at}.bias"]) for at in (0, 3, 6))
    head = Head(("a", "b"), scale, center, state["project.weight"], layers)
    again = Head.of(("a", "b"), head.arrays())
    projected = again.projected(vectors)
    found = again.score(columns, projected[codes], projected[:2][request])
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_whitened_vectors_have_no_main_direction() -> None:
    rng = np.random.default_rng(2)
    vectors = (rng.normal(size=(400, 6)) * [9, 5, 1, 0.1, 0, 0]).astype(np.float32)
    vectors -= vectors.mean(0)
    white = vectors @ whitening(vectors, 5).T
    assert white.shape[1] == 4  # two directions hold nothing
    np.testing.assert_allclose(np.cov(white.T), np.eye(4), atol=0.02)


@pytest.mark.parametrize("correct", [True, False])
def test_what_is_drawn_often_is_not_scored_low_for_it(correct: bool) -> None:
    """Every item is wanted equally often; half are drawn as negatives nine times as often."""
    rng = np.random.default_rng(3)
    n_items, n_requests, chance = 20, 400, np.tile([0.9, 0.1], 10)
    vectors = standard(np.eye(n_items, dtype=np.float32), np.zeros(n_items, np.float32))
    items, drawn, labels, sizes = [], [], [], []
    for _ in range(n_requests):
        wanted = rng.integers(n_items)
        negatives = np.flatnonzero(rng.random(n_items) < chance)
        negatives = negatives[negatives != wanted]
        items += [wanted, *negatives]
        labels += [1.0, *np.zeros(len(negatives))]
        drawn += [1.0, *chance[negatives]]
        sizes.append(1 + len(negatives))
    item = np.array(items, np.int32)
    batch = Batch(
        names=("nothing",),
        features=np.zeros((len(item), 1), np.float32),
        item=item,
        offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        history=[np.empty(0, np.int32)] * n_requests,
        user=np.zeros(n_requests, np.int32),
        label=np.array(labels, np.float32),
        weight=np.ones(len(item), np.float32),
        sampling_probability=np.array(drawn, np.float32),
    )
    head = fit_head(
        *(batch, np.zeros(len(item), np.float32), item, vectors),
        np.zeros((n_requests, n_items), np.float32),
        np.zeros(n_items, np.float32),
        HeadSettings(width=16, dropout=0, vector_size=20, correct_sampling=correct),
        **{"steps": 150, "seed": 0, "device": torch.device("cpu")},
    )
    columns = np.zeros((n_items, 2), np.float32)
    projected = head.projected(vectors)
    score = head.score(columns, projected, np.zeros_like(projected))
    often, seldom = score[chance > 0.5].mean(), score[chance < 0.5].mean()
    assert abs(seldom - often) < 0.5 if correct else seldom - often > 1.5


def test_a_head_reads_what_it_is_told_to() -> None:
    batch = Batch(
        names=("price", "position", "rate"),
        features=np.array([[1, 2, 3], [4, 5, 6]], np.float32),
        item=np.arange(2, dtype=np.int32),
        offsets=np.array([0, 2]),
        history=[np.empty(0, np.int32)],
        user=np.zeros(1, np.int32),
    )
    read = HeadSettings(exclude=("pos*",)).read(batch)
    assert read.names == ("price", "rate") and read.features.tolist() == [[1, 3], [4, 6]]
    assert HeadSettings().read(batch).names == batch.names
    with pytest.raises(UserError, match="no feature 'postion'; did you mean 'position'"):
        HeadSettings(exclude=("postion",)).read(batch)


@pytest.mark.parametrize(("dropout", "kept"), [(0.0, 1.0), (0.2, 0.8), (0.999, 1 / 256)])
def test_dropout_leaves_out_its_share_and_keeps_the_mean(dropout: float, kept: float) -> None:
    torch.manual_seed(0)
    network = HeadNetwork(6, np.eye(4, dtype=np.float32), 12, dropout)
    layer = network.body[2]
    found = layer.train()(torch.ones(400, 500))
    assert float((found > 0).float().mean()) == pytest.approx(kept, abs=0.01)
    assert float(found.mean()) == pytest.approx(1, abs=0.15)
    assert torch.equal(layer.eval()(torch.ones(3, 2)), torch.ones(3, 2))
