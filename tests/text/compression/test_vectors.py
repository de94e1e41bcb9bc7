"""Vectors in fewer bytes come back close to what they were, and new ones join them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from raysys.errors import UserError
from raysys.text.compression.vectors import KINDS, QuantisedVectors, quantise


def some(n: int = 1000, d: int = 24) -> np.ndarray:
    """Unit vectors around a few centres, as those of texts are."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(20, d))[rng.integers(0, 20, n)] + 0.4 * rng.normal(size=(n, d))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "cosine", "share"),
    [("float32", 1, 1), ("float16", 0.99999, 0.5), ("scalar", 0.999, 0.26), ("product", 0.9, 0.35)],
)
def test_they_come_back_close_and_smaller(kind: str, cosine: float, share: float) -> None:
    vectors = some()
    kept = quantise(vectors, kind, parts=6)  # type: ignore[arg-type]
    back = kept.decode()
    assert back.dtype == np.float32 and back.shape == vectors.shape
    near = (back * vectors).sum(1) / np.linalg.norm(back, axis=1)
    assert near.mean() >= cosine - 1e-6
    assert kept.nbytes <= share * vectors.nbytes
    rows = np.array([5, 999, 5])
    assert np.array_equal(kept.decode(rows), back[rows])
    assert kept.decode(rows[:0]).shape == (0, 24)
    again = QuantisedVectors.of(kept.kind, kept.arrays())
    assert np.array_equal(again.decode(), back) and again.width == 24
    assert np.array_equal(kept.encoded(vectors), kept.codes)


@given(arrays(np.float32, (7, 4), elements=st.floats(-4, 4, width=32)))
def test_scalar_errs_by_half_a_step_at_most(vectors: np.ndarray) -> None:
    kept = quantise(vectors, "scalar")
    assert kept.step is not None
    assert (np.abs(kept.decode() - vectors) <= 0.5 * kept.step + 1e-5).all()


def test_few_distinct_sub_vectors_are_kept_exactly() -> None:
    vectors = some(200)
    assert np.array_equal(quantise(vectors, "product", parts=4).decode(), vectors)


def test_new_vectors_join_by_the_same_centres() -> None:
    vectors = some()
    for kind in KINDS:
        kept = quantise(vectors[:700], kind, parts=6)
        grown = kept.with_codes(np.concatenate([kept.codes, kept.encoded(vectors[700:])]))
        back = grown.decode(slice(700, None))
        near = (back * vectors[700:]).sum(1) / np.linalg.norm(back, axis=1)
        assert near.mean() > 0.85


def test_sub_vectors_have_about_eight_numbers() -> None:
    assert quantise(some(300, 32), "product").codes.shape == (300, 4)
    assert quantise(some(300, 27), "product").codes.shape == (300, 3)
    assert quantise(some(300, 5), "product").codes.shape == (300, 1)


@pytest.mark.long
def test_the_same_seed_gives_the_same_codes() -> None:
    one, two = (quantise(some(), "product", parts=6, seed=3) for _ in range(2))
    assert np.array_equal(one.codes, two.codes)


def test_parts_that_do_not_fit_are_told_of() -> None:
    with pytest.raises(UserError, match="5 parts do not divide 24 dimensions"):
        quantise(some(300), "product", parts=5)
    with pytest.raises(UserError, match="choose among float32"):
        quantise(some(10), "binary")  # type: ignore[arg-type]
