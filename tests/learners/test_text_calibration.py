"""Temperature, calibration error and thresholds against plain counts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raysys.learners.text_calibration import (
    TextCalibration,
    ThresholdSettings,
    calibration_error,
    fit_temperature,
    softmax,
)
from raysys.learners.text_labels import LabelSet

FLAT = LabelSet(("a", "b", "c"))
PATHS = LabelSet(("x > a", "x > b", "y > c", "z"))


def drawn(n: int, k: int, sharpness: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are `sharpness` times too sharp, and labels drawn from the true ones."""
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(n, k)) * 2
    codes = (softmax(true).cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return true * sharpness, codes


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_the_temperature_undoes_what_is_too_sharp(sharpness) -> None:
    logits, codes = drawn(20_000, 3, sharpness, 0)
    assert fit_temperature(logits, codes) == pytest.approx(sharpness, rel=0.05)
    found = TextCalibration.fit(logits, codes, FLAT, ThresholdSettings())
    assert found.error_after < 0.015 and found.error_after <= found.error_before + 0.005


def test_few_right_texts_do_not_make_a_model_certain() -> None:
    logits = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert 0.2 < fit_temperature(logits, np.array([0, 1])) < 1


def test_calibration_error_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [1.0, 0.0]])
    codes = np.array([0, 1, 1, 0])
    # the bins of 0.9 (half right: 0.4 off, two rows), of 0.7 (0.3 off) and of 1 (exact)
    assert calibration_error(probabilities, codes) == pytest.approx((2 * 0.4 + 0.3) / 4)


def test_levels_sum_what_lies_below() -> None:
    top, whole = PATHS.levels
    assert top.nodes == ("x", "y", "z") and whole.nodes == PATHS.names
    share = np.array([[0.1, 0.2, 0.3, 0.4]])
    np.testing.assert_allclose(top.marginal(share), [[0.3, 0.3, 0.4]])
    np.testing.assert_allclose(whole.marginal(share), share)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10_000),
    st.sampled_from(["f1", "precision", "none"]),
    st.floats(0.5, 0.99),
)
def test_thresholds_keep_their_word(seed, choose, precision) -> None:
    logits, codes = drawn(300, 4, 2.0, seed)
    chosen = ThresholdSettings(choose=choose, precision=precision, least=5)
    found = TextCalibration.fit(logits, codes, PATHS, chosen)
    probabilities = found.probabilities(logits)
    said, value = found.given(probabilities, PATHS)
    likeliest = [PATHS.names[at] for at in probabilities.argmax(axis=1)]
    truth = [PATHS.names[at] for at in codes]
    if choose == "none":
        assert said == likeliest
        np.testing.assert_array_equal(value, probabilities.max(axis=1))
    elif choose == "precision":
        for name in set(said) - {None}:
            right = [
                f"{real} > ".startswith(f"{name} > ")
                for label, real in zip(said, truth, strict=True)
                if label == name
            ]
            assert len(right) >= 5 and np.mean(right) >= precision
    else:
        assert macro_f1(said, truth) >= macro_f1(likeliest, truth) - 1e-9
    again = TextCalibration.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False)))
    assert again.given(probabilities, PATHS)[0] == said


def macro_f1(said: list, truth: list) -> float:
    found = []
    for name in set(truth):
        hits = sum(a == b == name for a, b in zip(said, truth, strict=True))
        found.append(2 * hits / (said.count(name) + truth.count(name)))
    return float(np.mean(found))


def test_a_rare_label_is_given_when_it_helps() -> None:
    """One in ten is `b`; it is never the likeliest, yet its probability tells the texts apart."""
    rng = np.random.default_rng(0)
    codes = (rng.random(2000) < 0.1).astype(int)
    share = np.where(codes == 1, rng.uniform(0.2, 0.5, 2000), rng.uniform(0.0, 0.25, 2000))
    logits = np.log(np.stack([1 - share, share], axis=1))
    labels = LabelSet(("a", "b"))
    plain, weighed = (
        TextCalibration.fit(logits, codes, labels, ThresholdSettings(choose=choose), warm=False)
        for choose in ("none", "f1")
    )
    assert set(plain.given(softmax(logits), labels)[0]) == {"a"}
    said = weighed.given(softmax(logits), labels)[0]
    assert macro_f1(said, [labels.names[at] for at in codes]) > 0.9


def test_what_cannot_be_reached_is_never_said() -> None:
    logits = np.zeros((40, 3))
    codes = np.tile([0, 1, 2, 2], 10)
    found = TextCalibration.fit(logits, codes, FLAT, ThresholdSettings(choose="precision"))
    assert found.given(softmax(logits), FLAT)[0] == [None] * 40


def test_no_known_label_leaves_all_as_it_is() -> None:
    logits = np.array([[0.0, 1.0, 2.0]])
    found = TextCalibration.fit(logits, np.array([-1]), FLAT, ThresholdSettings())
    assert found.temperature == 1.0 and found.given(softmax(logits), FLAT)[0] == ["c"]
    assert found.given(np.zeros((0, 3)), FLAT)[0] == []
